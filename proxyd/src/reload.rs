//! The configuration file, read again while the proxy runs: it takes effect whole or not at all.
//!
//! Asked for by SIGHUP, whose answer is a log line, and by `POST /v1/reload`, whose answer says the
//! same.

use std::io;
use std::path::{Path, PathBuf};

use rehome_runtime::notify;
use rehome_runtime::report::Report;
use rehome_runtime::signals::Reloads;
use rehome_runtime::telemetry::{LogHandle, TelemetryError, check_filter};
use rehome_shared::api::proxy::ReloadReply;
use rehome_shared::config::daemon::{ProxydConfig, proxyd_config};
use rehome_shared::config::{Problem, Source, problem};
use tokio::sync::{mpsc, oneshot};

use crate::keeper::PortsTaken;
use crate::seal::CertificatesError;
use crate::settings::Settings;
use crate::{Proxyd, Stopping};

/// Requests that wait; each is a file that is read.
const QUEUE: usize = 8;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}", problem::render(.0))]
    Wrong(Vec<Problem>),
    /// What it says of logs is wrong.
    #[error("log.filter cannot be used")]
    Filter(#[source] TelemetryError),
}

/// Why a configuration did not take effect. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file is wrong.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// It could not be looked at.
    #[error("the file could not be looked at")]
    Task(#[source] tokio::task::JoinError),
    /// It changes what a running proxy cannot.
    #[error("{0} cannot change while proxyd runs: restart it")]
    NeedsRestart(&'static str),
    /// The certificates of trunks cannot be used.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// Ports cannot be had.
    #[error(transparent)]
    Ports(#[from] PortsTaken),
    /// The proxy was not started from a file.
    #[error("this proxy has no file to read again")]
    NoFile,
    /// The proxy stops.
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

impl ReloadError {
    fn status(&self) -> http::StatusCode {
        match self {
            Self::File(_) | Self::NeedsRestart(_) | Self::Certificates(_) => {
                http::StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Ports(_) => http::StatusCode::CONFLICT,
            Self::NoFile => http::StatusCode::NOT_IMPLEMENTED,
            Self::Stopping(_) => http::StatusCode::SERVICE_UNAVAILABLE,
            Self::Task(_) => http::StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<ReloadError> for rehome_runtime::http_server::ErrorResponse {
    fn from(error: ReloadError) -> Self {
        Self::of(error.status(), &error)
    }
}

/// A request, and where its answer goes.
pub(crate) type Ask = oneshot::Sender<Result<ReloadReply, ReloadError>>;

/// Reads a file and checks everything about it that can be checked without a proxy.
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path) -> Result<ProxydConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let source = Source::new(path.display().to_string(), text);
    let config = proxyd_config(&source).map_err(ConfigError::Wrong)?;
    check_filter(&config.log.filter).map_err(ConfigError::Filter)?;
    Ok(config)
}

/// Reads what a configuration names: the certificates of trunks.
///
/// # Errors
/// [`CertificatesError`].
pub fn check(config: &ProxydConfig) -> Result<(), CertificatesError> {
    Settings::load(config).map(drop)
}

/// The file of a running proxy.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    started: ProxydConfig,
    proxy: Proxyd,
    logs: LogHandle,
    asks: mpsc::Receiver<Ask>,
}

impl Reloader {
    /// The file that a proxy was started from. From now on requests to reload wait for
    /// [`Reloader::run`].
    #[must_use]
    pub fn new(path: PathBuf, started: ProxydConfig, proxy: Proxyd, logs: LogHandle) -> Self {
        let (sender, asks) = mpsc::channel(QUEUE);
        // A second file for one proxy would be asked for by nobody.
        drop(proxy.reloads.set(sender));
        Self {
            path,
            started,
            proxy,
            logs,
            asks,
        }
    }

    /// Reloads whenever it is asked for, until the program stops.
    ///
    /// # Cancel safety
    /// Dropping it in the middle of a reload leaves that to the proxy, which finishes it.
    pub async fn run(mut self, mut signals: Reloads) {
        loop {
            // Both only wait.
            let ask = tokio::select! {
                signal = signals.next() => match signal {
                    Some(()) => None,
                    None => return,
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => Some(ask),
                    None => return,
                },
            };
            notify::reloading();
            let outcome = self.reload().await;
            notify::ready();
            self.tell(&outcome);
            if let Some(ask) = ask {
                // An answer that nobody waits for any more is no failure.
                drop(ask.send(outcome));
            }
        }
    }

    async fn reload(&self) -> Result<ReloadReply, ReloadError> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        let config = loaded.map_err(ReloadError::Task)??;
        if let Some(key) = needs_restart(&self.started, &config) {
            return Err(ReloadError::NeedsRestart(key));
        }
        let missing = self.proxy.configure(&config).await?;
        // It was checked; only a logger that is gone refuses it.
        if let Err(error) = self.logs.set_filter(&config.log.filter) {
            tracing::warn!(error = %Report(&error), "the log filter stays");
        }
        Ok(ReloadReply { missing })
    }

    fn tell(&self, outcome: &Result<ReloadReply, ReloadError>) {
        match outcome {
            Ok(reply) => {
                let missing = reply.missing.len();
                tracing::info!(missing, "configuration reloaded");
            }
            Err(error) => {
                self.proxy.reject_configuration();
                let error = Report(error).to_string();
                tracing::error!(error, "configuration not reloaded, the old one stays");
            }
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
