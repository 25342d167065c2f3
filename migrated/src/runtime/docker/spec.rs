//! What a container is made of: from an [`InstanceSpec`] to the engine's words.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, ImageConfig, Mount, MountType, RestartPolicy,
    RestartPolicyNameEnum,
};
use rehome_shared::ids::AppName;

use super::InstanceSpec;

/// Label: whose container.
pub(super) const LABEL_APPLICATION: &str = "rehome.application";
/// Label: the epoch that it was made for.
pub(super) const LABEL_EPOCH: &str = "rehome.epoch";
/// Label: the hash of its configuration.
pub(super) const LABEL_CONFIG_HASH: &str = "rehome.config-hash";
/// Label: its ports on which it expects to be told of each client, if there are any.
pub(super) const LABEL_ANNOUNCED: &str = "rehome.announced";
/// Label: its configuration for people, as JSON, without the environment: the engine puts
/// labels into its event log, where a password has no business.
pub(super) const LABEL_SPEC: &str = "rehome.spec";

/// Programs that are an init themselves; several refuse to run unless they are process 1.
const INITS: [&str; 7] = [
    "init",
    "systemd",
    "tini",
    "dumb-init",
    "docker-init",
    "catatonit",
    "s6-svscan",
];

/// Who is process 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Init {
    /// The engine's small init: it passes signals on, so that a program without a handler for
    /// its stop signal ends at once, as it would anywhere else.
    Engine,
    /// The image's own.
    None,
}

pub(super) fn container_name(application: &AppName) -> String {
    format!("rehome-{application}")
}

/// Whether the program that will run needs an init above it.
pub(super) fn init_for(spec: &InstanceSpec, image: Option<&ImageConfig>) -> Init {
    let words = |list: Option<&Vec<String>>| list.and_then(|list| list.first()).cloned();
    let from_image = |part: fn(&ImageConfig) -> Option<&Vec<String>>| words(image.and_then(part));
    // An entry point of the spec replaces both of the image, as the engines do it.
    let program = match &spec.entrypoint {
        Some(entrypoint) => words(Some(entrypoint)).or_else(|| words(spec.command.as_ref())),
        None => from_image(|image| image.entrypoint.as_ref())
            .or_else(|| words(spec.command.as_ref()))
            .or_else(|| from_image(|image| image.cmd.as_ref())),
    };
    let program = program.unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    if INITS.contains(&name) {
        Init::None
    } else {
        Init::Engine
    }
}

/// Whether an engine refused a container because it has no init: the names of the program in
/// Docker and Podman.
pub(super) fn lacks_init(message: &str) -> bool {
    ["docker-init", "catatonit", "container-init"]
        .iter()
        .any(|name| message.contains(name))
}

/// The request that makes the container.
pub(super) fn body(spec: &InstanceSpec, init: Init) -> Result<ContainerCreateBody, String> {
    let environment = spec
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    Ok(ContainerCreateBody {
        image: Some(spec.image.to_string()),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        env: Some(environment.collect()),
        labels: Some(labels(spec)?),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        hostname: spec.hostname.clone(),
        stop_signal: spec.stop_signal.clone(),
        host_config: Some(host_config(spec, init)?),
        ..ContainerCreateBody::default()
    })
}

fn host_config(spec: &InstanceSpec, init: Init) -> Result<HostConfig, String> {
    let signed = |what: &str, value: u64| {
        i64::try_from(value).map_err(|_| format!("{what} {value} is too large"))
    };
    Ok(HostConfig {
        // `mounts`, not `binds`: a bind makes a source that is missing, a mount fails.
        mounts: Some(spec.mounts.iter().map(mount).collect()),
        memory: spec
            .mem_limit
            .map(|limit| signed("mem_limit", limit.0))
            .transpose()?,
        cpu_shares: spec
            .cpu_shares
            .map(|shares| signed("cpu_shares", shares))
            .transpose()?,
        // Whether it may run here is a question of ownership, which the engine cannot answer.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        network_mode: Some("bridge".to_owned()),
        init: Some(init == Init::Engine),
        ..HostConfig::default()
    })
}

fn mount(mount: &super::super::Mount) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(mount.source.to_string_lossy().into_owned()),
        target: Some(mount.target.clone()),
        read_only: Some(false),
        ..Mount::default()
    }
}

fn labels(spec: &InstanceSpec) -> Result<HashMap<String, String>, String> {
    let shown = InstanceSpec {
        environment: std::collections::BTreeMap::new(),
        ..spec.clone()
    };
    let json = serde_json::to_string(&shown).map_err(|error| error.to_string())?;
    let announced: Vec<_> = spec.announced.iter().map(u16::to_string).collect();
    let announced = (!announced.is_empty()).then(|| (LABEL_ANNOUNCED, announced.join(",")));
    let labels = [
        (LABEL_APPLICATION, spec.application.to_string()),
        (LABEL_EPOCH, spec.epoch.to_string()),
        (LABEL_CONFIG_HASH, spec.config_hash.clone()),
        (LABEL_SPEC, json),
    ];
    let named = |(name, value): (&str, String)| (name.to_owned(), value);
    Ok(labels.into_iter().chain(announced).map(named).collect())
}

#[cfg(test)]
mod tests;
