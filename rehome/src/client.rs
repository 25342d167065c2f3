//! How the command reaches the daemons: this host's `migrated` and `proxyd` through their Unix
//! sockets, another host's `migrated` over mutual TLS. Errors say what the user can do.

mod error;
mod target;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use rehome_runtime::http_client::HttpClient;
use rehome_runtime::tls::Tls;
use rehome_shared::api::cluster::{
    DeployReply, DeployRequest, Desired, DrainRequest, FailoverReply, FailoverRequest, Migration,
    MoveRequest, Prediction, Progress, Status,
};
use rehome_shared::api::gc::{Collected, Meant};
use rehome_shared::api::proxy::{ConnectionsReply, RouteKey};
use rehome_shared::ids::MigrationId;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use error::CallError;
use target::Target;

/// The socket of this host's `migrated`.
const MIGRATED_SOCKET: &str = "/run/rehome/migrated.sock";

/// A question is answered from what the daemon knows, or can ask its peers quickly.
const QUESTION: Duration = Duration::from_secs(15);

/// A deployment is checked on every host before it is accepted; one of them may be down, or slow
/// and asked once more.
const SUBMISSION: Duration = Duration::from_mins(2);

/// Deleting waits for the disks of all hosts.
const COLLECTION: Duration = Duration::from_mins(15);
/// Every host is asked, those that are gone as well, and the new owner makes its volumes ready.
const TAKING_OVER: Duration = Duration::from_mins(3);

/// One daemon.
#[derive(Debug, Clone)]
struct Daemon {
    http: HttpClient,
    /// The Unix socket, where it is one.
    socket: Option<PathBuf>,
    name: &'static str,
}

impl Daemon {
    fn local(name: &'static str, socket: &Path) -> Self {
        Self {
            http: HttpClient::unix(socket),
            socket: Some(socket.to_owned()),
            name,
        }
    }

    async fn call<Req, Res>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Req>,
        limit: Duration,
    ) -> Result<Res, CallError>
    where
        Req: Serialize + Sync,
        Res: DeserializeOwned,
    {
        let answer = self.http.request_json(method, path, body, limit).await;
        answer.map_err(|error| CallError::explain(error, self.name, self.socket.as_deref()))
    }

    async fn get<Res: DeserializeOwned>(&self, path: &str) -> Result<Res, CallError> {
        self.call(Method::GET, path, None::<&()>, QUESTION).await
    }

    async fn post<Req, Res>(&self, path: &str, body: &Req) -> Result<Res, CallError>
    where
        Req: Serialize + Sync,
        Res: DeserializeOwned,
    {
        self.call(Method::POST, path, Some(body), SUBMISSION).await
    }
}

/// The API of `migrated`; any host answers for the whole cluster.
#[derive(Debug, Clone)]
pub(crate) struct Migrated(Daemon);

impl Migrated {
    /// The daemon that `--host` names; this host's own without it.
    ///
    /// # Errors
    /// When the name has the wrong form, or the certificates cannot be used.
    pub(crate) fn at(target: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self(match target::parse(target)? {
            Target::Here => Daemon::local("migrated", Path::new(MIGRATED_SOCKET)),
            Target::Socket(path) => Daemon::local("migrated", &path),
            Target::Host { host, port } => {
                let tls = Tls::load(target::certificate_files()?)?;
                Daemon {
                    http: HttpClient::tls(&host, port, &tls),
                    socket: None,
                    name: "migrated",
                }
            }
        }))
    }

    /// Hosts and applications.
    pub(crate) async fn status(&self) -> Result<Status, CallError> {
        self.0.get("/v1/status").await
    }

    /// Submits a deployment, or asks what it would change.
    pub(crate) async fn deploy(&self, request: &DeployRequest) -> Result<DeployReply, CallError> {
        self.0.post("/v1/deployments", request).await
    }

    /// The deployment in force.
    pub(crate) async fn current(&self) -> Result<Desired, CallError> {
        self.0.get("/v1/deployments/current").await
    }

    /// How far the current deployment is.
    pub(crate) async fn progress(&self) -> Result<Progress, CallError> {
        self.0.get("/v1/progress").await
    }

    /// Submits one move.
    pub(crate) async fn move_application(
        &self,
        request: &MoveRequest,
    ) -> Result<DeployReply, CallError> {
        self.0.post("/v1/moves", request).await
    }

    /// Empties a host, or asks what that would change.
    pub(crate) async fn drain(&self, request: &DrainRequest) -> Result<DeployReply, CallError> {
        self.0.post("/v1/drains", request).await
    }

    /// Has another host take over from one that is gone.
    pub(crate) async fn fail_over(
        &self,
        request: &FailoverRequest,
    ) -> Result<FailoverReply, CallError> {
        self.0
            .call(Method::POST, "/v1/failovers", Some(request), TAKING_OVER)
            .await
    }

    /// What a move would take.
    pub(crate) async fn predict(&self, request: &MoveRequest) -> Result<Prediction, CallError> {
        self.0.post("/v1/predictions", request).await
    }

    /// All migrations, oldest first.
    pub(crate) async fn migrations(&self) -> Result<Vec<Migration>, CallError> {
        self.0.get("/v1/migrations").await
    }

    /// One migration.
    pub(crate) async fn migration(&self, id: &MigrationId) -> Result<Migration, CallError> {
        self.0.get(&format!("/v1/migrations/{id}")).await
    }

    /// Asks for a migration to be given up.
    pub(crate) async fn abort(&self, id: &MigrationId) -> Result<Migration, CallError> {
        self.0
            .call(
                Method::POST,
                &format!("/v1/migrations/{id}/abort"),
                None::<&()>,
                SUBMISSION,
            )
            .await
    }

    /// What accidents left on the hosts.
    pub(crate) async fn garbage(&self, meant: &Meant) -> Result<Collected, CallError> {
        self.0
            .call(Method::GET, &meant.at("/v1/gc"), None::<&()>, SUBMISSION)
            .await
    }

    /// Removes it.
    pub(crate) async fn collect_garbage(&self, meant: &Meant) -> Result<Collected, CallError> {
        self.0
            .call(Method::POST, &meant.at("/v1/gc"), None::<&()>, COLLECTION)
            .await
    }
}

/// The control of this host's `proxyd`.
#[derive(Debug, Clone)]
pub(crate) struct Proxyd(Daemon);

impl Proxyd {
    /// The daemon behind a socket.
    pub(crate) fn at(socket: &Path) -> Self {
        Self(Daemon::local("proxyd", socket))
    }

    /// Live connections, of all routes or of one.
    pub(crate) async fn connections(
        &self,
        route: Option<RouteKey>,
    ) -> Result<ConnectionsReply, CallError> {
        // A route is digits, a slash and a word: nothing that a query has to escape.
        let query = route
            .map(|route| format!("?route={route}"))
            .unwrap_or_default();
        self.0.get(&format!("/v1/connections{query}")).await
    }
}

/// Runs a command's asynchronous part to its end.
///
/// # Errors
/// The part's own, and when no runtime can be made.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}
