//! Starting a proxy: what was kept is read, everything listens, then tasks run.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use proxyd_core::reload::Place;
use proxyd_core::table::RouteTable;
use rehome_runtime::http_server::{BindError, HttpServer};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_runtime::telemetry::{self, Readiness};
use rehome_shared::config::daemon::{ProxydConfig, ProxydTimeouts};
use tokio::net::TcpListener;

use crate::Proxyd;
use crate::book::Book;
use crate::context::Context;
use crate::control;
use crate::descriptors;
use crate::keeper::Keeper;
use crate::listener::Listeners;
use crate::metrics::{Metrics, RouteMetrics};
use crate::settings::Settings;
use crate::socket::{Company, listen_tcp};
use crate::store::{Found, Store};
use crate::trunk;

/// Why a proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory.
    #[error("cannot use the state directory {path}", path = .path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The trunk.
    #[error("cannot listen for trunks on {address}")]
    Trunk {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The control socket or the metrics.
    #[error("cannot listen for requests")]
    Http(#[from] BindError),
}

impl Proxyd {
    /// Starts a proxy under a supervisor. When it returns, every external port that can be had
    /// is listened on and the control socket answers.
    ///
    /// # Errors
    /// [`StartError`]. A single external port that is taken is no reason not to start.
    ///
    /// # Cancel safety
    /// Dropping it starts nothing, but may leave a socket file.
    pub async fn start(config: &ProxydConfig, supervisor: &Supervisor) -> Result<Self, StartError> {
        let mut registry = telemetry::registry("proxyd", env!("CARGO_PKG_VERSION"));
        let metrics = Arc::new(Metrics::new(&mut registry));
        let settings = descriptors::fit(Settings::from(config));
        let (store, table) = open_store(config, &metrics)?;
        let (trunk_listener, trunk) =
            bind_trunk(config.trunk.listen, &settings.timeouts).map_err(|source| {
                StartError::Trunk {
                    address: config.trunk.listen,
                    source,
                }
            })?;
        let control = HttpServer::unix(&config.socket).await?;
        let http = HttpServer::tcp(config.metrics).await?;

        let book = Book::new(settings.limits, metrics);
        registry.register_collector(Box::new(RouteMetrics(Arc::clone(&book))));
        let context = Context::new(book, settings, supervisor);
        let readiness = Readiness::new();
        let listeners = Listeners::new(context.clone(), supervisor);
        let (mut keeper, desk) = Keeper::new(context.clone(), listeners, store, readiness.clone());
        keeper.begin(table).await;

        let proxy = Self {
            context: context.clone(),
            desk,
            trunk,
            metrics: http.local_addr(),
            reloads: Arc::default(),
        };
        let stop = supervisor.token();
        let spawn = Tasks(supervisor);
        spawn.critical("keeper", keeper.run(stop.clone()));
        spawn.critical(
            "trunk listener",
            trunk::run(context.clone(), trunk_listener),
        );
        let peers = context.peers.clone().keep_resolved(stop.clone());
        spawn.critical("peers", peers);
        let routes = control::router(proxy.clone());
        spawn.critical("control", control.serve(routes, supervisor.clone()));
        let pages = pages(registry, readiness);
        spawn.critical("metrics", http.serve(pages, supervisor.clone()));
        Ok(proxy)
    }
}

struct Tasks<'a>(&'a Supervisor);

impl Tasks<'_> {
    fn critical(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(name, Criticality::Critical, task);
    }
}

fn pages(registry: Registry, readiness: Readiness) -> axum::Router {
    telemetry::router(Arc::new(registry), readiness)
}

fn open_store(config: &ProxydConfig, metrics: &Metrics) -> Result<(Store, RouteTable), StartError> {
    let fail = |source| StartError::State {
        path: config.state.clone(),
        source,
    };
    let mut store = Store::open(&config.state).map_err(fail)?;
    let table = match store.load().map_err(fail)? {
        Found::Routes(table) => {
            tracing::info!(
                routes = table.routes().len(),
                "serving the routes that were kept"
            );
            table
        }
        Found::Nothing => RouteTable::default(),
        Found::Corrupt { reason, moved_to } => {
            metrics.store_corrupt.inc();
            let moved_to = moved_to.display().to_string();
            tracing::error!(
                reason,
                moved_to,
                "the kept routes are damaged, serving none of them"
            );
            RouteTable::default()
        }
    };
    Ok((store, table))
}

fn bind_trunk(
    address: SocketAddr,
    timeouts: &ProxydTimeouts,
) -> io::Result<(TcpListener, SocketAddr)> {
    let place = if address.ip() == std::net::Ipv6Addr::UNSPECIFIED {
        Place::Everywhere
    } else {
        Place::Address(address.ip())
    };
    let listener = listen_tcp(place, address.port(), timeouts, Company::Alone)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
