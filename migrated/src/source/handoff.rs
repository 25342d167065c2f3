//! The change of owner: grant, outcome, and cleaning up on the way forward.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use migrated_core::source::{AfterRelease, Event, Phase, SourceMigration};
use migrated_core::stamp::Of;
use rehome_runtime::backoff::Backoff;
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{FencedOwner, MigrationState};
use rehome_shared::api::peer::{Advert, HandoffRef, HandoffState, HandoffView};
use rehome_shared::ids::{Attempt, Epoch, Generation, HostAddr, RouteVersion};

use super::Driver;
use super::copy::snapshot_name;
use crate::failover::advice;
use crate::host::Host;
use crate::migrations::TakeBack;
use crate::peers::DEADLINE;
use crate::storage::StorageError;
use crate::{applications, fence};

/// How long the destination holds a question before it says that nothing has changed.
const WAIT: Duration = Duration::from_secs(4);

/// A destination that did not hear that the handoff is over is told so often again.
const TOLD_AGAIN: u32 = 4;

/// Starting an application without volumes may take as long as its health check allows.
const START_LIMIT: Duration = Duration::from_mins(15);

impl Driver {
    /// Without volumes: has the destination run it beside this host.
    pub(super) async fn start_there(
        &mut self,
        migration: &SourceMigration,
        attempt: Attempt,
    ) -> Event {
        let message = HandoffRef {
            attempt,
            epoch: migration.plan.epoch,
        };
        let path = format!("/peer/v1/handoffs/{}/start", migration.id);
        let began = tokio::time::Instant::now();
        let client = self.host.peers.client(&migration.plan.to);
        let answer: Result<HandoffView, ClientError> = client
            .request_json(Method::POST, &path, Some(&message), START_LIMIT)
            .await;
        self.run.spent("start", began.elapsed().as_secs_f64());
        match answer {
            Ok(view) if view.state == HandoffState::Verified => Event::StartedThere,
            Ok(view) => Event::Failed {
                reason: format!("{} says the handoff is {:?}", migration.plan.to, view.state),
            },
            Err(ClientError::Status { reply, .. }) => Event::Failed {
                reason: format!("{} cannot start it: {}", migration.plan.to, reply.error),
            },
            Err(error) => Event::Failed {
                reason: format!("{} cannot start it: {}", migration.plan.to, Report(&error)),
            },
        }
    }

