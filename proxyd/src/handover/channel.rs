//! The socket between predecessor and successor: messages in order, each whole, with descriptors.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use proxyd_core::handover::{Broken, MOST_DESCRIPTORS, Message, decode, encode};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// The longest message. The kernel's own limit is lower.
const LONGEST: usize = 256 << 10;

/// The largest file beside a batch: a table of some hundred thousand routes fits.
const LARGEST: u64 = 256 << 20;

/// A message that did not go through.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side is no more.
    #[error("the other side has ended")]
    Closed,
    /// It says nothing.
    #[error("the other side was silent for {}s", .0.as_secs())]
    Silent(Duration),
    /// The kernel refused.
    #[error("the socket between the two does not work")]
    Io(#[source] io::Error),
    /// Not understood.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// One end.
///
/// The runtime's type for datagrams is used for its readiness alone: the socket is of the kind
/// that keeps messages apart and in order, loses none, and tells when the other side is gone. (A
/// side that goes with messages unread shows first as a reset; what it had said follows.)
#[derive(Debug)]
pub(super) struct Channel(UnixDatagram);

impl Channel {
    /// Both ends: one for this process, one for another.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::of(own)?, other))
    }

    /// The end that this process was given.
    pub(super) fn of(end: OwnedFd) -> io::Result<Self> {
        UnixDatagram::from_std(end.into()).map(Self)
    }

    /// Sends a message, with the descriptors that belong to it.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped call, and one that was too slow, has sent nothing.
    pub(super) async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), ChannelError> {
        let bytes = encode(message)?;
        let write = || write(&self.0, &bytes, descriptors);
        let sent = timeout(limit, self.0.async_io(Interest::WRITABLE, write)).await;
        sent.map_err(|_| ChannelError::Silent(limit))?
            .map_err(closed)
    }

    /// Waits for the next message.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn receive(
        &self,
        limit: Duration,
    ) -> Result<(Message, Vec<OwnedFd>), ChannelError> {
        let read = || read(&self.0);
        let received = timeout(limit, self.0.async_io(Interest::READABLE, read)).await;
        let (bytes, descriptors) = received
            .map_err(|_| ChannelError::Silent(limit))?
            .map_err(closed)?;
        if bytes.is_empty() {
            return Err(ChannelError::Closed);
        }
        Ok((decode(&bytes)?, descriptors))
    }

    /// Whether the other side is gone and had said nothing.
    pub(super) fn is_closed(&self) -> bool {
        let mut byte = [0_u8];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.0, &mut byte[..], flags) {
            Ok((length, _)) => length == 0,
            Err(error) => error != Errno::AGAIN,
        }
    }
}

/// Writes a message with its descriptors at once, or nothing of it.
pub(super) fn write(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let all_fit =
        descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
    if !all_fit {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let whole = [IoSlice::new(bytes)];
    sendmsg(socket, &whole, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Reads a message with its descriptors.
pub(super) fn read(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST];
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let length = loop {
        match recvmsg(&socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message.bytes,
            // Said once, before what the other side had said.
            Err(Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // Where this process has no room for more descriptors, some are missing here: the batch
    // is then not what was announced.
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    bytes.truncate(length);
    Ok((bytes, descriptors))
}

fn closed(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::NotConnected => ChannelError::Closed,
        _ => ChannelError::Io(error),
    }
}

/// A file in memory that holds these bytes.
pub(super) fn file_of(content: &[u8]) -> io::Result<OwnedFd> {
    let make = |flags| memfd_create("rehome-handover", MemfdFlags::CLOEXEC | flags);
    // Some systems refuse files in memory that could be programs; older kernels do not know the
    // word.
    let made = make(MemfdFlags::NOEXEC_SEAL).or_else(|_| make(MemfdFlags::empty()))?;
    let file = File::from(made);
    file.write_all_at(content, 0)?;
    Ok(file.into())
}

/// What such a file holds.
pub(super) fn content_of(file: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let length = file.metadata()?.len();
    if length > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut content = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn messages_come_whole_in_order_with_as_many_descriptors_as_a_batch_has() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::of(b).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let file = file_of(b"records").unwrap();
        let mut all = vec![file.as_fd()];
        all.extend(std::iter::repeat_n(far.as_fd(), MOST_DESCRIPTORS));
        a.send(&Message::Ready, &all, LIMIT).await.unwrap();
        a.send(&Message::Go, &[], LIMIT).await.unwrap();
        drop(a);
        let (first, descriptors) = b.receive(LIMIT).await.unwrap();
        assert_eq!((first, descriptors.len()), (Message::Ready, 251));
        let mut descriptors = descriptors.into_iter();
        assert_eq!(content_of(descriptors.next().unwrap()).unwrap(), b"records");
        let mut came = UnixStream::from(descriptors.next_back().unwrap());
        came.write_all(b"x").unwrap();
        let mut byte = [0];
        near.read_exact(&mut byte).unwrap();
        // What was said before an end comes before it.
        assert!(!b.is_closed());
        assert_eq!(b.receive(LIMIT).await.unwrap().0, Message::Go);
        assert!(b.is_closed());
        assert!(matches!(b.receive(LIMIT).await, Err(ChannelError::Closed)));
        let sent = b.send(&Message::Go, &[], LIMIT).await;
        assert!(matches!(sent, Err(ChannelError::Closed)), "{sent:?}");
    }

    #[tokio::test]
    async fn what_was_said_by_one_that_did_not_listen_is_heard_before_its_end() {
        let (a, b) = Channel::pair().unwrap();
        let b = Channel::of(b).unwrap();
        b.send(&Message::Ready, &[], LIMIT).await.unwrap();
        a.send(&Message::Go, &[], LIMIT).await.unwrap();
        // With a message unread: the kernel says so first.
        drop(a);
        assert_eq!(b.receive(LIMIT).await.unwrap().0, Message::Go);
        assert!(matches!(b.receive(LIMIT).await, Err(ChannelError::Closed)));
    }

    #[tokio::test]
    async fn silence_is_an_error_and_so_is_nonsense() {
        let (a, b) = Channel::pair().unwrap();
        let short = Duration::from_millis(10);
        let waited = a.receive(short).await;
        assert!(matches!(waited, Err(ChannelError::Silent(_))));
        let b = UnixDatagram::from_std(b.into()).unwrap();
        b.send(b"nonsense").await.unwrap();
        let heard = a.receive(LIMIT).await;
        assert!(matches!(heard, Err(ChannelError::Broken(_))), "{heard:?}");
    }
}
