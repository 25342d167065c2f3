//! One side of a connection: a socket, or TLS over one. Both are used alike; what a socket alone
//! can do (splice, go to another process) is asked of [`Leg::plain`].
//!
//! All ends are told apart on both: an end of one direction, which the other side may still follow
//! with bytes of its own, and a reset. Over TLS an end is said by an alert; without one it is a
//! reset, because anybody on the way can make the socket end.

mod sealed;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::net::TcpStream as Plain;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::socket::{finish_sending, reset_on_drop};
pub(crate) use sealed::Sealed;

/// One side of a connection. Dropping it ends both directions, politely unless
/// [`Leg::reset_on_drop`] was asked for, or something is not sent.
#[derive(Debug)]
pub(crate) enum Leg {
    Plain(TcpStream),
    /// Boxed: it is large, and most are not.
    Sealed(Box<Sealed>),
}

impl From<TcpStream> for Leg {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl From<Box<Sealed>> for Leg {
    fn from(sealed: Box<Sealed>) -> Self {
        Self::Sealed(sealed)
    }
}

impl Leg {
    /// The socket, where it carries the bytes as they are.
    pub(crate) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Sealed(_) => None,
        }
    }

    /// The socket, for what is asked of it whatever it carries.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Sealed(sealed) => sealed.socket(),
        }
    }

    /// Waits for bytes, an end or an error. One task at a time.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_read_ready(cx),
            Self::Sealed(sealed) => sealed.poll_read_ready(cx),
        }
    }

    /// Waits for room. One task at a time, which is also the one that [`Leg::poll_flush`] has.
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_write_ready(cx),
            Self::Sealed(sealed) => sealed.poll_write_ready(cx),
        }
    }

    /// Reads what is there; zero is the end.
    pub(crate) fn try_read(&self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read(space),
            Self::Sealed(sealed) => sealed.try_read(space),
        }
    }

    /// Takes as much as finds room. Over TLS it may wait here: [`Leg::poll_flush`] sends it.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Sealed(sealed) => sealed.try_write(bytes),
        }
    }

    /// Sends what was taken, and the end if that was said, as far as to the kernel.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Sealed(sealed) => sealed.poll_flush(cx),
        }
    }

    /// Sends what was taken and then waits for ever, also where there is nothing or it fails: who
    /// reads or writes next hears of that.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn flushes(&self) {
        self.flushed().await;
        std::future::pending::<()>().await;
    }

    /// Waits until there is a byte, true, or the end, and takes nothing.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn has_byte(&self) -> io::Result<bool> {
        match self {
            Self::Plain(socket) => Ok(socket.peek(&mut [0]).await? > 0),
            Self::Sealed(sealed) => std::future::poll_fn(|cx| sealed.poll_has_byte(cx)).await,
        }
    }

    /// The same for one task, whose other waits for bytes it takes the place of.
    pub(crate) fn poll_has_byte(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self {
            Self::Plain(socket) => {
                let mut byte = [0];
                let peeked = socket.poll_peek(cx, &mut ReadBuf::new(&mut byte));
                peeked.map_ok(|bytes| bytes > 0)
            }
            Self::Sealed(sealed) => sealed.poll_has_byte(cx),
        }
    }

    /// Waits until everything is with the kernel that was taken, or that fails.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn flushed(&self) {
        // What fails is seen by who reads or writes next.
        drop(std::future::poll_fn(|cx| self.poll_flush(cx)).await);
    }

    /// Waits until the socket has an error, which is how a reset shows on a side that is not read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn breaks(&self) {
        if self.socket().ready(Interest::ERROR).await.is_err() {
            // The runtime stops; so does this task.
            std::future::pending::<()>().await;
        }
    }

    /// Why the other side ended it, where it has said so: for who could not write.
    pub(crate) fn refusal(&self) -> Option<io::Error> {
        match self {
            Self::Plain(_) => None,
            Self::Sealed(sealed) => sealed.refusal(),
        }
    }

    /// Says "no more bytes" to the other side, behind what was taken.
    pub(crate) fn finish_sending(&self) {
        match self {
            Self::Plain(socket) => finish_sending(socket),
            Self::Sealed(sealed) => sealed.finish_sending(),
        }
    }

    /// Makes the drop a reset instead of a polite end.
    pub(crate) fn reset_on_drop(&self) {
        match self {
            Self::Plain(socket) => reset_on_drop(socket),
            Self::Sealed(sealed) => sealed.reset_on_drop(),
        }
    }

    /// Takes it from the event loop.
    ///
    /// # Errors
    /// Also where it is TLS: nobody else could go on with that.
    pub(crate) fn into_std(self) -> io::Result<Plain> {
        match self {
            Self::Plain(socket) => socket.into_std(),
            Self::Sealed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            match self.try_read(space.initialize_unfilled()) {
                Ok(length) => {
                    space.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Leg::poll_flush(&self, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish_sending();
        Leg::poll_flush(&self, cx)
    }
}
