//! The window under way: how much of it is left, whether it still fits the hard cap, and what it
//! took in the end.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::convergence;
use migrated_core::convergence::window::{Underway, rate_of_stream};
use migrated_core::source::{Effect, SourceMigration};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Window;
use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;
use tokio::time::Instant;

use super::{Driver, measured};
use crate::clock;
use crate::host::Host;
use crate::migrations::Run;

/// Between two looks at a window.
const LOOK: Duration = Duration::from_millis(100);

/// What is needed to look at a window while its final difference is on its way.
pub(super) struct Watch {
    host: Arc<Host>,
    run: Arc<Run>,
    /// Of each volume the snapshot that the difference starts from; `None` when one has none.
    bases: Option<Vec<(DatasetId, String)>>,
    stopped_at: Instant,
    hard_cap: Duration,
    now: Underway,
}

impl Driver {
    /// What is left of a cut-over: until the deadline that was written down, and until the hard
    /// cap after the stop less what start and health took the last time.
    pub(super) fn time_left(&self, migration: &SourceMigration) -> Option<Duration> {
        let left = clock::now().until(migration.deadline()?);
        let Some(stopped_at) = self.track.stopped_at else {
            return Some(left);
        };
        let there = self
            .host
            .ledger
            .read(|registry| measured::starting(registry.history(), &migration.plan.application));
        let window = migration.plan.limits.hard_cap.saturating_sub(there);
        Some(left.min(window.saturating_sub(stopped_at.elapsed())))
    }

    /// What the window is taken for when the application is told to stop now.
    fn foreseen(&self, migration: &SourceMigration) -> Underway {
        let copy = &self.track.copy;
        let until = self.track.stopped_at.unwrap_or_else(Instant::now);
        let exposed = copy.snapped.map(|since| until.duration_since(since));
        let (stopping, ahead) = self.host.ledger.read(|registry| {
            let (history, name) = (registry.history(), &migration.plan.application);
            (
                measured::stopping(history, name),
                measured::ahead(history, name),
            )
        });
        Underway {
            elapsed: stopping,
            pending: convergence::pending(
                &migration.rounds,
                &copy.gaps,
                exposed.unwrap_or_default(),
            ),
            rate: convergence::bandwidth(&migration.rounds, &migration.plan.limits),
            ahead,
        }
    }

    /// Why the application had better not be stopped at all: much was written since the rounds
    /// ended, because the drain took long.
    pub(super) fn cannot_fit(&self, migration: &SourceMigration) -> Option<String> {
        if migration.plan.volumes.is_empty() {
            return None;
        }
        let hard_cap = migration.plan.limits.hard_cap;
        let window = self.foreseen(migration).overrun(hard_cap)?;
        Some(would_take(window, hard_cap))
    }

    /// Looks at the window from here on, if this effect is the one that sends the difference.
    pub(super) fn watch_window(
        &self,
        migration: &SourceMigration,
        effect: &Effect,
    ) -> Option<Watch> {
        if !matches!(effect, Effect::SendFinal { .. }) {
            return None;
        }
        let stopped_at = self.track.stopped_at?;
        // The bytes of the last round are not this difference's.
        self.run.stream_begins();
        let known = self.track.copy.bases.as_ref();
        let base = |dataset: &DatasetId| {
            let snapshot = known.and_then(|bases| bases.get(dataset))?;
            Some((dataset.clone(), snapshot.name.clone()))
        };
        let volumes = migration.plan.volumes.iter();
        Some(Watch {
            host: Arc::clone(&self.host),
            run: Arc::clone(&self.run),
            bases: volumes.map(|volume| base(&volume.dataset)).collect(),
            stopped_at,
            hard_cap: migration.plan.limits.hard_cap,
            now: Underway {
                elapsed: stopped_at.elapsed(),
                ..self.foreseen(migration)
            },
        })
    }

    /// The destination serves: the window is over.
    pub(super) fn window_ends(&self) {
        let Some(stopped_at) = self.track.stopped_at else {
            return;
        };
        let window = stopped_at.elapsed();
        let mut report = self.run.report();
        let there = report.phases.get("health").copied().unwrap_or_default();
        let application = (self.track.application.as_secs_f64() + there).min(window.as_secs_f64());
        report.window_seconds = Some(Window {
            platform: window.as_secs_f64() - application,
            application,
        });
    }
}

/// Returns when a window will pass the hard cap; never when there is none to look at.
pub(super) async fn overrun(watch: Option<Watch>) -> String {
    match watch {
        Some(watch) => watch.overrun().await,
        None => std::future::pending().await,
    }
}

impl Watch {
    /// The first look goes by what the rounds showed. Once the stream has begun the storage says
    /// how much there is to send: an application may write a lot while it stops.
    async fn overrun(mut self) -> String {
        if let Some(window) = self.now.overrun(self.hard_cap) {
            return would_take(window, self.hard_cap);
        }
        while self.run.meter.bytes() == Bytes(0) {
            tokio::time::sleep(LOOK).await;
        }
        let Some(total) = self.measure().await else {
            // The time that is left bounds the window all the same.
            return std::future::pending().await;
        };
        loop {
            let (sent, took) = self.run.streamed();
            self.now.elapsed = self.stopped_at.elapsed();
            self.now.pending = Bytes(total.0.saturating_sub(sent.0));
            if let Some(rate) = rate_of_stream(sent, took) {
                self.now.rate = rate;
                if let Some(window) = self.now.overrun(self.hard_cap) {
                    return would_take(window, self.hard_cap);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The bytes of the final difference of all volumes, which are flushed and no longer written.
    async fn measure(&self) -> Option<Bytes> {
        let mut total = Bytes(0);
        for (dataset, base) in self.bases.as_ref()? {
            match self.host.storage.changed_since(dataset, base).await {
                Ok(bytes) => total = total.saturating_add(bytes),
                Err(error) => {
                    let error = Report(&error).to_string();
                    tracing::debug!(error, "the size of the final difference is not known");
                    return None;
                }
            }
        }
        Some(total)
    }
}

fn would_take(window: Duration, hard_cap: Duration) -> String {
    format!(
        "the window would take {:.1} s and pass the hard cap of {:.1} s",
        window.as_secs_f64(),
        hard_cap.as_secs_f64()
    )
}
