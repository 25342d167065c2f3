//! Starting a proxy: what was kept is read, everything listens, then tasks run.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use proxyd_core::handover::Counts;
use proxyd_core::table::RouteTable;
use rehome_runtime::descriptor_store::Kept;
use rehome_runtime::http_server::{BindError, FileStays, HttpServer};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_runtime::telemetry::{self, Readiness};
use rehome_shared::api::proxy::PortProblem;
use rehome_shared::config::daemon::{ProxydConfig, ProxydTimeouts};
use tokio::net::TcpListener;

use crate::Proxyd;
use crate::book::Book;
use crate::book::orders::Order;
use crate::context::Context;
use crate::control;
use crate::descriptors;
use crate::handover::{self, Mail, TakeError};
use crate::keeper::{Keeper, PortsTaken};
use crate::listener::{self, Inherited, Listeners};
use crate::metrics::{Metrics, RouteMetrics};
use crate::ready;
use crate::seal::CertificatesError;
use crate::settings::Settings;
use crate::socket::{Company, listen_tcp, trunk_place};
use crate::store::{Found, Store};

/// What connections get to be reset when a successor gives up.
const LET_DOWN: Duration = Duration::from_millis(500);

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
    /// The certificates of trunks.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// Descriptors.
    #[error("there is no room for another descriptor")]
    Room(#[source] io::Error),
    /// A port of another process.
    #[error("cannot use an open port of the process before this one")]
    Inherited(#[source] io::Error),
    /// The file has routes that the process before this one had not, and they cannot be had.
    #[error(transparent)]
    Ports(#[from] PortsTaken),
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
        Self::start_with(config, supervisor, Kept::default()).await
    }

    /// The same, with sockets that were kept for it: who waits there is served.
    ///
    /// # Errors
    /// As of [`Proxyd::start`].
    ///
    /// # Cancel safety
    /// As of [`Proxyd::start`]; the sockets are closed here.
    pub async fn start_with(
        config: &ProxydConfig,
        supervisor: &Supervisor,
        kept: Kept,
    ) -> Result<Self, StartError> {
        let mut store = open_store(config)?;
        let (table, corrupt) = kept_routes(config, &mut store)?;
        let mut mail = Mail::read(&kept.letters, config);
        let (trunk, mut ports) = listener::sort(kept.listeners, config);
        mail.give_ports(&mut ports);
        let trunk = match trunk {
            Some(trunk) => trunk,
            None => bind_trunk(config.trunk.listen, &config.timeouts).map_err(|source| {
                StartError::Trunk {
                    address: config.trunk.listen,
                    source,
                }
            })?,
        };
        let sockets = Sockets {
            trunk,
            control: HttpServer::unix(&config.socket).await?,
            metrics: HttpServer::tcp(config.metrics).await?,
            ports,
        };
        let (mut built, _missing) =
            Built::with_store(config, supervisor, sockets, (store, table)).await?;
        if corrupt {
            built.context().book.metrics.store_corrupt.inc();
        }
        mail.pass(built.context());
        built.accept();
        Ok(built.serve(supervisor))
    }

    /// Takes over from a running proxy, which started this process and is at the other end of
    /// this socket. When it returns, this process serves all that the other one did.
    ///
    /// # Errors
    /// [`TakeError`]; the other one then goes on, if it lives.
    ///
    /// # Cancel safety
    /// Dropping it before the other one has stopped accepting leaves everything to that one.
    pub async fn take_over(
        config: &ProxydConfig,
        supervisor: &Supervisor,
        socket: OwnedFd,
    ) -> Result<Self, TakeError> {
        handover::take_over(config, supervisor, socket).await
    }
}

/// What a proxy listens on, besides the ports that it opens by itself.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) trunk: TcpListener,
    pub(crate) control: HttpServer,
    pub(crate) metrics: HttpServer,
    /// External ports that another process has opened.
    pub(crate) ports: Inherited,
}

/// What a successor needs of the sockets that are served by others' tasks.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(crate) control: OwnedFd,
    pub(crate) metrics: OwnedFd,
    pub(crate) file: Option<FileStays>,
}

/// A proxy that has everything open and serves nobody yet.
pub(crate) struct Built {
    proxy: Proxyd,
    keeper: Keeper,
    control: HttpServer,
    metrics: HttpServer,
    registry: Registry,
    readiness: Readiness,
}

impl Built {
    /// Of another process's sockets and routes: those on disk are of its form.
    ///
    /// # Errors
    /// [`StartError`]; [`StartError::Ports`] where a reload would be refused too.
    pub(crate) async fn of(
        config: &ProxydConfig,
        supervisor: &Supervisor,
        sockets: Sockets,
        table: RouteTable,
    ) -> Result<Self, StartError> {
        let store = open_store(config)?;
        let (built, missing) =
            Self::with_store(config, supervisor, sockets, (store, table)).await?;
        if missing.is_empty() {
            Ok(built)
        } else {
            Err(PortsTaken(missing).into())
        }
    }

