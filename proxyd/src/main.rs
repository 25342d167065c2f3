//! `proxyd [--config FILE] [--check FILE]`

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use proxyd::Proxyd;
use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_runtime::signals::{self, Reloads};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_runtime::telemetry::{self, LogFormat, LogHandle};
use rehome_shared::config::daemon::{self, ProxydConfig, proxyd_config};
use rehome_shared::config::{Problem, Source, problem};

/// What busy connections get at a stop.
const GRACE: Duration = Duration::from_secs(3);
/// What the tasks get after that.
const TASKS: Duration = Duration::from_secs(2);

/// The proxy and link router that runs on every host.
#[derive(Debug, Parser)]
#[command(name = "proxyd", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/rehome/proxyd.yml")]
    config: PathBuf,
    /// Only says whether a configuration file is right.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    check: Option<PathBuf>,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("cannot read {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}", problem::render(.0))]
    Wrong(Vec<Problem>),
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let path = arguments.check.as_deref().unwrap_or(&arguments.config);
    let config = match load(path) {
        Ok(config) => config,
        Err(error) => {
            complain(&Report(&error).to_string());
            return ExitCode::from(2);
        }
    };
    if arguments.check.is_some() {
        return ExitCode::SUCCESS;
    }
    match run(path, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("proxyd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "logs are not set up before the configuration is read"
)]
fn complain(text: &str) {
    eprintln!("{text}");
}

fn load(path: &Path) -> Result<ProxydConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let source = Source::new(path.display().to_string(), text);
    proxyd_config(&source).map_err(ConfigError::Wrong)
}

fn run(path: &Path, config: &ProxydConfig) -> anyhow::Result<()> {
    let logs = telemetry::init_logs(format(config), &config.log.filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(path, config, logs))
}

fn format(config: &ProxydConfig) -> LogFormat {
    match config.log.format {
        daemon::LogFormat::Text => LogFormat::Text,
        daemon::LogFormat::Json => LogFormat::Json,
    }
}

async fn serve(path: &Path, config: &ProxydConfig, logs: LogHandle) -> anyhow::Result<()> {
    let supervisor = Supervisor::new();
    let reloads = signals::listen(&supervisor)?;
    let proxy = Proxyd::start(config, &supervisor).await?;
    let reload = reload_forever(
        path.to_owned(),
        config.clone(),
        (proxy.clone(), logs),
        reloads,
    );
    let stop = supervisor.token().clone();
    supervisor.spawn("reloads", Criticality::Critical, async move {
        stop.run_until_cancelled(reload).await;
    });
    notify::spawn_watchdog(&supervisor);
    notify::ready();
    tracing::info!(trunk = %proxy.trunk_addr(), "serving");

    let failure = supervisor.wait().await;
    notify::stopping();
    proxy.wind_down(GRACE).await;
    let stop = supervisor.stop(TASKS).await;
    tracing::info!(?stop, "stopped");
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

async fn reload_forever(
    path: PathBuf,
    started: ProxydConfig,
    (proxy, logs): (Proxyd, LogHandle),
    mut reloads: Reloads,
) {
    while reloads.next().await.is_some() {
        notify::reloading();
        reload(&path, &started, &proxy, &logs).await;
        notify::ready();
    }
}

/// A file that is right takes effect; one that is wrong changes nothing.
async fn reload(path: &Path, started: &ProxydConfig, proxy: &Proxyd, logs: &LogHandle) {
    let owned = path.to_owned();
    let loaded = tokio::task::spawn_blocking(move || {
        load(&owned).map_err(|error| Report(&error).to_string())
    });
    let config = loaded.await.unwrap_or_else(|error| Err(error.to_string()));
    let config = config.and_then(|new| match needs_restart(started, &new) {
        Some(key) => Err(format!("{key} cannot change while proxyd runs: restart it")),
        None => Ok(new),
    });
    let applied = match config {
        Ok(config) => match logs.set_filter(&config.log.filter) {
            Ok(()) => proxy
                .configure(&config)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(Report(&error).to_string()),
        },
        Err(error) => Err(error),
    };
    match applied {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(error) => {
            proxy.reject_configuration();
            tracing::error!(error, "configuration not reloaded, the old one stays");
        }
    }
}

/// What a running proxyd cannot change.
fn needs_restart(started: &ProxydConfig, new: &ProxydConfig) -> Option<&'static str> {
    [
        (started.socket != new.socket, "socket"),
        (started.state != new.state, "state"),
        (started.metrics != new.metrics, "metrics"),
        (started.trunk.listen != new.trunk.listen, "trunk.listen"),
        (started.log.format != new.log.format, "log.format"),
        (
            started.limits.udp_sessions != new.limits.udp_sessions,
            "limits.udp_sessions",
        ),
    ]
    .into_iter()
    .find_map(|(changed, key)| changed.then_some(key))
}
