//! The predecessor's hands.
//!
//! Whatever fails, the successor is ended before anything is taken back, so that nothing is in
//! two hands; and whatever has stopped is kept in [`Give`], never in a future, so that it is
//! there to be taken back.

mod error;
mod moving;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::handover::{
    Broken, End, Giver, Heard, Message, Packer, Part, PartId, Refusal, Socket, Terms, table_bytes,
};
use rehome_runtime::http_server::FileStays;
use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_shared::api::proxy::{Upgrade, UpgradeReply};
use tokio::sync::{mpsc, oneshot};

use super::channel::{ChannelError, file_of};
use super::departure::Departure;
use super::process::{self, Successor};
use super::take::REMAINDER;
use super::{Equipment, Phase};
use crate::context::Context;
use crate::keeper::{HandOver, Request};
use crate::{Proxyd, Stopping};

pub use error::GiveError;

/// What a successor gets for each batch, and the kernel for each message, while all that it would
/// end with is its own start.
const WORD: Duration = Duration::from_secs(5);
/// The same once it accepts. Connections that have stopped stand still meanwhile; but all that have
/// gone over would end with it.
const PATIENCE: Duration = Duration::from_mins(2);
/// What it gets to begin, and to build itself.
const BUILD: Duration = Duration::from_secs(30);
/// What connections get to stop.
const STILL: Duration = Duration::from_secs(2);
/// What clients that were just accepted get to be in the book: no time, on a machine that runs
/// everybody.
const ARRIVE: Duration = Duration::from_secs(10);

/// Hands everything over. When it returns a reply, this process has nothing left but what is
/// said there.
///
/// # Cancel safety
/// Not cancel safe: run it to its end, in a task of its own.
pub(crate) async fn hand_over(
    proxy: &Proxyd,
    upgrade: &Upgrade,
) -> Result<UpgradeReply, GiveError> {
    let handover = &proxy.context.handover;
    // The next one would not know what the one before this still passes on.
    let stop = proxy.supervisor.token();
    match stop.run_until_cancelled(handover.is_alone(REMAINDER)).await {
        Some(true) => {}
        Some(false) => return Err(GiveError::Behind),
        None => return Err(Stopping.into()),
    }
    if !handover.begin() {
        return Err(GiveError::UnderWay);
    }
    let successor = match process::start(upgrade).await {
        Ok(successor) => successor,
        Err(error) => {
            handover.set(Phase::Serving);
            return Err(error.into());
        }
    };
    let executable = upgrade.executable.display();
    tracing::info!(pid = successor.pid, %executable, arguments = ?upgrade.arguments, "handing over");
    let mut give = Give::new(proxy, successor);
    let all = proxy.supervisor.token().run_until_cancelled(give.all());
    let outcome = Box::pin(all).await;
    let failed = match outcome {
        Some(Ok(())) => return Ok(give.finish()),
        Some(Err(error)) => error,
        None => Stopping.into(),
    };
    Err(give.take_back(failed).await)
}

struct Give<'a> {
    proxy: &'a Proxyd,
    context: &'a Context,
    successor: Successor,
    version: String,
    giver: Giver,
    last_part: u64,
    /// When nobody was accepted any more.
    began: Option<Instant>,
    leaving: Option<mpsc::Receiver<Departure>>,
    /// Stopped, and not sent yet.
    stopped: VecDeque<Departure>,
    /// Sent, and not released yet.
    sent: BTreeMap<PartId, Departure>,
    /// Refused by the successor.
    stays: BTreeSet<u64>,
    why: BTreeSet<String>,
    sockets: u64,
    held: u64,
    relays: u64,
}

