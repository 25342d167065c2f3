//! What is seen of applications, and what follows from it at once: health, counted exits,
//! volumes' limits, and whether a gate is open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_core::reconcile::Action;
use migrated_core::registry::Registry;
use migrated_core::routes::LocalRoute;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::ApplicationState;
use rehome_shared::ids::{AppName, Epoch};
use tokio::sync::oneshot;

use super::{is_paused, next_action};
use crate::applications::{self, Unproven};
use crate::fence;
use crate::health;
use crate::host::{Host, spec_of};
use crate::runtime::{Instance, InstanceState};

/// A look waits so long for health checks; one that takes longer is heard at a later look.
const PROBE_WAIT: Duration = Duration::from_millis(250);

/// A run that was healthy for so long begins the count of exits anew.
const LONG_RUN: Duration = Duration::from_secs(10);

/// Takes in what is seen.
pub(super) async fn look(host: &Arc<Host>) {
    let instances = host.instances.borrow().clone().unwrap_or_default();
    for instance in instances.iter() {
        count_exit(host, instance);
    }
    let tried: Vec<_> = instances
        .iter()
        .filter_map(|seen| begin_probe(host, seen))
        .collect();
    // A check that hangs holds up nobody but its own application.
    drop(tokio::time::timeout(PROBE_WAIT, futures_util::future::join_all(tried)).await);
    tend_volumes(host).await;
    tend_routes(host);
    forget_host_restart(host);
}

/// An exit by itself counts once; a run that was healthy for long begins the count anew.
fn count_exit(host: &Host, instance: &Instance) {
    if !matches!(instance.state, InstanceState::Exited { .. }) {
        return;
    }
    let application = &instance.application;
    let mut memory = host.memory();
    memory.unhealthy.remove(application);
    if memory.healthy.remove(application).is_none() {
        return;
    }
    let long = memory
        .healthy_since
        .remove(application)
        .is_some_and(|since| since.elapsed() >= LONG_RUN);
    let count = memory.exits.entry(application.clone()).or_default();
    *count = if long { 1 } else { count.saturating_add(1) };
}

/// An instance that runs and was not found healthy yet (this daemon was restarted, or it takes
/// its time) is tried once at each look, unless the last try is still under way.
fn begin_probe(host: &Arc<Host>, instance: &Instance) -> Option<oneshot::Receiver<()>> {
    if instance.state != InstanceState::Running || applications::is_healthy(host, instance) {
        return None;
    }
    let spec = spec_of(&host.desired.get(), &instance.application)?;
    if !may_try(host, instance) {
        return None;
    }
    let (done, tried) = oneshot::channel();
    let (owner, instance) = (Arc::clone(host), instance.clone());
    host.spawn("probe", async move {
        // It has been running for a while, or will have been at the next look.
        let began = tokio::time::Instant::now();
        let since = began.checked_sub(Duration::from_secs(1)).unwrap_or(began);
        let application = &instance.application;
        let probe = health::probe(&owner, application, &spec, instance.address, since).await;
        note_probe(&owner, &instance, probe);
        // The look may have gone on without the answer.
        let _unheard = done.send(());
    });
    Some(tried)
}

/// Whether this run of an instance may be tried now: one try at a time.
fn may_try(host: &Host, instance: &Instance) -> bool {
    let run = applications::run_of(instance);
    let mut memory = host.memory();
    let unproven = memory
        .unhealthy
        .get(&instance.application)
        .filter(|known| known.run == run)
        .cloned()
        .unwrap_or_else(|| Unproven {
            run,
            since: Instant::now(),
            reason: None,
            trying: false,
        });
    let free = !unproven.trying;
    let unproven = Unproven {
        trying: true,
        ..unproven
    };
    memory
        .unhealthy
        .insert(instance.application.clone(), unproven);
    free
}

fn note_probe(host: &Host, instance: &Instance, probe: Result<(), String>) {
    let application = &instance.application;
    let run = applications::run_of(instance);
    {
        let mut memory = host.memory();
        let Some(known) = memory
            .unhealthy
            .get_mut(application)
            .filter(|known| known.run == run)
        else {
            // Another run has begun, or this one was found healthy by somebody else.
            return;
        };
        known.trying = false;
        if let Err(reason) = probe {
            known.reason = Some(reason);
            return;
        }
    }
    applications::remember_healthy(host, instance);
    host.kick();
}

/// Keeps limits as the deployment says, and sizes for people.
async fn tend_volumes(host: &Arc<Host>) {
    let desired = host.desired.get();
    let volumes = match host.storage.list().await {
        Ok(volumes) => volumes,
        Err(error) => {
            let error = Report(&error).to_string();
            tracing::warn!(error, "the volumes cannot be looked at");
            return;
        }
    };
    fence::tidy(host, &volumes);
    for info in volumes {
        host.memory().sizes.insert(info.dataset.clone(), info.used);
        let Some(stamp) = info.stamp.filter(|_| info.live) else {
            continue;
        };
        let here = desired.host_of(&stamp.application) == Some(&host.address);
        let wanted = desired
            .applications
            .get(&stamp.application)
            .and_then(|spec| spec.volumes.iter().find(|v| v.name == stamp.volume))
            .map(|volume| volume.maximum_size);
        if let Some(wanted) = wanted.filter(|wanted| here && *wanted != info.limit)
            && let Err(error) = host.storage.set_limit(&info.dataset, wanted).await
        {
            let error = Report(&error).to_string();
            tracing::warn!(error, volume.dataset = %info.dataset, "a volume's limit cannot be changed");
        }
    }
}

