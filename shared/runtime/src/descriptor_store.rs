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

use listenfd::ListenFd;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The TCP sockets that the manager kept for this start, in the state in which the program left
/// them. Only the first call finds them; it has to come before the program has threads, because it
/// clears what the environment says of them.
#[must_use]
pub fn kept() -> Vec<TcpListener> {
    let mut all = ListenFd::from_env();
    let listeners = 0..all.len();
    listeners
        .filter_map(|place| all.take_tcp_listener(place).ok().flatten())
        .collect()
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
    let manager = env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let words = UnixDatagram::unbound()?;
    words.connect(manager)?;
    send(
        &words,
        &format!("FDSTORE=1\nFDNAME={name}\n"),
        socket.as_fd(),
    )
}

fn send(words: &UnixDatagram, text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let whole = [IoSlice::new(text.as_bytes())];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(words, &whole, &mut control, flags)?;
    Ok(())
}
