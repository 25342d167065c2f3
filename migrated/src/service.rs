//! The daemon: builds the host from its file, listens, recovers, serves, stops in order.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use rehome_runtime::http_server::HttpServer;
use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_runtime::signals::{self, Reloads};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_runtime::telemetry::{self, Readiness};
use rehome_runtime::tls::{Tls, TlsFiles};
use rehome_shared::config::daemon::{self, MigratedConfig, Runtime as RuntimeKind};
use tokio::sync::watch;

use crate::applications::Memory;
use crate::clearance::{self, Clearance};
use crate::desired::DesiredStore;
use crate::host::Host;
use crate::ledger::Place;
use crate::metrics::{HostCollector, Metrics};
use crate::peers::{Peers, Silence};
use crate::proxy::Proxy;
use crate::runtime::Runtime;
use crate::runtime::docker::{DockerRuntime, Engine};
use crate::runtime::process::{ProcessConfig, ProcessRuntime, Subnet};
use crate::storage::Storage;
use crate::storage::btrfs::{Btrfs, PoolConfig, PoolImage};
use crate::stream::Bucket;
use crate::{
    api, destination, fence, files, incarnation, migrations, peers, rebuild, reconcile, routes,
    throttle,
};

/// Requests under way get so long at a stop; migrations are taken up again from the journal.
const GRACE: Duration = Duration::from_secs(5);

/// Reads and checks the daemon's file.
///
/// # Errors
/// The problems of the file, one per line.
pub fn load(path: &Path) -> anyhow::Result<MigratedConfig> {
    let source = files::source(path)?;
    daemon::migrated_config(&source)
        .map_err(|problems| anyhow::Error::new(files::FilesError::Wrong(problems)))
}

/// Runs until a signal asks it to stop.
///
/// # Errors
/// When it cannot begin, or a part that it is worthless without has ended.
pub async fn run(
    path: PathBuf,
    config: MigratedConfig,
    logs: telemetry::LogHandle,
) -> anyhow::Result<()> {
    let supervisor = Supervisor::new();
    let reloads = signals::listen(&supervisor).context("cannot listen for signals")?;
    let readiness = Readiness::new();
    readiness.block("start", "migrated is starting");
    let tls = open_tls(&config)?;
    let host = build(config, &path, tls.clone(), supervisor.clone()).await?;
    listen(&host, &tls, &readiness).await?;
    host.spawn(
        "journal",
        watch_journal(Arc::clone(&host), readiness.clone()),
    );
    begin(&host);
    supervisor.spawn(
        "reload",
        Criticality::Critical,
        reload(Arc::clone(&host), path, (tls, logs), reloads),
    );
    notify::spawn_watchdog(&supervisor);
    notify::ready();
    readiness.clear("start");
    tracing::info!(host = %host.address, version = crate::status::VERSION, "migrated serves");
    let failure = supervisor.wait().await;
    notify::stopping();
    if let rehome_runtime::supervise::Stop::Dropped(tasks) = supervisor.stop(GRACE).await {
        tracing::warn!(
            tasks,
            "tasks did not end in time; the journal knows how far they came"
        );
    }
    match failure {
        None => Ok(()),
        Some(failure) => Err(failure.into()),
    }
}

pub(crate) fn open_tls(config: &MigratedConfig) -> anyhow::Result<Tls> {
    Tls::load(TlsFiles {
        ca: config.tls.ca.clone(),
        certificate: config.tls.certificate.clone(),
        key: config.tls.key.clone(),
    })
    .context("cannot use the TLS files")
}

