//! What the engine says of a container, in our words.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status, NetworkSettings,
};
use rehome_shared::ids::{AppName, Epoch};

use super::spec::{LABEL_ANNOUNCED, LABEL_APPLICATION, LABEL_CONFIG_HASH, LABEL_EPOCH};
use super::{Instance, InstanceState};

/// The instance that a container is; `None` when it does not carry our labels.
pub(super) fn instance(container: &ContainerInspectResponse) -> Option<Instance> {
    let labels = container.config.as_ref()?.labels.as_ref()?;
    let application = labels.get(LABEL_APPLICATION)?;
    let parse = || {
        Some(Instance {
            id: container.id.clone()?,
            application: AppName::try_new(application.as_str()).ok()?,
            epoch: Epoch(labels.get(LABEL_EPOCH)?.parse().ok()?),
            config_hash: labels.get(LABEL_CONFIG_HASH)?.clone(),
            state: container
                .state
                .as_ref()
                .map_or(InstanceState::Created, state),
            address: None,
            started_at: None,
            announced: announced(labels.get(LABEL_ANNOUNCED).map(String::as_str))?,
        })
    };
    let Some(mut instance) = parse() else {
        tracing::warn!(
            container = container.id,
            "a container with a damaged label is ignored"
        );
        return None;
    };
    if instance.state == InstanceState::Running {
        instance.address = container.network_settings.as_ref().and_then(address);
        instance.started_at = container
            .state
            .as_ref()
            .and_then(|state| state.started_at.clone());
    }
    Some(instance)
}

/// Ports as the label lists them; a container that was made before there was one has none.
fn announced(label: Option<&str>) -> Option<BTreeSet<u16>> {
    let ports = label.into_iter().flat_map(|label| label.split(','));
    ports.map(|port| port.parse().ok()).collect()
}

/// Whether any process may be in it: a paused one counts.
pub(super) fn runs(state: &ContainerState) -> bool {
    state.running.unwrap_or(false) || state.pid.is_some_and(|pid| pid > 0)
}

fn state(state: &ContainerState) -> InstanceState {
    if runs(state) {
        return InstanceState::Running;
    }
    let reason = match (&state.error, state.oom_killed) {
        (Some(error), _) if !error.is_empty() => Some(error.clone()),
        (_, Some(true)) => Some("it was killed for want of memory".to_owned()),
        (_, _) => None,
    };
    // After a start that failed the engine still says "created", with the reason beside it.
    if state.status == Some(Status::CREATED) && reason.is_none() {
        return InstanceState::Created;
    }
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok());
    InstanceState::Exited { code, reason }
}

/// Where the proxy reaches it. It has one network, whatever the engine calls it.
fn address(network: &NetworkSettings) -> Option<IpAddr> {
    let endpoints = network
        .networks
        .iter()
        .flat_map(|networks| networks.values());
    endpoints
        .flat_map(|endpoint| [&endpoint.ip_address, &endpoint.global_ipv6_address])
        .flatten()
        .find_map(|address| address.parse().ok())
}

#[cfg(test)]
mod tests;
