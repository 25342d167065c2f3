//! Connections go over, a batch at a time: stopped by themselves, packed, brought, and forgotten.
//!
//! Whatever has stopped is kept in [`Moving`], never in a future, so that it is there to be taken
//! back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::handover::{Batch, BatchError, Packer, PartId, Refusal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::AT_ONCE;
use super::channel::file_of;
use super::departure::Departure;
use crate::book::ByAge;
use crate::book::connection::Connection;
use crate::context::Context;

/// What connections get to stop.
const STILL: Duration = Duration::from_secs(2);
/// How often those that do not stop are looked after.
const LOOK: Duration = Duration::from_millis(5);
/// What requests in flight get, once everybody else has gone, so that their connections can go
/// after the answers. Later ones go in the middle of theirs, as relays, whose requests nobody
/// follows: they outlive this upgrade, but not the next move.
const ANSWERS: Duration = Duration::from_millis(200);
/// Reasons that are told of connections that stay.
const REASONS: usize = 10;

/// How those with a request in flight leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// After the answer.
    AtBoundary,
    /// In the middle.
    Now,
}

/// Who takes connections to where they go.
pub(super) trait Courier {
    /// Why it cannot go on.
    type Error: From<BatchError>;

    /// Takes a batch there, with its file and the descriptors of its parts, and says which parts
    /// are not taken there. All others are another process's when it returns; when it fails, none
    /// is.
    ///
    /// # Cancel safety
    /// Not cancel safe, and not dropped: [`Moving`] runs to its end.
    async fn bring(
        &mut self,
        batch: Batch,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<Refusal>, Self::Error>;
}

/// The connections of a process that others take over.
pub(super) struct Moving<'a> {
    context: &'a Context,
    last_part: u64,
    leaving: Option<mpsc::Receiver<Departure>>,
    /// Stopped, and not sent yet.
    stopped: VecDeque<Departure>,
    /// Sent, and not another process's yet.
    sent: BTreeMap<PartId, Departure>,
    /// Refused there.
    stays: BTreeSet<u64>,
    /// Why some stay.
    pub(super) why: BTreeSet<String>,
    /// Clients that have gone and wait for their application.
    pub(super) held: u64,
    /// Connections that have gone and flow.
    pub(super) relays: u64,
}

