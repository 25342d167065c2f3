//! The relays of TCP connections, beside each other: ours and those that a user would install.
//!
//! ```text
//! plan ──▶ run ──▶ trial, PID 1 of namespaces of its own, with all that follows
//!                    ├── network: client ══veth══ relay ══veth══ server
//!                    ├── contender: one of the relays (or none), its configuration
//!                    ├── control: what that is told while it runs
//!                    ├── serve: the server; load: the clients
//!                    └── meter: what all that cost
//!          record (JSON) ◀── figures
//!             ├──▶ report (Markdown): goals
//!             └──▶ plot (SVG)
//! ```
//!
//! Every trial is one contender in one scene, in fresh namespaces: nothing of an earlier one is
//! left, neither sockets that wait for their end nor memory. The namespaces have no names, and
//! their first process dies with the command that runs them, so that nothing is left of a run
//! that was killed, and two runs do not know of each other.

pub mod agent;
pub mod contender;
pub mod control;
pub mod figures;
pub mod goals;
pub mod load;
pub mod meter;
pub mod network;
pub mod plan;
pub mod plot;
pub mod processors;
pub mod record;
pub mod report;
pub mod role;
pub mod run;
pub mod serve;
pub mod trial;
