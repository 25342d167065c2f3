//! Signals: SIGTERM and SIGINT stop the program, SIGHUP asks for a reload.
//!
//! A reload is a level, not an edge: ten SIGHUPs while one reload runs make one more reload.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::supervise::{Criticality, Supervisor};

/// Counts the SIGHUPs; hands out one reload after another.
#[derive(Debug)]
pub struct Reloads(watch::Receiver<u64>);

impl Reloads {
    /// Waits for the next SIGHUP since the last call; `None` when the program stops.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<()> {
        self.0.changed().await.ok()
    }
}

/// Listens for signals from now on: SIGTERM and SIGINT cancel the supervisor.
///
/// # Errors
/// When a handler cannot be installed.
pub fn listen(supervisor: &Supervisor) -> io::Result<Reloads> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = watch::channel(0_u64);
    let owner = supervisor.clone();
    supervisor.spawn("signals", Criticality::Critical, async move {
        // `Signal::recv` and `cancelled` are cancel safe, so every arm may lose the race.
        loop {
            let name = tokio::select! {
                () = next(&mut terminate) => "SIGTERM",
                () = next(&mut interrupt) => "SIGINT",
                () = next(&mut hangup) => "SIGHUP",
                () = owner.token().cancelled() => return,
            };
            tracing::info!(signal = name, "signal received");
            if name == "SIGHUP" {
                sender.send_modify(|count| *count = count.wrapping_add(1));
            } else {
                owner.cancel();
            }
        }
    });
    Ok(Reloads(receiver))
}

/// Waits for a SIGTERM or SIGINT that comes from now on, whatever was asked for before.
///
/// # Cancel safety
/// Cancel safe.
pub async fn stop_asked() {
    let streams = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    match streams {
        Ok((mut terminate, mut interrupt)) => {
            tokio::select! {
                () = next(&mut terminate) => {}
                () = next(&mut interrupt) => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "a second signal to stop is not heard");
            std::future::pending::<()>().await;
        }
    }
}

/// The next delivery. The stream of a handler that is installed never ends.
async fn next(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;
    use crate::supervise::Stop;

    /// One test, because signals reach the whole process.
    #[tokio::test]
    async fn hangup_reloads_and_terminate_stops() {
        let limit = Duration::from_secs(30);
        let supervisor = Supervisor::new();
        let mut reloads = listen(&supervisor).unwrap();
        kill_process(getpid(), Signal::HUP).unwrap();
        let reload = tokio::time::timeout(limit, reloads.next()).await.unwrap();
        assert_eq!(reload, Some(()));
        assert!(!supervisor.token().is_cancelled());
        kill_process(getpid(), Signal::TERM).unwrap();
        let failure = tokio::time::timeout(limit, supervisor.wait())
            .await
            .unwrap();
        assert_eq!(failure, None);
        assert_eq!(supervisor.stop(limit).await, Stop::Clean);
        assert_eq!(reloads.next().await, None);
        let again = async {
            tokio::task::yield_now().await;
            kill_process(getpid(), Signal::TERM).unwrap();
        };
        let asked = async { tokio::join!(stop_asked(), again) };
        tokio::time::timeout(limit, asked).await.unwrap();
    }
}
