//! Streams of volumes between hosts: framed, compressed where it is worth it, held to a rate, and
//! taken up again after a cut. What is decided is [`migrated_core::stream`]'s.
//!
//! ```text
//! source                                            destination
//! btrfs send → Outgoing → frames → Metered → PUT ─► Intake → Arrivals → btrfs receive
//!                 └ ring: sent again ◄─ GET: how much arrived? ─┘ waits 30 s for the next PUT
//! ```
//!
//! A stream outlives its connections on both sides. Whether it is whole is said by its last
//! frame, never by the end of a connection.

mod bucket;
mod incoming;
mod meter;
mod outgoing;
mod sending;
#[cfg(test)]
mod tests;
mod zstd;

pub use bucket::Bucket;
pub use incoming::{Arrivals, FeedError, GRACE, Intake};
pub use meter::{Meter, Metered, Wire};
pub use outgoing::{FillError, Outgoing};
pub use sending::{Lane, SendError};
