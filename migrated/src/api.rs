//! The HTTP API: for people and programs on the Unix socket, for the other hosts over mutual TLS.

mod local;
mod peer;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use rehome_runtime::http_server::ErrorResponse;
use rehome_runtime::report::Report;

use crate::deploy::DeployError;
use crate::desired::AcceptError;
use crate::destination::TakeError;
use crate::failover::FailoverError;
use crate::host::Host;
use crate::migrations::AbortError;
use crate::storage::StorageError;
use crate::stream::FeedError;

pub(crate) type Shared = std::sync::Arc<Host>;

/// What the Unix socket answers: everything.
pub fn local(host: &Shared) -> Router {
    bounded(host, local::router().merge(peer::router())).with_state(host.clone())
}

/// What other hosts may ask.
pub fn peers(host: &Shared) -> Router {
    let operators = local::router();
    bounded(host, peer::router().merge(operators)).with_state(host.clone())
}

fn bounded(host: &Shared, router: Router<Shared>) -> Router<Shared> {
    let limit = usize::try_from(host.config().limits.request_bytes.0).unwrap_or(usize::MAX);
    router.layer(DefaultBodyLimit::max(limit))
}

/// An error on its way to the client.
pub(crate) struct Failed(StatusCode, String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        ErrorResponse::new(self.0, self.1).into_response()
    }
}

impl From<DeployError> for Failed {
    fn from(error: DeployError) -> Self {
        let status = match &error {
            DeployError::Invalid(_) => StatusCode::BAD_REQUEST,
            DeployError::Refused(_)
            | DeployError::Behind
            | DeployError::Accept(AcceptError::Older { .. }) => StatusCode::CONFLICT,
            DeployError::Partial(_) | DeployError::Accept(AcceptError::Save(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self(status, Report(&error).to_string())
    }
}

impl From<FailoverError> for Failed {
    fn from(error: FailoverError) -> Self {
        let status = match error {
            FailoverError::Deploy(error) => return error.into(),
            FailoverError::Invalid(_) => StatusCode::BAD_REQUEST,
            FailoverError::Refused(_) => StatusCode::CONFLICT,
            FailoverError::Unanswered { .. } => StatusCode::BAD_GATEWAY,
            FailoverError::Storage(_) | FailoverError::Ledger(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self(status, Report(&error).to_string())
    }
}

impl From<AcceptError> for Failed {
    fn from(error: AcceptError) -> Self {
        DeployError::Accept(error).into()
    }
}

impl From<AbortError> for Failed {
    fn from(error: AbortError) -> Self {
        let status = match &error {
            AbortError::Unknown(_) => StatusCode::NOT_FOUND,
            AbortError::Over { .. }
            | AbortError::TooLate { .. }
            | AbortError::Coordinator { .. } => StatusCode::CONFLICT,
        };
        Self(status, error.to_string())
    }
}

impl From<TakeError> for Failed {
    fn from(error: TakeError) -> Self {
        Self(status_of(&error), Report(&error).to_string())
    }
}

fn status_of(error: &TakeError) -> StatusCode {
    match error {
        TakeError::Forbidden => StatusCode::FORBIDDEN,
        TakeError::Unknown(_) => StatusCode::NOT_FOUND,
        TakeError::Stale(_) | TakeError::Refused(_) | TakeError::Feed(FeedError::Displaced) => {
            StatusCode::CONFLICT
        }
        TakeError::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
        TakeError::NoStream => StatusCode::GONE,
        TakeError::Storage(StorageError::NoSpace { .. }) => StatusCode::INSUFFICIENT_STORAGE,
        // Bytes that arrived wrong may arrive right the next time.
        TakeError::Storage(_) | TakeError::Ledger(_) | TakeError::Feed(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        TakeError::Stream(error) => status_of(error),
    }
}
