//! The driver of a migration on its source: performs the one effect of each state, tells the
//! machine what came of it, makes the records durable, and goes on.
//!
//! Every decision is [`migrated_core::source`]'s. What an effect does is in the modules below.

mod ask;
mod back;
mod connections;
mod converge;
mod copy;
mod draining;
mod handoff;
mod interrupt;
mod measured;
mod volume;
mod window;
mod written;

pub(crate) use measured::{fixed, shares, unmeasured_shares};

use std::sync::Arc;
use std::time::Duration;

use interrupt::{requested, sleep_or_never, unwanted};
use migrated_core::record::SourceRecord;
use migrated_core::source::{BeforeRelease, Effect, Event, Illegal, Phase, SourceMigration};
use rehome_runtime::failpoint;
use rehome_shared::api::cluster::MigrationState;
use tokio::time::Instant;
use tracing::Instrument;
use written::{JOURNAL_PAUSE, Step, Written};

use crate::clock;
use crate::host::Host;
use crate::migrations::{Run, TakeBack};
use crate::throttle;

/// The pause between tries to take the application in hand.
const OCCUPY_PAUSE: Duration = Duration::from_millis(20);

/// What a driver knows while it runs; after a restart it is found out again.
#[derive(Debug, Default)]
struct Track {
    copy: copy::Copying,
    gate: connections::Gate,
    /// How the application is held back while rounds go on.
    brake: converge::Brake,
    /// How long the destination let it wait for its turn.
    queued: Option<Duration>,
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
    /// The order of an operator that the event in hand carries out.
    order: Option<Arc<TakeBack>>,
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
    let application = migration.plan.application.clone();
    let driver = Driver {
        host: Arc::clone(&host),
        run,
        track: Track::default(),
    };
    let driving = Box::pin(driver.drive(migration).instrument(span));
    let ended = stop.run_until_cancelled(driving).await.is_some();
    // A daemon that stops must not leave it held back for as long as it is away.
    throttle::lift(&host, &application).await;
    if ended {
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
            let fenced = self.run.fenced.clone();
            let performing = async {
                self.wait_cleared(&migration).await;
                self.occupy(&migration).await;
                self.perform(&migration, effect).await
            };
            // What is dropped in the middle is another host's now: the reconcile loop stops
            // whatever of it runs here.
            let Some(event) = fenced.run_until_cancelled(performing).await else {
                return self.end_fenced(&migration);
            };
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

    /// The application was found to be another host's, which is written down: nothing is left to
    /// do for the migration.
    fn end_fenced(&self, migration: &SourceMigration) {
        if self.track.occupied {
            self.host.vacate(&migration.plan.application);
        }
        tracing::warn!("migration is over: another host owns the application");
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
        let order = self.track.order.take();
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
        match self.persist(&migration, &step.records, order).await {
            Written::Durable => {}
            Written::Over => {
                // It is another host's by now, as is written down: this ends the driver.
                self.run.fenced.cancel();
                return migration;
            }
            Written::Ended => return migration,
        }
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

    /// Makes the records of a step durable. An order that its records cannot carry out is over,
    /// and the effect goes on.
    async fn persist(
        &self,
        migration: &SourceMigration,
        records: &[SourceRecord],
        order: Option<Arc<TakeBack>>,
    ) -> Written {
        let step = Step {
            ledger: &self.host.ledger,
            desired: &self.host.desired,
            orders: &self.run.orders,
            migration: &migration.id,
            records,
        };
        let Some(order) = order else {
            return step.persist().await;
        };
        let written = step.persist_ordered(&order).await;
        if written == Written::Ended {
            self.run.orders.withdraw(&order);
        }
        written
    }

    /// Performs an effect. Before C1 a request to abort interrupts it; before the cut-over a
    /// deployment that wants the application elsewhere does, and in it the deadline.
    async fn perform(&mut self, migration: &SourceMigration, effect: Effect) -> Event {
        let (phase, round) = label(&effect);
        self.run.enter(phase, round);
        let window = self.watch_window(migration, &effect);
        failpoint::reach(|| format!("phase/{phase}/before")).await;
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
            // or is undone by the way back. A request that was accepted comes first: when the
            // work has ended at the same moment, it may soon be too late for it.
            tokio::select! {
                biased;
                reason = requested(&mut abort), if interruptible => {
                    Event::AbortRequested { reason }
                }
                event = work => event,
                reason = unwanted(desired, &migration.plan), if interruptible && leaves_serving => {
                    Event::AbortRequested { reason }
                }
                reason = window::overrun(window), if interruptible => Event::Failed { reason },
                () = sleep_or_never(limit), if interruptible => Event::Failed {
                    reason: format!(
                        "the hard cap of {:.1} s would be passed in phase {phase}",
                        migration.plan.limits.hard_cap.as_secs_f64()
                    ),
                },
            }
        };
        let queued = self.track.queued.take().unwrap_or_default();
        if !queued.is_zero() {
            self.run.spent("queue", queued.as_secs_f64());
        }
        // Parts that know their time better say it themselves.
        if !matches!(phase, "final_delta" | "clean_up" | "start") {
            let took = began.elapsed().saturating_sub(queued);
            self.run.spent(phase, took.as_secs_f64());
        }
        event
    }

    async fn work(&mut self, migration: &SourceMigration, effect: Effect) -> Event {
        match effect {
            Effect::Prepare => self.prepare(migration).await,
            Effect::SendRound { round, failures } => {
                self.send_round(migration, round, failures).await
            }
            Effect::StartThere { attempt } => self.start_there(migration, attempt).await,
            Effect::Park => self.park(migration).await,
            Effect::Drain => Box::pin(self.drain(migration)).await,
            Effect::Stop => self.stop(migration).await,
            Effect::SendFinal { attempt } => self.send_final(migration, attempt).await,
            Effect::Grant { attempt, epoch } => self.grant(migration, attempt, epoch).await,
            Effect::AwaitOutcome { .. } => self.await_outcome(migration).await,
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
