//! Applications as plain commands of this host.
//!
//! Each has namespaces of its own: mounts (its volumes lie at their mountpoints), network (a veth
//! pair to the host, so that internal ports never clash and the local proxy reaches it), process
//! ids (so that nothing of it can outlive its end), host name and IPC; and a cgroup for its
//! limits. Its file system is otherwise the host's.
//!
//! ```text
//! migrated ──starts──▶ supervisor ──▶ init (process 1 of the application) ──▶ command
//!                      (the same program, `process-shim`; outlives migrated)
//! ```
//!
//! Nothing is remembered in memory. `STATE/NAME/instance` says what an instance is, `RUN/NAME/status`
//! how it is, and a process is recognised by its number together with its start time. The kernel
//! kills init when the supervisor ends and everything inside when init ends, and it reports the end
//! of init only after the last of them is gone: so "init has ended" is the proof that nothing runs.
//!
//! For the supervisor to outlive the daemon under systemd the unit needs `KillMode=process`.

mod cgroup;
mod files;
mod log;
mod network;
mod pid;
mod program;
pub mod shim;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rehome_runtime::command::{CommandError, ExternalCommand};
use rehome_runtime::report::Report;
use rehome_shared::ids::AppName;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::Instant;

use self::cgroup::Cgroup;
use self::files::{Paths, Phase, Record, Status, blocking};
pub use self::network::{InvalidSubnet, Subnet};
use self::pid::ProcessId;
use self::shim::{Answer, STAGE, Stage};
use super::{
    Cpus, Instance, InstanceSpec, InstanceState, PullProgress, Runtime, RuntimeError, Stopped,
    Usage, usage,
};

/// How long a start may take until the command runs.
const START_LIMIT: Duration = Duration::from_mins(1);

/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// How long the supervisor may take to clean up after the end of an application.
const CLEAN_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at a file or a cgroup that is about to change.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Where the runtime keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// What must survive a reboot: instances and their output.
    pub state_dir: PathBuf,
    /// What must not: their status.
    pub run_dir: PathBuf,
    /// Four addresses out of it for each application.
    pub subnet: Subnet,
    /// The program with the hidden command `process-shim`, usually `/proc/self/exe`.
    pub shim_program: PathBuf,
}

/// The runtime.
#[derive(Debug)]
pub struct ProcessRuntime {
    paths: Paths,
    subnet: Subnet,
    shim_program: PathBuf,
    /// Held while an instance is made, so that two do not get the same addresses.
    making: tokio::sync::Mutex<()>,
}

impl ProcessRuntime {
    /// A runtime on its directories; they are made when needed. Instances of an earlier value
    /// on the same directories are adopted.
    #[must_use]
    pub fn new(config: ProcessConfig) -> Self {
        Self {
            paths: Paths::new(config.state_dir, config.run_dir),
            subnet: config.subnet,
            shim_program: config.shim_program,
            making: tokio::sync::Mutex::default(),
        }
    }