impl<'a> Moving<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self {
            context,
            last_part: 0,
            leaving: None,
            stopped: VecDeque::new(),
            sent: BTreeMap::new(),
            stays: BTreeSet::new(),
            why: BTreeSet::new(),
            held: 0,
            relays: 0,
        }
    }

    /// The number of the next part.
    pub(super) fn next_part(&mut self) -> PartId {
        self.last_part = self.last_part.saturating_add(1);
        PartId(self.last_part)
    }

    /// Hands the connections over, some at a time, so that none is still for long.
    pub(super) async fn all<C: Courier>(&mut self, courier: &mut C) -> Result<(), C::Error> {
        let (sender, leaving) = mpsc::channel(2 * AT_ONCE);
        *self.context.handover.collector() = Some(sender);
        self.leaving = Some(leaving);
        let guests = self.context.handover.take_guests().into_iter();
        self.stopped.extend(guests.map(Departure::Guest));
        self.send_stopped(courier).await?;
        if !self
            .move_leavers(courier, (ANSWERS, Haste::AtBoundary))
            .await?
            && !self.move_leavers(courier, (STILL, Haste::Now)).await?
        {
            self.why.insert("it did not stop in time".to_owned());
        }
        self.stay();
        Ok(())
    }

    /// Until all who can leave have left, or, from when all were asked, for so long, in looks: whether
    /// all have.
    async fn move_leavers<C: Courier>(
        &mut self,
        courier: &mut C,
        (patience, haste): (Duration, Haste),
    ) -> Result<bool, C::Error> {
        self.ask_all(courier).await?;
        let mut left = looks(patience);
        loop {
            if haste == Haste::Now {
                self.context.book.hurry_leavers();
            }
            self.gather();
            self.send_stopped(courier).await?;
            // Who found no room on the way here went back to work, and is asked again.
            self.ask_all(courier).await?;
            if !self.context.book.has_late_leavers() {
                return Ok(true);
            }
            if left == 0 {
                return Ok(false);
            }
            left -= 1;
            sleep(LOOK).await;
        }
    }

    /// Asks all who were not asked, and sends those that stop at once.
    async fn ask_all<C: Courier>(&mut self, courier: &mut C) -> Result<(), C::Error> {
        let mut waiting = self.context.book.leavers();
        waiting.retain(|connection| !self.stays.contains(&connection.id));
        let mut asked = ask(&mut waiting);
        while !asked.is_empty() {
            self.collect(asked).await;
            // The next ones stop while these are on their way.
            asked = ask(&mut waiting);
            self.send_stopped(courier).await?;
        }
        Ok(())
    }

    /// Waits until these have stopped or ended, but for those with a request in flight. How long
    /// that may take is counted in looks that found nobody: on a machine that runs this process
    /// only now and then, what has stopped meanwhile is not late.
    async fn collect(&mut self, mut asked: ByAge) {
        let mut vain = 0;
        let mut look = Instant::now();
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        while !asked.is_empty() {
            if Instant::now() >= look {
                self.context.book.keep_leavers(&mut asked);
                look = Instant::now() + LOOK;
                continue;
            }
            match timeout(LOOK, leaving.recv()).await {
                Ok(Some(departure)) => {
                    if let Some(connection) = departure.connection() {
                        asked.remove(&connection.id);
                    }
                    self.stopped.push_back(departure);
                }
                Ok(None) => return,
                Err(_) if vain < looks(STILL) => vain += 1,
                Err(_) => {
                    self.why.insert("it did not stop in time".to_owned());
                    return;
                }
            }
        }
    }

    /// Collects those that have stopped late: after an answer.
    fn gather(&mut self) {
        if let Some(leaving) = &mut self.leaving {
            while let Ok(departure) = leaving.try_recv() {
                self.stopped.push_back(departure);
            }
        }
    }

    /// Sends all that have stopped.
    async fn send_stopped<C: Courier>(&mut self, courier: &mut C) -> Result<(), C::Error> {
        let mut packer = Packer::default();
        while let Some(departure) = self.stopped.front() {
            let Some((part, bytes)) = departure.part() else {
                // Its sockets are lost; it ends.
                if let Some(lost) = self.stopped.pop_front() {
                    lost.resume(self.context);
                }
                continue;
            };
            let descriptors = departure.descriptors().len();
            if !packer.fits(descriptors, bytes.len()) {
                let full = std::mem::take(&mut packer);
                self.send_connections(courier, full).await?;
            }
            let id = self.next_part();
            packer.add(id, &part, descriptors, &bytes)?;
            if let Some(departure) = self.stopped.pop_front() {
                self.sent.insert(id, departure);
            }
        }
        if packer.is_empty() {
            return Ok(());
        }
        self.send_connections(courier, packer).await
    }

    /// Sends a batch of connections, and forgets those that are taken.
    async fn send_connections<C: Courier>(
        &mut self,
        courier: &mut C,
        packer: Packer,
    ) -> Result<(), C::Error> {
        let packed = packer.finish()?;
        let file = match file_of(&packed.content) {
            Ok(file) => file,
            Err(error) => {
                // Nothing was offered: they stay, and what has gone has gone.
                self.keep_sent(&format!("there is no room for a batch: {error}"));
                return Ok(());
            }
        };
        let refused = {
            // In the order of the parts' numbers, which is that of the batch.
            let parts = self.sent.values().flat_map(Departure::descriptors);
            let all: Vec<_> = std::iter::once(file.as_fd()).chain(parts).collect();
            courier.bring(packed.batch, &all).await?
        };
        for Refusal { id, reason } in refused {
            if let Some(departure) = self.sent.remove(&id) {
                self.keep(departure, reason);
            }
        }
        for (_, departure) in std::mem::take(&mut self.sent) {
            let count = match departure {
                Departure::Guest(_) | Departure::Held(..) => &mut self.held,
                Departure::Relay(..) | Departure::Rest(..) => &mut self.relays,
            };
            *count = count.saturating_add(1);
            departure.depart();
        }
        Ok(())
    }

    /// Has one go on here that is not taken.
    fn keep(&mut self, departure: Departure, why: String) {
        if self.why.len() < REASONS {
            self.why.insert(why);
        }
        self.stays.extend(departure.connection().map(|c| c.id));
        departure.resume(self.context);
    }

    /// Has what was not offered go on here.
    fn keep_sent(&mut self, why: &str) {
        for departure in std::mem::take(&mut self.sent).into_values() {
            self.keep(departure, why.to_owned());
        }
    }

    /// It has failed: all that did not go goes on here.
    pub(super) fn take_back(&mut self) {
        // Whether they were sent or not: what has gone is in neither.
        let sent = std::mem::take(&mut self.sent).into_values();
        let stopped = std::mem::take(&mut self.stopped);
        sent.chain(stopped)
            .for_each(|departure| departure.resume(self.context));
        self.stay();
    }

    /// It has failed, and what was sent may be passed on elsewhere: it is not passed on here.
    pub(super) fn abandon_sent(&mut self) {
        for (_, departure) in std::mem::take(&mut self.sent) {
            departure.depart();
        }
        self.take_back();
    }

    /// Nobody collects any more: who stops from now on goes on by itself.
    fn stay(&mut self) {
        *self.context.handover.collector() = None;
        if let Some(mut leaving) = self.leaving.take() {
            leaving.close();
            while let Ok(departure) = leaving.try_recv() {
                departure.resume(self.context);
            }
        }
        let guests = self.context.handover.take_guests().into_iter();
        guests.for_each(|guest| Departure::Guest(guest).resume(self.context));
        self.context.book.all_stay();
    }
}

/// How many looks take so long on a machine that is not busy. On one that runs this process only
/// now and then they take longer, and what can stop meanwhile is not late.
fn looks(time: Duration) -> u128 {
    time.as_millis() / LOOK.as_millis()
}

/// Asks the first ones to leave; all that are left were asked before when there are none.
fn ask(waiting: &mut VecDeque<Arc<Connection>>) -> ByAge {
    let mut asked = ByAge::new();
    while asked.len() < AT_ONCE
        && let Some(connection) = waiting.pop_front()
    {
        if connection.orders.leave() {
            asked.insert(connection.id, connection);
        }
    }
    asked
}
