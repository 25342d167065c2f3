//! This host's `proxyd`, over its control socket.

use std::path::Path;
use std::time::Duration;

use http::Method;
use rehome_runtime::http_client::{ClientError, HttpClient};
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Drain, GateCounts, GateRef, MAX_BODY, Prepare, RoutesReply,
    SetRoutes,
};

/// `proxyd` answers from memory, but for a drain; a host under load may be slow all the same.
const DEADLINE: Duration = Duration::from_secs(5);

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
