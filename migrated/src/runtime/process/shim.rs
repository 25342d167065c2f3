//! The other side of the process runtime: the stages that run in processes of their own, all of
//! them `migrated process-shim INSTANCE_FILE`. The stage is told by an environment variable.
//!
//! Namespaces belong to threads, so each stage enters them while it has only one.

mod exec;
mod init;
mod supervisor;

use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::files::{self, Record};
use super::pid::ProcessId;

/// The variable that names the stage; without it the supervisor runs.
pub(super) const STAGE: &str = "REHOME_SHIM_STAGE";

/// What a stage that fails by itself ends with.
const FAILED: u8 = 125;

/// The stages besides the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Process 1 of an application.
    Init,
    /// A command beside it, for health checks.
    Exec {
        /// Process 1 of the application.
        init: ProcessId,
        /// The command.
        command: Vec<String>,
    },
}

/// What the supervisor answers to the runtime, one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The command runs.
    Running {
        /// Limits that this host cannot enforce.
        warnings: Vec<String>,
    },
    /// It could not be started; the status says so too.
    Failed {
        /// Why.
        reason: String,
    },
    /// The instance has a supervisor already.
    Supervised,
}

/// What init reports to the supervisor, lines of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// It is in its namespaces and waits to be let go.
    Ready,
    /// The command was started.
    Started,
    /// It was not.
    Failed {
        /// Why.
        reason: String,
        /// What a shell would end with.
        code: i32,
    },
    /// The command has ended.
    Ended {
        /// Exit status, 128 + signal after a signal.
        code: i32,
    },
}

/// Runs a stage to its end. Call it before the process has a second thread.
#[must_use]
pub fn shim_main(spec: &Path) -> ExitCode {
    let Ok(Some(record)) = files::load::<Record>(spec) else {
        return ExitCode::from(FAILED);
    };
    match std::env::var(STAGE) {
        Err(_) => supervisor::run(&record, spec),
        Ok(stage) => match serde_json::from_str(&stage) {
            Ok(Stage::Init) => init::run(&record),
            Ok(Stage::Exec { init, command }) => exec::run(&record, init, &command),
            Err(_) => ExitCode::from(FAILED),
        },
    }
}

/// A runtime for a stage that stays on its one thread.
fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Writes a line of JSON to standard output. The other end may be gone, which is its affair.
fn say<T: Serialize>(value: &T) {
    use std::io::Write;
    if let Ok(mut line) = serde_json::to_vec(value) {
        line.push(b'\n');
        let mut output = std::io::stdout().lock();
        let _nobody_listens = output.write_all(&line).and_then(|()| output.flush());
    }
}
