//! Starting and killing a host.
//!
//! The command and the host's first process agree step by step over two pipes, so that a command
//! killed at any moment leaves either no host or one that is recorded:
//!
//! ```text
//! command                         first process
//!   start  ------------------->   joins its cgroup, enters its namespaces
//!          <-------------- pid
//!   records it, attaches eth0
//!   go     ------------------->   mounts its file systems      (end of file instead: exits)
//!          <------------ ready
//!                                 starts its daemons
//! ```

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};

use crate::invocation::search_path;
use crate::lab::Runtime;
use crate::lab::cgroups::{self, EndError};
use crate::lab::fabric::{self, FabricError};
use crate::lab::files::{self, DiskError, LOGS};
use crate::lab::init::{DaemonPlan, Plan};
use crate::lab::loop_devices::{self, LoopError};
use crate::lab::process::Process;
use crate::lab::site::Site;
use crate::lab::state::{Daemons, HostRecord, LabState, StateError};
use crate::paths::{self, PathError};
use crate::stop::{Stop, Waited, wait_until};

/// How long a host may take for each step before its daemons start.
const STEP: Duration = Duration::from_secs(30);

/// A host that could not be started or killed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// Its disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] PathError),
    /// Its disk is still in use.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// Its network interface could not be made.
    #[error("cannot connect the host to the lab's network")]
    Network(#[from] FabricError),
    /// The lab's record could not be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The plan of its first process could not be written down.
    #[error("cannot write the plan of the host's first process")]
    Plan(#[from] serde_json::Error),
    /// Its first process could not be started or spoken to.
    #[error("cannot start the host's first process")]
    Start(#[source] io::Error),
    /// Its first process ended.
    #[error("the host's first process ended at once: {0}")]
    Ended(String),
    /// Its first process did not answer.
    #[error("the host's first process did not answer within {} s", STEP.as_secs())]
    Silent,
    /// The user asked to stop.
    #[error("interrupted")]
    Stopped,
    /// It did not die.
    #[error(transparent)]
    Processes(#[from] EndError),
    /// Its daemons are not where they should be.
    #[error("{} is not there: build the whole workspace, or set REHOME_BIN_DIR", .0.display())]
    NoDaemon(PathBuf),
}

/// The directory of the daemons: `REHOME_BIN_DIR`, or where this program lies.
pub(crate) fn bin_dir() -> Result<PathBuf, HostError> {
    if let Some(directory) = std::env::var_os("REHOME_BIN_DIR") {
        return Ok(PathBuf::from(directory));
    }
    let program = this_program()?;
    Ok(program.parent().unwrap_or(Path::new("/")).to_owned())
}

/// This program's file.
pub(crate) fn this_program() -> Result<PathBuf, HostError> {
    std::env::current_exe().map_err(HostError::Start)
}

/// Starts a host that is down and records its first process. Its daemons may not be ready yet.
pub(crate) fn start(
    site: &Site,
    state: &mut LabState,
    host: &HostRecord,
    stop: &Stop,
) -> Result<(), HostError> {
    files::make_disk(site, state, host)?;
    let plan = plan(site, state, host)?;
    cgroups::make(&plan.group)?;
    paths::replace(
        &site.plan_file(&host.name),
        0o600,
        &serde_json::to_string_pretty(&plan)?,
    )?;
    let mut first = First::spawn(&plan, &site.plan_file(&host.name))?;
    let pid = first.line(stop)?;
    let process = pid.trim().parse().ok().and_then(Process::find);
    let process = process.ok_or_else(|| HostError::Ended(first.last_words()))?;
    state.set_process(&host.name, Some(&process));
    state.save(site)?;
    fabric::attach(site, state.subnet, host, &process, stop)?;
    first.go()?;
    first.line(stop)?;
    Ok(())
}

/// Kills a host with all it runs, as a power failure would, and waits until its disk is free.
pub(crate) fn kill(site: &Site, host: &HostRecord) -> Result<(), HostError> {
    if let Some(process) = &host.process {
        process.kill();
    }
    cgroups::end(&site.cgroup_of(&host.name))?;
    loop_devices::free(&[site.host_disk(&host.name)])?;
    Ok(())
}

fn plan(site: &Site, state: &LabState, host: &HostRecord) -> Result<Plan, HostError> {
    let bin_dir = bin_dir()?;
    let mut daemons = Vec::new();
    if state.settings.runtime == Runtime::Docker {
        daemons.push(DaemonPlan {
            name: "dockerd".to_owned(),
            command: vec!["dockerd".into()],
        });
    }
    if state.settings.daemons != Daemons::Absent {
        for name in ["proxyd", "migrated"] {
            let program = bin_dir.join(match state.settings.daemons {
                Daemons::Faulty => format!("{name}-faulty"),
                Daemons::Run | Daemons::Absent => name.to_owned(),
            });
            if !program.is_file() {
                return Err(HostError::NoDaemon(program));
            }
            let config = format!("/etc/rehome/{name}.yml");
            daemons.push(DaemonPlan {
                name: name.to_owned(),
                command: vec![program, "--config".into(), config.into()],
            });
        }
    }
    let mut path = bin_dir.into_os_string();
    path.push(":");
    path.push(search_path());
    Ok(Plan {
        program: this_program()?,
        host: host.name.clone(),
        group: site.cgroup_of(&host.name),
        disk: site.host_disk(&host.name),
        path: PathBuf::from(path),
        daemons,
    })
}

/// The first process of a host while it is being started.
struct First {
    go: Option<ChildStdin>,
    answers: ChildStdout,
    log: PathBuf,
}

impl First {
    fn spawn(plan: &Plan, plan_file: &Path) -> Result<Self, HostError> {
        let log = plan.disk.join(LOGS).join("init.log");
        let messages = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(PathError::at("open", &log))?;
        let child = Command::new(&plan.program)
            .args([Path::new("lab-init"), Path::new("group"), plan_file])
            .env("PATH", &plan.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages)
            .process_group(0)
            .spawn()
            .map_err(HostError::Start)?;
        Self::from_child(child, log).map_err(HostError::Start)
    }

    /// The child itself only makes the namespaces and ends; the first process is its child and
    /// has its pipes.
    fn from_child(mut child: Child, log: PathBuf) -> io::Result<Self> {
        let (go, answers) = (child.stdin.take(), child.stdout.take());
        let mut ended = Ok(None);
        let waited = wait_until(STEP, &Stop::never(), || {
            ended = child.try_wait();
            !matches!(ended, Ok(None))
        });
        ended?;
        match (waited, answers) {
            (Waited::Met, Some(answers)) => {
                fcntl_setfl(&answers, OFlags::NONBLOCK)?;
                Ok(Self { go, answers, log })
            }
            (Waited::Met | Waited::TimedOut | Waited::Stopped, _) => {
                child.kill()?;
                child.wait()?;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    fn go(&mut self) -> Result<(), HostError> {
        let Some(mut pipe) = self.go.take() else {
            return Ok(());
        };
        pipe.write_all(b"go\n")
            .map_err(|_| HostError::Ended(self.last_words()))
    }

    /// The next line that the first process writes.
    fn line(&mut self, stop: &Stop) -> Result<String, HostError> {
        let mut line = String::new();
        let mut broken = false;
        let waited = wait_until(STEP, stop, || {
            // An answer is a few bytes, written at once, and the next one comes only when asked.
            let mut bytes = [0; 64];
            match self.answers.read(&mut bytes) {
                Ok(0) => broken = true,
                Ok(read) => line.extend(bytes.iter().take(read).map(|b| char::from(*b))),
                Err(error) => broken = error.kind() != io::ErrorKind::WouldBlock,
            }
            broken || line.ends_with('\n')
        });
        match waited {
            Waited::Met if broken => Err(HostError::Ended(self.last_words())),
            Waited::Met => Ok(line),
            Waited::TimedOut => Err(HostError::Silent),
            Waited::Stopped => Err(HostError::Stopped),
        }
    }

    fn last_words(&self) -> String {
        files::tail(&self.log, 5)
    }
}
