//! The loop that makes this host what it should be: observe, plan (in the core), apply, again.
//!
//! One action per application at a time; applications do not wait for each other. An action
//! that fails is remembered, shown, and tried again after a pause that grows.

mod act;
mod observe;

pub(crate) use act::identity;
pub(crate) use observe::{state_of, unproven_reason};

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use migrated_core::reconcile::{self, Action, InstancePhase, InstanceSeen, Seen};
use migrated_core::registry::Registry;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Desired;
use rehome_shared::config::model::RestartPolicy;
use rehome_shared::ids::AppName;

use crate::applications::{Fault, instance_spec};
use crate::host::Host;
use crate::migrations;
use crate::runtime::{Instance, InstanceState};

/// How often the host looks at itself when nothing tells it to.
const LOOK: Duration = Duration::from_secs(1);

/// The longest pause after an action that failed again and again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Keeps the host as it should be. Runs until the stop.
///
/// # Cancel safety
/// Cancel safe: actions are tasks of their own.
pub async fn follow(host: Arc<Host>) {
    let stop = host.supervisor.token().clone();
    let mut wake = host.wake.subscribe();
    let mut desired = host.desired.watch();
    let mut ledger = host.ledger.changes();
    let mut runtime_fails = false;
    loop {
        wake.borrow_and_update();
        desired.borrow_and_update();
        ledger.borrow_and_update();
        match host.observe().await {
            Ok(()) => {
                runtime_fails = false;
                observe::look(&host).await;
                begin_actions(&host);
            }
            // Said once, not at every look.
            Err(error) if !runtime_fails => {
                runtime_fails = true;
                let error = Report(&error).to_string();
                tracing::error!(
                    error,
                    "the runtime does not answer; nothing is started or stopped"
                );
            }
            Err(_) => {}
        }
        // Every arm waits on a level.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = wake.changed() => {}
            _ = desired.changed() => {}
            _ = ledger.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn begin_actions(host: &Arc<Host>) {
    for application in names(host) {
        let action = next_action(host, &application);
        if action == Action::None || is_paused(host, &application) {
            continue;
        }
        if !host.occupy(&application) {
            continue;
        }
        let owner = Arc::clone(host);
        host.spawn("reconcile", async move {
            // Between the plan and the occupation a handoff may have taken it in hand.
            let action = next_action(&owner, &application);
            if action != Action::None {
                perform(&owner, &application, action).await;
            }
            owner.vacate(&application);
            owner.kick();
        });
    }
}

async fn perform(host: &Arc<Host>, application: &AppName, action: Action) {
    tracing::debug!(%application, ?action, "reconcile");
    match act::apply(host, application, action).await {
        Ok(()) => {
            host.memory().faults.remove(application);
        }
        Err(error) => {
            let reason = Report(&error).to_string();
            tracing::warn!(%application, reason, "an application is not as it should be");
            note_fault(host, application, reason);
        }
    }
}

fn note_fault(host: &Host, application: &AppName, reason: String) {
    let generation = host.desired.get().generation;
    let mut memory = host.memory();
    let tries = memory
        .faults
        .get(application)
        .filter(|fault| fault.generation == generation)
        .map_or(1, |fault| fault.tries.saturating_add(1));
    let pause = Duration::from_secs(1)
        .saturating_mul(1 << tries.min(6))
        .min(LONGEST_PAUSE);
    let retry_at = Instant::now() + pause;
    memory.faults.insert(
        application.clone(),
        Fault {
            generation,
            reason,
            tries,
            retry_at,
        },
    );
}

fn is_paused(host: &Host, application: &AppName) -> bool {
    let generation = host.desired.get().generation;
    let memory = host.memory();
    memory
        .faults
        .get(application)
        .is_some_and(|fault| fault.generation == generation && Instant::now() < fault.retry_at)
}

/// Every application that this host may have to do something for.
fn names(host: &Host) -> BTreeSet<AppName> {
    let mut names: BTreeSet<AppName> = host.desired.get().applications.keys().cloned().collect();
    names.extend(
        host.instances
            .borrow()
            .iter()
            .flat_map(|all| all.iter())
            .map(|instance| instance.application.clone()),
    );
    names.extend(
        host.ledger
            .read(|registry| registry.applications().keys().cloned().collect::<Vec<_>>()),
    );
    names
}

/// What this host would do next for an application.
pub fn next_action(host: &Host, application: &AppName) -> Action {
    let desired = host.desired.get();
    let instance = host.instance(application);
    host.ledger
        .read(|registry| plan_one(host, registry, &desired, application, instance.as_ref()))
}

fn plan_one(
    host: &Host,
    registry: &Registry,
    desired: &Desired,
    application: &AppName,
    instance: Option<&Instance>,
) -> Action {
    let spec = desired.applications.get(application);
    let owned = registry.applications().get(application);
    let hash = spec.zip(owned).map(|(spec, owned)| {
        instance_spec(host, application, owned.epoch, spec, &owned.volumes).config_hash
    });
    let volumes_missing = spec.zip(owned).is_some_and(|(spec, owned)| {
        spec.volumes
            .iter()
            .any(|v| owned.volumes.iter().all(|known| known.name != v.name))
    });
    let memory = host.memory();
    // A new deployment gives what failed another chance.
    let failed = instance
        .is_some_and(|i| matches!(i.state, InstanceState::Exited { code, .. } if code != Some(0)));
    let retry = failed
        && memory
            .started_under
            .get(application)
            .is_some_and(|then| *then < desired.generation);
    reconcile::plan(&Seen {
        application,
        here: &host.address,
        registry,
        desired_host: spec.and_then(|_| desired.host_of(application)),
        birth: desired.births.get(application).copied(),
        // A volume that is not there yet makes the instance another one.
        desired_hash: hash.as_deref().filter(|_| !volumes_missing),
        instance: instance.map(|instance| InstanceSeen {
            config_hash: &instance.config_hash,
            state: phase(&instance.state),
        }),
        restart_policy: spec.map_or(RestartPolicy::Never, |spec| spec.restart_policy),
        exits: memory.exits.get(application).copied().unwrap_or_default(),
        move_failed: migrations::failed(registry.history(), desired, application).is_some(),
        host_restarted: retry
            || memory
                .owed
                .get(application)
                .is_some_and(|until| Instant::now() < *until)
            || (memory.host_restarted && !memory.revived.contains(application)),
        cleared: host.clearance.is_clear(application),
    })
}

fn phase(state: &InstanceState) -> InstancePhase {
    match state {
        InstanceState::Created => InstancePhase::Created,
        InstanceState::Running => InstancePhase::Running,
        InstanceState::Exited { code, .. } => InstancePhase::Exited {
            success: *code == Some(0),
        },
    }
}

/// Whether nothing is left to do here for the deployment: all is as it should be or has failed.
#[must_use]
pub fn is_settled(host: &Host) -> bool {
    let open = host.ledger.read(|registry| {
        !registry.sources().is_empty()
            || registry
                .applications()
                .keys()
                .any(|name| registry.incoming(name).is_some())
    });
    if open
        || !host.routes.is_told(host.desired.get().generation)
        || !host
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    {
        return false;
    }
    names(host).iter().all(|application| {
        let quiet = next_action(host, application) == Action::None || is_paused(host, application);
        quiet && !observe::is_starting(host, application)
    })
}
