//! This host's `proxyd`, over its control socket.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use rehome_runtime::backoff::Backoff;
use rehome_runtime::http_client::{ClientError, HttpClient};
use rehome_runtime::report::Report;
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Drain, GateCounts, GateRef, MAX_BODY, Prepare, RoutesReply,
    SetRoutes,
};
use tokio::time::Instant;

/// `proxyd` answers from memory, but for a drain; a host under load may be slow all the same.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long a caller has for a `proxyd` that cannot answer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// It does not listen, or does not answer.
    away: Duration,
    /// It says that it is stopping, or ends without an answer. It hands over to a successor, which
    /// will answer; and that one says so for as long as its predecessor still has connections.
    stopping: Duration,
}

impl Patience {
    /// While nobody waits.
    pub const ORDINARY: Self = Self {
        away: Duration::from_secs(5),
        stopping: Duration::from_secs(45),
    };
    /// While somebody waits for an answer that may be none.
    pub const BRIEF: Self = Self {
        away: Duration::ZERO,
        stopping: Duration::from_secs(5),
    };

    /// For a time that is left, whatever the reason.
    #[must_use]
    pub fn within(left: Duration) -> Self {
        Self {
            away: left,
            stopping: left,
        }
    }

    /// How long this error is worth another try.
    fn with(self, error: &ClientError) -> Duration {
        match error {
            ClientError::Unreachable { .. } | ClientError::Timeout { .. } => self.away,
            ClientError::Broken { .. } => self.stopping,
            // It says so for nothing else.
            ClientError::Status { status, .. } if *status == StatusCode::SERVICE_UNAVAILABLE => {
                self.stopping
            }
            ClientError::Status { .. }
            | ClientError::Source { .. }
            | ClientError::BadAnswer { .. }
            | ClientError::TooLong { .. }
            | ClientError::Encode(_)
            | ClientError::Request(_) => Duration::ZERO,
        }
    }
}

