//! A volume's stream between two hosts, without the I/O.
//!
//! What a backend sends travels as *frames*: a frame holds at most [`RAW_CAP`] bytes, plain or
//! compressed, and the last one says that the stream is whole. A body that ends without it was
//! cut, whatever the connection says. The sender keeps the newest frames in a [`Replay`] ring,
//! so that a stream that was cut goes on where the receiver stopped.
//!
//! | module | decides |
//! |---|---|
//! | [`frame`] | how a stream becomes bytes on the wire, and which bytes are a stream |
//! | [`replay`] | which frames can be sent again |
//! | [`compression`] | whether the next frame is compressed |
//! | [`link`] | whether a connection that stands still is dead |

pub mod compression;
pub mod frame;
pub mod link;
pub mod replay;

pub use compression::{Attempt, Compression, Sample};
pub use frame::{Decoder, Encoding, Frame, FrameError, RAW_CAP};
pub use link::Reading;
pub use replay::{At, Replay};

/// So many bytes of frames a sender keeps for a stream that is cut.
pub const RING: usize = 64 << 20;