    async fn with_store(
        config: &ProxydConfig,
        supervisor: &Supervisor,
        sockets: Sockets,
        (store, table): (Store, RouteTable),
    ) -> Result<(Self, Vec<PortProblem>), StartError> {
        let Sockets {
            trunk: trunk_listener,
            control,
            metrics: http,
            ports,
        } = sockets;
        let unusable = |source| StartError::Trunk {
            address: config.trunk.listen,
            source,
        };
        let trunk = trunk_listener.local_addr().map_err(unusable)?;
        let doors = Doors {
            control: control.descriptor().map_err(StartError::Room)?,
            metrics: http.descriptor().map_err(StartError::Room)?,
            file: control.file(),
        };
        let mut registry = telemetry::registry("proxyd", env!("CARGO_PKG_VERSION"));
        let metrics = Arc::new(Metrics::new(&mut registry));
        let settings = descriptors::fit(Settings::load(config)?);
        let book = Book::new(settings.limits, metrics);
        registry.register_collector(Box::new(RouteMetrics(Arc::clone(&book))));
        let context = Context::new(book, settings, supervisor);
        context.carried.register(&mut registry);
        let readiness = Readiness::new();
        let listeners = Listeners::new(context.clone(), supervisor, trunk_listener, ports)
            .map_err(StartError::Inherited)?;
        // A successor hears trunks before it serves.
        let peers = context.peers.clone();
        Tasks(supervisor).critical("peers", peers.keep_resolved(supervisor.token().clone()));
        let ready = ready::keep(context.clone(), supervisor.token().clone());
        Tasks(supervisor).critical("ready trunks", ready);
        let (mut keeper, desk) = Keeper::new(context.clone(), listeners, store, readiness.clone());
        let missing = keeper.begin(table).await;
        let proxy = Proxyd {
            context,
            desk,
            trunk,
            metrics: http.local_addr(),
            reloads: Arc::default(),
            supervisor: supervisor.clone(),
            doors: Arc::new(doors),
            hello: Arc::new(handover::hello(config)),
        };
        let built = Self {
            proxy,
            keeper,
            control,
            metrics: http,
            registry,
            readiness,
        };
        Ok((built, missing))
    }

    pub(crate) fn context(&self) -> &Context {
        &self.proxy.context
    }

    /// Goes on where another process stopped.
    pub(crate) fn go_on(&mut self, counts: &Counts) {
        self.context().book.count_on(counts);
        self.keeper.go_on(&counts.heard);
    }

    /// Takes clients in from now on.
    pub(crate) fn accept(&mut self) {
        self.keeper.accept();
    }

    /// It will not serve: whom it has is reset, so that nobody takes what is missing for an end.
    pub(crate) async fn let_down(self) {
        let book = &self.context().book;
        book.turn_newcomers_away();
        book.order_all(Order::Stop, |_| true);
        let until = Instant::now() + LET_DOWN;
        while book.connection_count() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Answers requests and changes routes from now on.
    pub(crate) fn serve(self, supervisor: &Supervisor) -> Proxyd {
        let (proxy, stop) = (self.proxy, supervisor.token());
        proxy.doors.file.iter().for_each(FileStays::go);
        let spawn = Tasks(supervisor);
        spawn.critical("keeper", self.keeper.run(stop.clone()));
        let routes = control::router(proxy.clone());
        spawn.critical("control", self.control.serve(routes, supervisor.clone()));
        let pages = pages(self.registry, self.readiness);
        spawn.critical("metrics", self.metrics.serve(pages, supervisor.clone()));
        proxy
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

fn open_store(config: &ProxydConfig) -> Result<Store, StartError> {
    Store::open(&config.state).map_err(|source| StartError::State {
        path: config.state.clone(),
        source,
    })
}

/// The routes on disk, and whether there were some that cannot be used.
fn kept_routes(config: &ProxydConfig, store: &mut Store) -> Result<(RouteTable, bool), StartError> {
    let found = store.load().map_err(|source| StartError::State {
        path: config.state.clone(),
        source,
    })?;
    Ok(match found {
        Found::Routes(table) => {
            tracing::info!(
                routes = table.routes().len(),
                "serving the routes that were kept"
            );
            (table, false)
        }
        Found::Nothing => (RouteTable::default(), false),
        Found::Corrupt { reason, moved_to } => {
            let moved_to = moved_to.display().to_string();
            tracing::error!(
                reason,
                moved_to,
                "the kept routes cannot be used: serving none until migrated tells them again"
            );
            (RouteTable::default(), true)
        }
    })
}

fn bind_trunk(address: SocketAddr, timeouts: &ProxydTimeouts) -> io::Result<TcpListener> {
    let place = trunk_place(address);
    listen_tcp(place, address.port(), timeouts, Company::Alone)
}
