//! The ways back: an abort before C1, and what the destination returns after it.

use std::time::Duration;

use http::Method;
use migrated_core::registry::{Ownership, Role};
use migrated_core::routes::LocalRoute;
use migrated_core::source::{Event, SourceMigration};
use rehome_runtime::backoff::Backoff;
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::MigrationState;
use rehome_shared::api::peer::{HandoffRef, HandoffState, HandoffView};
use rehome_shared::config::model::Application;
use rehome_shared::ids::{AppName, Attempt, Epoch};

use super::Driver;
use super::copy::snapshot_name;
use crate::applications::{self, LaunchError};
use crate::health::{self, Unhealthy};
use crate::host::spec_of;
use crate::runtime::{Instance, InstanceState};
use crate::throttle;

/// Tries to bring the application back before the migration is closed and the reconcile loop
/// goes on trying.
const TRIES: u32 = 4;

/// For so long after the way back an exit may be the echo of the stop.
const STOP_ECHO: Duration = Duration::from_mins(1);

/// For so long the reconcile loop tries to bring back what the way back could not.
const LONG_TRIES: Duration = Duration::from_hours(24);

impl Driver {
    /// Brings the application back at the epoch that this host never gave away.
    pub(super) async fn restore(&mut self, migration: &SourceMigration, reason: String) -> Event {
        self.ask_first(migration).await;
        throttle::lift(&self.host, &migration.plan.application).await;
        self.hold_clients(migration).await;
        self.serve_again(migration, migration.plan.epoch).await;
        self.call_off(migration).await;
        self.drop_snapshots(migration, None).await;
        self.close(MigrationState::Aborted, Some(reason))
    }

    /// Brings the application back at the epoch that the destination returned it with. The live
    /// trees are as the final snapshots: nothing was written since, here or there.
    pub(super) async fn reclaim(
        &mut self,
        migration: &SourceMigration,
        attempt: Attempt,
        epoch: Epoch,
        reason: String,
    ) -> Event {
        self.run.report().epoch = epoch;
        self.ask_first(migration).await;
        self.serve_again(migration, epoch).await;
        self.window_ends();
        let base = snapshot_name(&migration.id, &format!("final-{attempt}"));
        self.drop_snapshots(migration, Some(&base)).await;
        self.tell_closed(migration, attempt).await;
        let reason = format!("{} gave it back: {reason}", migration.plan.to);
        self.close(MigrationState::Returned, Some(reason))
    }

    /// An earlier run of this daemon may have begun to stop the application, or have ended before
    /// it even parked. The stop is made sure of on the way back, and clients must not notice it:
    /// they are held first, whether they are held already or not.
    async fn hold_clients(&mut self, migration: &SourceMigration) {
        let ends = self.track.stopping && migration.plan.was_running;
        if !ends || self.track.gate.version.is_some() {
            return;
        }
        let held = match self.park_gate(migration).await {
            Ok(()) => self.drain_gate(migration).await,
            Err(reason) => Err(reason),
        };
        if let Err(reason) = held {
            tracing::warn!(
                reason,
                "clients may notice that the application starts again"
            );
        }
    }

    /// Runs the application here if it ran before, and opens its gate.
    async fn serve_again(&self, migration: &SourceMigration, epoch: Epoch) {
        let application = &migration.plan.application;
        if !migration.plan.was_running {
            self.host.routes.set(application, epoch, LocalRoute::Closed);
            self.push_routes().await;
            if self.hold(migration, epoch).await.is_err() {
                applications::hold_later(&self.host, application);
            }
            return;
        }
        let mut pause = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        for attempt in 1..=TRIES {
            match self.run_again(migration, epoch).await {
                Ok(()) => {
                    if self.track.found_aborting {
                        // The signal of a stop that an earlier run of this daemon began may
                        // still come through.
                        self.owe_start(application, STOP_ECHO);
                    }
                    return;
                }
                Err(error) => {
                    let error = Report(&error).to_string();
                    tracing::error!(
                        error,
                        attempt,
                        "the application cannot be brought back here yet"
                    );
                }
            }
            tokio::time::sleep(pause.next_delay()).await;
        }
        // The reconcile loop goes on, also where the restart policy would leave it as it is.
        self.owe_start(application, LONG_TRIES);
    }

    fn owe_start(&self, application: &AppName, time: Duration) {
        self.host
            .memory()
            .owed
            .insert(application.clone(), std::time::Instant::now() + time);
    }

    /// The instance that ran before is started again as it was: a configuration that came with
    /// the move may be what failed.
    async fn run_again(
        &self,
        migration: &SourceMigration,
        epoch: Epoch,
    ) -> Result<(), LaunchError> {
        let application = &migration.plan.application;
        let desired = self.host.desired.get();
        let Some(spec) = spec_of(&desired, application) else {
            return Ok(());
        };
        if self.track.stopping {
            // Its end must come before its new beginning.
            self.host.runtime.stop(application, spec.stop_grace).await?;
        }
        // What was seen before the stop says nothing any more.
        self.host.observe().await?;
        let held = self.hold(migration, epoch).await;
        let instance = match self.host.instance(application) {
            Some(instance) if instance.state == InstanceState::Running => {
                if held.is_err() {
                    applications::hold_later(&self.host, application);
                }
                // It never stopped for the move, or an earlier run of this daemon started it.
                if !applications::is_healthy(&self.host, &instance) {
                    if self.track.gate.version.is_none() && !self.track.found_aborting {
                        // Its gate is the reconcile loop's all the time.
                        return Ok(());
                    }
                    self.prove(&spec, &instance).await?;
                }
                instance
            }
            Some(_) => {
                held?;
                let instance = self.host.runtime.start(application).await?;
                applications::note_start(&self.host, application);
                drop(self.host.observe().await);
                self.prove(&spec, &instance).await?;
                instance
            }
            None => {
                held?;
                let owned = ownership(migration, epoch);
                applications::start(&self.host, application, &owned, &spec).await?
            }
        };
        applications::remember_healthy(&self.host, &instance);
        if let Some(reach) = instance.reach() {
            self.host
                .routes
                .set(application, epoch, LocalRoute::Open(reach));
        }
        self.push_routes().await;
        Ok(())
    }

