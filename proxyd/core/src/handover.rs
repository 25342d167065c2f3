//! How one `proxyd` hands over to its successor: what they say, and what each may do when.
//!
//! ```text
//!   predecessor (giver)                                  successor (taker)
//!        | <------------------------------------- Hello ---- |
//!        | ---- Hello -------------------------------------> |  terms: the older of both
//!        | ---- Batch: table, listening sockets -----------> |
//!        | <--------------------------------------- Ack ---- |  it holds them
//!        | ---- Equipped ----------------------------------> |  it builds itself of them
//!        | <------------------------------------- Ready ---- |
//!   stops accepting
//!        | ---- Batch: counts; Ack; Go --------------------> |  accepts from now on
//!   stops a few connections
//!        | ---- Batch: held clients, relays ---------------> |
//!        | <--------------------------------------- Ack ---- |  it holds them, touches nothing
//!        | ---- Release -----------------------------------> |  they are its own now
//!        |                     ... again and again           |
//!        | ---- End ---------------------------------------> |
//!        | <----------------------------------- Serving ---- |  it answers requests too
//! ```
//!
//! Invariants, whatever fails when: a connection is passed on by one side at most; what was not
//! released is the giver's while that lives; after the end exactly one side accepts. They rest on
//! this: the socket between them is ordered and loses nothing, and a giver ends its taker before
//! it takes anything back. So a taker that hears the end of the socket after `Go` and still lives
//! knows that its giver does not: what it holds by then is its own. Of a silence it learns nothing.

mod batch;
mod giver;
mod message;
mod part;
mod table;
mod taker;
#[cfg(test)]
mod tests;

pub use batch::{BatchError, MOST_BYTES, MOST_DESCRIPTORS, Packed, Packer, Unpacked, unpack};
pub use giver::{Giver, Heard};
pub use message::{
    Batch, Broken, Disagreement, End, Hello, Message, OLDEST, PROTOCOL, Refusal, Terms, decode,
    encode,
};
pub use part::{
    Bytes, Coming, Counts, Goodbye, Half, Held, Identity, Newcomer, Origin, Part, PartId, Relay,
    Rest, Socket, Upstream,
};
pub use table::{TableError, table_bytes, table_of};
pub use taker::{Fate, Taker, ToDo};
