//! Descriptors that a daemon has its supervisor keep for its next start, as under systemd with
//! `FileDescriptorStoreMax=`.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// No word of a daemon is longer.
const WORD: usize = 4096;
/// Where the daemon finds the first one.
const FIRST: i32 = 3;

/// What a daemon has said, with what came with it.
pub(super) struct Word {
    pub(super) text: String,
    descriptor: Option<OwnedFd>,
}

/// Takes up the next word.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none.
pub(super) fn receive(words: impl AsFd) -> io::Result<Word> {
    let mut text = [0; WORD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = recvmsg(words, &mut into, &mut control, flags)?.bytes;
    let rights = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(Word {
        text: String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned(),
        descriptor: rights.and_then(|mut rights| rights.next()),
    })
}

/// What one daemon has given, by name.
#[derive(Default)]
pub(super) struct Kept(BTreeMap<String, OwnedFd>);

impl Kept {
    /// Keeps or forgets what a word says. What comes with another word is closed.
    pub(super) fn hear(&mut self, word: Word) {
        let value = |key| word.text.lines().find_map(|line| line.strip_prefix(key));
        let Some(name) = value("FDNAME=") else { return };
        if value("FDSTOREREMOVE=") == Some("1") {
            self.0.remove(name);
        } else if value("FDSTORE=") == Some("1")
            && let Some(descriptor) = word.descriptor
        {
            self.0.insert(name.to_owned(), descriptor);
        }
    }

    /// Closes everything: nobody is to come back for it.
    pub(super) fn close(&mut self) {
        self.0.clear();
    }

    /// Gives everything to a daemon that starts, and keeps it. What hung up is closed first.
    pub(super) fn give(&mut self, command: &mut Command) -> io::Result<()> {
        self.0.retain(|_, descriptor| !has_hung_up(descriptor));
        if self.0.is_empty() {
            return Ok(());
        }
        let copies: io::Result<Vec<_>> = self.0.values().map(OwnedFd::try_clone).collect();
        let mapping = |(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        };
        let mappings = copies?.into_iter().zip(FIRST..).map(mapping).collect();
        command
            .env("LISTEN_FDS", self.0.len().to_string())
            .fd_mappings(mappings)
            .map_err(io::Error::other)?;
        Ok(())
    }
}

/// Whether nothing comes of it any more: a socket that was shut down.
fn has_hung_up(descriptor: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(descriptor, PollFlags::empty())];
    let polled = poll(&mut asked, Some(&Timespec::default()));
    polled.is_err() || asked.iter().any(|one| !one.revents().is_empty())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{Shutdown, shutdown};

    use super::*;

    fn word(text: &str, descriptor: Option<OwnedFd>) -> Word {
        let text = text.to_owned();
        Word { text, descriptor }
    }

    #[test]
    fn what_is_given_is_kept_until_it_is_forgotten() {
        let mut kept = Kept::default();
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = socket();
        shutdown(&dead, Shutdown::Both).unwrap();
        kept.hear(word("FDSTORE=1\nFDNAME=a\n", Some(socket().into())));
        kept.hear(word("FDSTORE=1\nFDNAME=b\n", None));
        kept.hear(word("FDSTORE=1\nFDNAME=dead\n", Some(dead.into())));
        kept.hear(word("BARRIER=1\n", Some(socket().into())));
        assert_eq!(kept.0.keys().collect::<Vec<_>>(), ["a", "dead"]);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "test -S /proc/self/fd/3 && test $LISTEN_FDS = 1"]);
        kept.give(&mut command).unwrap();
        assert!(command.status().unwrap().success());
        kept.hear(word("FDSTOREREMOVE=1\nFDNAME=a\n", None));
        assert!(kept.0.is_empty());
    }

    #[test]
    fn a_word_comes_with_its_descriptor() {
        let (daemon, init) = UnixDatagram::pair().unwrap();
        daemon.send(b"READY=1\n").unwrap();
        let heard = receive(&init).unwrap();
        assert_eq!(heard.text, "READY=1\n");
        assert!(heard.descriptor.is_none());
        let none = receive(&init).err().unwrap();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }
}
