//! Waiting for a deployment: asks how far it is until nothing is left to do, shows it to the
//! person who waits, and judges how it ended.
//!
//! The deployment is the daemons' work and goes on whatever happens here: a lost connection, a
//! restart of the daemon, Ctrl-C or the end of the time only end the watching.

mod display;
mod feed;
mod scope;
mod verdict;

use std::time::Duration;

use rehome_shared::api::cluster::Progress;
use rehome_shared::ids::DeploymentGeneration;
use tokio::time::Instant;

use crate::client::{CallError, Migrated};

pub(crate) use display::Display;
pub(crate) use scope::Scope;
pub(crate) use verdict::{Problem, problems};

/// From one question to the next.
const INTERVAL: Duration = Duration::from_millis(250);

/// So long a daemon may be away, as in a restart, before waiting for it ends.
const RESTART_GRACE: Duration = Duration::from_mins(1);

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing is left to wait for.
    Settled,
    /// The time is up.
    TimedOut,
    /// Somebody else's deployment wants something else for what was asked for.
    Superseded,
    /// The user does not want to wait any more.
    Interrupted,
}

/// What was seen last.
#[derive(Debug)]
pub(crate) struct Followed {
    /// The last answer; `None` when there was none before the end.
    pub(crate) progress: Option<Progress>,
    /// How the wait ended.
    pub(crate) end: End,
}

/// Waits until what was asked for is over, at most for `limit`; the newer deployments too that
/// others make meanwhile, as long as they say what was asked for.
///
/// # Errors
/// When the daemon refuses to answer, or is away for longer than a restart takes.
pub(crate) async fn follow(
    daemon: &Migrated,
    generation: DeploymentGeneration,
    scope: Scope<'_>,
    limit: Duration,
    display: &mut Display,
) -> Result<Followed, CallError> {
    let mut seen = None;
    let end = {
        let watch = watch(daemon, generation, scope, display, &mut seen);
        // Whichever arm loses is dropped for good, and asking again has no effect to lose.
        tokio::select! {
            end = tokio::time::timeout(limit, watch) => end.unwrap_or(Ok(End::TimedOut)),
            _ = tokio::signal::ctrl_c() => Ok(End::Interrupted),
        }
    };
    display.close();
    Ok(Followed {
        end: end?,
        progress: seen,
    })
}

async fn watch(
    daemon: &Migrated,
    generation: DeploymentGeneration,
    scope: Scope<'_>,
    display: &mut Display,
    seen: &mut Option<Progress>,
) -> Result<End, CallError> {
    let mut heard = Instant::now();
    let mut away = false;
    let mut known = generation;
    loop {
        match look(daemon, scope, &mut known).await {
            Ok((progress, stands)) => {
                heard = Instant::now();
                away = false;
                // The daemon that is asked may not have heard of a new deployment yet.
                if progress.generation >= generation {
                    display.show(&progress);
                    let over = scope.is_over(&progress);
                    *seen = Some(progress);
                    if !stands {
                        return Ok(End::Superseded);
                    }
                    if over {
                        return Ok(End::Settled);
                    }
                }
            }
            Err(error) if error.may_pass() && heard.elapsed() < RESTART_GRACE => {
                if !away {
                    display.say(&format!("no answer, trying again: {error}"));
                    away = true;
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// How far it is, with the migrations that were asked for, and whether what was asked for still
/// stands; `known` is the newest deployment of which that is known.
async fn look(
    daemon: &Migrated,
    scope: Scope<'_>,
    known: &mut DeploymentGeneration,
) -> Result<(Progress, bool), CallError> {
    let mut progress = daemon.progress().await?;
    progress.migrations.retain(|m| scope.brought(m));
    if progress.generation > *known {
        let now = daemon.current().await?;
        if !scope.stands(&now) {
            return Ok((progress, false));
        }
        *known = now.generation;
    }
    Ok((progress, true))
}
