//! Commands inside a container, for health checks.

use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::exec::{CreateExecOptions, StartExecOptions};
use rehome_runtime::backoff::Backoff;
use rustix::process::{Pid, Signal, kill_process};

use super::client::{self, CallError, Client};

/// Runs a command; `true` when it exits with 0 in time. One that takes longer is killed, so that
/// hung checks do not pile up.
pub(super) async fn run(
    client: &Client,
    container: &str,
    command: &[String],
    timeout: Duration,
) -> Result<bool, CallError> {
    let deadline = Instant::now() + timeout;
    let docker = client.docker().await?;
    let options = CreateExecOptions {
        cmd: Some(command.to_vec()),
        ..CreateExecOptions::default()
    };
    let exec = client::call(docker.create_exec(container, options))
        .await?
        .id;
    // Detached: nobody reads its output, so it cannot fill a buffer of ours.
    let detached = StartExecOptions {
        detach: true,
        ..StartExecOptions::default()
    };
    client::call(docker.start_exec(&exec, Some(detached))).await?;
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
    loop {
        let state = client::call(docker.inspect_exec(&exec)).await?;
        if let (Some(false), Some(code)) = (state.running, state.exit_code) {
            return Ok(code == 0);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            kill(docker, &exec).await?;
            return Ok(false);
        }
        tokio::time::sleep(backoff.next_delay().min(left)).await;
    }
}

/// The engines have no request for it, so it is done from outside.
async fn kill(docker: &Docker, exec: &str) -> Result<(), CallError> {
    let state = client::call(docker.inspect_exec(exec)).await?;
    let (Some(true), Some(container)) = (state.running, state.container_id) else {
        return Ok(());
    };
    // Only when the number is the same process here: the engine may live in another namespace.
    if super::cgroup::of_process(state.pid, &container)
        .await
        .is_empty()
    {
        tracing::warn!(container, "a check that hangs cannot be killed from here");
        return Ok(());
    }
    if let Some(pid) = state
        .pid
        .and_then(|pid| pid.try_into().ok())
        .and_then(Pid::from_raw)
    {
        // It may have ended just now, which is as good.
        let _killed = kill_process(pid, Signal::KILL);
    }
    Ok(())
}
