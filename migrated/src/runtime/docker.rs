//! Containers of Docker, or of Podman through its Docker socket.
//!
//! A container is named `rehome-APPLICATION` and carries what it was made for as labels; only
//! containers with these labels are ever listed, and only they are started, stopped or removed.
//! It publishes no port (the local proxy connects to its address on the bridge), has restart
//! policy `no`, is never privileged, and reaches nothing of the host but its volumes.
//!
//! The engine may restart at any time: every request opens a connection of its own.

mod cgroup;
mod client;
mod create;
mod exec;
mod pull;
mod spec;
mod stop;
mod view;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::{ContainerInspectResponse, ImageInspect};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions,
};
use futures_util::StreamExt;
use rehome_runtime::report::Report;
use rehome_shared::ids::AppName;
use tokio::sync::OnceCell;

use super::{
    Cpus, Instance, InstanceSpec, InstanceState, PullProgress, Runtime, RuntimeError, Stopped,
    Usage,
};
use client::{CallError, Client, LONG_CALL};

/// Lines of output that go into the error of a failed start.
const START_LOG_LINES: u32 = 10;

/// The most that is kept of an output's end.
const LOG_LIMIT: usize = 64 * 1024;

/// Which engine answers on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Docker.
    Docker,
    /// Podman, through its service's Docker API.
    Podman,
}

impl Engine {
    /// The word in configuration files and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// The containers of one engine.
#[derive(Debug)]
pub struct DockerRuntime {
    engine: Engine,
    client: Client,
    /// Whether the engine has a small init to run as process 1; asked once.
    has_init: OnceCell<bool>,
}

impl DockerRuntime {
    /// Of the engine behind a Unix socket, which need not answer yet.
    #[must_use]
    pub fn new(engine: Engine, socket: &Path) -> Self {
        Self {
            engine,
            client: Client::new(engine, socket),
            has_init: OnceCell::new(),
        }
    }

    /// The container of the application's name, whoever made it.
    async fn inspect(
        &self,
        application: &AppName,
    ) -> Result<Option<ContainerInspectResponse>, CallError> {
        let name = spec::container_name(application);
        let docker = self.client.docker().await?;
        let found = client::call(docker.inspect_container(&name, None)).await;
        client::absent_as_none(found)
    }

    /// The application's container. One of the name that is not ours counts as absent.
    async fn find(&self, application: &AppName) -> Result<Option<Found>, RuntimeError> {
        let attempt = || format!("look for the container of {application}");
        let found = self
            .inspect(application)
            .await
            .map_err(|e| self.client.other(attempt(), e))?;
        Ok(found.and_then(|container| {
            let instance = view::instance(&container)?;
            (instance.application == *application).then_some(Found {
                instance,
                container,
            })
        }))
    }

    /// The application's container as it is after `attempt`.
    async fn found(&self, application: &AppName, attempt: &str) -> Result<Instance, RuntimeError> {
        let found = self.find(application).await?;
        found
            .map(|found| found.instance)
            .ok_or_else(|| RuntimeError::Other {
                attempt: format!("{attempt} {application}"),
                reason: "its container is gone".to_owned(),
            })
    }

    /// Process 1 of the container that runs, as this host numbers it, and its control groups.
    async fn places(
        &self,
        application: &AppName,
    ) -> Result<Option<(u32, Vec<cgroup::Place>)>, RuntimeError> {
        let Some(found) = self.find(application).await? else {
            return Ok(None);
        };
        let state = found.container.state.filter(view::runs);
        let pid = state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        let Some((pid, number)) = pid.and_then(|pid| Some((pid, u32::try_from(pid).ok()?))) else {
            return Ok(None);
        };
        let id = found.container.id.unwrap_or_default();
        Ok(Some((number, cgroup::of_process(Some(pid), &id).await)))
    }

    async fn local_image(&self, reference: &str) -> Result<Option<ImageInspect>, CallError> {
        let docker = self.client.docker().await?;
        client::absent_as_none(client::call(docker.inspect_image(reference)).await)
    }
}

/// A container of ours.
struct Found {
    instance: Instance,
    container: ContainerInspectResponse,
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn name(&self) -> &'static str {
        self.engine.as_str()
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        let ping = async {
            let docker = self.client.docker().await?;
            client::call(docker.ping()).await
        };
        ping.await
            .map(|_pong| ())
            .map_err(|e| self.client.other("ask the engine".to_owned(), e))
    }

    async fn check_image(&self, spec: &InstanceSpec) -> Result<(), RuntimeError> {
        let image = spec.image.to_string();
        let attempt = || format!("look for image {image}");
        let local = self.local_image(&image).await;
        if local
            .map_err(|e| self.client.other(attempt(), e))?
            .is_some()
        {
            return Ok(());
        }
        if self.engine == Engine::Podman {
            // It cannot ask a registry without fetching; `ensure_image` finds out.
            return Ok(());
        }
        let ask = async {
            let docker = self.client.docker().await?;
            client::call(docker.inspect_registry_image(&image, None)).await
        };
        match ask.await {
            Ok(_offered) => Ok(()),
            Err(CallError::Refused { message, .. }) => Err(RuntimeError::ImageMissing {
                image,
                reason: message,
            }),
            Err(error) => Err(self.client.other(attempt(), error)),
        }
    }

