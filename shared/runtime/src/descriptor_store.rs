//! Sockets that the service manager keeps while this program is not there: its store of
//! descriptors, systemd's `FileDescriptorStoreMax=`.
//!
//! Clients of a socket that is kept wait in the kernel while the program starts again, after a
//! crash too. Without a manager (`NOTIFY_SOCKET` unset) nothing is kept. A manager that has no
//! store, or a full one, drops what it is sent and does not say so. It also drops, unasked, a
//! listening socket that was shut down.

use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe::Receiver;

/// What the manager kept for this start, in the state in which the program left it.
#[derive(Debug, Default)]
pub struct Kept {
    /// Listening TCP sockets.
    pub listeners: Vec<TcpListener>,
    /// Ends of pairs, with what was written into the other ends.
    pub letters: Vec<UnixDatagram>,
}

/// What was kept. Only the first call finds it; it has to come before the program has threads,
/// because it clears what the environment says of it.
#[must_use]
pub fn kept() -> Kept {
    let mut all = ListenFd::from_env();
    let mut kept = Kept::default();
    for place in 0..all.len() {
        if let Ok(Some(listener)) = all.take_tcp_listener(place) {
            kept.listeners.push(listener);
        } else if let Ok(Some(letter)) = all.take_unix_datagram(place) {
            kept.letters.push(letter);
        }
    }
    kept
}

/// Whether there is a manager that may keep something.
#[must_use]
pub fn is_there() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// Has the manager keep a socket under a name, which must have no colon.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] while the manager has too much to read; others when it cannot be
/// reached.
pub fn keep(name: &str, socket: impl AsFd) -> io::Result<()> {
    send(&format!("FDSTORE=1\nFDNAME={name}\n"), Some(socket.as_fd()))
}

/// Has the manager forget what it keeps under a name.
///
/// # Errors
/// As [`keep`].
pub fn forget(name: &str) -> io::Result<()> {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None)
}

/// Waits until the manager has read all that it was told before.
///
/// # Errors
/// As [`keep`], and [`io::ErrorKind::TimedOut`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn heard(limit: Duration) -> io::Result<()> {
    let (watched, given) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    send("BARRIER=1\n", Some(given.as_fd()))?;
    drop(given);
    // Nothing is written there; it ends when the manager closes what it was given.
    let watched = Receiver::from_owned_fd(watched)?;
    match tokio::time::timeout(limit, watched.readable()).await {
        Ok(ended) => ended,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn send(text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let manager = env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let words = UnixDatagram::unbound()?;
    words.connect(manager)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = descriptor.as_slice();
    if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(rights)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let whole = [IoSlice::new(text.as_bytes())];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(&words, &whole, &mut control, flags)?;
    Ok(())
}
