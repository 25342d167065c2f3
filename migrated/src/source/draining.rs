//! The drain, and the rounds that are sent while it lasts: clients that are still served go on
//! writing, and what is not sent before the stop is sent in the window.
//!
//! A round that fails is not the move's failure: the next one, or the end of the drain, asks the
//! destination what it has.

use std::time::Duration;

use migrated_core::convergence::drain::{has_room, pace};
use migrated_core::source::{Event, SourceMigration};
use rehome_runtime::failpoint;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Round;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Driver;

/// The pause before the destination is asked again what it has.
const PAUSE: Duration = Duration::from_millis(250);

impl Driver {
    /// Lets old connections finish. A round that is under way when they have is awaited: its bytes
    /// would have to be sent anyway.
    pub(super) async fn drain(&mut self, migration: &SourceMigration) -> Event {
        let over = CancellationToken::new();
        let draining = self.draining(migration);
        let draining = async {
            let drained = draining.await;
            over.cancel();
            drained
        };
        let rounds = self.rounds_until(&over, migration);
        let (drained, rounds) = tokio::join!(draining, rounds);
        match drained {
            Ok(counts) => counts.into_iter().for_each(|counts| self.count(counts)),
            Err(reason) => return Event::Failed { reason },
        }
        match self.know_bases(migration).await {
            Ok(()) => Event::Drained { rounds },
            Err(reason) => Event::Failed { reason },
        }
    }

    /// Sends rounds one after the other while the drain lasts; answers those that arrived.
    async fn rounds_until(
        &mut self,
        over: &CancellationToken,
        migration: &SourceMigration,
    ) -> Vec<Round> {
        let limit = migration.plan.limits.drain;
        let before = migration.rounds.len();
        // The rounds of the drain are not the machine's yet.
        let mut migration = migration.clone();
        // One that failed is not tried again: its snapshot has grown old. The next has a number, and
        // so a snapshot, of its own.
        let mut number = u32::try_from(before).unwrap_or(u32::MAX);
        let began = Instant::now();
        let mut next = began + pace(limit);
        loop {
            let pause = tokio::time::sleep_until(next);
            if over.run_until_cancelled(pause).await.is_none() {
                break;
            }
            let last = migration.rounds.last().map_or(0.0, |round| round.seconds);
            if !has_room(limit, began.elapsed(), last) {
                break;
            }
            next = Instant::now() + pace(limit);
            number = number.saturating_add(1);
            let sent = self.round_in_drain(&migration, number).await;
            migration.rounds.extend(sent);
        }
        migration.rounds.split_off(before)
    }

    /// Sends one round; `None` when it did not arrive.
    async fn round_in_drain(&mut self, migration: &SourceMigration, number: u32) -> Option<Round> {
        self.run.enter("drain", number);
        failpoint::reach(|| "phase/drain_round/before".to_owned()).await;
        match self.round(migration, number).await {
            Ok(sent) => {
                failpoint::reach(|| "phase/drain_round/after".to_owned()).await;
                self.note_round(sent);
                Some(sent)
            }
            Err(error) => {
                let error = Report(&error).to_string();
                tracing::warn!(error, round = number, "a round of the drain did not arrive");
                // How far the destination came is not known any more.
                self.track.copy.bases = None;
                None
            }
        }
    }

    /// After a round that failed: without a common base everything would be sent in the window.
    /// The deadline of the cut-over bounds it.
    async fn know_bases(&mut self, migration: &SourceMigration) -> Result<(), String> {
        while self.track.copy.bases.is_none() {
            match self.offer(migration).await {
                Ok(()) => {}
                Err(error) if error.again() => {
                    let error = Report(&error).to_string();
                    tracing::info!(error, "the destination does not say what it has");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    let to = &migration.plan.to;
                    return Err(format!("{to} does not go on: {}", Report(&error)));
                }
            }
        }
        Ok(())
    }
}