impl<'a> Give<'a> {
    fn new(proxy: &'a Proxyd, successor: Successor) -> Self {
        Self {
            proxy,
            context: &proxy.context,
            successor,
            version: String::new(),
            giver: Giver::new(proxy.hello.as_ref().clone()),
            last_part: 0,
            began: None,
            leaving: None,
            stopped: VecDeque::new(),
            sent: BTreeMap::new(),
            stays: BTreeSet::new(),
            why: BTreeSet::new(),
            sockets: 0,
            held: 0,
            relays: 0,
        }
    }

    async fn all(&mut self) -> Result<(), GiveError> {
        let terms = self.greet().await?;
        // Running drains and freezes hear it now, and later ones from the keeper.
        self.context.handover.set(Phase::Frozen);
        let equipment = self.ask(HandOver::Freeze).await?;
        self.equip(terms, &equipment).await?;
        let equipped = self.giver.equipped()?;
        self.say(&equipped, &[]).await?;
        let _ready = self.hear(BUILD).await?;
        self.stop_accepting().await?;
        self.count(equipment).await?;
        let go = self.giver.go()?;
        self.say(&go, &[]).await?;
        self.move_all().await?;
        let left = self.context.book.applications().into_iter().collect();
        let end = self.giver.end(End { left })?;
        self.say(&end, &[]).await?;
        // Until it has said so, this process could still go on alone.
        self.hear(self.word()).await.map(drop)
    }

    /// How long the successor is waited for now.
    fn word(&self) -> Duration {
        if self.giver.has_let_go() {
            PATIENCE
        } else {
            WORD
        }
    }

    async fn ask<T>(
        &self,
        step: impl FnOnce(oneshot::Sender<T>) -> HandOver,
    ) -> Result<T, Stopping> {
        let request = |answer| Request::HandOver(step(answer));
        self.proxy.desk.ask(request).await
    }

