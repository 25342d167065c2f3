//! `proxyd [--config FILE] [--check FILE | --upgrade]`

#![forbid(unsafe_code)]

mod upgrade;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use proxyd::{Proxyd, Reloader, check, load};
use rehome_runtime::descriptor_store::{self, Kept};
use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_runtime::signals;
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_runtime::telemetry::{self, LogFormat, LogHandle};
use rehome_shared::config::daemon::{self, ProxydConfig};

/// What busy connections get at a stop.
const GRACE: Duration = Duration::from_secs(3);
/// What busy connections get that a successor could not take.
const REMAINDER: Duration = Duration::from_secs(30);
/// What the tasks get after that.
const TASKS: Duration = Duration::from_secs(2);

/// The proxy and link router that runs on every host.
#[derive(Debug, Parser)]
#[command(name = "proxyd", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/rehome/proxyd.yml")]
    config: PathBuf,
    /// Only says whether a configuration file is right, and the certificates that it names.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    check: Option<PathBuf>,
    /// Has the running proxyd hand everything over to this program: no client notices.
    #[arg(long, conflicts_with = "check")]
    upgrade: bool,
    /// How a running proxyd starts this program.
    #[arg(long, hide = true, conflicts_with_all = ["check", "upgrade"])]
    succeed: Option<Succeed>,
}

/// The two processes that a running proxyd starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Succeed {
    /// The one in between: it checks the configuration, starts the successor and ends.
    Begin,
    /// The successor.
    Run,
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let path = arguments.check.as_deref().unwrap_or(&arguments.config);
    let only_checks = arguments.check.is_some() || arguments.succeed == Some(Succeed::Begin);
    let config = match usable(path, only_checks) {
        Ok(config) => config,
        Err(text) => {
            if arguments.succeed == Some(Succeed::Begin) {
                say(&text);
            } else {
                complain(&text);
            }
            return ExitCode::from(2);
        }
    };
    if arguments.check.is_some() {
        return ExitCode::SUCCESS;
    }
    let done = if arguments.upgrade {
        upgrade::upgrade(path, &config).map(|reply| say(&upgrade::told(&reply)))
    } else {
        match arguments.succeed {
            Some(Succeed::Begin) => upgrade::begin(path).map(|pid| say(&format!("pid {pid}"))),
            Some(Succeed::Run) => run(path, &config, Origin::Predecessor),
            None => run(path, &config, Origin::Nothing),
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("proxyd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The configuration, or what is wrong with it. A proxy that starts reads by itself what it names.
fn usable(path: &Path, with_what_it_names: bool) -> Result<ProxydConfig, String> {
    let config = load(path).map_err(|error| Report(&error).to_string())?;
    if with_what_it_names {
        check(&config).map_err(|error| Report(&error).to_string())?;
    }
    Ok(config)
}

/// What a proxy begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// What is on disk.
    Nothing,
    /// What a running one hands over, at the other end of standard input.
    Predecessor,
}

#[expect(
    clippy::print_stderr,
    reason = "logs are not set up before the configuration is read"
)]
fn complain(text: &str) {
    eprintln!("{text}");
}

#[expect(
    clippy::print_stdout,
    reason = "this is the answer to the person or the process that asked for it"
)]
fn say(text: &str) {
    println!("{text}");
}

fn run(path: &Path, config: &ProxydConfig, origin: Origin) -> anyhow::Result<()> {
    let kept = descriptor_store::kept();
    let logs = telemetry::init_logs(format(config), &config.log.filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(path, (config, origin, kept), logs))
}

fn format(config: &ProxydConfig) -> LogFormat {
    match config.log.format {
        daemon::LogFormat::Text => LogFormat::Text,
        daemon::LogFormat::Json => LogFormat::Json,
    }
}

/// Starts, or takes over.
async fn start(
    config: &ProxydConfig,
    (origin, kept): (Origin, Kept),
    supervisor: &Supervisor,
) -> anyhow::Result<Proxyd> {
    if origin == Origin::Nothing {
        return Ok(Proxyd::start_with(config, supervisor, kept).await?);
    }
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(Proxyd::take_over(config, supervisor, socket).await?)
}

async fn serve(
    path: &Path,
    (config, origin, kept): (&ProxydConfig, Origin, Kept),
    logs: LogHandle,
) -> anyhow::Result<()> {
    let supervisor = Supervisor::new();
    let reloads = signals::listen(&supervisor)?;
    let proxy = start(config, (origin, kept), &supervisor).await?;
    let reloader = Reloader::new(path.to_owned(), config.clone(), proxy.clone(), logs);
    let stop = supervisor.token().clone();
    supervisor.spawn("reloads", Criticality::Critical, async move {
        stop.run_until_cancelled(reloader.run(reloads)).await;
    });
    notify::spawn_watchdog(&supervisor);
    notify::ready();
    tracing::info!(trunk = %proxy.trunk_addr(), "serving");

    let failure = supervisor.wait().await;
    if proxy.has_handed_over() {
        // Both may be dropped: what was closed stays closed. A stop that is asked for now is not
        // kept waiting for what could not go over.
        tokio::select! {
            () = proxy.wind_down(REMAINDER) => {}
            () = signals::stop_asked() => {}
        }
    } else {
        notify::stopping();
        proxy.leave().await;
    }
    proxy.wind_down(GRACE).await;
    let stop = supervisor.stop(TASKS).await;
    tracing::info!(?stop, "stopped");
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}
