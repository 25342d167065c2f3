//! The connection to the engine: made when it is first needed, and every request with a limit.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker};
use rehome_runtime::report::Report;
use tokio::sync::OnceCell;
use tokio::time::error::Elapsed;

use super::{Engine, RuntimeError};

/// The most that an ordinary request may take.
const CALL: Duration = Duration::from_secs(30);

/// The most that a request may take that makes the engine work: create, start, kill, remove.
pub(super) const LONG_CALL: Duration = Duration::from_mins(2);

/// An engine behind its socket.
#[derive(Debug)]
pub(super) struct Client {
    engine: Engine,
    socket: PathBuf,
    /// Asking for the version costs half a second with Podman, so it is done once. Requests
    /// open a connection each, so a restart of the engine does not matter.
    docker: OnceCell<Docker>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The engine did not answer.
    #[error("the engine does not answer")]
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
    /// The engine said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// The engine said something else.
    #[error("the answer is not understood")]
    Answer(#[source] bollard::errors::Error),
}

impl From<bollard::errors::Error> for CallError {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error as E;
        match error {
            E::DockerResponseServerError {
                status_code,
                message,
            } => Self::Refused {
                status: status_code,
                message: message.trim().to_owned(),
            },
            E::DockerStreamError { error } => Self::Refused {
                status: 500,
                message: error,
            },
            E::SocketNotFoundError(_)
            | E::RequestTimeoutError
            | E::IOError { .. }
            | E::HttpClientError { .. }
            | E::HyperResponseError { .. }
            | E::HyperLegacyError { .. } => Self::Unreachable(error.into()),
            error => Self::Answer(error),
        }
    }
}

impl From<Elapsed> for CallError {
    fn from(elapsed: Elapsed) -> Self {
        Self::Unreachable(elapsed.into())
    }
}

impl Client {
    pub(super) fn new(engine: Engine, socket: &Path) -> Self {
        Self {
            engine,
            socket: socket.to_owned(),
            docker: OnceCell::new(),
        }
    }

    /// The engine, once it has answered for the first time.
    pub(super) async fn docker(&self) -> Result<&Docker, CallError> {
        let connect = || async {
            let socket = self.socket.to_string_lossy();
            let docker =
                Docker::connect_with_unix(&socket, LONG_CALL.as_secs(), API_DEFAULT_VERSION)?;
            call(docker.negotiate_version()).await
        };
        self.docker.get_or_try_init(connect).await
    }

    /// The error of a request that has no kind of its own.
    pub(super) fn other(&self, attempt: String, error: CallError) -> RuntimeError {
        match error {
            CallError::Unreachable(source) => RuntimeError::Unreachable {
                runtime: self.engine.as_str(),
                endpoint: self.socket.display().to_string(),
                source,
            },
            error => RuntimeError::Other {
                attempt,
                reason: Report(&error).to_string(),
            },
        }
    }
}

/// A request with the ordinary limit.
pub(super) async fn call<T>(
    request: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, CallError> {
    call_within(CALL, request).await
}

/// A request with a limit of its own.
pub(super) async fn call_within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, CallError> {
    Ok(tokio::time::timeout(limit, request).await??)
}

/// What is not there, as `None`.
pub(super) fn absent_as_none<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(CallError::Refused { status: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
