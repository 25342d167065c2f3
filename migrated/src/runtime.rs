//! Runtimes: what starts and stops applications.
//!
//! One trait, two implementations: [`docker`] (also Podman's Docker socket) and [`process`] (a
//! plain command of the host). A runtime never restarts anything by itself: whether an
//! application may run here is a question of ownership, and `migrated` alone answers it.
//!
//! An [`Instance`] is found again by its labels after a restart of `migrated`.

pub mod docker;
pub mod process;
mod quota;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use migrated_core::routes::Reach;
use rehome_shared::config::model::Image;
use rehome_shared::ids::{AppName, Epoch};
use rehome_shared::units::Bytes;
use serde::{Deserialize, Serialize};

/// Everything that a runtime needs to know to make an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Whose instance.
    pub application: AppName,
    /// The epoch it is made for; a label.
    pub epoch: Epoch,
    /// Hash of all that makes a restart necessary; a label.
    pub config_hash: String,
    /// The image; a process runtime ignores it.
    pub image: Image,
    /// Replaces the image's command; a process runtime needs it.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Environment, link variables included.
    pub environment: BTreeMap<String, String>,
    /// Host path → path inside, read-write.
    pub mounts: Vec<Mount>,
    /// Memory limit.
    pub mem_limit: Option<Bytes>,
    /// CPU weight as Docker counts it.
    pub cpu_shares: Option<u64>,
    /// User, working directory, host name.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Host name inside.
    pub hostname: Option<String>,
    /// Stop signal, for example `SIGINT`.
    pub stop_signal: Option<String>,
    /// Its ports on which it expects to be told of each client.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub announced: BTreeSet<u16>,
}

/// A volume at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The live tree on the host; it must exist.
    pub source: PathBuf,
    /// The path inside.
    pub target: String,
}

/// The state of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// Exit status, 128 + signal after a signal; `None` when it cannot be known.
        code: Option<i32>,
        /// What the runtime says of a failed start, or the end of the output.
        reason: Option<String>,
    },
}

/// An instance that a runtime knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The runtime's id (a container id; for a process `NAME-PID`).
    pub id: String,
    /// Label: whose.
    pub application: AppName,
    /// Label: made for this epoch.
    pub epoch: Epoch,
    /// Label: hash of its configuration.
    pub config_hash: String,
    /// Its state.
    pub state: InstanceState,
    /// Where the local proxy reaches it, while it runs.
    pub address: Option<IpAddr>,
    /// When it started, RFC 3339, while it runs.
    pub started_at: Option<String>,
    /// Its ports on which it expects to be told of each client.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub announced: BTreeSet<u16>,
}

impl Instance {
    /// How it is reached, while it runs.
    #[must_use]
    pub fn reach(&self) -> Option<Reach> {
        self.address.map(|address| Reach {
            address,
            announced: self.announced.clone(),
        })
    }
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It ended by itself within the grace.
    Gracefully,
    /// It was killed at the end of the grace.
    Killed,
    /// It did not run.
    NotRunning,
}

/// Why a runtime operation failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime cannot be reached.
    #[error("the {runtime} runtime at {endpoint} does not answer")]
    Unreachable {
        /// Which.
        runtime: &'static str,
        /// Its socket.
        endpoint: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image is not here and cannot be pulled.
    #[error("image {image} is not on this host and cannot be pulled: {reason}")]
    ImageMissing {
        /// Its reference.
        image: String,
        /// What the registry said.
        reason: String,
    },
    /// It could not be made.
    #[error("cannot create {application}: {reason}")]
    Create {
        /// Whose instance.
        application: AppName,
        /// Why.
        reason: String,
    },
    /// It could not be started.
    #[error("cannot start {application}: {reason}")]
    Start {
        /// Whose instance.
        application: AppName,
        /// Why.
        reason: String,
    },
    /// It could not be stopped: processes remain.
    #[error("cannot stop {application}: {reason}")]
    Stop {
        /// Whose instance.
        application: AppName,
        /// Why.
        reason: String,
    },
    /// Anything else.
    #[error("cannot {attempt}: {reason}")]
    Other {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        reason: String,
    },
}

/// What the processes of an instance have used so far. Only differences say something: a process
/// that has ended may take its share with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Time on a processor.
    pub cpu: Duration,
    /// Bytes that they gave to file systems to write.
    pub written: Bytes,
}

/// A number of processors, or part of one.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Cpus(pub f64);

/// Progress of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Bytes fetched.
    pub current: Bytes,
    /// Bytes in all, as far as known.
    pub total: Bytes,
}

/// What a runtime can do. Every call may be repeated.
///
/// # Cancel safety
/// A dropped call may have taken effect; repeat it.
#[async_trait]
pub trait Runtime: std::fmt::Debug + Send + Sync {
    /// `docker`, `podman` or `process`.
    fn name(&self) -> &'static str;

    /// Whether the runtime answers.
    async fn ping(&self) -> Result<(), RuntimeError>;

    /// Whether [`ensure_image`](Self::ensure_image) can succeed, as far as that is known without
    /// fetching anything.
    async fn check_image(&self, spec: &InstanceSpec) -> Result<(), RuntimeError> {
        self.ensure_image(spec, &|_| {}).await
    }

    /// Makes sure that the image (for processes: the command's program) is here: what is here
    /// is used, what is not is pulled, with progress.
    async fn ensure_image(
        &self,
        spec: &InstanceSpec,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), RuntimeError>;

    /// All instances of Rehome's on this host, found by their labels; nothing else is touched.
    async fn list(&self) -> Result<Vec<Instance>, RuntimeError>;

    /// Makes an instance without starting it. An instance of the application with the same
    /// hash and epoch is returned as it is; one that differs and does not run is replaced; one
    /// that differs and runs is an error. A mount source that does not exist is an error.
    async fn create(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError>;

    /// Starts the application's instance; one that runs is success.
    async fn start(&self, application: &AppName) -> Result<Instance, RuntimeError>;

    /// Signals, waits for the grace, kills, and returns only when no process of it is left:
    /// its cgroup (or process tree) is empty. Not running is success.
    async fn stop(&self, application: &AppName, grace: Duration) -> Result<Stopped, RuntimeError>;

    /// Removes the instance (not its volumes); one that runs is an error, none is success.
    async fn remove(&self, application: &AppName) -> Result<(), RuntimeError>;

    /// Runs a command inside, for health checks. `Ok(true)` when it exits with 0.
    async fn exec(
        &self,
        application: &AppName,
        command: &[String],
        timeout: Duration,
    ) -> Result<bool, RuntimeError>;

    /// What its processes have used so far; nothing when it does not run.
    async fn usage(&self, application: &AppName) -> Result<Usage, RuntimeError>;

    /// Holds what runs of it to so much of the processors, until its end; `None` lets it run as
    /// it likes again, and is success where nothing held it. An error when it cannot be held.
    async fn throttle(&self, application: &AppName, cpus: Option<Cpus>)
    -> Result<(), RuntimeError>;

    /// The end of its output, for error messages.
    async fn log_tail(&self, application: &AppName, lines: u32) -> Result<String, RuntimeError>;
}
