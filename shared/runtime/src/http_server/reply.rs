//! The form of every answer that is not a success.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use rehome_shared::api::ErrorReply;

use crate::report::Report;

/// A status with an [`ErrorReply`] as its body. Handlers return it as their error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorResponse {
    status: StatusCode,
    reply: ErrorReply,
}

impl ErrorResponse {
    /// An answer with a text.
    #[must_use]
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            reply: ErrorReply {
                error: text.into(),
                host: None,
            },
        }
    }

    /// An answer with an error and its causes.
    #[must_use]
    pub fn of(status: StatusCode, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(status, Report(error).to_string())
    }

    /// Names the host that it failed on.
    #[must_use]
    pub fn on_host(mut self, host: impl Into<String>) -> Self {
        self.reply.host = Some(host.into());
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        (self.status, Json(self.reply)).into_response()
    }
}
