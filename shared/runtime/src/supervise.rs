//! Tasks with a name, an owner and an orderly end.
//!
//! A [`Supervisor`] is one `CancellationToken`, a count of tasks and the memory of what went
//! wrong first. Every task of a program is spawned here, so that none outlives the program's
//! stop unseen. A task hears of the stop through [`Supervisor::token`]; one that does not end
//! within the grace is dropped.
//!
//! A *group* ([`Supervisor::group`]) is a part that can be stopped and waited for by itself,
//! for example the connections of one listener. Stopping the whole stops its groups.

mod light;
mod running;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use light::Light;
use running::Running;

/// How long dropped tasks get to disappear: they only run their destructors.
const DROP_TIME: Duration = Duration::from_secs(1);

/// What the end of a task means for the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criticality {
    /// The program is worthless without it: its end before its group's stop, or a panic, stops
    /// all.
    Critical,
    /// It may end at any time; a panic is logged.
    Ordinary,
}

/// How a critical task ended when it should not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It returned before the stop.
    #[error("the task {name} ended")]
    Ended {
        /// The task.
        name: &'static str,
    },
    /// It panicked.
    #[error("the task {name} panicked: {message}")]
    Panicked {
        /// The task.
        name: &'static str,
        /// What it said.
        message: String,
    },
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Stop {
    /// Every task ended by itself.
    Clean,
    /// So many tasks did not end within the grace and were dropped.
    Dropped(usize),
}

/// Owns tasks. Clones are handles of the same supervisor.
#[derive(Clone)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

struct Shared {
    /// Asks the tasks to end.
    stop: CancellationToken,
    /// Drops those that did not.
    drop_now: CancellationToken,
    /// Those of groups included.
    running: Running,
    /// The supervisor that this one is a group of: it waits for this one's tasks too.
    above: Option<Arc<Shared>>,
    light: Mutex<Light>,
    root: Arc<Root>,
}

impl Shared {
    fn enter(&self) {
        self.running.enter();
        self.above.iter().for_each(|above| above.enter());
    }

    fn leave(&self) {
        self.running.leave();
        self.above.iter().for_each(|above| above.leave());
    }
}

/// A task that runs. Dropped with it, after its future.
struct Member(Arc<Shared>);

impl Member {
    fn enter(shared: &Arc<Shared>) -> Self {
        shared.enter();
        Self(Arc::clone(shared))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// What a supervisor and all its groups share.
struct Root {
    stop: CancellationToken,
    failure: OnceLock<Failure>,
    /// Who has tasks that are not dropped by a token.
    light: Mutex<Vec<Weak<Shared>>>,
}

impl Supervisor {
    /// A supervisor without tasks.
    #[must_use]
    pub fn new() -> Self {
        let stop = CancellationToken::new();
        Self {
            shared: Arc::new(Shared {
                stop: stop.clone(),
                drop_now: CancellationToken::new(),
                running: Running::default(),
                above: None,
                light: Mutex::default(),
                root: Arc::new(Root {
                    stop,
                    failure: OnceLock::new(),
                    light: Mutex::default(),
                }),
            }),
        }
    }

    /// A part that can be stopped by itself and stops with this one.
    #[must_use]
    pub fn group(&self) -> Self {
        Self {
            shared: Arc::new(Shared {
                stop: self.shared.stop.child_token(),
                drop_now: self.shared.drop_now.child_token(),
                running: Running::default(),
                above: Some(Arc::clone(&self.shared)),
                light: Mutex::default(),
                root: Arc::clone(&self.shared.root),
            }),
        }
    }

    /// Cancelled when the tasks are to end. A task that must be asked first waits for it.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.shared.stop
    }

    /// How many tasks run now, groups included.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.running.count()
    }

    /// Starts a task; the caller limits their number. There is [`Supervisor::spawn_light`] for one
    /// task per connection.
    ///
    /// The future is dropped when it has not ended by the end of the stop's grace.
    pub fn spawn<F>(&self, name: &'static str, criticality: Criticality, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let member = Member::enter(&self.shared);
        let task = async move {
            let shared = &member.0;
            let guarded = AssertUnwindSafe(future).catch_unwind();
            // `None`: dropped at the end of a grace, which is not the task's fault.
            if let Some(end) = shared.drop_now.run_until_cancelled(guarded).await {
                let asked = shared.stop.is_cancelled();
                shared.root.note_end(name, (criticality, asked), end);
            }
            drop(member);
        };
        let span = tracing::debug_span!("task", task = name);
        // The handle is not needed: the end is noted above.
        drop(start(task.instrument(span)));
    }

    /// Waits until the program is to stop: by [`Supervisor::cancel`], a signal, or the end of a
    /// critical task, which it then returns.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&self) -> Option<Failure> {
        self.shared.stop.cancelled().await;
        self.failure()
    }

    /// What stopped everything, when it was the end of a critical task.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.shared.root.failure.get().cloned()
    }

    /// Asks every task to end, without waiting.
    pub fn cancel(&self) {
        self.shared.stop.cancel();
    }

    /// Waits until no task runs, without asking any to end; `false` when some still run after
    /// `limit`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn idle(&self, limit: Duration) -> bool {
        let none = self.shared.running.none();
        tokio::time::timeout(limit, none).await.is_ok()
    }

    /// Asks every task to end, waits for them up to `grace`, then drops those that remain.
    ///
    /// # Cancel safety
    /// The request to end stays when the wait is dropped; call it again to finish.
    pub async fn stop(&self, grace: Duration) -> Stop {
        self.cancel();
        if self.idle(grace).await {
            return Stop::Clean;
        }
        let left = self.running();
        self.shared.drop_now.cancel();
        self.shared.root.drop_light();
        if !self.idle(DROP_TIME).await {
            tracing::error!(
                tasks = self.running(),
                "tasks block their thread and cannot be dropped"
            );
        }
        Stop::Dropped(left)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is where every task gets its owner"
)]
fn start(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    tokio::spawn(task).abort_handle()
}

impl Root {
    fn note_end(
        &self,
        name: &'static str,
        (criticality, asked): (Criticality, bool),
        end: Result<(), Box<dyn Any + Send>>,
    ) {
        let failure = match end {
            Ok(()) if criticality == Criticality::Ordinary || asked => return,
            Ok(()) => Failure::Ended { name },
            Err(payload) => Failure::Panicked {
                name,
                message: panic_message(payload.as_ref()),
            },
        };
        tracing::error!(error = %failure, ?criticality, "a task failed");
        if criticality == Criticality::Critical {
            // The first failure is the one that explains the rest.
            drop(self.failure.set(failure));
            self.stop.cancel();
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_owned()
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("running", &self.running())
            .field("stopping", &self.shared.stop.is_cancelled())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
