//! `rehome lab crash` and `rehome lab start`: a host goes as in a power failure and comes back
//! with the disk it had.

use crate::console::Console;
use crate::lab::host::{self, HostError};
use crate::lab::lock::{Lock, LockError};
use crate::lab::site::Site;
use crate::lab::state::{LabState, StateError};
use crate::lab::tools::{self, ToolsError};
use crate::lab::up::{self, UpError};
use crate::stop::Stop;

/// A host that was not crashed or started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The user is not root.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// Another command works on the lab.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is no such lab or host.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host could not be killed or started.
    #[error("host {host} cannot be {verb}")]
    Host {
        /// The host.
        host: String,
        /// What was to happen to it.
        verb: &'static str,
        /// Why it did not.
        #[source]
        source: HostError,
    },
    /// Its daemons did not become ready.
    #[error(transparent)]
    Ready(#[from] UpError),
}

/// Kills a host. One that is down stays down.
pub(crate) fn crash(site: &Site, name: &str, console: Console) -> Result<(), ControlError> {
    tools::require_root()?;
    // First without the lock: a lab that is not there must not get a lock's file.
    LabState::require(site)?;
    let _lock = Lock::take(site.lock_file(), &Stop::never())?;
    let mut state = LabState::require(site)?;
    host::kill(site, state.host(name)?).map_err(failed(name, "crashed"))?;
    state.set_process(name, None);
    state.save(site)?;
    console.progress(&format!("{name} is down"));
    Ok(())
}

/// Starts a host and waits until it is ready. One that is up is waited for.
pub(crate) fn start(
    site: &Site,
    name: &str,
    console: Console,
    stop: &Stop,
) -> Result<(), ControlError> {
    tools::require_root()?;
    // First without the lock: a lab that is not there must not get a lock's file.
    LabState::require(site)?;
    let _lock = Lock::take(site.lock_file(), stop)?;
    let mut state = LabState::require(site)?;
    let host = state.host(name)?.clone();
    if host.alive().is_none() {
        host::kill(site, &host)
            .and_then(|()| host::start(site, &mut state, &host, stop))
            .map_err(failed(name, "started"))?;
    }
    up::wait_ready(site, &state, &[state.host(name)?], stop)?;
    console.progress(&format!("{name} is up"));
    Ok(())
}

fn failed(host: &str, verb: &'static str) -> impl FnOnce(HostError) -> ControlError {
    let host = host.to_owned();
    move |source| ControlError::Host { host, verb, source }
}
