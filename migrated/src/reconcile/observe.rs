//! What is seen of applications, and what follows from it at once: health, counted exits,
//! volumes' limits, and whether a gate is open.

use std::sync::Arc;

use migrated_core::reconcile::Action;
use migrated_core::registry::Role;
use migrated_core::routes::LocalRoute;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::ApplicationState;
use rehome_shared::ids::AppName;
use tokio::time::Instant;

use super::{is_paused, next_action};
use crate::applications;
use crate::health;
use crate::host::{Host, spec_of};
use crate::runtime::{Instance, InstanceState};

/// Takes in what is seen.
pub(super) async fn look(host: &Arc<Host>) {
    let instances = Arc::clone(&host.instances.borrow());
    for instance in instances.iter() {
        count_exit(host, instance);
        check_health(host, instance).await;
    }
    tend_volumes(host).await;
    tend_routes(host);
    forget_host_restart(host);
}

/// An exit by itself counts once; a run that was healthy begins the count anew.
fn count_exit(host: &Host, instance: &Instance) {
    if !matches!(instance.state, InstanceState::Exited { .. }) {
        return;
    }
    let mut memory = host.memory();
    let healthy = memory.healthy.remove(&instance.application);
    let Some(run) = healthy else { return };
    let entry = memory.exits.entry(instance.application.clone()).or_insert((0, None));
    if entry.1.as_ref() != Some(&run.0) || entry.1 != run.1 {
        entry.0 = entry.0.saturating_add(1);
        entry.1 = run.1;
    }
}

/// An instance that runs and was not found healthy yet (this daemon was restarted, or it takes
/// its time) is tried once at each look.
async fn check_health(host: &Host, instance: &Instance) {
    if instance.state != InstanceState::Running || applications::is_healthy(host, instance) {
        return;
    }
    let desired = host.desired.get();
    let Some(spec) = spec_of(&desired, &instance.application) else { return };
    let began = Instant::now();
    let started = began.checked_sub(std::time::Duration::from_secs(1)).unwrap_or(began);
    let probe =
        health::probe(host, &instance.application, &spec, instance.address, started).await;
    if probe.is_ok() {
        applications::remember_healthy(host, instance);
    }
}

/// Keeps limits as the deployment says, and sizes for people.
async fn tend_volumes(host: &Host) {
    let desired = host.desired.get();
    let volumes = match host.storage.list().await {
        Ok(volumes) => volumes,
        Err(error) => {
            let error = Report(&error).to_string();
            tracing::warn!(error, "the volumes cannot be looked at");
            return;
        }
    };
    for info in volumes {
        host.memory().sizes.insert(info.dataset.clone(), info.used);
        let Some(stamp) = info.stamp.filter(|_| info.live) else { continue };
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
    let owned: Vec<(AppName, rehome_shared::ids::Epoch)> = host.ledger.read(|registry| {
        registry
            .applications()
            .iter()
            .filter(|(name, known)| {
                let free = registry.source_of(name).is_none_or(|m| m.phase.leaves_serving());
                known.role == Role::Owner && free && registry.incoming(name).is_none()
            })
            .map(|(name, known)| (name.clone(), known.epoch))
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
        let open = instance
            .as_ref()
            .filter(|instance| applications::is_healthy(host, instance))
            .and_then(|instance| instance.address);
        let route = match (open, state_of(host, &application)) {
            (Some(address), _) => LocalRoute::Open(address),
            (None, ApplicationState::Failed | ApplicationState::Stopped) => LocalRoute::Closed,
            (None, _) => LocalRoute::Park,
        };
        host.routes.set(&application, epoch, route);
    }
}

/// The restart of the host is over when everything that should run was started once.
fn forget_host_restart(host: &Host) {
    if !host.memory().host_restarted {
        return;
    }
    let pending = super::names(host)
        .iter()
        .any(|name| matches!(next_action(host, name), Action::Start { .. } | Action::Run));
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
    let wanted = desired.applications.contains_key(application)
        && desired.host_of(application).is_some();
    let running = instance.as_ref().is_some_and(|i| i.state == InstanceState::Running);
    match &instance {
        Some(instance) if applications::is_healthy(host, instance) => ApplicationState::Running,
        _ if !wanted => ApplicationState::Stopped,
        _ if is_paused(host, application) => ApplicationState::Failed,
        Some(_) if running => ApplicationState::Starting,
        _ if next_action(host, application) != Action::None => ApplicationState::Starting,
        Some(Instance { state: InstanceState::Exited { code: Some(0), .. }, .. }) => {
            ApplicationState::Stopped
        }
        Some(_) => ApplicationState::Failed,
        None => ApplicationState::Stopped,
    }
}
