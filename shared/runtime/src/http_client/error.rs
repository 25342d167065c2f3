//! Why a request failed, told apart by what a caller can do about it.

use std::io;
use std::time::Duration;

use http::StatusCode;
use rehome_shared::api::ErrorReply;

/// Of the answer's text, so much is kept when it is not an [`ErrorReply`].
const TEXT_LIMIT: usize = 500;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or it is not the host that was meant: the request had no effect.
    #[error("{endpoint} cannot be reached")]
    Unreachable {
        /// Whom.
        endpoint: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Nothing happened for too long; the request may have had its effect.
    #[error("{what} from {endpoint} within {limit:?}")]
    Timeout {
        /// Whom.
        endpoint: String,
        /// How long.
        limit: Duration,
        /// What did not happen.
        what: &'static str,
    },
    /// The connection broke; the request may have had its effect. A certificate that the other
    /// side refuses shows here too.
    #[error("the connection to {endpoint} broke")]
    Broken {
        /// Whom.
        endpoint: String,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The stream that was to be sent broke off.
    #[error("the stream to {endpoint} could not be read to its end")]
    Source {
        /// Whom.
        endpoint: String,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// An answer that is not a success.
    #[error("{endpoint} answered {status}: {}", .reply.error)]
    Status {
        /// Whom.
        endpoint: String,
        /// The status.
        status: StatusCode,
        /// What it said.
        reply: ErrorReply,
    },
    /// A success that cannot be understood.
    #[error("{endpoint} answered something that is not understood")]
    BadAnswer {
        /// Whom.
        endpoint: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// An answer beyond the limit.
    #[error("{endpoint} answered more than {limit} bytes")]
    TooLong {
        /// Whom.
        endpoint: String,
        /// The limit.
        limit: usize,
    },
    /// The value to send has no JSON form.
    #[error("the request cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The path is not one.
    #[error("the request is malformed")]
    Request(#[source] http::Error),
}

impl ClientError {
    /// The status, when the other side answered with one that is not a success.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. }
            | Self::Source { .. }
            | Self::BadAnswer { .. }
            | Self::TooLong { .. }
            | Self::Encode(_)
            | Self::Request(_) => None,
        }
    }

    /// Whether the request certainly had no effect.
    #[must_use]
    pub fn had_no_effect(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Encode(_) | Self::Request(_)
        )
    }
}

/// What an answer that is not a success says, whatever its form.
pub(super) fn reply_of(body: &[u8]) -> ErrorReply {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body)
            .chars()
            .take(TEXT_LIMIT)
            .collect();
        let text = text.trim();
        let error = if text.is_empty() {
            "no reason given"
        } else {
            text
        };
        ErrorReply {
            error: error.to_owned(),
            host: None,
        }
    })
}
