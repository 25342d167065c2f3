//! Applications on this host: what an instance is made of, starting it until it is healthy,
//! stopping it until nothing of it is left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_core::record::Record;
use migrated_core::registry::Ownership;
use migrated_core::routes::LocalRoute;
use migrated_core::stamp::{Of, Stamp};
use rehome_runtime::backoff::Backoff;
use rehome_runtime::report::Report;
use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::config::links;
use rehome_shared::config::model::Application;
use rehome_shared::ids::{AppName, DatasetId, DeploymentGeneration, Epoch, HostAddr};
use rehome_shared::units::Bytes;

use crate::health::{self, Unhealthy};
use crate::host::{ByApplication, Host};
use crate::ledger::LedgerError;
use crate::routes;
use crate::runtime::{Instance, InstanceSpec, InstanceState, Mount, PullProgress, RuntimeError};
use crate::storage::StorageError;

/// What this host remembers of applications while it runs; all of it can be found out again.
#[derive(Debug, Default)]
pub struct Memory {
    /// The instance (its id and start) that was found healthy.
    pub healthy: ByApplication<(String, Option<String>)>,
    /// When that was found.
    pub healthy_since: ByApplication<Instant>,
    /// What runs and was not found healthy yet.
    pub unhealthy: ByApplication<Unproven>,
    /// What went wrong last.
    pub faults: ByApplication<Fault>,
    /// Exits by itself in a row: a run that was healthy for long begins the count anew.
    pub exits: ByApplication<u32>,
    /// Applications that this host stopped for a move that was called off, and until when an exit
    /// is that stop's and not their own: one start is owed to them, whatever their restart policy.
    pub owed: ByApplication<Instant>,
    /// Applications that were started since the host itself was.
    pub revived: BTreeSet<AppName>,
    /// The deployment under which each was started last.
    pub started_under: ByApplication<DeploymentGeneration>,
    /// Whether the host was started since `migrated` last ran.
    pub host_restarted: bool,
    /// Applications that a move from here holds back.
    pub throttled: BTreeSet<AppName>,
    /// Bytes of each volume, as measured last.
    pub sizes: std::collections::BTreeMap<DatasetId, Bytes>,
    /// What was set aside here, as the pool told it last.
    pub diverged: Vec<rehome_shared::api::cluster::DivergedCopy>,
    /// Images that are being fetched now.
    pub pulls: ByApplication<PullProgress>,
}

/// A run of an instance that was not found healthy yet.
#[derive(Debug, Clone)]
pub struct Unproven {
    /// Which run: the instance's id and start.
    pub run: (String, Option<String>),
    /// When it was first looked at.
    pub since: Instant,
    /// What the last try said; `None` before its end.
    pub reason: Option<String>,
    /// Whether a try is under way.
    pub trying: bool,
}

/// Something that went wrong and is tried again later.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The deployment that it happened under.
    pub generation: DeploymentGeneration,
    /// What, with its causes.
    pub reason: String,
    /// Tries in a row.
    pub tries: u32,
    /// Not before this.
    pub retry_at: Instant,
}