/// A host that cannot write anything down is not ready: it serves what it has and does nothing
/// else.
async fn watch_journal(host: Arc<Host>, readiness: Readiness) {
    let stop = host.supervisor.token().clone();
    let mut problem = host.ledger.problem();
    loop {
        let now = problem.borrow_and_update().clone();
        match now {
            Some(reason) => readiness.block("journal", &reason),
            None => readiness.clear("journal"),
        }
        // Waits on a level.
        match stop.run_until_cancelled(problem.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

async fn build(
    config: MigratedConfig,
    path: &Path,
    tls: Tls,
    supervisor: Supervisor,
) -> anyhow::Result<Arc<Host>> {
    make_private(&config.state)?;
    // Before the pool is opened, which drops what an earlier run had in work.
    let place = Place::take(&config.state)?;
    let desired =
        DesiredStore::open(&config.state).context("cannot read the deployment in force")?;
    let storage: Arc<dyn Storage> = Arc::new(open_storage(&config).await?);
    let ledger =
        rebuild::open_ledger(place, &config, path, &desired.get(), storage.as_ref()).await?;
    let runtime = open_runtime(&config);
    let memory = Memory {
        host_restarted: incarnation::is_new(&config.state),
        ..Memory::default()
    };
    Ok(Arc::new(Host {
        address: config.address.clone(),
        clearance: ledger.read(Clearance::at_start),
        ledger,
        desired,
        storage,
        runtime,
        proxy: Proxy::new(&config.proxy.socket),
        routes: routes::Routes::default(),
        peers: Peers::new(tls, config.peer_port),
        bandwidth: Arc::new(Bucket::new(config.limits.bandwidth)),
        silence: Silence::default(),
        rivals: fence::Rivals::default(),
        takings: destination::Takings::default(),
        live: migrations::Live::default(),
        memory: Mutex::new(memory),
        instances: watch::Sender::new(None),
        wake: watch::Sender::new(0),
        busy: Mutex::new(BTreeSet::new()),
        metrics: Metrics::default(),
        config: watch::Sender::new(Arc::new(config)),
        supervisor,
    }))
}

/// The directory of what only root may read: deployments hold secrets.
pub(crate) fn make_private(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to other users", path.display()))
}

pub(crate) async fn open_storage(config: &MigratedConfig) -> anyhow::Result<Btrfs> {
    let pool = PoolConfig {
        path: config.storage.path.clone(),
        image: config.storage.image.as_ref().map(|image| PoolImage {
            path: image.path.clone(),
            size: image.size,
        }),
    };
    Btrfs::open(pool)
        .await
        .context("cannot open the pool of volumes")
}

fn open_runtime(config: &MigratedConfig) -> Arc<dyn Runtime> {
    match &config.runtime {
        RuntimeKind::Docker { socket } => Arc::new(DockerRuntime::new(Engine::Docker, socket)),
        RuntimeKind::Podman { socket } => Arc::new(DockerRuntime::new(Engine::Podman, socket)),
        RuntimeKind::Process => Arc::new(ProcessRuntime::new(ProcessConfig {
            state_dir: config.state.join("process"),
            run_dir: PathBuf::from("/run/rehome/process"),
            subnet: Subnet::default(),
            shim_program: PathBuf::from("/proc/self/exe"),
        })),
    }
}

async fn listen(host: &Arc<Host>, tls: &Tls, readiness: &Readiness) -> anyhow::Result<()> {
    let config = host.config();
    let mut registry = telemetry::registry("migrated", crate::status::VERSION);
    host.metrics.register(&mut registry);
    registry.register_collector(Box::new(HostCollector(Arc::clone(host))));
    let socket = HttpServer::unix(&config.socket).await?;
    let peers = HttpServer::mutual_tls(config.listen, tls.clone()).await?;
    let metrics = HttpServer::tcp(config.metrics).await?;
    let telemetry = telemetry::router(Arc::new(registry), readiness.clone());
    let servers = [
        ("local api", socket, api::local(host)),
        ("peer api", peers, api::peers(host)),
        ("metrics", metrics, telemetry),
    ];
    for (name, server, router) in servers {
        let serving = server.serve(router, host.supervisor.clone());
        host.supervisor.spawn(name, Criticality::Critical, serving);
    }
    Ok(())
}

/// Takes up what was under way, then keeps going.
fn begin(host: &Arc<Host>) {
    host.spawn("lift", throttle::lift_found(Arc::clone(host)));
    host.spawn("clearance", clearance::ask(Arc::clone(host)));
    migrations::recover(host);
    destination::recover(host);
    let supervisor = &host.supervisor;
    host.spawn("fence", fence::follow(Arc::clone(host)));
    supervisor.spawn(
        "routes",
        Criticality::Critical,
        routes::follow(Arc::clone(host)),
    );
    supervisor.spawn(
        "peers",
        Criticality::Critical,
        peers::follow(Arc::clone(host)),
    );
    supervisor.spawn(
        "reconcile",
        Criticality::Critical,
        reconcile::follow(Arc::clone(host)),
    );
    supervisor.spawn(
        "promises",
        Criticality::Critical,
        destination::watch_promises(Arc::clone(host)),
    );
    if let Some(files) = host.config().files.clone() {
        host.spawn(
            "deployment files",
            files::apply_at_start(Arc::clone(host), files),
        );
    }
}

async fn reload(
    host: Arc<Host>,
    path: PathBuf,
    (tls, logs): (Tls, telemetry::LogHandle),
    mut reloads: Reloads,
) {
    while reloads.next().await.is_some() {
        notify::reloading();
        let applied = reload_once(&host, &path, &tls, &logs).await;
        host.metrics.reloaded(applied.is_ok());
        match applied {
            Ok(()) => tracing::info!("the files are read again and in force"),
            Err(error) => tracing::error!("the reload is refused and changes nothing: {error:#}"),
        }
        notify::ready();
    }
}

/// What can change without a restart changes: certificates, the log's filter, defaults, limits
/// and deployment files. An address, a path or a backend cannot.
async fn reload_once(
    host: &Arc<Host>,
    path: &Path,
    tls: &Tls,
    logs: &telemetry::LogHandle,
) -> anyhow::Result<()> {
    let new = load(path)?;
    let old = host.config();
    if let Some(key) = needs_restart(&old, &new) {
        anyhow::bail!(
            "{key} cannot change while migrated runs: restart it, applications go on running"
        );
    }
    logs.set_filter(&new.log.filter)
        .context("the log's filter")?;
    tls.reload().context("the TLS files")?;
    let files = new.files.clone();
    host.bandwidth.set_rate(new.limits.bandwidth);
    host.config.send_replace(Arc::new(new));
    if let Some(files) = files {
        files::apply(host, &files)
            .await
            .map_err(|error| anyhow::anyhow!("{}", Report(&error)))?;
    }
    host.kick();
    Ok(())
}

fn needs_restart(old: &MigratedConfig, new: &MigratedConfig) -> Option<&'static str> {
    [
        (old.address != new.address, "address"),
        (old.listen != new.listen, "listen"),
        (old.socket != new.socket, "socket"),
        (old.state != new.state, "state"),
        (old.metrics != new.metrics, "metrics"),
        (old.tls != new.tls, "tls"),
        (old.peer_port != new.peer_port, "peer_port"),
        (old.storage != new.storage, "storage"),
        (old.runtime != new.runtime, "runtime"),
        (old.proxy != new.proxy, "proxy"),
        (old.log.format != new.log.format, "log.format"),
        (
            old.limits.request_bytes != new.limits.request_bytes,
            "limits.request_bytes",
        ),
    ]
    .into_iter()
    .find_map(|(changed, key)| changed.then_some(key))
}

/// Checks a file, or runs the daemon.
#[must_use]
pub fn main(config: PathBuf, check: Option<PathBuf>) -> ExitCode {
    let (path, only_check) = match check {
        Some(path) => (path, true),
        None => (config, false),
    };
    let loaded = match load(&path) {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, ExitCode::from(2)),
    };
    if only_check {
        return ExitCode::SUCCESS;
    }
    let format = match loaded.log.format {
        daemon::LogFormat::Text => telemetry::LogFormat::Text,
        daemon::LogFormat::Json => telemetry::LogFormat::Json,
    };
    let logs = match telemetry::init_logs(format, &loaded.log.filter) {
        Ok(logs) => logs,
        Err(error) => return complain(&error.into(), ExitCode::from(2)),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into(), ExitCode::FAILURE),
    };
    match runtime.block_on(run(path, loaded, logs)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, ExitCode::FAILURE),
    }
}

/// The daemon's last words: there may be no log yet.
pub(crate) fn complain(error: &anyhow::Error, status: ExitCode) -> ExitCode {
    use std::io::Write as _;
    // Nobody is left to tell when stderr is closed.
    drop(writeln!(std::io::stderr(), "migrated: {error:#}"));
    status
}
