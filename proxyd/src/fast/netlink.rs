//! Messages to the kernel's packet filter and connection tracking, and their answers.
//!
//! A request is one message, a *batch* several that take effect together or not at all. Every wait
//! for an answer is bounded: these calls block, so they are made on threads of their own.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use socket2::Socket;

/// The longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);
/// The kernel's own limit for one piece of an answer is smaller.
const PIECE: usize = 64 << 10;
/// What the kernel may hold of a batch; it takes at least twice as much.
const ROOM: usize = 200 << 10;
/// A dump that changed while it was read is read again, so many times.
const DUMPS: usize = 5;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const INTERRUPTED: u16 = 0x10;
/// Make what is not there.
pub(super) const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NESTED: u16 = 0x8000;

/// The part of the kernel that a message is for, as its number.
pub(super) const NFTABLES: u16 = 10;
/// Connection tracking.
pub(super) const CTNETLINK: u16 = 1;

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// What the kernel said no to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel did not {what}: {errno}")]
pub struct KernelError {
    /// What was asked for.
    pub what: &'static str,
    /// Its answer.
    pub errno: Errno,
}

impl KernelError {
    pub(super) fn of(what: &'static str) -> impl Fn(Errno) -> Self + Copy {
        move |errno| Self { what, errno }
    }

    /// Whether it will be no better for this process: it lacks a privilege, or the kernel a part.
    pub(super) fn is_for_good(&self) -> bool {
        let for_good = [
            Errno::PERM,
            Errno::ACCESS,
            Errno::AFNOSUPPORT,
            Errno::PROTONOSUPPORT,
        ];
        for_good.contains(&self.errno)
    }
}

/// A list of attributes, as it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // What is longer than a length can say is refused by the kernel as malformed.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A message, but for what belongs to its journey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl Message {
    pub(super) fn new(system: u16, kind: u8, flags: u16, family: u8, inside: Attributes) -> Self {
        Self {
            kind: (system << 8) | u16::from(kind),
            flags,
            family,
            resource: 0,
            attributes: inside,
        }
    }

    fn edge(kind: u16) -> Self {
        Self {
            kind,
            flags: 0,
            family: 0,
            resource: NFTABLES,
            attributes: Attributes::default(),
        }
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.attributes.0
    }

    fn write(&self, to: &mut Vec<u8>, flags: u16, sequence: u32) {
        let length = HEADER + FAMILY_HEADER + self.attributes.len();
        to.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        to.extend(self.kind.to_ne_bytes());
        to.extend((self.flags | REQUEST | flags).to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        to.extend([0; 4]);
        to.extend([self.family, 0]);
        to.extend(self.resource.to_be_bytes());
        to.extend(&self.attributes.0);
    }
}

/// The attributes of a list that came; what is cut off is not there.
pub(super) fn attributes(mut list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = list.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length)).checked_sub(4)?;
        let value = rest.get(..length)?;
        list = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & 0x3fff, value))
    })
}

/// One attribute of a list.
pub(super) fn attribute(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find_map(|(other, value)| (other == kind).then_some(value))
}

