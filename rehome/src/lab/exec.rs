//! `rehome lab exec`: runs a command inside a host with this terminal, and ends as it ends.
//!
//! This process joins the host's control groups and becomes `nsenter`, which becomes this program
//! again inside the host; that sets `PATH` and the directory and becomes the command. So no
//! process stands between the terminal and the command but the one that a PID namespace needs.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::invocation::search_path;
use crate::lab::ExecArgs;
use crate::lab::cgroups;
use crate::lab::host::{HostError, this_program};
use crate::lab::site::Site;
use crate::lab::state::{LabState, StateError};
use crate::lab::tools::{self, ToolsError};
use crate::paths::PathError;

/// The arguments of the last step.
#[derive(Debug, Args)]
pub(crate) struct EnterArgs {
    directory: PathBuf,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// A command that did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    /// The user is not root.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// There is no such lab or host.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host is down.
    #[error("host {0} is down: `rehome lab start {0}` starts it")]
    Down(String),
    /// The host's control group could not be joined.
    #[error(transparent)]
    Group(#[from] PathError),
    /// This program's own file is not known.
    #[error(transparent)]
    Program(#[from] HostError),
    /// The command could not be started.
    #[error("cannot run {program}")]
    Run {
        /// The command.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Becomes the command; returns only when that fails.
pub(crate) fn run(site: &Site, args: &ExecArgs) -> anyhow::Result<ExitCode> {
    Err(into_host(site, args).into())
}

fn into_host(site: &Site, args: &ExecArgs) -> ExecError {
    match prepare(site, args) {
        Ok(mut command) => {
            let source = command.exec();
            ExecError::Run {
                program: "nsenter".to_owned(),
                source,
            }
        }
        Err(error) => error,
    }
}

fn prepare(site: &Site, args: &ExecArgs) -> Result<Command, ExecError> {
    tools::require_root()?;
    let state = LabState::require(site)?;
    let host = state.host(&args.name)?;
    let process = host
        .alive()
        .ok_or_else(|| ExecError::Down(args.name.clone()))?;
    cgroups::join(&site.cgroup_of(&host.name))?;
    let program = this_program()?;
    let mut path = program
        .parent()
        .unwrap_or(Path::new("/"))
        .as_os_str()
        .to_owned();
    path.push(":");
    path.push(search_path());
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &process.pid().to_string()])
        .args([
            "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
        ])
        .arg(&program)
        .arg("lab-enter")
        .arg(std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")))
        .arg("--")
        .args(&args.command)
        .env("PATH", path);
    Ok(command)
}

/// Inside the host: becomes the command.
pub(crate) fn enter(args: &EnterArgs) -> anyhow::Result<ExitCode> {
    // When `rehome lab exec` is killed, the command must not run on without it.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // A directory of this machine that the host does not have: begin at the root instead.
    if std::env::set_current_dir(&args.directory).is_err() {
        std::env::set_current_dir("/")?;
    }
    let mut words = args.command.iter();
    let program = words.next().cloned().unwrap_or_default();
    let source = Command::new(&program).args(words).exec();
    Err(ExecError::Run {
        program: program.to_string_lossy().into_owned(),
        source,
    }
    .into())
}
