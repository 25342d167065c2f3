//! `proxyd [--config FILE] [--check FILE]`

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use proxyd::{Proxyd, Reloader, load};
use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_runtime::signals;
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_runtime::telemetry::{self, LogFormat, LogHandle};
use rehome_shared::config::daemon::{self, ProxydConfig};

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
    let reloader = Reloader::new(path.to_owned(), config.clone(), proxy.clone(), logs);
    let stop = supervisor.token().clone();
    supervisor.spawn("reloads", Criticality::Critical, async move {
        stop.run_until_cancelled(reloader.run(reloads)).await;
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
