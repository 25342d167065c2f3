//! Making a container: what is there already, and who is process 1.

use bollard::query_parameters::CreateContainerOptionsBuilder;

use super::client::{self, CallError, LONG_CALL};
use super::spec::{self, Init};
use super::{DockerRuntime, Instance, InstanceSpec, InstanceState, Runtime, RuntimeError};

impl DockerRuntime {
    /// What an existing container means for a create: keep it, or make room.
    pub(super) async fn reuse(
        &self,
        wanted: &InstanceSpec,
    ) -> Result<Option<Instance>, RuntimeError> {
        let application = &wanted.application;
        let refuse = |reason: String| RuntimeError::Create {
            application: application.clone(),
            reason,
        };
        let Some(found) = self.find(application).await? else {
            return Ok(None);
        };
        let existing = found.instance;
        if existing.epoch == wanted.epoch && existing.config_hash == wanted.config_hash {
            return Ok(Some(existing));
        }
        if existing.state == InstanceState::Running {
            return Err(refuse(format!(
                "a container of epoch {} with another configuration still runs",
                existing.epoch
            )));
        }
        self.remove(application).await?;
        Ok(None)
    }

    /// Makes the container; the name must be free.
    pub(super) async fn create_new(&self, wanted: &InstanceSpec) -> Result<(), RuntimeError> {
        let refuse = |reason: String| RuntimeError::Create {
            application: wanted.application.clone(),
            reason,
        };
        let fail = |error: CallError| match error {
            CallError::Refused { message, .. } => refuse(message),
            error => self
                .client
                .other(format!("create {}", wanted.application), error),
        };
        let image = self
            .local_image(&wanted.image.to_string())
            .await
            .map_err(fail)?;
        let image =
            image.ok_or_else(|| refuse(format!("image {} is not on this host", wanted.image)))?;
        let mut init = spec::init_for(wanted, image.config.as_ref());
        if init == Init::Engine && !self.has_init().await.map_err(fail)? {
            init = Init::None;
        }
        let create = async |init| {
            let name = spec::container_name(&wanted.application);
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let body = spec::body(wanted, init).map_err(refuse)?;
            let docker = self.client.docker().await.map_err(fail)?;
            let request = docker.create_container(Some(options), body);
            Ok(client::call_within(LONG_CALL, request).await)
        };
        let mut created = create(init).await?;
        if init == Init::Engine
            && let Err(CallError::Refused { message, .. }) = &created
            && spec::lacks_init(message)
        {
            self.warn_of_no_init();
            created = create(Init::None).await?;
        }
        created
            .map(|created| tracing::debug!(container = created.id, "container created"))
            .map_err(fail)
    }

    /// Docker tries `docker-init --version` for its info page and says `N/A` when there is none.
    /// Podman says nothing there, and refuses a container with an init that it does not have.
    async fn has_init(&self) -> Result<bool, CallError> {
        let ask = || async {
            let docker = self.client.docker().await?;
            let info = client::call(docker.info()).await?;
            let commit = info.init_commit.and_then(|commit| commit.id);
            let found = commit.as_deref() != Some("N/A");
            if !found {
                self.warn_of_no_init();
            }
            Ok(found)
        };
        self.has_init.get_or_try_init(ask).await.copied()
    }

    fn warn_of_no_init(&self) {
        tracing::warn!(
            runtime = self.engine.as_str(),
            "the engine has no init program: applications without a handler for their stop \
             signal take their whole stop grace"
        );
    }
}