    /// Grants until the destination says that it is the owner, however long that takes, or an
    /// operator takes it back.
    pub(super) async fn grant(
        &mut self,
        migration: &SourceMigration,
        attempt: Attempt,
        epoch: Epoch,
    ) -> Event {
        let message = HandoffRef { attempt, epoch };
        let path = format!("/peer/v1/handoffs/{}/grant", migration.id);
        let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let answer: Result<HandoffView, ClientError> = self
                .host
                .peers
                .request(&migration.plan.to, Method::POST, &path, Some(&message))
                .await;
            match answer.map(|view| self.outcome(view)) {
                Ok(Some(event)) => {
                    self.unblocked();
                    self.note_outcome(&event);
                    return event;
                }
                Ok(None) => self.lost(migration).await,
                Err(error) => {
                    if !error.had_no_effect() {
                        self.run.granted.store(true, Ordering::Relaxed);
                    }
                    self.unanswered(migration, &error).await;
                }
            }
            // While a grant is on its way nobody knows whether the destination hears it.
            tokio::select! {
                () = tokio::time::sleep(pause.next_delay()) => {}
                order = self.run.orders.next(false, &self.run.granted) => {
                    return self.turn_round(order);
                }
            }
        }
    }

    /// Waits until the destination serves or gave it back, however long that takes, or an operator
    /// takes it back.
    pub(super) async fn await_outcome(&mut self, migration: &SourceMigration) -> Event {
        tokio::select! {
            event = self.outcome_there(migration) => event,
            order = self.run.orders.next(true, &self.run.granted) => self.turn_round(order),
        }
    }

    /// Goes back as after a destination that gave it back.
    fn turn_round(&mut self, order: Arc<TakeBack>) -> Event {
        let reason = order.reason.clone();
        self.track.order = Some(order);
        Event::Returned { reason }
    }

    async fn outcome_there(&self, migration: &SourceMigration) -> Event {
        let path = format!(
            "/peer/v1/handoffs/{}?seen=owned&wait={}",
            migration.id,
            WAIT.as_secs()
        );
        let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let client = self.host.peers.client(&migration.plan.to);
            let answer: Result<HandoffView, ClientError> = client
                .request_json(
                    Method::GET,
                    &path,
                    None::<&()>,
                    DEADLINE.saturating_add(WAIT),
                )
                .await;
            let trouble = answer.as_ref().ok().and_then(|view| view.reason.clone());
            match answer.map(|view| self.outcome(view)) {
                Ok(Some(Event::Adopted)) => {
                    pause.reset();
                    match trouble {
                        None => self.unblocked(),
                        Some(trouble) => {
                            self.blocked(migration, &format!("cannot go on: {trouble}"));
                        }
                    }
                    continue;
                }
                Ok(Some(event)) => {
                    self.unblocked();
                    self.note_outcome(&event);
                    return event;
                }
                Ok(None) => self.lost(migration).await,
                Err(error) => self.unanswered(migration, &error).await,
            }
            tokio::time::sleep(pause.next_delay()).await;
        }
    }

    /// What the destination's state means for the source after C1.
    fn outcome(&self, view: HandoffView) -> Option<Event> {
        for (phase, seconds) in &view.phases {
            self.run.report().phases.insert(phase.clone(), *seconds);
        }
        match view.state {
            HandoffState::Owned => Some(Event::Adopted),
            HandoffState::Serving => Some(Event::Served),
            HandoffState::Returned => Some(Event::Returned {
                reason: view.reason.unwrap_or_default(),
            }),
            // Its promise to wait is durable, so none of these can follow a release; who sees one
            // must not guess.
            HandoffState::Unknown
            | HandoffState::Reserved
            | HandoffState::Verified
            | HandoffState::Dropped => None,
        }
    }

    /// Where the destination serves the window is over; where it returned the application, the
    /// window ends when it runs here again.
    fn note_outcome(&self, event: &Event) {
        if *event == Event::Served {
            self.window_ends();
        }
    }

    async fn unanswered(&self, migration: &SourceMigration, error: &ClientError) {
        if error.status() == Some(StatusCode::NOT_FOUND) {
            return self.lost(migration).await;
        }
        let error = Report(error);
        let why = format!("does not answer ({error}): it goes on by itself when it does;");
        self.blocked(migration, &why);
    }

    /// What it promised was durable there: its journal is another one.
    async fn lost(&self, migration: &SourceMigration) {
        if self.is_overtaken(migration).await {
            return;
        }
        self.blocked(
            migration,
            "has lost its journal: bring its state directory back. The volumes here are whole;",
        );
    }

    fn blocked(&self, migration: &SourceMigration, why: &str) {
        let plan = &migration.plan;
        let loss = matches!(migration.phase, Phase::After(AfterRelease::Handed { .. }))
            || self.run.granted.load(Ordering::Relaxed);
        let command = advice::command(
            &self.host,
            &plan.application,
            &self.host.address,
            &FencedOwner {
                host: plan.to.clone(),
                epoch: plan.epoch.next(),
            },
            loss,
        );
        let reason = format!(
            "released at epoch {} to {}, and must not run here any more; {} {why} {}",
            plan.epoch.next(),
            plan.to,
            plan.to,
            advice::instead(&plan.to, &command),
        );
        let mut report = self.run.report();
        if report.state != MigrationState::Blocked {
            tracing::warn!(reason, "the handoff waits for the destination");
        }
        report.state = MigrationState::Blocked;
        report.error = Some(reason);
    }

    fn unblocked(&self) {
        let mut report = self.run.report();
        report.state = MigrationState::Running;
        report.error = None;
    }

    /// The destination serves: leads the routes there and drops what is no longer needed. None
    /// of this can fail the move any more; what cannot be dropped now is said.
    pub(super) async fn finish(&mut self, migration: &SourceMigration, attempt: Attempt) -> Event {
        let plan = &migration.plan;
        let application = &plan.application;
        if plan.volumes.is_empty() && self.track.gate.version.is_none() {
            // Its gate was never parked: new connections go to the new instance from here on,
            // old ones may finish on the old one.
            if let Err(reason) = self.park_gate(migration).await {
                tracing::warn!(reason, "old connections end with the old instance");
            }
            self.lead_away(migration).await;
            let drained = self.drain_gate(migration).await;
            let stopped = self.stop_application(migration).await;
            for reason in [drained, stopped].into_iter().filter_map(Result::err) {
                tracing::warn!(reason, "the old instance is not drained or stopped cleanly");
            }
        }
        if let Err(reason) = self.freeze_gate(migration).await {
            tracing::debug!(reason, "the last counts are not known");
        }
        self.lead_away(migration).await;
        if let Err(error) = applications::remove(&self.host, application, Duration::ZERO).await {
            let error = Report(&error).to_string();
            tracing::warn!(
                error,
                "the old instance cannot be removed; the reconcile loop tries again"
            );
        }
        self.drop_copies(migration, attempt).await;
        self.mark_gone(migration).await;
        self.tell_closed(migration, attempt).await;
        self.close(MigrationState::Done, None)
    }

    async fn lead_away(&self, migration: &SourceMigration) {
        let plan = &migration.plan;
        let version = RouteVersion {
            epoch: plan.epoch.next(),
            generation: Generation::default(),
        };
        self.host.routes.hear(&[Advert {
            application: plan.application.clone(),
            version,
            host: plan.to.clone(),
        }]);
        self.host.routes.forget(&plan.application);
        self.push_routes().await;
    }

    /// The live trees go, and of the snapshots all but the common base: moving back sends a
    /// difference. The destination's lineage contains all of it: it serves from the base.
    async fn drop_copies(&self, migration: &SourceMigration, attempt: Attempt) {
        let keep = snapshot_name(&migration.id, &format!("final-{attempt}"));
        for volume in &migration.plan.volumes {
            if let Err(error) = self.drop_copy(migration, volume, &keep).await {
                let error = Report(&error).to_string();
                tracing::warn!(error, volume = %volume.name, "what the move left of a volume cannot be dropped");
            }
        }
    }

    /// The volumes say whose they are, also where they could not be dropped.
    async fn mark_gone(&self, migration: &SourceMigration) {
        let plan = &migration.plan;
        let of = Of {
            application: &plan.application,
            volumes: &plan.volumes,
        };
        let epoch = plan.epoch.next();
        if let Err(error) = applications::mark_gone(&self.host, of, &plan.to, epoch).await {
            let error = Report(&error).to_string();
            tracing::warn!(error, "what was given away cannot be stamped so");
        }
    }

    async fn drop_copy(
        &self,
        migration: &SourceMigration,
        volume: &rehome_shared::api::peer::VolumeIdentity,
        keep: &str,
    ) -> Result<(), StorageError> {
        let storage = &self.host.storage;
        let Some(info) = storage.inspect(&volume.dataset).await? else {
            return Ok(());
        };
        if !info.snapshots.iter().any(|snapshot| snapshot.name == keep) {
            // Without the base nothing proves that the destination has all of it.
            return Ok(());
        }
        if info.live {
            if storage.is_unchanged(&volume.dataset, keep).await? {
                storage.retire(&volume.dataset).await?;
            } else {
                let plan = &migration.plan;
                fence::keep_copy(&self.host, &plan.application, volume, plan.epoch).await?;
            }
        }
        for snapshot in info
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.name != keep)
        {
            storage
                .delete_snapshot(&volume.dataset, &snapshot.name)
                .await?;
        }
        Ok(())
    }

    /// The destination need not remember the handoff any more. The migration does not wait for one
    /// that does not hear this at once: it is told some more times, and asks by itself in the end.
    pub(super) async fn tell_closed(&self, migration: &SourceMigration, attempt: Attempt) {
        let closing = Closing {
            to: migration.plan.to.clone(),
            path: format!("/peer/v1/handoffs/{}/close", migration.id),
            message: HandoffRef {
                attempt,
                epoch: migration.plan.epoch,
            },
        };
        if closing.tell(&self.host).await {
            return;
        }
        let host = Arc::clone(&self.host);
        self.host.spawn("tell closed", async move {
            let mut pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
            for _ in 0..TOLD_AGAIN {
                tokio::time::sleep(pause.next_delay()).await;
                if closing.tell(&host).await {
                    return;
                }
            }
        });
    }
}

/// The message that a handoff is over.
struct Closing {
    to: HostAddr,
    path: String,
    message: HandoffRef,
}

impl Closing {
    /// Whether the destination answered, whatever it did.
    async fn tell(&self, host: &Host) -> bool {
        let told: Result<HandoffView, ClientError> = host
            .peers
            .request(&self.to, Method::POST, &self.path, Some(&self.message))
            .await;
        match told {
            Ok(_) => true,
            Err(error) => {
                let answered = error.status().is_some();
                let error = Report(&error).to_string();
                tracing::info!(
                    error,
                    "the destination was not told that the handoff is over"
                );
                answered
            }
        }
    }
}