/// The gates of applications that this host owns and no handoff has in hand.
fn tend_routes(host: &Host) {
    let owned: Vec<(AppName, Epoch)> = host.ledger.read(|registry| {
        registry
            .applications()
            .keys()
            .filter_map(|name| Some((name.clone(), tended(registry, name)?)))
            .collect()
    });
    let desired = host.desired.get();
    for (application, epoch) in owned {
        if !desired.applications.contains_key(&application)
            || desired.host_of(&application).is_none()
        {
            host.routes.forget(&application);
            continue;
        }
        let instance = host.instance(&application);
        if instance
            .as_ref()
            .is_some_and(|seen| is_unjudged(host, seen))
        {
            // Right after a restart of this daemon: what the proxy has is better than a guess.
            continue;
        }
        let open = instance
            .as_ref()
            .filter(|instance| applications::is_healthy(host, instance))
            .and_then(Instance::reach);
        let route = match (open, state_of(host, &application)) {
            (Some(reach), _) => LocalRoute::Open(reach),
            (None, ApplicationState::Failed | ApplicationState::Stopped) => LocalRoute::Closed,
            (None, _) => LocalRoute::Park,
        };
        // While the journal is looked at no handoff can begin to park: what was true a moment
        // ago must not open its gate again.
        host.ledger.read(|registry| {
            if tended(registry, &application) == Some(epoch) {
                host.routes.set(&application, epoch, route);
            }
        });
    }
}

/// The epoch of an application whose gate is the loop's: this host owns it, and no handoff has
/// it in hand.
fn tended(registry: &Registry, application: &AppName) -> Option<Epoch> {
    let free = registry
        .source_of(application)
        .is_none_or(|m| m.phase.leaves_serving())
        && registry.incoming(application).is_none();
    registry
        .owned(application)
        .filter(|_| free)
        .map(|owned| owned.epoch)
}

/// Whether an instance runs that this daemon neither started nor has an answer of yet.
fn is_unjudged(host: &Host, instance: &Instance) -> bool {
    let memory = host.memory();
    let untried = memory
        .unhealthy
        .get(&instance.application)
        .is_some_and(|known| known.reason.is_none() && known.trying);
    let started_here = memory.started_under.contains_key(&instance.application);
    drop(memory);
    instance.state == InstanceState::Running
        && untried
        && !started_here
        && !host.routes.is_set(&instance.application)
}

/// The restart of the host is over when everything that should run was started once.
fn forget_host_restart(host: &Host) {
    if !host.memory().host_restarted {
        return;
    }
    let pending = super::names(host).iter().any(|name| {
        !host.clearance.is_clear(name)
            || matches!(next_action(host, name), Action::Start { .. } | Action::Run)
    });
    if !pending {
        host.memory().host_restarted = false;
        crate::incarnation::remember(host);
    }
}

/// Whether an application is on its way to being healthy here.
#[must_use]
pub(crate) fn is_starting(host: &Host, application: &AppName) -> bool {
    state_of(host, application) == ApplicationState::Starting
}

/// The state of an application that this host owns.
#[must_use]
pub(crate) fn state_of(host: &Host, application: &AppName) -> ApplicationState {
    let desired = host.desired.get();
    let instance = host.instance(application);
    let wanted =
        desired.applications.contains_key(application) && desired.host_of(application).is_some();
    let running = instance
        .as_ref()
        .is_some_and(|i| i.state == InstanceState::Running);
    match &instance {
        Some(instance) if applications::is_healthy(host, instance) => ApplicationState::Running,
        _ if !wanted => ApplicationState::Stopped,
        _ if host.clearance.withheld(application).is_some() => ApplicationState::Blocked,
        _ if !running && !host.clearance.is_clear(application) => ApplicationState::Starting,
        _ if is_paused(host, application) => ApplicationState::Failed,
        Some(instance) if running && unproven_reason(host, instance).is_some() => {
            ApplicationState::Failed
        }
        Some(_) if running => ApplicationState::Starting,
        _ if next_action(host, application) != Action::None => ApplicationState::Starting,
        None
        | Some(Instance {
            state: InstanceState::Exited { code: Some(0), .. },
            ..
        }) => ApplicationState::Stopped,
        Some(_) => ApplicationState::Failed,
    }
}

/// Why an instance that runs counts as failed: it was not found healthy for as long as its
/// health check allows, or a start under this deployment ended like that.
#[must_use]
pub(crate) fn unproven_reason(host: &Host, instance: &Instance) -> Option<String> {
    let desired = host.desired.get();
    let check = &desired.applications.get(&instance.application)?.healthcheck;
    let limit = check.interval.saturating_mul(check.retries.max(1));
    let memory = host.memory();
    let fault = memory.faults.get(&instance.application);
    if let Some(fault) = fault.filter(|fault| fault.generation == desired.generation) {
        return Some(fault.reason.clone());
    }
    let known = memory.unhealthy.get(&instance.application)?;
    let stale = known.run != applications::run_of(instance) || known.since.elapsed() < limit;
    let reason = known.reason.as_ref().filter(|_| !stale)?;
    Some(format!("its health check fails: {reason}"))
}
