//! Why a daemon gave no answer, in words that name the cure.

use std::io;
use std::path::{Path, PathBuf};

use http::StatusCode;
use rehome_runtime::http_client::ClientError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing listens on the Unix socket.
    #[error(
        "{daemon} does not run on this host: nothing listens on {path}. Start it with \
         `systemctl start {daemon}`{other}",
        path = .path.display()
    )]
    NotRunning {
        /// Which daemon.
        daemon: &'static str,
        /// Its socket.
        path: PathBuf,
        /// What else can be done.
        other: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The Unix socket is root's.
    #[error(
        "only root may speak to {daemon} through {path}: use sudo{other}",
        path = .path.display()
    )]
    NotRoot {
        /// Which daemon.
        daemon: &'static str,
        /// Its socket.
        path: PathBuf,
        /// What else can be done.
        other: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another host's daemon cannot be reached.
    #[error(
        "{endpoint} cannot be reached: does {daemon} run there, does its certificate name that \
         host, and is the port open?"
    )]
    Unreachable {
        /// Whom.
        endpoint: String,
        /// Which daemon.
        daemon: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{}{}", .host.as_ref().map(|host| format!("{host}: ")).unwrap_or_default(), .reason)]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// Where it failed, when that is known.
        host: Option<String>,
        /// Why.
        reason: String,
    },
    /// Anything else.
    #[error(transparent)]
    Other(ClientError),
}

impl CallError {
    /// Tells an error of the client in the user's words. `socket` is the daemon's, where it was
    /// asked through one.
    pub(super) fn explain(error: ClientError, daemon: &'static str, socket: Option<&Path>) -> Self {
        let other = if daemon == "migrated" {
            ", or name another host with --host ADDR"
        } else {
            ""
        };
        match error {
            ClientError::Unreachable { endpoint, source } => match socket {
                None => Self::Unreachable {
                    endpoint,
                    daemon,
                    source,
                },
                Some(path) if source.kind() == io::ErrorKind::PermissionDenied => Self::NotRoot {
                    daemon,
                    path: path.to_owned(),
                    other,
                    source,
                },
                Some(path) => Self::NotRunning {
                    daemon,
                    path: path.to_owned(),
                    other,
                    source,
                },
            },
            ClientError::Status { status, reply, .. } => Self::Refused {
                status,
                host: reply.host,
                reason: reply.error,
            },
            error @ (ClientError::Timeout { .. }
            | ClientError::Broken { .. }
            | ClientError::Source { .. }
            | ClientError::BadAnswer { .. }
            | ClientError::TooLong { .. }
            | ClientError::Encode(_)
            | ClientError::Request(_)) => Self::Other(error),
        }
    }

    /// Whether the daemon may answer when it is asked again in a moment, as after a restart.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::Unreachable { .. } => true,
            Self::NotRoot { .. } => false,
            Self::Refused { status, .. } => matches!(
                *status,
                StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            ),
            Self::Other(error) => {
                matches!(
                    error,
                    ClientError::Timeout { .. } | ClientError::Broken { .. }
                )
            }
        }
    }

    /// Whether what was asked for was wrong, rather than something having failed.
    pub(crate) fn blames_the_input(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(
                *status,
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY
            ),
            Self::NotRunning { .. }
            | Self::NotRoot { .. }
            | Self::Unreachable { .. }
            | Self::Other(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::ErrorReply;

    use super::*;

    fn unreachable(kind: io::ErrorKind) -> ClientError {
        ClientError::Unreachable {
            endpoint: "/s".to_owned(),
            source: kind.into(),
        }
    }

    fn refused(status: StatusCode) -> CallError {
        let reply = ErrorReply {
            error: "no space".to_owned(),
            host: Some("10.0.0.2".to_owned()),
        };
        let error = ClientError::Status {
            endpoint: "/s".to_owned(),
            status,
            reply,
        };
        CallError::explain(error, "migrated", None)
    }

    #[test]
    fn a_socket_nobody_listens_on_names_the_cure() {
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            let error = CallError::explain(unreachable(kind), "migrated", Some(Path::new("/s")));
            let text = error.to_string();
            assert!(text.contains("systemctl start migrated"), "{text}");
            assert!(text.contains("--host"), "{text}");
            assert!(error.may_pass());
        }
        let error = CallError::explain(
            unreachable(io::ErrorKind::NotFound),
            "proxyd",
            Some(Path::new("/s")),
        );
        assert!(!error.to_string().contains("--host"), "{error}");
    }

    #[test]
    fn a_socket_that_is_not_ours_asks_for_root() {
        let error = unreachable(io::ErrorKind::PermissionDenied);
        let error = CallError::explain(error, "migrated", Some(Path::new("/s")));
        assert!(error.to_string().contains("only root"), "{error}");
        assert!(!error.may_pass());
    }

    #[test]
    fn a_refusal_says_where_and_why() {
        let error = refused(StatusCode::CONFLICT);
        assert_eq!(error.to_string(), "10.0.0.2: no space");
        assert!(!error.blames_the_input());
        assert!(!error.may_pass());
        assert!(refused(StatusCode::UNPROCESSABLE_ENTITY).blames_the_input());
        assert!(refused(StatusCode::SERVICE_UNAVAILABLE).may_pass());
    }
}
