//! What every contender can do.

use std::net::SocketAddr;

use crate::window::record::Moved;

/// The host that a store begins on.
pub const SOURCE: usize = 1;
/// The host that it moves to.
pub const DESTINATION: usize = 2;
/// The host of the front: where clients connect, whatever serves them.
pub const FRONT: usize = 3;

/// A way to move a store, on a lab.
pub trait Mover {
    /// Starts an empty store on the source; answers where clients reach it.
    ///
    /// # Errors
    /// When it does not start.
    fn open(&mut self) -> anyhow::Result<SocketAddr>;

    /// Writes back what is dirty on the source, so that no contender begins with more of it.
    ///
    /// # Errors
    /// When it cannot.
    fn settle(&mut self) -> anyhow::Result<()>;

    /// Moves it to the destination.
    ///
    /// # Errors
    /// When nothing can be said of the move. A move that was called off is no error.
    fn go(&mut self) -> anyhow::Result<Moved>;

    /// Stops it and removes what is in the way of the next one.
    ///
    /// # Errors
    /// When it cannot.
    fn close(&mut self) -> anyhow::Result<()>;
}
