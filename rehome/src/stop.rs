//! Interruption: turns SIGINT, SIGTERM and SIGHUP into a [`Stop`] that long work looks at, so
//! that it can take back what it has made instead of dying in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

/// Becomes true once, when the user asked to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that nobody can set: for work that must run to its end, such as cleaning up.
    pub(crate) fn never() -> Self {
        Self::default()
    }

    /// Whether the user asked to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Waited {
    /// The condition holds.
    Met,
    /// The time was up first.
    TimedOut,
    /// The user asked to stop first.
    Stopped,
}

/// Waits until `condition` holds, looking again after a pause that grows from 1 to 20 ms.
pub(crate) fn wait_until(
    limit: Duration,
    stop: &Stop,
    mut condition: impl FnMut() -> bool,
) -> Waited {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if condition() {
            return Waited::Met;
        }
        if stop.is_set() {
            return Waited::Stopped;
        }
        if Instant::now() >= deadline {
            return Waited::TimedOut;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the one polling wait of the command; it runs on a blocking thread"
        )]
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Runs blocking work that a signal asks to stop. The work decides how it ends.
pub(crate) fn interruptible<T, F>(work: F) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: FnOnce(&Stop) -> T + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = Stop::default();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let theirs = stop.clone();
        let mut work = tokio::task::spawn_blocking(move || work(&theirs));
        loop {
            // Cancel safety: a join handle and signal streams lose nothing when dropped.
            tokio::select! {
                done = &mut work => return Ok(done?),
                _ = interrupt.recv() => stop.set(),
                _ = terminate.recv() => stop.set(),
                _ = hangup.recv() => stop.set(),
            }
        }
    })
}