    async fn say(
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

    async fn hear(&mut self, limit: Duration) -> Result<Heard, GiveError> {
        let (message, _) = self.successor.channel.receive(limit).await?;
        if let Message::Hello(hello) = &message {
            self.version.clone_from(&hello.version);
        }
        Ok(self.giver.hear(message)?)
    }

    async fn greet(&mut self) -> Result<Terms, GiveError> {
        // Nothing stands still yet.
        match self.hear(BUILD).await? {
            Heard::Greeted(terms) => {
                let hello = Message::Hello(self.proxy.hello.as_ref().clone());
                self.say(&hello, &[]).await?;
                Ok(terms)
            }
            // The first word is a greeting or an error.
            Heard::Held { .. } | Heard::Ready | Heard::Serving => Err(Broken::OutOfTurn {
                what: "ready",
                stage: "before a greeting",
            }
            .into()),
        }
    }

    /// Sends what the successor is built of.
    async fn equip(&mut self, terms: Terms, equipment: &Equipment) -> Result<(), GiveError> {
        let table = table_bytes(&equipment.table, terms.table)?;
        let mut packer = Packer::default();
        let part = Part::Table {
            form: terms.table,
            missing: equipment.missing.clone(),
        };
        packer.add(self.next_part(), &part, 0, &table)?;
        let doors = Arc::clone(&self.proxy.doors);
        let own = [
            (Socket::Control, doors.control.as_fd()),
            (Socket::Metrics, doors.metrics.as_fd()),
        ];
        let ports = equipment.sockets.iter();
        let ports = ports.map(|(socket, shared)| (*socket, shared.as_fd()));
        let mut descriptors = Vec::new();
        for (socket, descriptor) in own.into_iter().chain(ports) {
            if !packer.fits(1, 0) {
                let full = std::mem::take(&mut packer);
                self.send(full, &std::mem::take(&mut descriptors)).await?;
            }
            packer.add(self.next_part(), &Part::Socket(socket), 1, &[])?;
            descriptors.push(descriptor);
            self.sockets = self.sockets.saturating_add(1);
        }
        self.send(packer, &descriptors).await
    }

    /// From here on to the go, who comes waits in the kernel.
    async fn stop_accepting(&mut self) -> Result<(), GiveError> {
        self.began = Some(Instant::now());
        let paused = self.ask(HandOver::Pause).await?;
        self.context.handover.keep_guests();
        self.context.handover.set(Phase::Moving);
        if paused && self.context.handover.arrived(ARRIVE).await {
            Ok(())
        } else {
            Err(GiveError::Accepts)
        }
    }

    async fn count(&mut self, equipment: Equipment) -> Result<(), GiveError> {
        let mut counts = self.context.book.counted();
        counts.heard = equipment.heard;
        let counts = Part::Counts(counts);
        let mut packer = Packer::default();
        packer.add(self.next_part(), &counts, 0, &[])?;
        self.send(packer, &[]).await
    }

    fn next_part(&mut self) -> PartId {
        self.last_part = self.last_part.saturating_add(1);
        PartId(self.last_part)
    }

    /// Sends a batch of what the successor is built of and waits until it holds it.
    async fn send(
        &mut self,
        packer: Packer,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), GiveError> {
        let packed = packer.finish()?;
        let file = file_of(&packed.content).map_err(GiveError::Room)?;
        let all: Vec<_> = std::iter::once(file.as_fd())
            .chain(descriptors.iter().copied())
            .collect();
        self.giver.offer(packed.batch.ids.iter().copied())?;
        self.say(&Message::Batch(packed.batch), &all).await?;
        self.held().await.map(drop)
    }

    /// The successor's answer to a batch: what it holds, and what it does not take.
    async fn held(&mut self) -> Result<(Vec<PartId>, Vec<Refusal>), GiveError> {
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

    /// The handover has failed: ends the successor, and then goes on with all that is not its.
    async fn take_back(mut self, error: GiveError) -> GiveError {
        if let Err(lives) = self.successor.end().await {
            tracing::error!(error = %Report(&error), "the handover has failed");
            return self.leave_to_it(lives);
        }
        // Whether they were sent or not: what was released is in neither.
        let sent = std::mem::take(&mut self.sent).into_values();
        let stopped = std::mem::take(&mut self.stopped);
        sent.chain(stopped)
            .for_each(|departure| departure.resume(self.context));
        self.stay();
        // When it stops, it has nothing to go on with.
        let _stopped = self.ask(HandOver::GoOn).await;
        self.context.handover.set(Phase::Serving);
        if !self.giver.has_let_go() {
            return error;
        }
        GiveError::LostSome {
            lost: self.held.saturating_add(self.relays),
            source: Box::new(error),
        }
    }

    /// The handover has failed and the successor cannot be ended. What was sent may be passed on
    /// there, so it is not passed on here. The successor hears the end of the socket, and serves
    /// alone or ends; this process ends too, and whoever started it starts the next one.
    fn leave_to_it(mut self, lives: io::Error) -> GiveError {
        for (_, departure) in std::mem::take(&mut self.sent) {
            departure.depart();
        }
        for departure in std::mem::take(&mut self.stopped) {
            departure.resume(self.context);
        }
        self.stay();
        self.resign();
        GiveError::Lives(lives)
    }

    /// This process is not the one that serves any more.
    fn resign(&self) {
        notify::main_process(self.successor.pid);
        self.proxy.doors.file.iter().for_each(FileStays::stay);
        self.context.handover.set(Phase::Gone);
    }

    /// The successor has everything. This process lives on only for what could not go over.
    fn finish(self) -> UpgradeReply {
        self.resign();
        let stayed = self.context.book.connection_count();
        let took = self.began.map(|began| began.elapsed()).unwrap_or_default();
        let reply = UpgradeReply {
            pid: self.successor.pid,
            version: self.version,
            sockets: self.sockets,
            held: self.held,
            relays: self.relays,
            stayed,
            why: self.why.into_iter().collect(),
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        tracing::info!(?reply, "handed over");
        self.context.handover.keep(self.successor.channel);
        reply
    }
}