/// Why an application could not be brought to serve.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A volume that must hold data is not there.
    #[error(
        "volume {name} of {application} is not on this host: it is not started on nothing. Bring the volume back, or remove the application for good"
    )]
    VolumeMissing {
        /// Whose.
        application: AppName,
        /// Its name.
        name: String,
    },
    /// It went to another host meanwhile.
    #[error("{0} is not this host's any more: it is not started")]
    NotOwned(AppName),
    /// The storage failed.
    #[error("the storage cannot provide the volumes")]
    Storage(#[from] StorageError),
    /// The runtime failed.
    #[error("the runtime cannot run it")]
    Runtime(#[from] RuntimeError),
    /// It runs and is not healthy.
    #[error("it does not become healthy")]
    Unhealthy(#[from] Unhealthy),
    /// The journal failed.
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
}

/// The specification of an application's instance here.
#[must_use]
pub fn instance_spec(
    host: &Host,
    application: &AppName,
    epoch: Epoch,
    spec: &Application,
    volumes: &[VolumeIdentity],
) -> InstanceSpec {
    let mounts = spec
        .volumes
        .iter()
        .filter_map(|volume| {
            let identity = volumes.iter().find(|known| known.name == volume.name)?;
            Some(Mount {
                source: host.storage.live_path(&identity.dataset),
                target: volume.mountpoint.clone(),
            })
        })
        .collect();
    InstanceSpec {
        application: application.clone(),
        epoch,
        config_hash: config_hash(&host.address, spec, volumes),
        image: spec.image.clone(),
        command: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        environment: links::environment(&host.address, spec),
        mounts,
        mem_limit: spec.mem_limit,
        cpu_shares: spec.cpu_shares,
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        hostname: spec.hostname.clone(),
        stop_signal: spec.stop_signal.clone(),
        announced: announced(spec),
    }
}

/// The ports on which an application expects to be told of each client. It is so from its start:
/// bytes that it does not expect in front of a client's are an outage.
fn announced(spec: &Application) -> BTreeSet<u16> {
    let ports = spec
        .ports
        .iter()
        .filter(|port| !port.send_proxy.is_nothing());
    ports.map(|port| port.internal).collect()
}

/// A hash of all that makes a restart necessary on a host: any host computes the same. The
/// epoch is not in it: a change of owner alone is no other configuration.
#[must_use]
pub fn config_hash(owner: &HostAddr, spec: &Application, volumes: &[VolumeIdentity]) -> String {
    let mounts: Vec<(&str, Option<&DatasetId>)> = spec
        .volumes
        .iter()
        .map(|volume| {
            let identity = volumes.iter().find(|known| known.name == volume.name);
            (
                volume.mountpoint.as_str(),
                identity.map(|known| &known.dataset),
            )
        })
        .collect();
    let made_of = (
        (
            &spec.image,
            &spec.command,
            &spec.entrypoint,
            links::environment(owner, spec),
        ),
        (mounts, spec.mem_limit, spec.cpu_shares),
        (
            &spec.user,
            &spec.working_dir,
            &spec.hostname,
            &spec.stop_signal,
        ),
    );
    let announced = announced(spec);
    // Where nothing is announced the hash is what it was before anything could be.
    let json = if announced.is_empty() {
        serde_json::to_vec(&made_of)
    } else {
        serde_json::to_vec(&(made_of, announced))
    };
    let json = json.unwrap_or_default();
    blake3::hash(&json)
        .to_hex()
        .as_str()
        .chars()
        .take(16)
        .collect()
}

/// Brings an application that this host owns to serve: its volumes are there, its instance is
/// made as `spec` says and started, and it is healthy.
///
/// # Errors
/// [`LaunchError`]; the instance may be there, running or not.
///
/// # Cancel safety
/// May have taken effect; call it again.
pub async fn launch(
    host: &Host,
    application: &AppName,
    owned: &Ownership,
    spec: &Application,
) -> Result<Instance, LaunchError> {
    let instance = start(host, application, owned, spec).await?;
    health::wait(host, application, spec, &instance).await?;
    remember_healthy(host, &instance);
    Ok(instance)
}

/// Makes sure that the image is here. While it is fetched for an application of this host,
/// `status` shows how far that is; for one that comes by a move, the log does at its end.
///
/// # Errors
/// [`RuntimeError`].
///
/// # Cancel safety
/// May have fetched some of it; call it again.
pub async fn fetch_image(host: &Host, spec: &InstanceSpec) -> Result<(), RuntimeError> {
    let application = &spec.application;
    let progress = |pull: PullProgress| {
        host.memory().pulls.insert(application.clone(), pull);
    };
    let fetched = host.runtime.ensure_image(spec, &progress).await;
    if let Some(pull) = host.memory().pulls.remove(application) {
        tracing::info!(%application, image = %spec.image, bytes = pull.total.0, "the image was fetched");
    }
    fetched
}

/// The first half of [`launch`]: everything but the health.
///
/// # Errors
/// [`LaunchError`].
///
/// # Cancel safety
/// May have taken effect; call it again.
pub async fn start(
    host: &Host,
    application: &AppName,
    owned: &Ownership,
    spec: &Application,
) -> Result<Instance, LaunchError> {
    provide_volumes(host, application, owned, spec).await?;
    let wanted = instance_spec(host, application, owned.epoch, spec, &owned.volumes);
    fetch_image(host, &wanted).await?;
    if let Some(instance) = current(host, application).await? {
        let differs = instance.config_hash != wanted.config_hash;
        if differs && instance.state == InstanceState::Running {
            host.runtime.stop(application, spec.stop_grace).await?;
            if instance.announced != wanted.announced {
                hold_clients(host, application, owned.epoch).await;
            }
        }
    }
    host.runtime.create(&wanted).await?;
    // An image may have taken minutes to come.
    let still = host.ledger.read(|registry| {
        let now = registry.owned(application);
        now.is_some_and(|now| now.epoch == owned.epoch)
    });
    if !still && !owned.volumes.is_empty() {
        return Err(LaunchError::NotOwned(application.clone()));
    }
    let instance = host.runtime.start(application).await?;
    note_start(host, application);
    // What is seen is a level: a failed look is repeated by the reconcile loop.
    drop(host.observe().await);
    Ok(instance)
}

/// Parks an application that has just been stopped, because its next instance expects to be told
/// of clients otherwise: nobody may reach that one by what the last one wanted.
async fn hold_clients(host: &Host, application: &AppName, epoch: Epoch) {
    // Before its end is seen, the loop would open the gate again.
    drop(host.observe().await);
    host.routes.set(application, epoch, LocalRoute::Park);
    if let Err(error) = routes::push(host).await {
        let error = Report(&error).to_string();
        tracing::warn!(%application, error, "proxyd cannot be told to hold its clients");
    }
}

/// Starts the instance as it was made, and waits for health.
///
/// # Errors
/// [`LaunchError`].
///
/// # Cancel safety
/// May have taken effect; call it again.
pub async fn restart(
    host: &Host,
    application: &AppName,
    spec: &Application,
) -> Result<Instance, LaunchError> {
    let owned = host
        .ledger
        .read(|registry| registry.owned(application).cloned());
    let Some(owned) = owned else {
        return Err(LaunchError::NotOwned(application.clone()));
    };
    hold_volumes(host, application, &owned).await?;
    let instance = host.runtime.start(application).await?;
    note_start(host, application);
    drop(host.observe().await);
    health::wait(host, application, spec, &instance).await?;
    remember_healthy(host, &instance);
    Ok(instance)
}

/// Notes that an instance was started.
pub(crate) fn note_start(host: &Host, application: &AppName) {
    let generation = host.desired.get().generation;
    let mut memory = host.memory();
    memory.owed.remove(application);
    memory.revived.insert(application.clone());
    memory.started_under.insert(application.clone(), generation);
}

/// Notes that an instance was found healthy.
pub fn remember_healthy(host: &Host, instance: &Instance) {
    let mut memory = host.memory();
    let run = run_of(instance);
    if memory
        .healthy
        .insert(instance.application.clone(), run.clone())
        .as_ref()
        != Some(&run)
    {
        memory
            .healthy_since
            .insert(instance.application.clone(), Instant::now());
    }
    memory.unhealthy.remove(&instance.application);
    memory.faults.remove(&instance.application);
}

/// A run of an instance: a restart of the same instance is another one.
#[must_use]
pub fn run_of(instance: &Instance) -> (String, Option<String>) {
    (instance.id.clone(), instance.started_at.clone())
}

/// Whether this run of the instance was found healthy.
#[must_use]
pub fn is_healthy(host: &Host, instance: &Instance) -> bool {
    let memory = host.memory();
    instance.state == InstanceState::Running
        && memory.healthy.get(&instance.application) == Some(&run_of(instance))
}

async fn current(host: &Host, application: &AppName) -> Result<Option<Instance>, RuntimeError> {
    let instances = host.runtime.list().await?;
    Ok(instances
        .into_iter()
        .find(|instance| instance.application == *application))
}

/// Makes the volumes that were announced and not made yet, and insists on the others.
async fn provide_volumes(
    host: &Host,
    application: &AppName,
    owned: &Ownership,
    spec: &Application,
) -> Result<(), LaunchError> {
    for identity in &owned.volumes {
        let limit = spec
            .volumes
            .iter()
            .find(|volume| volume.name == identity.name)
            .and_then(|volume| volume.maximum_size);
        if owned.unmade.contains(identity) {
            match host.storage.create(&identity.dataset, limit).await {
                // Made before a crash that came before the record of it.
                Ok(()) | Err(StorageError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    hold_volumes(host, application, owned).await?;
    if !owned.unmade.is_empty() {
        let application = application.clone();
        host.ledger
            .commit(vec![Record::VolumesMade { application }])
            .await?;
    }
    Ok(())
}

/// Insists on the volumes of an application that this host owns, and stamps them as held, all
/// before it runs on them: what is stamped otherwise might be given to another host for the asking
/// if the journal were lost.
///
/// # Errors
/// [`LaunchError`]; it must not be started.
///
/// # Cancel safety
/// May have stamped some; call it again.
pub(crate) async fn hold_volumes(
    host: &Host,
    application: &AppName,
    owned: &Ownership,
) -> Result<(), LaunchError> {
    let mut made = Vec::new();
    for identity in &owned.volumes {
        let info = host.storage.inspect(&identity.dataset).await?;
        if info.is_some_and(|info| info.live) {
            made.push(identity);
        } else if !owned.unmade.contains(identity) {
            return Err(LaunchError::VolumeMissing {
                application: application.clone(),
                name: identity.name.to_string(),
            });
        }
    }
    let of = Of {
        application,
        volumes: &owned.volumes,
    };
    for identity in made {
        let stamp = Stamp::held(of, identity, &host.address, owned.epoch);
        host.storage.stamp(&identity.dataset, &stamp).await?;
    }
    Ok(())
}

/// Stamps the volumes of an application as held as soon as that is possible: it runs here already.
pub(crate) fn hold_later(host: &Arc<Host>, application: &AppName) {
    let (owner, application) = (Arc::clone(host), application.clone());
    let stop = host.supervisor.token().clone();
    let work = async move {
        let mut pause = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        loop {
            tokio::time::sleep(pause.next_delay()).await;
            // The next handoff stamps them by itself, and not while this looks.
            let _held = owner.hold(&application).await;
            let owned = owner.ledger.read(|registry| {
                let moves = registry.source_of(&application).is_some();
                let owned = registry.owned(&application).cloned();
                owned.filter(|_| !moves)
            });
            let Some(owned) = owned else { return };
            match hold_volumes(&owner, &application, &owned).await {
                Ok(()) => return,
                Err(error) => {
                    let error = Report(&error).to_string();
                    tracing::warn!(%application, error, "its volumes cannot be stamped as held yet");
                }
            }
        }
    };
    host.spawn("stamp", async move {
        // At a stop it is left: the next start of the application stamps them.
        stop.run_until_cancelled(work).await;
    });
}

/// Stamps what this host gave away, where there is anything of it.
///
/// # Errors
/// [`StorageError`].
///
/// # Cancel safety
/// May have stamped some; call it again.
pub(crate) async fn mark_gone(
    host: &Host,
    of: Of<'_>,
    to: &HostAddr,
    epoch: Epoch,
) -> Result<(), StorageError> {
    for identity in of.volumes {
        if host.storage.inspect(&identity.dataset).await?.is_some() {
            let stamp = Stamp::gone(of, identity, to, epoch);
            host.storage.stamp(&identity.dataset, &stamp).await?;
        }
    }
    Ok(())
}

/// Stops an application until nothing of it is left, and removes its instance.
///
/// # Errors
/// [`RuntimeError`].
///
/// # Cancel safety
/// May have taken effect; call it again.
pub async fn remove(
    host: &Host,
    application: &AppName,
    grace: Duration,
) -> Result<(), RuntimeError> {
    host.runtime.stop(application, grace).await?;
    host.runtime.remove(application).await?;
    drop(host.observe().await);
    Ok(())
}
