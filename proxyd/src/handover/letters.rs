//! Letters to whoever starts next: sockets whose queues hold messages with their descriptors, and
//! which the service manager keeps while nobody is there to read them.
//!
//! Nobody answers a letter. What was written is the next process's, and no other's; what finds no
//! room stays with the writer. The sockets are of datagrams, because nothing about those shows
//! that their writer is gone: a manager drops what hangs up.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use proxyd_core::handover::{
    Batch, BatchError, Broken, Hello, Message, PartId, Refusal, decode, encode,
};
use rehome_runtime::descriptor_store;

use super::channel::{read, write};
use super::moving::Courier;
use super::take::{Opened, open};

/// The most letters. One has room for about ten thousand connections.
const MOST: usize = 32;
/// What the manager gets to take one: it has nothing else to do, on a machine that runs it.
const TAKEN: Duration = Duration::from_secs(10);

/// Letters that are being written.
pub(super) struct Letters {
    hello: Vec<u8>,
    own: UnixDatagram,
    begun: usize,
}

impl Letters {
    /// Begins the first one.
    ///
    /// # Errors
    /// When there is no manager that keeps it.
    pub(super) async fn begin(hello: Hello) -> io::Result<Self> {
        let hello = encode(&Message::Hello(hello)).map_err(io::Error::other)?;
        let own = begin(&name(0), &hello).await?;
        let begun = 1;
        Ok(Self { hello, own, begun })
    }

    /// Writes a message, all of it or nothing.
    ///
    /// # Cancel safety
    /// Once it was written the call returns at once.
    async fn write(&mut self, message: &Message, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message).map_err(io::Error::other)?;
        match write(&self.own, &bytes, with) {
            Err(full) if full.kind() == io::ErrorKind::WouldBlock && self.begun < MOST => {
                self.own = begin(&name(self.begun), &self.hello).await?;
                self.begun = self.begun.saturating_add(1);
                write(&self.own, &bytes, with)
            }
            written => written,
        }
    }
}

impl Courier for Letters {
    type Error = BatchError;

    async fn bring(
        &mut self,
        batch: Batch,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<Refusal>, BatchError> {
        let ids = batch.ids.clone();
        let Err(error) = self.write(&Message::Batch(batch), descriptors).await else {
            return Ok(Vec::new());
        };
        let reason = format!("there is no room for it with the service manager: {error}");
        let refuse = |id: PartId| Refusal {
            id,
            reason: reason.clone(),
        };
        Ok(ids.into_iter().map(refuse).collect())
    }
}

fn name(place: usize) -> String {
    format!("letter-{place}")
}

/// Begins a letter that the manager has, with these words.
async fn begin(name: &str, hello: &[u8]) -> io::Result<UnixDatagram> {
    let (own, kept) = UnixDatagram::pair()?;
    own.set_nonblocking(true)?;
    kept.set_nonblocking(true)?;
    descriptor_store::keep(name, &kept)?;
    drop(kept);
    descriptor_store::heard(TAKEN).await?;
    // A manager without room has closed it by now, and that shows here.
    write(&own, hello, &[])?;
    Ok(own)
}

/// Why a letter is not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("it does not begin with who wrote it")]
    Anonymous,
    #[error("a batch cannot be read: {0}")]
    Batch(String),
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// Reads a letter, and gives what it holds to `each`.
pub(super) fn read_letter(
    letter: &UnixDatagram,
    own: &Hello,
    mut each: impl FnMut(&Batch, Opened),
) -> Result<(), Unreadable> {
    let mut known = false;
    while let Some((message, descriptors)) = next(letter)? {
        match message {
            Message::Hello(writer) => {
                own.agree(&writer).map_err(Broken::from)?;
                known = true;
            }
            Message::Batch(batch) if known => {
                let opened = open(&batch, descriptors).map_err(Unreadable::Batch)?;
                each(&batch, opened);
            }
            Message::Batch(_) => return Err(Unreadable::Anonymous),
            other => {
                let (what, stage) = (other.name(), "in a letter");
                return Err(Broken::OutOfTurn { what, stage }.into());
            }
        }
    }
    Ok(())
}

fn next(letter: &UnixDatagram) -> Result<Option<(Message, Vec<std::os::fd::OwnedFd>)>, Unreadable> {
    match read(letter) {
        Ok((bytes, descriptors)) => Ok(Some((decode(&bytes)?, descriptors))),
        Err(end) if end.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Has the manager forget so many letters, which were read.
pub(super) fn forget(letters: usize) {
    for place in 0..letters {
        if let Err(error) = descriptor_store::forget(&name(place)) {
            tracing::warn!(%error, "the service manager is not told to forget a letter");
        }
    }
}
