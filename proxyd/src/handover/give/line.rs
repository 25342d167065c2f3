//! The way to a successor, and what has been said on it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use proxyd_core::handover::{Batch, Broken, Giver, Heard, Hello, Message, Packer, PartId, Refusal};

use super::super::channel::{ChannelError, file_of};
use super::super::moving::Courier;
use super::super::process::Successor;
use super::GiveError;

/// What a successor gets for each batch, and the kernel for each message, while all that it would
/// end with is its own start.
const WORD: Duration = Duration::from_secs(5);
/// The same once it accepts. Connections that have stopped stand still meanwhile; but all that have
/// gone over would end with it.
const PATIENCE: Duration = Duration::from_mins(2);

/// A running successor, and how far it is.
pub(super) struct Line {
    pub(super) successor: Successor,
    pub(super) giver: Giver,
    /// Its version, once it has said so.
    pub(super) version: String,
}

impl Line {
    pub(super) fn new(successor: Successor, hello: Hello) -> Self {
        Self {
            successor,
            giver: Giver::new(hello),
            version: String::new(),
        }
    }

    /// How long the successor is waited for now.
    pub(super) fn word(&self) -> Duration {
        if self.giver.has_let_go() {
            PATIENCE
        } else {
            WORD
        }
    }

    pub(super) async fn say(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), GiveError> {
        let channel = &self.successor.channel;
        match channel.send(message, descriptors, self.word()).await {
            Err(ChannelError::Closed) => Err(self.last_word().await),
            sent => Ok(sent?),
        }
    }

    /// Why a successor that is gone went, if it had said so.
    async fn last_word(&self) -> GiveError {
        while let Ok((message, _)) = self.successor.channel.receive(WORD).await {
            if let Message::Failed { reason } = message {
                return Broken::GaveUp(reason).into();
            }
        }
        ChannelError::Closed.into()
    }

    pub(super) async fn hear(&mut self, limit: Duration) -> Result<Heard, GiveError> {
        let (message, _) = self.successor.channel.receive(limit).await?;
        if let Message::Hello(hello) = &message {
            self.version.clone_from(&hello.version);
        }
        Ok(self.giver.hear(message)?)
    }

    /// Sends a batch of what the successor is built of and waits until it holds it.
    pub(super) async fn send(
        &mut self,
        packer: Packer,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), GiveError> {
        let packed = packer.finish()?;
        let file = file_of(&packed.content).map_err(GiveError::Room)?;
        let all: Vec<_> = std::iter::once(file.as_fd())
            .chain(descriptors.iter().copied())
            .collect();
        self.offer(packed.batch, &all).await.map(drop)
    }

    /// Sends a batch and waits for the answer: what the successor holds, and what it does not take.
    async fn offer(
        &mut self,
        batch: Batch,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Vec<PartId>, Vec<Refusal>), GiveError> {
        self.giver.offer(batch.ids.iter().copied())?;
        self.say(&Message::Batch(batch), descriptors).await?;
        match self.hear(self.word()).await? {
            Heard::Held { taken, refused } => Ok((taken, refused)),
            // An answer to a batch is an ack or an error.
            Heard::Greeted(_) | Heard::Ready | Heard::Serving => Err(Broken::OutOfTurn {
                what: "ready",
                stage: "after a batch",
            }
            .into()),
        }
    }
}

impl Courier for Line {
    type Error = GiveError;

    async fn bring(
        &mut self,
        batch: Batch,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<Refusal>, GiveError> {
        let (taken, refused) = self.offer(batch, descriptors).await?;
        if !taken.is_empty() {
            let release = self.giver.release()?;
            self.say(&release, &[]).await?;
            self.giver.released();
        }
        Ok(refused)
    }
}
