//! Stopping with proof: signal, grace, kill, and then nothing of the container may be left.
//!
//! The volume is snapshotted and unmounted right after; a process that still wrote would lose
//! what it was told is safe.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{KillContainerOptionsBuilder, WaitContainerOptionsBuilder};
use futures_util::StreamExt;
use rehome_runtime::backoff::Backoff;
use rehome_shared::ids::AppName;

use super::client::{self, CallError, Client, LONG_CALL};
use super::{RuntimeError, Stopped, cgroup, view};

/// How long the kernel and the engine get to bury what was killed.
const BURIAL: Duration = Duration::from_secs(30);

pub(super) async fn stop(
    client: &Client,
    application: &AppName,
    container: &ContainerInspectResponse,
    grace: Duration,
) -> Result<Stopped, RuntimeError> {
    let fail = |error| match error {
        StopError::Call(error) => client.other(format!("stop {application}"), error),
        StopError::Remains(reason) => RuntimeError::Stop {
            application: application.clone(),
            reason,
        },
    };
    let id = container.id.clone().unwrap_or_default();
    let docker = client
        .docker()
        .await
        .map_err(|e| fail(StopError::Call(e)))?;
    let Some(state) = container.state.as_ref().filter(|state| view::runs(state)) else {
        return Ok(Stopped::NotRunning);
    };
    // Read while it runs: afterwards nobody can tell where its processes were.
    let places = cgroup::of_process(state.pid, &id).await;
    let stopping = Stopping {
        docker,
        id: &id,
        places: &places,
    };
    stopping
        .run(state, stop_signal(container), grace)
        .await
        .map_err(fail)
}

/// The container's own word, or what every engine takes when there is none.
fn stop_signal(container: &ContainerInspectResponse) -> &str {
    let configured = container
        .config
        .as_ref()
        .and_then(|config| config.stop_signal.as_deref());
    configured
        .filter(|signal| !signal.is_empty())
        .unwrap_or("SIGTERM")
}

enum StopError {
    Call(CallError),
    Remains(String),
}

impl From<CallError> for StopError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

struct Stopping<'a> {
    docker: &'a Docker,
    id: &'a str,
    places: &'a [cgroup::Place],
}

impl Stopping<'_> {
    async fn run(
        &self,
        state: &ContainerState,
        signal: &str,
        grace: Duration,
    ) -> Result<Stopped, StopError> {
        if state.paused == Some(true) {
            // A frozen process gets its signal only when it thaws. Where that fails the kill at
            // the end of the grace still comes through.
            if let Err(error) = client::call(self.docker.unpause_container(self.id)).await {
                tracing::warn!(%error, container = self.id, "a paused container was not resumed");
            }
        }
        self.signal(signal).await?;
        let outcome = if self.ends_within(grace).await {
            Stopped::Gracefully
        } else {
            self.signal("SIGKILL").await?;
            Stopped::Killed
        };
        self.prove().await?;
        Ok(outcome)
    }

    async fn signal(&self, signal: &str) -> Result<(), CallError> {
        let options = KillContainerOptionsBuilder::default()
            .signal(signal)
            .build();
        let kill = self.docker.kill_container(self.id, Some(options));
        unless_ended(client::call_within(LONG_CALL, kill).await)
    }

    /// Waits for the end. The engine reports an exit status other than 0 as an error, and a
    /// broken connection proves nothing either way: [`Self::prove`] has the last word, so any
    /// answer ends the wait, but only an end of the container counts as one.
    async fn ends_within(&self, grace: Duration) -> bool {
        let deadline = Instant::now() + grace;
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(250));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let options = WaitContainerOptionsBuilder::default()
                .condition("not-running")
                .build();
            let mut wait = self.docker.wait_container(self.id, Some(options));
            let waited = tokio::time::timeout(left, wait.next()).await;
            if matches!(self.remaining().await, Ok(None)) {
                return true;
            }
            if waited.is_err() || deadline <= Instant::now() {
                return false;
            }
            tokio::time::sleep(backoff.next_delay().min(left)).await;
        }
    }

    /// Returns when the engine says that it does not run and its control groups are empty.
    async fn prove(&self) -> Result<(), StopError> {
        let deadline = Instant::now() + BURIAL;
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(250));
        loop {
            let remaining = match self.remaining().await {
                Ok(None) => match cgroup::processes(self.places).await {
                    pids if pids.is_empty() => return Ok(()),
                    pids => format!("processes {pids:?} remain"),
                },
                Ok(Some(what)) => what,
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(StopError::Remains(remaining));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// What the engine says still runs; a container that is gone does not run.
    async fn remaining(&self) -> Result<Option<String>, CallError> {
        let inspected = client::call(self.docker.inspect_container(self.id, None)).await;
        let container = client::absent_as_none(inspected)?;
        let state = container.and_then(|container| container.state);
        Ok(state.filter(view::runs).map(|state| {
            format!(
                "the engine says that process {} runs",
                state.pid.unwrap_or_default()
            )
        }))
    }
}

/// An answer that it does not run (any more) is what a stop wants.
fn unless_ended(answer: Result<(), CallError>) -> Result<(), CallError> {
    match answer {
        Err(CallError::Refused {
            status: 404 | 409, ..
        }) => Ok(()),
        // Some versions say it in this way.
        Err(CallError::Refused { message, .. }) if message.contains("not running") => Ok(()),
        answer => answer,
    }
}
