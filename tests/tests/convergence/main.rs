//! When a move cuts over and when it does not, and several moves at once: on labs of plain
//! processes, each test on one of its own.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "only JSON documents are indexed, in which what is absent is null"
)]

mod busy;
mod cap;
mod drain;
mod prediction;
mod several;
mod stall;
mod writer;
