//! What systemd is told: ready, reloading, stopping, and that the program is alive.
//!
//! Without systemd (`NOTIFY_SOCKET` unset) every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::supervise::{Criticality, Supervisor};

/// The program serves.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// A reload begins; call [`ready`] at its end.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell systemd of the reload"),
    }
}

/// The program ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Another process is the service's from now on. It is given the time of a whole watchdog
/// interval to say its first word.
pub fn main_process(pid: u32) {
    send(&[NotifyState::MainPid(pid), NotifyState::Watchdog]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Tells systemd twice per watchdog interval that the runtime still runs tasks. Does nothing
/// when the unit has no `WatchdogSec`.
pub fn spawn_watchdog(supervisor: &Supervisor) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let token = supervisor.token().clone();
    // Half the interval: one late tick is not yet a missed deadline.
    let period = (interval / 2).max(Duration::from_millis(1));
    supervisor.spawn("watchdog", Criticality::Critical, async move {
        let ticks = async {
            let mut ticks = tokio::time::interval(period);
            loop {
                ticks.tick().await;
                send(&[NotifyState::Watchdog]);
            }
        };
        token.run_until_cancelled(ticks).await;
    });
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell systemd the state");
    }
}

#[cfg(test)]
mod tests;
