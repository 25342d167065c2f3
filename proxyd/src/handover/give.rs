//! The predecessor's hands.
//!
//! Whatever fails, the successor is ended before anything is taken back, so that nothing is in
//! two hands.

mod error;
mod line;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::handover::{
    Broken, End, Heard, Message, Packer, Part, Socket, Terms, table_bytes,
};
use rehome_runtime::http_server::FileStays;
use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_shared::api::proxy::{Upgrade, UpgradeReply};
use tokio::sync::oneshot;

use super::moving::Moving;
use super::process::{self, Successor};
use super::take::REMAINDER;
use super::{Equipment, Phase};
use crate::context::Context;
use crate::keeper::{HandOver, Request};
use crate::{Proxyd, Stopping};

pub use error::GiveError;
use line::Line;

/// What a successor gets to begin, and to build itself.
const BUILD: Duration = Duration::from_secs(30);
/// What clients that were just accepted get to be in the book: no time, on a machine that runs
/// everybody.
pub(super) const ARRIVE: Duration = Duration::from_secs(10);

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
    line: Line,
    moving: Moving<'a>,
    /// When nobody was accepted any more.
    began: Option<Instant>,
    sockets: u64,
}

impl<'a> Give<'a> {
    fn new(proxy: &'a Proxyd, successor: Successor) -> Self {
        Self {
            proxy,
            context: &proxy.context,
            line: Line::new(successor, proxy.hello.as_ref().clone()),
            moving: Moving::new(&proxy.context),
            began: None,
            sockets: 0,
        }
    }

    async fn all(&mut self) -> Result<(), GiveError> {
        let terms = self.greet().await?;
        // Running drains and freezes hear it now, and later ones from the keeper.
        self.context.handover.set(Phase::Frozen);
        let equipment = self.ask(|answer| HandOver::Freeze(terms, answer)).await??;
        self.equip(terms, &equipment).await?;
        let equipped = self.line.giver.equipped()?;
        self.line.say(&equipped, &[]).await?;
        let _ready = self.line.hear(BUILD).await?;
        self.stop_accepting().await?;
        self.count(equipment).await?;
        let go = self.line.giver.go()?;
        self.line.say(&go, &[]).await?;
        self.moving.all(&mut self.line).await?;
        let left = self.context.book.applications().into_iter().collect();
        let end = self.line.giver.end(End { left })?;
        self.line.say(&end, &[]).await?;
        // Until it has said so, this process could still go on alone.
        self.line.hear(self.line.word()).await.map(drop)
    }

    async fn ask<T>(
        &self,
        step: impl FnOnce(oneshot::Sender<T>) -> HandOver,
    ) -> Result<T, Stopping> {
        let request = |answer| Request::HandOver(step(answer));
        self.proxy.desk.ask(request).await
    }

    async fn greet(&mut self) -> Result<Terms, GiveError> {
        // Nothing stands still yet.
        match self.line.hear(BUILD).await? {
            Heard::Greeted(terms) => {
                let hello = Message::Hello(self.proxy.hello.as_ref().clone());
                self.line.say(&hello, &[]).await?;
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
        packer.add(self.moving.next_part(), &part, 0, &table)?;
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
                self.line
                    .send(full, &std::mem::take(&mut descriptors))
                    .await?;
            }
            packer.add(self.moving.next_part(), &Part::Socket(socket), 1, &[])?;
            descriptors.push(descriptor);
            self.sockets = self.sockets.saturating_add(1);
        }
        self.line.send(packer, &descriptors).await
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
        packer.add(self.moving.next_part(), &counts, 0, &[])?;
        self.line.send(packer, &[]).await
    }

    /// The handover has failed: ends the successor, and then goes on with all that is not its.
    async fn take_back(mut self, error: GiveError) -> GiveError {
        if let Err(lives) = self.line.successor.end().await {
            tracing::error!(error = %Report(&error), "the handover has failed");
            return self.leave_to_it(lives);
        }
        self.moving.take_back();
        // When it stops, it has nothing to go on with.
        let _stopped = self.ask(HandOver::GoOn).await;
        self.context.handover.set(Phase::Serving);
        if !self.line.giver.has_let_go() {
            return error;
        }
        GiveError::LostSome {
            lost: self.moving.held.saturating_add(self.moving.relays),
            source: Box::new(error),
        }
    }

    /// The handover has failed and the successor cannot be ended. What was sent may be passed on
    /// there, so it is not passed on here. The successor hears the end of the socket, and serves
    /// alone or ends; this process ends too, and whoever started it starts the next one.
    fn leave_to_it(mut self, lives: io::Error) -> GiveError {
        self.moving.abandon_sent();
        self.resign();
        GiveError::Lives(lives)
    }

    /// This process is not the one that serves any more.
    fn resign(&self) {
        notify::main_process(self.line.successor.pid);
        self.proxy.doors.file.iter().for_each(FileStays::stay);
        self.context.handover.set(Phase::Gone);
    }

    /// The successor has everything. This process lives on only for what could not go over.
    fn finish(self) -> UpgradeReply {
        self.resign();
        let stayed = self.context.book.connection_count();
        let took = self.began.map(|began| began.elapsed()).unwrap_or_default();
        let reply = UpgradeReply {
            pid: self.line.successor.pid,
            version: self.line.version,
            sockets: self.sockets,
            held: self.moving.held,
            relays: self.moving.relays,
            stayed,
            why: self.moving.why.into_iter().collect(),
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        tracing::info!(?reply, "handed over");
        self.context.handover.keep(self.line.successor.channel);
        reply
    }
}
