//! Logs: `tracing` events on standard error, as text or JSON, with a filter that a reload can
//! change.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry};

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("{filter:?} is not a log filter")]
    Filter {
        /// The text.
        filter: String,
        /// The cause.
        #[source]
        source: ParseError,
    },
    /// Logs are set up already.
    #[error("logs are set up already")]
    Twice(#[source] TryInitError),
    /// The filter can no longer be changed.
    #[error("the log filter cannot be changed")]
    Reload(#[source] reload::Error),
}

/// Changes the filter while the program runs.
#[derive(Debug, Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Sets another filter, for example `info,proxyd=debug`.
    ///
    /// # Errors
    /// [`TelemetryError`]; the old filter then stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        self.0
            .reload(parse(filter)?)
            .map_err(TelemetryError::Reload)
    }
}

/// Says whether a text is a filter.
///
/// # Errors
/// [`TelemetryError::Filter`].
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

/// Sets up logs for the whole process, once.
///
/// # Errors
/// [`TelemetryError`] when the filter is wrong or it was called before.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<LogHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(TelemetryError::Twice)?;
    Ok(LogHandle(handle))
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
        filter: filter.to_owned(),
        source,
    })
}
