//! The driver of a migration on its source: performs the one effect of each state, tells the
//! machine what came of it, makes the records durable, and goes on.
//!
//! Every decision is [`migrated_core::source`]'s. What an effect does is in the modules below.

mod back;
mod connections;
mod copy;
mod handoff;
mod volume;

pub(crate) use copy::measured_cost;

use std::sync::Arc;
use std::time::Duration;

use migrated_core::record::{Plan, Record, SourceRecord};
use migrated_core::source::{BeforeRelease, Effect, Event, Illegal, Phase, SourceMigration};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Desired, MigrationState, Window};
use tokio::time::Instant;
use tracing::Instrument;

use crate::clock;
use crate::host::Host;
use crate::migrations::Run;

/// The pause between tries to take the application in hand.
const OCCUPY_PAUSE: Duration = Duration::from_millis(20);

/// The pause before a journal that failed is tried again.
const JOURNAL_PAUSE: Duration = Duration::from_millis(500);

/// What a driver knows while it runs; after a restart it is found out again.
#[derive(Debug, Default)]
struct Track {
    copy: copy::Copying,
    gate: connections::Gate,
    /// When the application was told to stop.
    stopped_at: Option<Instant>,
    /// What the application itself took of the window.
    application: Duration,
    /// Whether a stop of the application may still be under way in the runtime: one that failed,
    /// or one that an earlier run of this daemon began.
    stopping: bool,
    /// Whether an earlier run of this daemon called the migration off and may have begun a stop.
    found_aborting: bool,
    /// Whether this driver has the application in hand: nobody else starts or stops it.
    occupied: bool,
}

/// Drives a migration to its end, or until the stop of the daemon; the journal knows how far it
/// came.
///
/// # Cancel safety
/// Dropping it is what a crash is: the next start takes it up from the journal.
pub(crate) async fn drive(host: Arc<Host>, migration: SourceMigration, run: Arc<Run>) {
    let span = tracing::info_span!(
        "migration",
        migration.id = %migration.id,
        application = %migration.plan.application,
        to = %migration.plan.to
    );
    let stop = host.supervisor.token().clone();
    let id = migration.id.clone();
    let driving = Driver {
        host: Arc::clone(&host),
        run,
        track: Track::default(),
    }
    .drive(migration)
    .instrument(span);
    if stop.run_until_cancelled(driving).await.is_some() {
        host.live.remove(&id);
        host.kick();
    }
}

struct Driver {
    host: Arc<Host>,
    run: Arc<Run>,
    track: Track,
}

impl Driver {
    async fn drive(mut self, mut migration: SourceMigration) {
        tracing::info!(phase = migration.phase.name(), "migration is under way");
        self.track.found_aborting = matches!(
            migration.phase,
            Phase::Before(BeforeRelease::Aborting { .. })
        );
        if let Some(event) = migration.resumed() {
            self.track.stopping = true;
            migration = self.advance(migration, event).await;
        }
        while let Some(effect) = migration.effect() {
            self.occupy(&migration).await;
            let event = self.perform(&migration, effect).await;
            migration = self.advance(migration, event).await;
        }
        if self.track.occupied {
            self.host.vacate(&migration.plan.application);
        }
        let report = self.run.view();
        self.host.metrics.migration_ended(&report);
        self.host.metrics.streamed(self.run.raw.bytes());
        tracing::info!(
            state = report.state.as_str(),
            error = report.error.as_deref().unwrap_or_default(),
            "migration is over"
        );
    }

    /// Takes the application in hand before anything is done to it. Until then it is the
    /// reconcile loop's, which starts it again when it exits in the middle of a round.
    async fn occupy(&mut self, migration: &SourceMigration) {
        if migration.phase.leaves_serving() || self.track.occupied {
            return;
        }
        while !self.host.occupy(&migration.plan.application) {
            tokio::time::sleep(OCCUPY_PAUSE).await;
        }
        self.track.occupied = true;
    }

