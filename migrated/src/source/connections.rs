//! Park, drain, stop: what clients may notice.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::routes::LocalRoute;
use migrated_core::source::{Event, SourceMigration};
use migrated_core::stamp::Stamp;
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Connections;
use rehome_shared::api::proxy::{Drain, GateCounts, GateRef, ParkLimits, Prepare};
use rehome_shared::ids::RouteVersion;
use tokio::time::Instant;

use super::Driver;
use crate::host::spec_of;
use crate::proxy::{Patience, ask_again};
use crate::routes;
use crate::storage::StorageError;
use crate::throttle;

/// Without a word for so long, the proxy asks what is true. It stays parked meanwhile.
const LEASE: Duration = Duration::from_secs(15);

/// Of the hard cap the application may take this share to stop.
const STOP_SHARE: f64 = 0.6;

/// The gate of the application on this host.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The version that it was parked under.
    pub(super) version: Option<RouteVersion>,
}

impl Driver {
    /// Holds new connections. Nothing to hold is fine: an application without ports, or one that
    /// does not run.
    pub(super) async fn park(&mut self, migration: &SourceMigration) -> Event {
        let parked = match self.mark_moving(migration).await {
            Ok(()) => self.park_gate(migration).await,
            Err(error) => Err(format!("it cannot be stamped: {}", Report(&error))),
        };
        match parked {
            Ok(()) => Event::Parked,
            Err(reason) => Event::Failed { reason },
        }
    }

    /// From here on the volumes may be released: without the journal nobody would know whether
    /// they were.
    async fn mark_moving(&self, migration: &SourceMigration) -> Result<(), StorageError> {
        for volume in &migration.plan.volumes {
            let stamp = Stamp::moving(&self.host.address, migration, volume);
            self.host.storage.stamp(&volume.dataset, &stamp).await?;
        }
        Ok(())
    }

    pub(super) async fn park_gate(&mut self, migration: &SourceMigration) -> Result<(), String> {
        let plan = &migration.plan;
        let version = self
            .host
            .routes
            .set(&plan.application, plan.epoch, LocalRoute::Park);
        self.track.gate.version = Some(version);
        if !self.has_ports(migration) {
            return Ok(());
        }
        let limits = ParkLimits {
            park_limit: plan.limits.park_limit,
            park_timeout: plan.limits.park_timeout,
        };
        let gate = Prepare {
            application: plan.application.clone(),
            version,
            lease: LEASE,
            limits,
        };
        // A deployment that has just come may name routes that the proxy was not told of yet.
        let patience = self.patience(migration);
        let told = ask_again(patience, || routes::push(&self.host)).await;
        note_told(told);
        let asked = ask_again(patience, || self.host.proxy.prepare(&gate));
        let counts = asked
            .await
            .map_err(|error| format!("the connections cannot be parked: {}", Report(&error)))?;
        self.count(counts);
        Ok(())
    }

    /// How long `proxyd` may be away or handing over: in a cut-over for as long as that may take.
    fn patience(&self, migration: &SourceMigration) -> Patience {
        let left = self.time_left(migration);
        left.map_or(Patience::ORDINARY, Patience::within)
    }

    /// Lets old connections finish. What does not is ended after the application has stopped.
    pub(super) async fn drain_gate(&self, migration: &SourceMigration) -> Result<(), String> {
        if let Some(counts) = self.draining(migration).await? {
            self.count(counts);
        }
        Ok(())
    }

    /// The same beside something else; what comes of it is for the caller to count. `None` where
    /// there is nothing to drain.
    pub(super) fn draining(
        &self,
        migration: &SourceMigration,
    ) -> impl Future<Output = Result<Option<GateCounts>, String>> + Send + use<> {
        let parked = self.track.gate.version;
        let gate = parked
            .filter(|_| self.has_ports(migration))
            .map(|version| Drain {
                application: migration.plan.application.clone(),
                version,
                deadline: migration.plan.limits.drain,
            });
        let (host, patience) = (Arc::clone(&self.host), self.patience(migration));
        async move {
            let Some(gate) = gate else {
                return Ok(None);
            };
            let (began, proxy) = (Instant::now(), &host.proxy);
            let asked = ask_again(patience, || {
                // What is asked again has only the time that is left.
                let deadline = gate.deadline.saturating_sub(began.elapsed());
                let gate = Drain {
                    deadline,
                    ..gate.clone()
                };
                async move { proxy.drain(&gate).await }
            });
            let counts = asked.await;
            counts
                .map(Some)
                .map_err(|error| format!("the connections cannot be drained: {}", Report(&error)))
        }
    }

    /// Stops the application; the window begins. Then ends the connections that remain, so that
    /// no client hangs on a dead one.
    pub(super) async fn stop(&mut self, migration: &SourceMigration) -> Event {
        if let Some(reason) = self.cannot_fit(migration) {
            return Event::Failed { reason };
        }
        // One that is held back stops slowly, and that is a longer window.
        throttle::lift(&self.host, &migration.plan.application).await;
        let began = Instant::now();
        self.track.stopped_at.get_or_insert(began);
        let stopped = self.stop_application(migration).await;
        self.track.application = began.elapsed();
        self.track.stopping = stopped.is_err();
        if let Err(reason) = stopped {
            return Event::Failed { reason };
        }
        match self.freeze_gate(migration).await {
            Ok(()) => Event::Stopped,
            Err(reason) => Event::Failed { reason },
        }
    }

    pub(super) async fn stop_application(&self, migration: &SourceMigration) -> Result<(), String> {
        let plan = &migration.plan;
        let desired = self.host.desired.get();
        let wanted = spec_of(&desired, &plan.application).map(|spec| spec.stop_grace);
        let most = plan.limits.hard_cap.mul_f64(STOP_SHARE);
        let grace = if plan.volumes.is_empty() {
            wanted
        } else {
            wanted.map(|g| g.min(most))
        };
        let how = self
            .host
            .runtime
            .stop(&plan.application, grace.unwrap_or(most))
            .await
            .map_err(|error| format!("it cannot be stopped: {}", Report(&error)))?;
        tracing::info!(?how, "the application has stopped");
        drop(self.host.observe().await);
        Ok(())
    }

    pub(super) async fn freeze_gate(&self, migration: &SourceMigration) -> Result<(), String> {
        let Some(version) = self
            .track
            .gate
            .version
            .filter(|_| self.has_ports(migration))
        else {
            return Ok(());
        };
        let gate = GateRef {
            application: migration.plan.application.clone(),
            version,
        };
        let asked = ask_again(self.patience(migration), || self.host.proxy.freeze(&gate));
        let counts = asked
            .await
            .map_err(|error| format!("the connections cannot be ended: {}", Report(&error)))?;
        self.count(counts);
        Ok(())
    }

    fn has_ports(&self, migration: &SourceMigration) -> bool {
        let desired = self.host.desired.get();
        spec_of(&desired, &migration.plan.application).is_some_and(|spec| !spec.ports.is_empty())
    }

    /// Tells the proxy its routes now; when it cannot hear, the loop repeats it.
    pub(super) async fn push_routes(&self) {
        note_told(routes::push(&self.host).await);
    }

    pub(super) fn count(&self, counts: GateCounts) {
        self.run.report().connections = Connections {
            drained: counts.drained,
            parked: counts.parked_total,
            refused: counts.refused,
        };
    }
}

fn note_told(told: Result<(), ClientError>) {
    if let Err(error) = told {
        let error = Report(&error).to_string();
        tracing::warn!(error, "proxyd cannot be told its routes now");
    }
}