/// An attribute that is a number.
pub(super) fn number(list: &[u8], kind: u16) -> Option<u32> {
    let bytes = attribute(list, kind)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A way to the kernel. Tables that it owns go on without an owner when it is closed.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A part of an answer.
enum Word<'a> {
    Data(&'a [u8]),
    End,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// Where the kernel has no packet filter, and for a want of descriptors.
    pub(super) fn open() -> Result<Self, KernelError> {
        let failed = KernelError::of("open a way to its packet filter");
        let socket: OwnedFd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )
        .map_err(failed)?;
        let socket = Socket::from(socket);
        let set = || {
            socket.set_read_timeout(Some(ANSWER))?;
            socket.set_write_timeout(Some(ANSWER))?;
            socket.set_send_buffer_size(ROOM)
        };
        set().map_err(|error| failed(errno(&error)))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Has all of these take effect together, or nothing.
    ///
    /// # Errors
    /// The kernel's first objection.
    pub(super) fn batch(&mut self, messages: &[Message]) -> Result<(), Errno> {
        let Some((last, before)) = messages.split_last() else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        Message::edge(BATCH_BEGIN).write(&mut bytes, 0, self.next());
        for message in before {
            message.write(&mut bytes, 0, self.next());
        }
        let awaited = self.next();
        last.write(&mut bytes, ACK, awaited);
        Message::edge(BATCH_END).write(&mut bytes, 0, self.next());
        let first = awaited.wrapping_sub(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        self.send(&bytes)?;
        self.answers(first, |_| {}).map(drop)
    }

    /// Sends one request that is answered by a yes or a no.
    ///
    /// # Errors
    /// The kernel's no.
    pub(super) fn request(&mut self, message: &Message) -> Result<(), Errno> {
        self.ask(message, |_| {})
    }

    /// Sends one request and reads the answer to it.
    ///
    /// # Errors
    /// The kernel's no.
    pub(super) fn ask(&mut self, message: &Message, each: impl FnMut(&[u8])) -> Result<(), Errno> {
        let sequence = self.next();
        let mut bytes = Vec::new();
        message.write(&mut bytes, ACK, sequence);
        self.send(&bytes)?;
        self.answers(sequence, each).map(drop)
    }

    /// Reads all of something.
    ///
    /// # Errors
    /// The kernel's no; [`Errno::INTR`] when it changed again and again while it was read.
    pub(super) fn dump<T>(
        &mut self,
        message: &Message,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..DUMPS {
            let sequence = self.next();
            let mut bytes = Vec::new();
            message.write(&mut bytes, DUMP, sequence);
            self.send(&bytes)?;
            let mut all = Vec::new();
            if self.answers(sequence, |data| all.extend(read(data)))? {
                return Ok(all);
            }
        }
        Err(Errno::INTR)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let sent = self.socket.write(bytes).map_err(|error| errno(&error))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(Errno::MSGSIZE)
        }
    }

    /// Reads to the end of an answer; whether it is of one moment. What is older is left over of a
    /// request that failed.
    fn answers(&mut self, first: u32, mut each: impl FnMut(&[u8])) -> Result<bool, Errno> {
        let mut piece = vec![0; PIECE];
        let mut whole = true;
        loop {
            let length = self
                .socket
                .read(&mut piece)
                .map_err(|error| errno(&error))?;
            let mut rest = piece.get(..length).unwrap_or_default();
            while let Some(next) = next_word(rest, first)? {
                whole &= next.whole;
                match next.word {
                    Some(Word::Data(data)) => each(data),
                    Some(Word::End) => return Ok(whole),
                    None => {}
                }
                rest = next.after;
            }
        }
    }
}

/// The first message of a piece, and what follows it.
struct Next<'a> {
    /// Absent where it is of an older answer.
    word: Option<Word<'a>>,
    /// Nothing changed while it was put together.
    whole: bool,
    after: &'a [u8],
}

fn next_word(piece: &[u8], first: u32) -> Result<Option<Next<'_>>, Errno> {
    let Some((header, _)) = piece.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [a, b, c, d, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let kind = u16::from_ne_bytes([k0, k1]);
    let flags = u16::from_ne_bytes([f0, f1]);
    let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
    let body = piece.get(HEADER..length).ok_or(Errno::BADMSG)?;
    let after = piece.get(length.next_multiple_of(4)..).unwrap_or_default();
    if sequence.wrapping_sub(first) > u32::MAX / 2 {
        return Ok(Some(Next {
            word: None,
            whole: true,
            after,
        }));
    }
    let word = match kind {
        // Both begin with a code.
        ERROR | DONE => {
            let code = body.first_chunk().ok_or(Errno::BADMSG)?;
            match i32::from_ne_bytes(*code) {
                0 => Word::End,
                code => return Err(Errno::from_raw_os_error(code.wrapping_neg())),
            }
        }
        _ => Word::Data(body.get(FAMILY_HEADER..).unwrap_or_default()),
    };
    Ok(Some(Next {
        word: Some(word),
        whole: flags & INTERRUPTED == 0,
        after,
    }))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().number(3, 7).text(4, "abc");
        let list = Attributes::default().bytes(1, &[9]).nest(2, &inner);
        assert_eq!(attribute(&list.0, 1), Some(&[9][..]));
        let nested = attribute(&list.0, 2).unwrap();
        assert_eq!(number(nested, 3), Some(7));
        assert_eq!(attribute(nested, 4), Some(&b"abc\0"[..]));
        assert_eq!(attribute(nested, 5), None);
    }

    #[test]
    fn what_is_cut_off_is_not_there() {
        let list = Attributes::default().number(1, 1).number(2, 2);
        for length in 0..list.len() {
            assert!(attributes(&list.0[..length]).count() < 2);
        }
    }

    #[test]
    fn an_older_answer_is_passed_over_and_a_refusal_is_an_error() {
        let answer = |sequence: u32, code: i32| {
            let mut bytes = Vec::new();
            bytes.extend(20_u32.to_ne_bytes());
            bytes.extend(ERROR.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        let older = answer(4, -1);
        assert!(next_word(&older, 5).unwrap().unwrap().word.is_none());
        assert_eq!(next_word(&answer(5, -1), 5).err(), Some(Errno::PERM));
        let yes = answer(6, 0);
        let word = next_word(&yes, 5).unwrap().unwrap().word;
        assert!(matches!(word, Some(Word::End)));
    }
}