    /// Steps the machine and makes the records durable before the new state is taken.
    async fn advance(&mut self, migration: SourceMigration, event: Event) -> SourceMigration {
        let step = match migration.step(clock::now(), event) {
            Ok(step) => step,
            Err(illegal @ (Illegal::TooLate | Illegal::OnItsWayBack)) => {
                tracing::info!(reason = %illegal, "cannot be called off any more");
                self.run.abort.send_replace(None);
                return migration;
            }
            Err(bug @ (Illegal::NotAnAnswer { .. } | Illegal::Over)) => {
                tracing::error!(error = %bug, "an event does not fit the state; the effect is performed again");
                tokio::time::sleep(JOURNAL_PAUSE).await;
                return migration;
            }
        };
        let began = Instant::now();
        self.persist(&migration, &step.records).await;
        if step
            .records
            .iter()
            .any(|r| matches!(r, SourceRecord::Released { .. }))
        {
            self.run.spent("release", began.elapsed().as_secs_f64());
            self.run.report().epoch = migration.plan.epoch.next();
        }
        if migration.phase.name() != step.next.phase.name() {
            tracing::info!(phase = step.next.phase.name(), "migration goes on");
        }
        step.next
    }

    /// Tries until it is durable: without the record nothing may be done, and the state that is
    /// left is safe.
    async fn persist(&self, migration: &SourceMigration, steps: &[SourceRecord]) {
        if steps.is_empty() {
            return;
        }
        let records: Vec<Record> = steps
            .iter()
            .map(|step| Record::Source {
                migration: migration.id.clone(),
                step: step.clone(),
            })
            .collect();
        while let Err(error) = self.host.ledger.commit(records.clone()).await {
            let error = Report(&error).to_string();
            tracing::error!(error, "the journal cannot be written; trying again");
            tokio::time::sleep(JOURNAL_PAUSE).await;
        }
    }

    /// Performs an effect. Before C1 a request to abort interrupts it; before the cut-over a
    /// deployment that wants the application elsewhere does, and in it the deadline.
    async fn perform(&mut self, migration: &SourceMigration, effect: Effect) -> Event {
        let (phase, round) = label(&effect);
        self.run.enter(phase, round);
        // A stop goes on in the runtime when nobody waits for it any more, and would hit what the
        // way back starts: it has a bound of its own and is waited for.
        let interruptible = matches!(migration.phase, Phase::Before(_))
            && !matches!(effect, Effect::Restore { .. } | Effect::Stop);
        let mut abort = self.run.abort.subscribe();
        let leaves_serving = migration.phase.leaves_serving();
        let desired = self.host.desired.watch();
        let limit = self.time_left(migration);
        let began = Instant::now();
        let event = {
            let work = self.work(migration, effect);
            // The arms other than the work only end it; whatever it had begun can be begun again
            // or is undone by the way back.
            tokio::select! {
                event = work => event,
                reason = abort_requested(&mut abort), if interruptible => {
                    Event::AbortRequested { reason }
                }
                reason = unwanted(desired, &migration.plan), if interruptible && leaves_serving => {
                    Event::AbortRequested { reason }
                }
                () = sleep_or_never(limit), if interruptible => Event::Failed {
                    reason: format!(
                        "the hard cap of {:.1} s would be passed in phase {phase}",
                        migration.plan.limits.hard_cap.as_secs_f64()
                    ),
                },
            }
        };
        // Parts that know their time better say it themselves.
        if !matches!(phase, "final_delta" | "clean_up" | "start") {
            self.run.spent(phase, began.elapsed().as_secs_f64());
        }
        event
    }

    /// What is left of a cut-over: until the deadline that was written down, and until the hard
    /// cap after the stop less what start and health took the last time.
    fn time_left(&self, migration: &SourceMigration) -> Option<Duration> {
        let left = clock::now().until(migration.deadline()?);
        let Some(stopped_at) = self.track.stopped_at else {
            return Some(left);
        };
        let there = self
            .host
            .ledger
            .read(|registry| copy::measured_start(registry.history(), &migration.plan.application));
        let window = migration.plan.limits.hard_cap.saturating_sub(there);
        Some(left.min(window.saturating_sub(stopped_at.elapsed())))
    }

    async fn work(&mut self, migration: &SourceMigration, effect: Effect) -> Event {
        match effect {
            Effect::Prepare => self.prepare(migration).await,
            Effect::SendRound { round, failures } => {
                self.send_round(migration, round, failures).await
            }
            Effect::StartThere { attempt } => self.start_there(migration, attempt).await,
            Effect::Park => self.park(migration).await,
            Effect::Drain => self.drain(migration).await,
            Effect::Stop => self.stop(migration).await,
            Effect::SendFinal { attempt } => self.send_final(migration, attempt).await,
            Effect::Grant { attempt, epoch } => self.grant(migration, attempt, epoch).await,
            Effect::AwaitOutcome { attempt } => self.await_outcome(migration, attempt).await,
            Effect::Finish { attempt } => self.finish(migration, attempt).await,
            Effect::Restore { reason } => self.restore(migration, reason).await,
            Effect::Reclaim {
                attempt,
                epoch,
                reason,
            } => self.reclaim(migration, attempt, epoch, reason).await,
        }
    }

