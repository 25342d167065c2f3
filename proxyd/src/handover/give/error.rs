//! Why nothing, or not everything, was handed over.

use std::io;

use proxyd_core::handover::{BatchError, Broken, TableError};

use super::super::channel::ChannelError;
use super::super::process::StartError;
use crate::{Stopping, Trouble};

/// Why a handover failed. Everything goes on as before, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum GiveError {
    /// One at a time.
    #[error("another handover is under way")]
    UnderWay,
    /// One at a time, here too.
    #[error("the process before this one has not ended; see what keeps it, and ask again")]
    Behind,
    /// No successor.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The way to it broke, or it said what it must not.
    #[error("the successor did not take over; this process goes on")]
    Lost(#[source] ChannelError),
    /// The same, after it had begun to take over.
    #[error(
        "the successor ended, and with it {lost} connections that were its own and whoever it had \
         accepted; this process goes on with the others"
    )]
    LostSome {
        /// How many had gone over.
        lost: u64,
        /// The cause.
        #[source]
        source: Box<GiveError>,
    },
    /// What it said does not fit.
    #[error("the successor cannot take over; this process goes on")]
    Broken(#[from] Broken),
    /// The routes do not go over.
    #[error("the routes cannot be handed over; this process goes on")]
    Table(#[from] TableError),
    /// A batch could not be made.
    #[error("a batch cannot be made; this process goes on")]
    Batch(#[from] BatchError),
    /// No memory or descriptor for a batch.
    #[error("there is no room for a batch; this process goes on")]
    Room(#[source] io::Error),
    /// It failed, and the successor may live.
    #[error("the successor cannot be ended: what it has is its own, and this process ends")]
    Lives(#[source] io::Error),
    /// The successor is of a version that would not know of it.
    #[error("the fast path cannot be taken from the kernel; this process goes on")]
    FastPath(#[from] Trouble),
    /// A port would not stop.
    #[error("a port does not stop accepting; this process goes on")]
    Accepts,
    /// This process stops.
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

impl From<ChannelError> for GiveError {
    fn from(error: ChannelError) -> Self {
        Self::Lost(error)
    }
}