    /// The status of an instance, `None` before its first start. A status that is being brought
    /// up to date by its supervisor is waited for.
    async fn status(&self, record: &Record) -> Result<Option<Status>, RuntimeError> {
        let deadline = Instant::now() + CLEAN_LIMIT;
        loop {
            let path = record.status_path();
            let status = blocking(move || files::load::<Status>(&path)).await?;
            let Some(mut status) = status.filter(|status| status.instance == record.instance)
            else {
                return Ok(None);
            };
            let Phase::Running { init, .. } = &status.phase else {
                return Ok(Some(status));
            };
            if init.is_running() {
                return Ok(Some(status));
            }
            if !status.supervisor.is_running() || Instant::now() > deadline {
                let reason = "its supervisor was killed".to_owned();
                status.phase = Phase::Exited {
                    code: None,
                    reason: Some(reason),
                };
                return Ok(Some(status));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn describe(&self, record: &Record) -> Result<Instance, RuntimeError> {
        let status = self.status(record).await?;
        let mut instance = Instance {
            id: record.spec.application.to_string(),
            application: record.spec.application.clone(),
            epoch: record.spec.epoch,
            config_hash: record.spec.config_hash.clone(),
            state: InstanceState::Created,
            address: None,
            started_at: None,
            announced: record.spec.announced.clone(),
        };
        match status.map(|status| status.phase) {
            None => {}
            Some(Phase::Running { init, started_at }) => {
                instance.id = format!("{}-{}", instance.id, init.number());
                instance.state = InstanceState::Running;
                instance.address = Some(IpAddr::V4(record.link.inside));
                instance.started_at = Some(started_at);
            }
            Some(Phase::Exited { code, reason }) => {
                instance.state = InstanceState::Exited { code, reason };
            }
        }
        Ok(instance)
    }

    async fn load(&self, application: &AppName) -> Result<Option<Record>, RuntimeError> {
        let path = self.paths.record(application);
        blocking(move || files::load(&path)).await
    }

    /// The instance that runs, with its process 1.
    async fn running(
        &self,
        application: &AppName,
    ) -> Result<Option<(Record, ProcessId)>, RuntimeError> {
        let Some(record) = self.load(application).await? else {
            return Ok(None);
        };
        let status = self.status(&record).await?;
        Ok(match status.map(|status| status.phase) {
            Some(Phase::Running { init, .. }) => Some((record, init)),
            Some(Phase::Exited { .. }) | None => None,
        })
    }

    async fn all(&self) -> Result<Vec<Record>, RuntimeError> {
        let paths = self.paths.clone();
        blocking(move || paths.all_records()).await
    }

    /// Writes a new instance with addresses that no other has.
    async fn make(&self, spec: &InstanceSpec, old: Option<Record>) -> Result<Record, RuntimeError> {
        let application = spec.application.clone();
        let others = self.all().await?;
        let taken: BTreeSet<_> = others
            .iter()
            .filter(|r| r.spec.application != application)
            .map(|r| r.slot)
            .collect();
        let slot = old
            .map(|old| old.slot)
            .filter(|slot| self.subnet.link(*slot).is_some())
            .or_else(|| (0..self.subnet.slots()).find(|slot| !taken.contains(slot)));
        let placed = slot.and_then(|slot| Some((slot, self.subnet.link(slot)?)));
        let Some((slot, link)) = placed else {
            let reason = format!("all addresses of {} are taken", self.subnet);
            return Err(RuntimeError::Create {
                application,
                reason,
            });
        };
        let record = Record::new(&self.paths, spec.clone(), slot, link);
        let (path, saved) = (self.paths.record(&application), record.clone());
        blocking(move || files::save(&path, &saved)).await?;
        Ok(record)
    }

    /// Runs the supervisor until it says how the start went.
    async fn supervise(&self, record: &Record) -> Result<Answer, String> {
        let path = self.paths.record(&record.spec.application);
        let mut supervisor = tokio::process::Command::new(&self.shim_program);
        supervisor
            .arg("process-shim")
            .arg(path)
            .current_dir("/")
            .env_clear();
        supervisor.env("PATH", program::DEFAULT_PATH);
        supervisor
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = supervisor
            .spawn()
            .map_err(|error| format!("cannot start its supervisor: {error}"))?;
        // It is left alone from here on; tokio reaps it when it ends before this daemon does.
        let output = child.stdout.take().ok_or("its supervisor has no output")?;
        let mut line = String::new();
        let mut output = BufReader::new(output);
        match tokio::time::timeout(START_LIMIT, output.read_line(&mut line)).await {
            Ok(Ok(_length)) => serde_json::from_str(&line)
                .map_err(|error| format!("its supervisor ended without an answer ({error})")),
            Ok(Err(error)) => Err(format!("cannot hear its supervisor: {error}")),
            Err(_) => Err(format!(
                "its supervisor did not answer within {START_LIMIT:?}"
            )),
        }
    }

    /// Waits for the supervisor of an instance that does not run, which may be just about to end.
    async fn wait_unsupervised(&self, record: &Record) -> Result<(), String> {
        match self.status(record).await {
            Ok(Some(status)) => self.wait_clean(record, &status).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits until the supervisor has cleaned up, and does what one that was killed left undone.
    async fn wait_clean(&self, record: &Record, status: &Status) -> Result<(), String> {
        if let Some(supervisor) = status.supervisor.open() {
            let ended = supervisor
                .ended(CLEAN_LIMIT)
                .await
                .map_err(|error| error.to_string())?;
            if !ended {
                return Err("its supervisor does not end".to_owned());
            }
        }
        network::disconnect(&record.link).await;
        let cgroup = Cgroup::find(&record.cgroup);
        if !cgroup.empty_within(CLEAN_LIMIT).await {
            return Err("processes are left in its cgroup".to_owned());
        }
        cgroup.remove();
        Ok(())
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn ping(&self) -> Result<(), RuntimeError> {
        let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| {
            let endpoint = self.paths.state_dir().display().to_string();
            RuntimeError::Unreachable {
                runtime: "process",
                endpoint,
                source,
            }
        };
        if !rustix::process::geteuid().is_root() {
            return Err(unreachable("it needs root for namespaces".into()));
        }
        let version = ExternalCommand::new("ip")
            .arg("-Version")
            .run(CLEAN_LIMIT)
            .await;
        version
            .map(drop)
            .map_err(|error| unreachable(Box::new(error)))
    }

    async fn ensure_image(
        &self,
        spec: &InstanceSpec,
        _progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let spec = spec.clone();
        blocking(move || {
            program::locate(&spec).map_err(|reason| {
                let image = program::argv(&spec).first().cloned().unwrap_or_default();
                RuntimeError::ImageMissing { image, reason }
            })
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Instance>, RuntimeError> {
        let mut instances = Vec::new();
        for record in self.all().await? {
            instances.push(self.describe(&record).await?);
        }
        Ok(instances)
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError> {
        let refuse = |reason: String| RuntimeError::Create {
            application: spec.application.clone(),
            reason,
        };
        let _making = self.making.lock().await;
        let old = self.load(&spec.application).await?;
        if let Some(old) = &old {
            let instance = self.describe(old).await?;
            if old.spec.epoch == spec.epoch && old.spec.config_hash == spec.config_hash {
                return Ok(instance);
            }
            if instance.state == InstanceState::Running {
                return Err(refuse(format!(
                    "another instance of it runs as {}",
                    instance.id
                )));
            }
        }
        if let Some(old) = &old {
            self.wait_unsupervised(old).await.map_err(refuse)?;
        }
        let checked = spec.clone();
        let problem = blocking(move || Ok(program::check(&checked).err())).await?;
        if let Some(reason) = problem {
            return Err(refuse(reason));
        }
        let record = self.make(spec, old).await?;
        self.describe(&record).await
    }

    async fn start(&self, application: &AppName) -> Result<Instance, RuntimeError> {
        let fail = |reason: String| RuntimeError::Start {
            application: application.clone(),
            reason,
        };
        let Some(record) = self.load(application).await? else {
            return Err(fail("there is no instance of it".to_owned()));
        };
        let instance = self.describe(&record).await?;
        if instance.state == InstanceState::Running {
            return Ok(instance);
        }
        self.wait_unsupervised(&record).await.map_err(fail)?;
        match self.supervise(&record).await.map_err(fail)? {
            Answer::Running { warnings } => {
                for warning in warnings {
                    tracing::warn!(%application, warning, "an application runs with less than it asked for");
                }
                self.describe(&record).await
            }
            Answer::Failed { reason } => Err(fail(reason)),
            Answer::Supervised => {
                // Another supervisor is ahead, of a start that was interrupted on this side.
                let instance = self.describe(&record).await?;
                match instance.state {
                    InstanceState::Running => Ok(instance),
                    InstanceState::Created | InstanceState::Exited { .. } => {
                        Err(fail("another start of it is under way".to_owned()))
                    }
                }
            }
        }
    }

    async fn stop(&self, application: &AppName, grace: Duration) -> Result<Stopped, RuntimeError> {
        let fail = |reason: String| RuntimeError::Stop {
            application: application.clone(),
            reason,
        };
        let Some(record) = self.load(application).await? else {
            return Ok(Stopped::NotRunning);
        };
        let Some(status) = self.status(&record).await? else {
            return Ok(Stopped::NotRunning);
        };
        let running = match &status.phase {
            Phase::Running { init, .. } => init.open(),
            Phase::Exited { .. } => None,
        };
        let Some(init) = running else {
            self.wait_clean(&record, &status).await.map_err(fail)?;
            return Ok(Stopped::NotRunning);
        };
        let signal = program::stop_signal(&record.spec).map_err(fail)?;
        let broken = |error: std::io::Error| fail(format!("cannot signal it: {error}"));
        init.signal(signal).map_err(broken)?;
        let mut stopped = Stopped::Gracefully;
        if !init.ended(grace).await.map_err(broken)? {
            stopped = Stopped::Killed;
            init.signal(Signal::KILL).map_err(broken)?;
            if !init.ended(KILL_LIMIT).await.map_err(broken)? {
                return Err(fail(format!(
                    "it does not end {KILL_LIMIT:?} after it was killed"
                )));
            }
        }
        self.wait_clean(&record, &status).await.map_err(fail)?;
        Ok(stopped)
    }

    async fn remove(&self, application: &AppName) -> Result<(), RuntimeError> {
        let _making = self.making.lock().await;
        let Some(record) = self.load(application).await? else {
            return Ok(());
        };
        let instance = self.describe(&record).await?;
        if instance.state == InstanceState::Running {
            let attempt = format!("remove {application}");
            return Err(RuntimeError::Other {
                attempt,
                reason: "it runs".to_owned(),
            });
        }
        let busy = |reason| RuntimeError::Other {
            attempt: format!("remove {application}"),
            reason,
        };
        self.wait_unsupervised(&record).await.map_err(busy)?;
        let (paths, application) = (self.paths.clone(), application.clone());
        blocking(move || paths.remove(&application)).await
    }

    async fn exec(
        &self,
        application: &AppName,
        command: &[String],
        timeout: Duration,
    ) -> Result<bool, RuntimeError> {
        let fail = |reason: String| RuntimeError::Other {
            attempt: format!("run a command in {application}"),
            reason,
        };
        let Some((_, init)) = self.running(application).await? else {
            return Err(fail("it does not run".to_owned()));
        };
        let stage = Stage::Exec {
            init,
            command: command.to_vec(),
        };
        let stage = serde_json::to_string(&stage).map_err(|error| fail(error.to_string()))?;
        let shim = ExternalCommand::new(&self.shim_program)
            .arg("process-shim")
            .arg(self.paths.record(application))
            .env(STAGE, stage);
        match shim.run(timeout).await {
            Ok(_output) => Ok(true),
            Err(
                CommandError::Failed { .. }
                | CommandError::Timeout { .. }
                | CommandError::TooLong { .. },
            ) => Ok(false),
            Err(error @ (CommandError::Start { .. } | CommandError::Io { .. })) => {
                Err(fail(Report(&error).to_string()))
            }
        }
    }

    async fn usage(&self, application: &AppName) -> Result<Usage, RuntimeError> {
        let Some((record, init)) = self.running(application).await? else {
            return Ok(Usage::default());
        };
        blocking(move || {
            let mut processes = Cgroup::find(&record.cgroup).members();
            processes.extend(u32::try_from(init.number()));
            Ok(usage::of(processes))
        })
        .await
    }

    async fn throttle(
        &self,
        application: &AppName,
        cpus: Option<Cpus>,
    ) -> Result<(), RuntimeError> {
        let Some((record, _)) = self.running(application).await? else {
            return Ok(());
        };
        let attempt = format!("limit the processor time of {application}");
        blocking(move || {
            let held = Cgroup::find(&record.cgroup).throttle(cpus);
            held.map_err(|error| RuntimeError::Other {
                attempt,
                reason: Report(&error).to_string(),
            })
        })
        .await
    }

    async fn log_tail(&self, application: &AppName, lines: u32) -> Result<String, RuntimeError> {
        let path = self.paths.log(application);
        blocking(move || Ok(log::tail(&path, lines))).await
    }
}
