//! The first process of a lab host, in three stages of one program:
//!
//! 1. `group` joins the host's control group and becomes `unshare`, which makes the namespaces;
//! 2. `fork`: a new PID namespace begins with the next child, so this one only starts it;
//! 3. `first` is PID 1 of the host: it mounts the host's file systems and supervises its daemons
//!    until it is told to end. When it dies, the kernel kills all that runs in the host.
//!
//! It never outlives a command that has not recorded it: see the [`host`](crate::lab::host).

mod kept;
mod mounts;
mod supervise;

use std::io::{self, BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::lab::cgroups;
use crate::paths;

/// The arguments of the first process.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    stage: Stage,
    plan: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stage {
    Group,
    Fork,
    First,
}

/// What a host is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// This program.
    pub(crate) program: PathBuf,
    /// The host's name.
    pub(crate) host: String,
    /// Its control group, below the root of each hierarchy.
    pub(crate) group: PathBuf,
    /// Its disk.
    pub(crate) disk: PathBuf,
    /// Where its daemons look for programs, as `PATH`.
    pub(crate) path: PathBuf,
    /// Its daemons, in the order in which they start.
    pub(crate) daemons: Vec<DaemonPlan>,
}

/// A daemon of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DaemonPlan {
    /// The name of its log and of its PID file.
    pub(crate) name: String,
    /// Its program and arguments.
    pub(crate) command: Vec<PathBuf>,
}

/// Runs one stage.
pub(crate) fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let plan: Plan = serde_json::from_str(&paths::read(&args.plan)?).context("read the plan")?;
    match args.stage {
        Stage::Group => group(&plan, &args.plan),
        Stage::Fork => fork(&plan, &args.plan),
        Stage::First => first(&plan),
    }
}

fn group(plan: &Plan, plan_file: &Path) -> anyhow::Result<ExitCode> {
    cgroups::join(&plan.group)?;
    let error = Command::new("unshare")
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
        .args(["--propagation", "private", "--"])
        .arg(&plan.program)
        .args([Path::new("lab-init"), Path::new("fork"), plan_file])
        .exec();
    Err(error).context("run unshare")
}

fn fork(plan: &Plan, plan_file: &Path) -> anyhow::Result<ExitCode> {
    Command::new(&plan.program)
        .args([Path::new("lab-init"), Path::new("first"), plan_file])
        .spawn()
        .context("start the first process")?;
    Ok(ExitCode::SUCCESS)
}

fn first(plan: &Plan) -> anyhow::Result<ExitCode> {
    // This `/proc` is still the machine's, so the link is the number that the machine knows.
    let pid = std::fs::read_link("/proc/self").context("read /proc/self")?;
    rustix::process::setsid().context("leave the terminal")?;
    answer(&pid.to_string_lossy())?;
    let mut go = String::new();
    io::stdin()
        .lock()
        .read_line(&mut go)
        .context("wait for the network")?;
    anyhow::ensure!(go == "go\n", "the command that started this host has ended");
    mounts::enter(plan)?;
    rustix::system::sethostname(plan.host.as_bytes()).context("set the host name")?;
    std::env::set_current_dir("/").context("go to /")?;
    answer("ready")?;
    supervise::run(plan)?;
    Ok(ExitCode::SUCCESS)
}

fn answer(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .context("answer")
}