/// Asks, and again while `proxyd` cannot answer: it may be about to come back from a restart, or
/// to be succeeded, with its gates as they were.
///
/// # Errors
/// The last answer's, when another kind of error comes or the time is over.
///
/// # Cancel safety
/// That of what is asked.
pub async fn ask_again<T, F>(
    patience: Patience,
    ask: impl Fn() -> F + Send,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>> + Send,
{
    // From the first error: an answer may take as long as it takes.
    let mut since = None;
    let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
    loop {
        match ask().await {
            Err(error)
                if since.get_or_insert_with(Instant::now).elapsed() < patience.with(&error) =>
            {
                let error = Report(&error).to_string();
                tracing::info!(error, "proxyd does not answer; it is asked again");
            }
            answer => return answer,
        }
        tokio::time::sleep(pause.next_delay()).await;
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Proxy {
    client: HttpClient,
}

impl Proxy {
    /// Of the `proxyd` behind a socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            client: HttpClient::unix(socket).with_answer_limit(MAX_BODY),
        }
    }

    /// Tells it all routes.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Cancel safety
    /// May have taken effect; say it again.
    pub async fn set_routes(&self, routes: &SetRoutes) -> Result<RoutesReply, ClientError> {
        self.client
            .request_json(Method::PUT, "/v1/routes", Some(routes), DEADLINE)
            .await
    }

    /// Holds new connections of an application.
    ///
    /// # Errors
    /// [`ClientError`]; status 409 when the gate is newer.
    ///
    /// # Cancel safety
    /// May have taken effect; say it again.
    pub async fn prepare(&self, gate: &Prepare) -> Result<GateCounts, ClientError> {
        self.client
            .request_json(Method::POST, "/v1/gates/prepare", Some(gate), DEADLINE)
            .await
    }

    /// Lets what flows finish, until its deadline.
    ///
    /// # Errors
    /// [`ClientError`]; status 409 when the gate is newer.
    ///
    /// # Cancel safety
    /// May have taken effect; say it again.
    pub async fn drain(&self, gate: &Drain) -> Result<GateCounts, ClientError> {
        let deadline = DEADLINE.saturating_add(gate.deadline);
        self.client
            .request_json(Method::POST, "/v1/gates/drain", Some(gate), deadline)
            .await
    }

    /// Ends what remains.
    ///
    /// # Errors
    /// [`ClientError`]; status 409 when the gate is newer.
    ///
    /// # Cancel safety
    /// May have taken effect; say it again.
    pub async fn freeze(&self, gate: &GateRef) -> Result<GateCounts, ClientError> {
        self.client
            .request_json(Method::POST, "/v1/gates/freeze", Some(gate), DEADLINE)
            .await
    }

    /// Which of these ports it could not listen on.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn check_ports(&self, ports: &CheckPorts) -> Result<CheckPortsReply, ClientError> {
        self.client
            .request_json(Method::POST, "/v1/ports/check", Some(ports), DEADLINE)
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rehome_shared::api::ErrorReply;

    use super::*;

    fn answered(status: StatusCode) -> ClientError {
        ClientError::Status {
            endpoint: "proxyd".to_owned(),
            status,
            reply: ErrorReply {
                error: "no".to_owned(),
                host: None,
            },
        }
    }

    /// Asks one that answers like this at first, and then that all is well; says how often it was
    /// asked.
    async fn asked(
        patience: Patience,
        times: usize,
        first: impl Fn() -> ClientError + Send + Sync,
    ) -> (Result<(), ClientError>, usize) {
        let count = AtomicUsize::new(0);
        let answer = ask_again(patience, || async {
            if count.fetch_add(1, Ordering::Relaxed) < times {
                Err(first())
            } else {
                Ok(())
            }
        });
        let answer = answer.await;
        (answer, count.into_inner())
    }

    #[tokio::test]
    async fn a_proxy_that_hands_over_is_asked_until_its_successor_answers() {
        let stopping = || answered(StatusCode::SERVICE_UNAVAILABLE);
        let (answer, count) = asked(Patience::ORDINARY, 3, stopping).await;
        assert!(answer.is_ok() && count == 4, "{count}: {answer:?}");
        let short = Patience::within(Duration::from_millis(100));
        let (answer, count) = asked(short, usize::MAX, stopping).await;
        assert!(answer.is_err() && count > 1, "{count}: {answer:?}");
    }

    #[tokio::test]
    async fn an_answer_that_took_long_has_not_used_up_the_patience() {
        let patience = Duration::from_millis(200);
        let count = AtomicUsize::new(0);
        let answer = ask_again(Patience::within(patience), || async {
            if count.fetch_add(1, Ordering::Relaxed) > 0 {
                return Ok(());
            }
            // A drain that a handover breaks off.
            tokio::time::sleep(2 * patience).await;
            Err(answered(StatusCode::SERVICE_UNAVAILABLE))
        });
        assert!(answer.await.is_ok());
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer() {
        for status in [
            StatusCode::CONFLICT,
            StatusCode::NOT_FOUND,
            StatusCode::BAD_GATEWAY,
        ] {
            let (answer, count) = asked(Patience::ORDINARY, 1, || answered(status)).await;
            assert!(answer.is_err() && count == 1, "{status}");
        }
    }

    #[tokio::test]
    async fn one_that_is_away_may_come_back() {
        let away = || ClientError::Unreachable {
            endpoint: "proxyd".to_owned(),
            source: std::io::ErrorKind::ConnectionRefused.into(),
        };
        let (answer, count) = asked(Patience::ORDINARY, 2, away).await;
        assert!(answer.is_ok() && count == 3, "{count}: {answer:?}");
        let (answer, count) = asked(Patience::BRIEF, 1, away).await;
        assert!(answer.is_err() && count == 1, "{count}: {answer:?}");
    }
}
