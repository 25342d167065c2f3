//! What `proxyd` decides, without doing any of it: no socket, no clock, no task.
//!
//! | module | decides |
//! |---|---|
//! | [`table`] | which routes there are and what each of them does with connections |
//! | [`gate`] | the verbs of a handoff: prepare, drain, freeze, commit, rollback |
//! | [`way`] | where one connection goes, from a client or from a trunk |
//! | [`mod@line`] | in which order held connections try the application, and how many at once |
//! | [`limits`] | whether another connection may be accepted |
//! | [`sources`] | whether a client address gets another connection |
//! | [`reload`] | which sockets other routes or addresses open and close |
//! | [`retry`] | how long to wait between tries and how long one try may take |
//! | [`http`] | where requests and responses begin and end |
//! | [`gait`] | by which means a relay moves its next bytes |
//! | [`announce`] | who a client is, as a proxy in front says it, and as an application is told |
//! | [`fast`] | which routes the kernel carries, and what has to change there |
//! | [`drain`] | which connections a drain closes and when it is over |
//! | [`tally`] | what the verbs count |
//! | [`saved`] | the table as it is kept on disk: a journal of what changed |
//! | [`handover`] | what a proxy and its successor say, and what each may do when |
//!
//! Two rules hold whatever is called in whatever order: a route's version never goes back,
//! and a verb that is repeated changes nothing.

#![forbid(unsafe_code)]

pub mod announce;
pub mod drain;
pub mod fast;
pub mod gait;
pub mod gate;
pub mod handover;
pub mod http;
pub mod limits;
pub mod line;
pub mod reload;
pub mod retry;
pub mod saved;
pub mod sources;
pub mod table;
pub mod tally;
pub mod way;
