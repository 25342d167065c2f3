//! Holding applications back whose rounds do not shrink, and letting them go again.
//!
//! What holds an application is in its control group and outlives this daemon. So whoever holds
//! one lets it go at each end of its own, and a daemon that starts lets go whatever it finds.

use std::sync::Arc;
use std::time::Duration;

use rehome_runtime::backoff::Backoff;
use rehome_runtime::report::Report;
use rehome_shared::ids::AppName;

use crate::host::Host;
use crate::runtime::{Cpus, InstanceState, RuntimeError};

/// A runtime that takes longer is asked again by a task of its own.
const PATIENCE: Duration = Duration::from_secs(2);

/// Holds an application to so much of the processors.
///
/// # Errors
/// The runtime's; then nothing more than before holds it.
///
/// # Cancel safety
/// May have taken effect; [`lift`] undoes it.
pub async fn hold(host: &Host, application: &AppName, cpus: Cpus) -> Result<(), RuntimeError> {
    host.memory().throttled.insert(application.clone());
    host.runtime.throttle(application, Some(cpus)).await
}

/// Lets an application go that [`hold`] holds. A runtime that does not do it at once is asked
/// until it does.
///
/// # Cancel safety
/// A dropped call may leave it held; call it again.
pub async fn lift(host: &Arc<Host>, application: &AppName) {
    if !host.memory().throttled.contains(application) {
        return;
    }
    let lifted = tokio::time::timeout(PATIENCE, host.runtime.throttle(application, None)).await;
    host.memory().throttled.remove(application);
    if matches!(lifted, Ok(Ok(()))) {
        return;
    }
    tracing::warn!(%application, "an application is not let go yet; trying again");
    let (owner, application) = (Arc::clone(host), application.clone());
    host.spawn("lift", async move {
        let stop = owner.supervisor.token().clone();
        stop.run_until_cancelled(lift_at_last(&owner, &application))
            .await;
    });
}

/// Tries until it is done, or until somebody holds it anew.
async fn lift_at_last(host: &Host, application: &AppName) {
    let mut pause = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    while !host.memory().throttled.contains(application) {
        match host.runtime.throttle(application, None).await {
            Ok(()) => return,
            Err(error) => {
                let error = Report(&error).to_string();
                tracing::warn!(%application, error, "an application cannot be let go");
            }
        }
        tokio::time::sleep(pause.next_delay()).await;
    }
}

/// Lets everything go that an earlier run of this daemon may have held.
///
/// # Cancel safety
/// A dropped call may leave some held; call it again.
pub async fn lift_found(host: Arc<Host>) {
    let stop = host.supervisor.token().clone();
    let mut pause = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let work = async {
        let found = loop {
            match host.runtime.list().await {
                Ok(found) => break found,
                // That it does not answer is said elsewhere.
                Err(_) => tokio::time::sleep(pause.next_delay()).await,
            }
        };
        for instance in found {
            if instance.state == InstanceState::Running {
                lift_at_last(&host, &instance.application).await;
            }
        }
    };
    // Without an end the daemon is stopping; the next one looks again.
    let _stopped = stop.run_until_cancelled(work).await;
}
