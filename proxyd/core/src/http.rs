//! Where the requests and responses of an HTTP/1.1 connection begin and end.
//!
//! Nothing here keeps, changes or moves bytes: it is shown what comes from either side and says how
//! much of it belongs to the request in flight and its response. Between two requests a connection
//! is at a *boundary*: there its other half can be another one, and nobody notices.
//!
//! Invariant: what is said does not depend on the pieces in which bytes come. Whatever could be read
//! in more than one way is *foreign*, and so is all that follows it: the connection is then passed
//! on as it is, which is possible at any byte.
//!
//! | module | reads |
//! |---|---|
//! | [`head`] | the head of a request or a response, by `httparse` |
//! | [`body`] | how far a body goes |
//! | [`flight`] | a request and its response, from the boundary before to the one after |

pub mod body;
pub mod flight;
pub mod head;
#[cfg(test)]
mod tests;

pub use body::{Body, Eaten, Progress};
pub use flight::{After, Flight, Taken, Then};
pub use head::{HEAD_CAP, Head, Reply, Request};