    async fn ensure_image(
        &self,
        spec: &InstanceSpec,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let image = spec.image.to_string();
        let look = self.local_image(&image).await;
        let local = look.map_err(|e| self.client.other(format!("look for image {image}"), e))?;
        if local.is_some() {
            return Ok(());
        }
        let missing = |reason| RuntimeError::ImageMissing {
            image: image.clone(),
            reason,
        };
        let docker = self
            .client
            .docker()
            .await
            .map_err(|e| missing(e.to_string()))?;
        pull::pull(docker, &image, progress)
            .await
            .map_err(missing)?;
        // An engine that says "done" and has no image would fail later with a worse message.
        match self.local_image(&image).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(missing("the pull ended without it".to_owned())),
            Err(error) => Err(self.client.other(format!("look for image {image}"), error)),
        }
    }

    async fn list(&self) -> Result<Vec<Instance>, RuntimeError> {
        let fail = |error| self.client.other("list the containers".to_owned(), error);
        let filters = [("label", vec![spec::LABEL_APPLICATION])]
            .into_iter()
            .collect();
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let docker = self.client.docker().await.map_err(fail)?;
        let listed = client::call(docker.list_containers(Some(options)))
            .await
            .map_err(fail)?;
        let mut instances = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            let found = client::call(docker.inspect_container(&id, None)).await;
            // One that went away between the two requests is not there any more.
            let found = client::absent_as_none(found).map_err(fail)?;
            instances.extend(found.as_ref().and_then(view::instance));
        }
        Ok(instances)
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError> {
        for mount in &spec.mounts {
            if let Err(error) = tokio::fs::metadata(&mount.source).await {
                return Err(RuntimeError::Create {
                    application: spec.application.clone(),
                    reason: format!("its volume at {}: {error}", mount.source.display()),
                });
            }
        }
        if let Some(existing) = self.reuse(spec).await? {
            return Ok(existing);
        }
        self.create_new(spec).await?;
        self.found(&spec.application, "create").await
    }

    async fn start(&self, application: &AppName) -> Result<Instance, RuntimeError> {
        let name = spec::container_name(application);
        if self.find(application).await?.is_none() {
            return Err(RuntimeError::Start {
                application: application.clone(),
                reason: "it has no container on this host".to_owned(),
            });
        }
        let start = async {
            let docker = self.client.docker().await?;
            // One that runs is answered with 304, which is a success.
            client::call_within(
                LONG_CALL,
                docker.start_container(&name, None::<StartContainerOptions>),
            )
            .await
        };
        match start.await {
            Ok(()) => self.found(application, "start").await,
            Err(CallError::Refused { message, .. }) => {
                let output = self
                    .log_tail(application, START_LOG_LINES)
                    .await
                    .unwrap_or_default();
                let reason = if output.is_empty() {
                    message
                } else {
                    format!("{message}; its last output: {output}")
                };
                Err(RuntimeError::Start {
                    application: application.clone(),
                    reason,
                })
            }
            Err(error) => Err(self.client.other(format!("start {application}"), error)),
        }
    }

    async fn stop(&self, application: &AppName, grace: Duration) -> Result<Stopped, RuntimeError> {
        match self.find(application).await? {
            None => Ok(Stopped::NotRunning),
            Some(found) => stop::stop(&self.client, application, &found.container, grace).await,
        }
    }

    async fn remove(&self, application: &AppName) -> Result<(), RuntimeError> {
        let attempt = || format!("remove the container of {application}");
        let Some(found) = self.find(application).await? else {
            return Ok(());
        };
        if found.instance.state == InstanceState::Running {
            return Err(RuntimeError::Other {
                attempt: attempt(),
                reason: "it runs".to_owned(),
            });
        }
        // Without `v`: a volume that the image declares and nobody configured may hold data too.
        let options = RemoveContainerOptionsBuilder::default()
            .v(false)
            .force(false)
            .build();
        let remove = async {
            let docker = self.client.docker().await?;
            let id = &found.instance.id;
            client::call_within(LONG_CALL, docker.remove_container(id, Some(options))).await
        };
        client::absent_as_none(remove.await)
            .map(|_removed| ())
            .map_err(|error| self.client.other(attempt(), error))
    }

    async fn exec(
        &self,
        application: &AppName,
        command: &[String],
        timeout: Duration,
    ) -> Result<bool, RuntimeError> {
        let name = spec::container_name(application);
        exec::run(&self.client, &name, command, timeout)
            .await
            .map_err(|e| {
                self.client
                    .other(format!("run a command inside {application}"), e)
            })
    }

    async fn usage(&self, application: &AppName) -> Result<Usage, RuntimeError> {
        let Some((pid, places)) = self.places(application).await? else {
            return Ok(Usage::default());
        };
        Ok(cgroup::usage(pid, &places).await)
    }

    /// By the container's control group, which goes with its run. The engine's own way would
    /// become part of the container and outlive this daemon.
    async fn throttle(
        &self,
        application: &AppName,
        cpus: Option<Cpus>,
    ) -> Result<(), RuntimeError> {
        let Some((_, places)) = self.places(application).await? else {
            return Ok(());
        };
        let held = cgroup::throttle(&places, cpus).await;
        held.map_err(|error| RuntimeError::Other {
            attempt: format!("limit the processor time of {application}"),
            reason: Report(&error).to_string(),
        })
    }

    async fn log_tail(&self, application: &AppName, lines: u32) -> Result<String, RuntimeError> {
        let attempt = || format!("read the output of {application}");
        let docker = self
            .client
            .docker()
            .await
            .map_err(|e| self.client.other(attempt(), e))?;
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        let mut chunks = docker.logs(&spec::container_name(application), Some(options));
        let read = async {
            let mut text = Vec::new();
            while let Some(chunk) = chunks.next().await {
                text.extend_from_slice(chunk?.as_ref());
                text.drain(..text.len().saturating_sub(LOG_LIMIT));
            }
            Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
        };
        client::call(read)
            .await
            .map_err(|e| self.client.other(attempt(), e))
    }
}