    /// The report that the journal keeps.
    fn close(&self, state: MigrationState, error: Option<String>) -> Event {
        {
            let mut report = self.run.report();
            report.state = state;
            report.error = error;
            report.now = None;
        }
        Event::Closed {
            report: Box::new(self.run.view()),
        }
    }

    /// The destination serves: the window is over.
    fn window_ends(&self) {
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

fn label(effect: &Effect) -> (&'static str, u32) {
    match effect {
        Effect::Prepare => ("prepare", 0),
        Effect::SendRound { round, .. } => ("precopy", *round),
        Effect::StartThere { .. } | Effect::AwaitOutcome { .. } => ("start", 0),
        Effect::Park => ("park", 0),
        Effect::Drain => ("drain", 0),
        Effect::Stop => ("stop", 0),
        Effect::SendFinal { .. } => ("final_delta", 0),
        Effect::Grant { .. } => ("adopt", 0),
        Effect::Finish { .. } => ("clean_up", 0),
        Effect::Restore { .. } => ("abort", 0),
        Effect::Reclaim { .. } => ("return", 0),
    }
}

async fn abort_requested(abort: &mut tokio::sync::watch::Receiver<Option<String>>) -> String {
    loop {
        if let Some(reason) = abort.borrow_and_update().clone() {
            return reason;
        }
        if abort.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns when a newer deployment does not want the application where it is going.
async fn unwanted(mut desired: tokio::sync::watch::Receiver<Arc<Desired>>, plan: &Plan) -> String {
    loop {
        let now = Arc::clone(&desired.borrow_and_update());
        let known = now.applications.contains_key(&plan.application);
        let wanted = known && now.host_of(&plan.application) == Some(&plan.to);
        if now.generation > plan.generation && !wanted {
            return format!(
                "deployment {} does not want it on {} any more",
                now.generation, plan.to
            );
        }
        if desired.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn sleep_or_never(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use migrated_core::UnixMillis;
    use rehome_shared::config::model::MigrationLimits;
    use rehome_shared::ids::{DeploymentGeneration, Epoch};
    use tokio::sync::watch;

    use super::*;
    use crate::fixtures::{app, deployment, host};

    /// A move of `db` to `h2` that generation 2 asked for.
    fn plan() -> Plan {
        Plan {
            application: app("db"),
            to: host("h2"),
            epoch: Epoch(1),
            generation: DeploymentGeneration(2),
            volumes: Vec::new(),
            limits: MigrationLimits::default(),
            was_running: true,
            started_at: UnixMillis(0),
        }
    }

    async fn answers_to(desired: Desired) -> bool {
        let now = watch::Sender::new(Arc::new(desired));
        let plan = plan();
        let mut asked = std::pin::pin!(unwanted(now.subscribe(), &plan));
        poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn a_newer_deployment_that_wants_it_elsewhere_calls_it_off() {
        assert!(answers_to(deployment(3, &[("h1", &["db"]), ("h2", &[])])).await);
        assert!(
            answers_to(deployment(3, &[("h1", &[]), ("h2", &[])])).await,
            "not placed"
        );
    }

    #[tokio::test]
    async fn the_deployment_that_asked_for_it_and_one_that_still_wants_it_do_not() {
        assert!(!answers_to(deployment(2, &[("h1", &[]), ("h2", &["db"])])).await);
        assert!(!answers_to(deployment(3, &[("h1", &["web"]), ("h2", &["db"])])).await);
    }

    #[tokio::test]
    async fn a_deployment_that_comes_later_is_heard() {
        let now = watch::Sender::new(Arc::new(deployment(2, &[("h2", &["db"])])));
        let (plan, desired) = (plan(), now.subscribe());
        let (reason, ()) = tokio::join!(unwanted(desired, &plan), async {
            tokio::task::yield_now().await;
            now.send_replace(Arc::new(deployment(3, &[("h1", &["db"])])));
        });
        assert!(reason.contains("deployment 3"), "{reason}");
    }
}
