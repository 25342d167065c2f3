//! What this host knows of handoffs to it beside the journal: streams that come in, times, trouble.
//! All of it is found out again after a restart.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rehome_shared::ids::{DatasetId, MigrationId, RouteVersion, StreamId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::arrive::Turn;
use crate::stream::Arrivals;

/// A source that has nothing to say for so long does not keep others waiting.
const SILENT: Duration = Duration::from_secs(10);

/// What this host knows of handoffs to it beside the journal.
#[derive(Debug, Default)]
pub struct Takings {
    /// Held while it is decided whether one more may come.
    pub(super) admitting: tokio::sync::Mutex<()>,
    pub(super) known: Mutex<BTreeMap<MigrationId, Arc<Taking>>>,
    /// Counts what may be told that the journal knew before.
    pub(super) told: watch::Sender<u64>,
}

/// One of them.
#[derive(Debug)]
pub struct Taking {
    /// Read by streams that come in, written by who discards what came.
    pub(super) streams: tokio::sync::RwLock<()>,
    /// Held by the task that starts or discards, so that there is one.
    pub(super) working: tokio::sync::Mutex<()>,
    pub(super) phases: Mutex<BTreeMap<String, f64>>,
    pub(super) heard: Mutex<Instant>,
    /// Why it does not go on just now.
    pub(super) trouble: Mutex<Option<String>>,
    /// The version of the source's parked gate, when all of it had come.
    pub(super) parked: Mutex<Option<RouteVersion>>,
    /// Whether what was given back is stamped so, durably; nobody hears of it before.
    pub(super) stamped: AtomicBool,
    /// By volume, the stream that comes in or came last.
    pub(super) turns: Mutex<BTreeMap<DatasetId, Turn>>,
}

impl Takings {
    pub(super) fn known(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Arc<Taking>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &MigrationId) -> Arc<Taking> {
        let taking = || {
            Arc::new(Taking {
                streams: tokio::sync::RwLock::new(()),
                working: tokio::sync::Mutex::new(()),
                phases: Mutex::default(),
                heard: Mutex::new(Instant::now()),
                trouble: Mutex::default(),
                parked: Mutex::default(),
                stamped: AtomicBool::new(false),
                turns: Mutex::default(),
            })
        };
        Arc::clone(self.known().entry(id.clone()).or_insert_with(taking))
    }

    /// What was given back is stamped so: its source may hear of it.
    pub(super) fn tell_returned(&self, id: &MigrationId) {
        self.get(id).stamped.store(true, Ordering::Release);
        self.told.send_modify(|count| *count += 1);
    }

    pub(super) fn forget(&self, id: &MigrationId) {
        self.known().remove(id);
    }
}

impl Taking {
    pub(super) fn spent(&self, phase: &str, time: Duration) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.insert(phase.to_owned(), time.as_secs_f64());
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(super) fn turns(&self) -> MutexGuard<'_, BTreeMap<DatasetId, Turn>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of a stream of a volume. For a new one also what will come of it; the one before
    /// is over then.
    pub(super) fn next_turn(
        &self,
        dataset: &DatasetId,
        stream: &StreamId,
    ) -> (Turn, Option<Arrivals>) {
        let mut turns = self.turns();
        let before = turns.get(dataset);
        if let Some(same) = before.filter(|turn| turn.is_of(stream)) {
            return (same.clone(), None);
        }
        let (turn, arrivals) = Turn::after(before, stream.clone());
        turns.insert(dataset.clone(), turn.clone());
        (turn, Some(arrivals))
    }

    /// The turn of a stream that is known.
    pub(super) fn turn_of(&self, stream: &StreamId) -> Option<Turn> {
        let turns = self.turns();
        turns.values().find(|turn| turn.is_of(stream)).cloned()
    }

    /// Gives up whatever still comes in.
    pub(super) fn end_streams(&self) {
        for turn in self.turns().values() {
            turn.intake.give_up();
        }
    }

    pub(super) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether its source is there: it spoke a moment ago, or a stream of it comes in.
    pub(super) fn is_active(&self) -> bool {
        self.silent_for() < SILENT || self.streams.try_write().is_err()
    }

    pub(super) fn silent_for(&self) -> Duration {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::TakeError;

    #[test]
    fn what_was_given_back_is_told_only_after_it_was_stamped_in_this_run() {
        let takings = Takings::default();
        let id = MigrationId::generate();
        let mut told = takings.told.subscribe();
        assert!(!takings.get(&id).stamped.load(Ordering::Acquire));
        assert!(!told.has_changed().unwrap());
        takings.tell_returned(&id);
        assert!(takings.get(&id).stamped.load(Ordering::Acquire));
        assert!(told.has_changed().unwrap(), "who waits looks again");
        told.borrow_and_update();
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_silent_takes_nobodys_turn_unless_it_streams() {
        let takings = Takings::default();
        let taking = takings.get(&MigrationId::generate());
        assert!(taking.is_active());
        tokio::time::advance(SILENT).await;
        assert!(!taking.is_active());
        let streaming = taking.streams.read().await;
        assert!(taking.is_active());
        drop(streaming);
        assert!(!taking.is_active());
        taking.hear();
        assert!(taking.is_active());
        let busy = TakeError::Busy(vec![crate::fixtures::app("a"), crate::fixtures::app("b")]);
        assert!(busy.to_string().starts_with("busy with a, b"), "{busy}");
    }
}
