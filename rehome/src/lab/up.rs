//! `rehome lab up`: makes a lab, or brings up what is down of one that is there.
//!
//! A lab that this run began to make is removed when it fails or is interrupted. A lab that was
//! there before is left as it is: it may hold data.

use std::thread;

use rehome_shared::units::Bytes;

use crate::console::Console;
use crate::invocation::InvocationError;
use crate::lab::down::{self, DownError};
use crate::lab::fabric::{self, FabricError};
use crate::lab::files::{self, DiskError, LOGS};
use crate::lab::host::{self, HostError};
use crate::lab::labs;
use crate::lab::lock::{Lock, LockError};
use crate::lab::memory;
use crate::lab::mount_points;
use crate::lab::site::{LabName, Site};
use crate::lab::state::{Daemons, HostRecord, LabState, Settings, StateError};
use crate::lab::subnet::{self, ChooseError, Subnet};
use crate::lab::tools::{self, ToolsError};
use crate::lab::{Backend, Runtime, UpArgs, probe};
use crate::paths::{self, PathError};
use crate::stop::Stop;

/// A lab that is not up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    /// This machine lacks something.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// Another command works on the lab.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record of the lab is of no use.
    #[error(transparent)]
    State(#[from] StateError),
    /// The lab is there and is another one.
    #[error("lab {name} is there with {what}: `rehome lab down --name {name}` removes it")]
    Differs {
        /// The lab.
        name: LabName,
        /// How it differs from what was asked for.
        what: String,
    },
    /// Disks of an earlier lab are there.
    #[error(
        "disks of an earlier lab {name} are in {}, from before this machine restarted: \
         `rehome lab down --name {name}` removes them", path.display()
    )]
    LeftOver {
        /// The lab.
        name: LabName,
        /// Its disks.
        path: std::path::PathBuf,
    },
    /// The lab's network is gone while its hosts run.
    #[error("the network of lab {0} is gone while its hosts run: `rehome lab down --name {0}`")]
    NetworkGone(LabName),
    /// No network could be chosen.
    #[error(transparent)]
    Subnet(#[from] ChooseError),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] PathError),
    /// The certificate authority could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The network could not be made.
    #[error("cannot make the lab's network")]
    Fabric(#[from] FabricError),
    /// A host could not be started.
    #[error("host {host} does not start")]
    Host {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// The daemons of some hosts did not become ready.
    #[error("not every host is ready:\n{0}")]
    NotReady(String),
    /// The user asked to stop.
    #[error("interrupted")]
    Stopped,
    /// It failed, and what was made could not all be removed.
    #[error("{failure}; then not all of it could be removed")]
    NotCleaned {
        /// What went wrong first.
        failure: Box<UpError>,
        /// What could not be removed.
        #[source]
        source: DownError,
    },
}

/// Brings the lab up and returns its state.
pub(crate) fn run(
    site: &Site,
    options: &UpArgs,
    console: Console,
    stop: &Stop,
) -> Result<LabState, UpError> {
    tools::require_root()?;
    let lock = Lock::take(site.lock_file(), stop)?;
    if let Some(mut state) = LabState::load(site)? {
        must_match(&state, options)?;
        tools::require(&state.settings)?;
        bring_up(site, &mut state, console, stop)?;
        return Ok(state);
    }
    match create(site, options, console, stop) {
        Ok(state) => Ok(state),
        Err(failure @ (UpError::LeftOver { .. } | UpError::Tools(_) | UpError::Subnet(_))) => {
            lock.remove()?;
            Err(failure)
        }
        Err(failure) => {
            console.progress("removing what was made");
            match down::remove(site, lock) {
                Ok(()) => Err(failure),
                Err(source) => Err(UpError::NotCleaned {
                    failure: Box::new(failure),
                    source,
                }),
            }
        }
    }
}

/// Waits until the daemons of the hosts named are ready, all at once.
pub(crate) fn wait_ready(
    site: &Site,
    state: &LabState,
    hosts: &[&HostRecord],
    stop: &Stop,
) -> Result<(), UpError> {
    let wait = |host: &HostRecord| match host.alive() {
        Some(process) => probe::wait_for(process, &state.settings, stop)
            .map_err(|error| unready(site, host, &error)),
        None => Err(format!("{}: it has ended", host.name)),
    };
    let problems: Vec<String> = thread::scope(|scope| {
        let waits: Vec<_> = hosts
            .iter()
            .map(|host| scope.spawn(|| wait(host)))
            .collect();
        let ended = |thread: thread::ScopedJoinHandle<'_, Result<(), String>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a waiting thread failed".to_owned()))
                .err()
        };
        waits.into_iter().filter_map(ended).collect()
    });
    match (problems.is_empty(), stop.is_set()) {
        (true, _) => Ok(()),
        (false, true) => Err(UpError::Stopped),
        (false, false) => Err(UpError::NotReady(problems.join("\n"))),
    }
}

/// What is known about a host that is not ready: the probe's words and the ends of the logs.
fn unready(site: &Site, host: &HostRecord, error: &InvocationError) -> String {
    let message = match error {
        InvocationError::Failed { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let logs = site.host_disk(&host.name).join(LOGS);
    let mut parts = vec![format!("{}: {message}", host.name)];
    for daemon in ["dockerd", "proxyd", "migrated", "init"] {
        let log = logs.join(format!("{daemon}.log"));
        if daemon == "init" || message.contains(daemon) {
            parts.push(format!("--- end of {}", log.display()));
            parts.push(files::tail(&log, 8));
        }
    }
    parts.join("\n")
}

fn create(
    site: &Site,
    options: &UpArgs,
    console: Console,
    stop: &Stop,
) -> Result<LabState, UpError> {
    let settings = Settings {
        backend: options.backend.unwrap_or(Backend::Btrfs),
        runtime: options.runtime.unwrap_or(Runtime::Docker),
        pool_size: options.pool_size.unwrap_or(Bytes(8 << 30)),
        in_memory: options.in_memory,
        daemons: match (options.no_daemons, options.faulty) {
            (true, _) => Daemons::Absent,
            (false, true) => Daemons::Faulty,
            (false, false) => Daemons::Run,
        },
    };
    tools::require(&settings)?;
    if site.disk_dir().exists() {
        return Err(UpError::LeftOver {
            name: site.name().clone(),
            path: site.disk_dir(),
        });
    }
    let mut state = record(site, options, settings, stop)?;
    bring_up(site, &mut state, console, stop)?;
    Ok(state)
}

/// Chooses the network and writes the lab down. Networks are chosen one lab at a time, so that
/// two labs that begin together get two.
fn record(
    site: &Site,
    options: &UpArgs,
    settings: Settings,
    stop: &Stop,
) -> Result<LabState, UpError> {
    let choice = labs::lock(stop)?;
    let reserved: Vec<Subnet> = labs::records().iter().map(|lab| lab.subnet).collect();
    let subnet = subnet::choose(options.subnet, &reserved, stop)?;
    let hosts = options.hosts.unwrap_or(3);
    let state = LabState::new(site.name().clone(), subnet, settings, hosts);
    paths::make_dir(&site.run_dir(), 0o700)?;
    state.save(site)?;
    mount_points::make()?;
    choice.remove()?;
    Ok(state)
}

fn bring_up(
    site: &Site,
    state: &mut LabState,
    console: Console,
    stop: &Stop,
) -> Result<(), UpError> {
    if !fabric::is_intact(site)? {
        if state.hosts.iter().any(|host| host.alive().is_some()) {
            return Err(UpError::NetworkGone(state.name.clone()));
        }
        fabric::remove(site, stop)?;
        fabric::build(site, state.subnet, stop)?;
    }
    if state.settings.in_memory {
        memory::make(&site.disk_dir())?;
    }
    files::make_authority(site)?;
    for host in state.hosts.clone() {
        let (name, address) = (&host.name, host.address);
        if stop.is_set() {
            return Err(UpError::Stopped);
        }
        if host.alive().is_some() {
            console.progress(&format!("{name} {address} is up already"));
            continue;
        }
        host::kill(site, &host)
            .and_then(|()| host::start(site, state, &host, stop))
            .map_err(|source| match source {
                HostError::Stopped => UpError::Stopped,
                source => UpError::Host {
                    host: name.clone(),
                    source,
                },
            })?;
        console.progress(&format!("{name} {address} started"));
    }
    wait_ready(site, state, &state.hosts.iter().collect::<Vec<_>>(), stop)
}

/// A lab that is there keeps its settings: options that ask for others are an error.
fn must_match(state: &LabState, options: &UpArgs) -> Result<(), UpError> {
    let has = &state.settings;
    let what = if options
        .hosts
        .is_some_and(|hosts| usize::from(hosts) != state.hosts.len())
    {
        format!("{} hosts", state.hosts.len())
    } else if options.subnet.is_some_and(|subnet| subnet != state.subnet) {
        format!("network {}", state.subnet)
    } else if options
        .backend
        .is_some_and(|backend| backend != has.backend)
    {
        format!("backend {:?}", has.backend).to_lowercase()
    } else if options
        .runtime
        .is_some_and(|runtime| runtime != has.runtime)
    {
        format!("runtime {:?}", has.runtime).to_lowercase()
    } else if options.pool_size.is_some_and(|size| size != has.pool_size) {
        format!("pools of {}", has.pool_size)
    } else if options.in_memory && !has.in_memory {
        "disks that are not in memory".to_owned()
    } else {
        return Ok(());
    };
    Err(UpError::Differs {
        name: state.name.clone(),
        what,
    })
}
