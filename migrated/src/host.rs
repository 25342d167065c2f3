//! A host: everything that the parts of `migrated` share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::cluster::Desired;
use rehome_shared::config::daemon::MigratedConfig;
use rehome_shared::config::model::{Application, MigrationLimits};
use rehome_shared::ids::{AppName, HostAddr};
use tokio::sync::watch;

use crate::applications::Memory;
use crate::clearance::Clearance;
use crate::desired::DesiredStore;
use crate::fence::Rivals;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::migrations::Live;
use crate::peers::{Peers, Silence};
use crate::proxy::Proxy;
use crate::routes::Routes;
use crate::runtime::{Instance, Runtime};
use crate::storage::Storage;
use crate::stream::Bucket;

/// The pause between tries to take an application in hand.
const HOLD_PAUSE: Duration = Duration::from_millis(20);

/// What the parts of `migrated` share. Locks inside are held for a look or a change, never
/// across an await.
#[derive(Debug)]
pub struct Host {
    /// This host, as the deployment names it.
    pub address: HostAddr,
    /// Its file, as it was read last.
    pub config: watch::Sender<Arc<MigratedConfig>>,
    /// Who owns what.
    pub ledger: Ledger,
    /// What the cluster should look like.
    pub desired: DesiredStore,
    /// What other hosts must be asked about before it is started.
    pub clearance: Clearance,
    /// Volumes.
    pub storage: Arc<dyn Storage>,
    /// Instances.
    pub runtime: Arc<dyn Runtime>,
    /// This host's `proxyd`.
    pub proxy: Proxy,
    /// Where each application is, and what `proxyd` is told of it.
    pub routes: Routes,
    /// The other hosts.
    pub peers: Peers,
    /// What all streams from this host may send together.
    pub bandwidth: Arc<Bucket>,
    /// Since when other hosts do not answer.
    pub silence: Silence,
    /// Other owners of what this host owns.
    pub rivals: Rivals,
    /// Handoffs to this host, beside what the journal knows of them.
    pub takings: crate::destination::Takings,
    /// Migrations under way, as people see them.
    pub live: Live,
    /// What this host remembers of applications while it runs.
    pub memory: Mutex<Memory>,
    /// The instances that were seen last; `None` until the runtime has told of them once.
    pub instances: watch::Sender<Option<Arc<Vec<Instance>>>>,
    /// Counts up to make the reconcile loop look again.
    pub wake: watch::Sender<u64>,
    /// Applications that an action is under way for.
    pub busy: Mutex<BTreeSet<AppName>>,
    /// Metrics.
    pub metrics: Metrics,
    /// Owns every task.
    pub supervisor: Supervisor,
}

impl Host {
    /// Starts a task that may end by itself.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.supervisor.spawn(name, Criticality::Ordinary, future);
    }

    /// The memory, to look or to change.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an application in hand, unless somebody has it. Who takes it vacates it.
    #[must_use]
    pub fn occupy(&self, application: &AppName) -> bool {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(application.clone())
    }

    /// Lets an application out of hand.
    pub fn vacate(&self, application: &AppName) {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(application);
    }

    /// Takes an application in hand as soon as nobody else has it, until the guard is dropped.
    /// Whoever has it is bound in time, so the wait is.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn hold(&self, application: &AppName) -> Held<'_> {
        while !self.occupy(application) {
            tokio::time::sleep(HOLD_PAUSE).await;
        }
        Held {
            host: self,
            application: application.clone(),
        }
    }

    /// Makes the reconcile loop look again now.
    pub fn kick(&self) {
        self.wake
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The host's file as it was read last.
    #[must_use]
    pub fn config(&self) -> Arc<MigratedConfig> {
        Arc::clone(&self.config.borrow())
    }

    /// How an application moves here, every value decided.
    #[must_use]
    pub fn limits_of(&self, spec: &Application) -> MigrationLimits {
        self.config().migration.with(&spec.migration)
    }

    /// The instance of an application that was seen last.
    #[must_use]
    pub fn instance(&self, application: &AppName) -> Option<Instance> {
        let seen = self.instances.borrow();
        let mut seen = seen.iter().flat_map(|all| all.iter());
        seen.find(|i| i.application == *application).cloned()
    }

    /// Looks at the runtime's instances now.
    ///
    /// # Errors
    /// Those of the runtime; what was seen last stays.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn observe(&self) -> Result<(), crate::runtime::RuntimeError> {
        let seen = self.runtime.list().await?;
        self.instances.send_replace(Some(Arc::new(seen)));
        Ok(())
    }

    /// The other hosts of the deployment, and those that it does not place anything on while
    /// they still hold something.
    #[must_use]
    pub fn other_hosts(&self) -> BTreeSet<HostAddr> {
        let desired = self.desired.get();
        let mut hosts: BTreeSet<HostAddr> = desired.placement.keys().cloned().collect();
        hosts.extend(desired.kept.values().cloned());
        hosts.extend(self.routes.advertised_hosts());
        hosts.remove(&self.address);
        hosts
    }
}

/// An application in somebody's hand: see [`Host::hold`].
#[derive(Debug)]
#[must_use]
pub struct Held<'a> {
    host: &'a Host,
    application: AppName,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.host.vacate(&self.application);
    }
}

/// The specification that an application runs by on this host now: the deployment's, or the one
/// that it was made with when the deployment no longer has it.
#[must_use]
pub fn spec_of(desired: &Desired, application: &AppName) -> Option<Application> {
    desired.applications.get(application).cloned()
}

/// A map by application.
pub type ByApplication<T> = BTreeMap<AppName, T>;