    /// Stamps the volumes as this host's again, before the application runs on them: as long as
    /// they are stamped as moving, and the destination keeps its promise to wait, a rebuild of the
    /// journal would hand them over. A full pool must not keep the application down: then it is
    /// enough that the destination has let go of its promise, and the stamp follows later.
    async fn hold(&self, migration: &SourceMigration, epoch: Epoch) -> Result<(), LaunchError> {
        let application = &migration.plan.application;
        let owned = ownership(migration, epoch);
        let held = applications::hold_volumes(&self.host, application, &owned).await;
        let Err(LaunchError::Storage(error)) = held else {
            return held;
        };
        let error = Report(&error).to_string();
        tracing::warn!(
            error,
            "the volumes cannot be stamped; what the move left here goes first"
        );
        let returned = epoch != migration.plan.epoch;
        let base = snapshot_name(&migration.id, &format!("final-{}", migration.attempt()));
        let keep = returned.then_some(base.as_str());
        self.drop_snapshots(migration, keep).await;
        let held = applications::hold_volumes(&self.host, application, &owned).await;
        if matches!(held, Err(LaunchError::Storage(_)))
            && (returned || self.call_off(migration).await)
        {
            applications::hold_later(&self.host, application);
            return Ok(());
        }
        held
    }

    /// Waits until it is healthy, or for as long as its health check allows: the check may be new
    /// as well, and that it runs is what matters here.
    async fn prove(&self, spec: &Application, instance: &Instance) -> Result<(), LaunchError> {
        match health::wait(&self.host, &instance.application, spec, instance).await {
            Ok(()) => Ok(()),
            Err(error @ Unhealthy::Failing { .. }) => {
                let error = Report(&error).to_string();
                tracing::warn!(error, "it runs here again and its health check fails");
                Ok(())
            }
            Err(ended @ (Unhealthy::Exited { .. } | Unhealthy::Gone)) => Err(ended.into()),
        }
    }

    /// Tells the destination; whether it does not wait for the grant any more. One that does not
    /// hear it asks by itself.
    async fn call_off(&self, migration: &SourceMigration) -> bool {
        let message = HandoffRef {
            attempt: migration.attempt(),
            epoch: migration.plan.epoch,
        };
        let path = format!("/peer/v1/handoffs/{}/abort", migration.id);
        let mut pause = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        for _ in 0..3 {
            let told: Result<HandoffView, ClientError> = self
                .host
                .peers
                .request(&migration.plan.to, Method::POST, &path, Some(&message))
                .await;
            match told {
                Ok(view) => {
                    return matches!(view.state, HandoffState::Dropped | HandoffState::Unknown);
                }
                Err(error) => {
                    let error = Report(&error).to_string();
                    tracing::info!(
                        error,
                        "the destination was not told that the move is called off"
                    );
                }
            }
            tokio::time::sleep(pause.next_delay()).await;
        }
        false
    }

    /// Drops this migration's snapshots here, but for the one to keep.
    async fn drop_snapshots(&self, migration: &SourceMigration, keep: Option<&str>) {
        let prefix = snapshot_name(&migration.id, "");
        for volume in &migration.plan.volumes {
            // A round that was called off may have been taking one.
            let parts = self.host.storage.discard_partial(&volume.dataset, &prefix);
            if let Err(error) = parts.await {
                let error = Report(&error).to_string();
                tracing::warn!(error, "part of a snapshot of the move cannot be dropped");
            }
            let info = self.host.storage.inspect(&volume.dataset).await;
            let snapshots = info
                .ok()
                .flatten()
                .map(|info| info.snapshots)
                .unwrap_or_default();
            for snapshot in snapshots {
                let ours = snapshot.name.starts_with(&prefix);
                // With a new common base the older one is of no use any more.
                let stale = keep.is_some() && snapshot.name.starts_with("mig-");
                if (!ours && !stale) || keep == Some(snapshot.name.as_str()) {
                    continue;
                }
                let dropped = self
                    .host
                    .storage
                    .delete_snapshot(&volume.dataset, &snapshot.name);
                if let Err(error) = dropped.await {
                    let error = Report(&error).to_string();
                    tracing::warn!(error, "a snapshot of the move cannot be dropped");
                }
            }
        }
    }
}

/// How this host owns it again.
fn ownership(migration: &SourceMigration, epoch: Epoch) -> Ownership {
    Ownership {
        epoch,
        role: Role::Owner,
        volumes: migration.plan.volumes.clone(),
        unmade: Vec::new(),
    }
}
