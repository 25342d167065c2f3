//! What the user's files mean, whatever format they were written in. These values are checked:
//! the rest of Rehome never looks at YAML again.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::proxy::Announce;
use crate::ids::{AppName, DatasetId, HostAddr, Protocol, VolumeName};
use crate::units::{Bytes, seconds};

/// The applications by name.
pub type Applications = BTreeMap<AppName, Application>;

/// The hosts of a cluster and what runs on each.
pub type Placement = BTreeMap<HostAddr, Vec<AppName>>;

/// One application: a container (or process) with ports, links and volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// The image that it runs.
    pub image: Image,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its ways to other applications.
    pub links: Vec<Link>,
    /// Its volumes; the names are unique.
    pub volumes: Vec<Volume>,
    /// Environment variables; they win over link variables.
    pub environment: BTreeMap<String, String>,
    /// Memory limit.
    pub mem_limit: Option<Bytes>,
    /// Relative CPU weight, as Docker's `--cpu-shares`.
    pub cpu_shares: Option<u64>,
    /// What happens when it exits by itself.
    pub restart_policy: RestartPolicy,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point (Compose).
    pub entrypoint: Option<Vec<String>>,
    /// The user it runs as (Compose).
    pub user: Option<String>,
    /// Its working directory (Compose).
    pub working_dir: Option<String>,
    /// Its host name (Compose).
    pub hostname: Option<String>,
    /// When it counts as healthy.
    pub healthcheck: Healthcheck,
    /// From the stop signal to the kill.
    #[serde(with = "seconds")]
    pub stop_grace: Duration,
    /// The stop signal, for example `SIGINT`; the image's, or `SIGTERM`, when absent.
    pub stop_signal: Option<String>,
    /// How it moves; what is absent comes from the host's own file.
    pub migration: MigrationPolicy,
}

/// From the stop signal to the kill, where the file names no time.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

impl Application {
    /// An application of which nothing but the image is said.
    #[must_use]
    pub fn new(image: Image) -> Self {
        Self {
            image,
            ports: Vec::new(),
            links: Vec::new(),
            volumes: Vec::new(),
            environment: BTreeMap::new(),
            mem_limit: None,
            cpu_shares: None,
            restart_policy: RestartPolicy::Never,
            command: None,
            entrypoint: None,
            user: None,
            working_dir: None,
            hostname: None,
            healthcheck: Healthcheck::default(),
            stop_grace: DEFAULT_STOP_GRACE,
            stop_signal: None,
            migration: MigrationPolicy::default(),
        }
    }
}

/// An image reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Registry and repository, for example `registry:5000/acme/db`.
    pub repository: String,
    /// The tag or the digest.
    #[serde(flatten)]
    pub version: ImageVersion,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVersion {
    /// A tag.
    Tag(String),
    /// A digest, `sha256:…`.
    Digest(String),
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            ImageVersion::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            ImageVersion::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// A port of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// Where the application listens.
    pub internal: u16,
    /// What every host of the cluster listens on.
    pub external: u16,
    /// What travels.
    #[serde(default)]
    pub protocol: Protocol,
    /// What the application is told of each client.
    #[serde(default, skip_serializing_if = "Announce::is_nothing")]
    pub send_proxy: Announce,
}

/// A way to another application's external port, through the linking application's own host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The port in the variables' names.
    pub local_port: u16,
    /// The other application's external port.
    pub remote_port: u16,
    /// The prefix of the variables' names.
    pub alias: String,
}

/// A dataset mounted into one application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name within the application; `data` where the file names none.
    pub name: VolumeName,
    /// The absolute path inside the application.
    pub mountpoint: String,
    /// The most it may hold.
    pub maximum_size: Option<Bytes>,
    /// Its identity where the file gives one.
    pub dataset_id: Option<DatasetId>,
}

/// What happens when an application exits by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays stopped.
    #[default]
    Never,
    /// It is started again.
    Always,
    /// It is started again after a failure.
    OnFailure {
        /// At most so often; without a limit when absent.
        maximum_retry_count: Option<u32>,
    },
}

/// When an application counts as healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// What is tried; a TCP connect to the first internal port when absent.
    pub probe: Option<Probe>,
    /// From one try to the next.
    #[serde(with = "seconds")]
    pub interval: Duration,
    /// The most one try may take.
    #[serde(with = "seconds")]
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

impl Default for Healthcheck {
    fn default() -> Self {
        Self {
            probe: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            retries: 30,
        }
    }
}

/// One way of asking an application whether it is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A TCP connect to an internal port.
    Tcp(u16),
    /// A GET that answers 2xx or 3xx.
    Http {
        /// The internal port.
        port: u16,
        /// The path, with its leading slash.
        path: String,
    },
    /// A command inside the application that exits with 0.
    Command(Vec<String>),
}

/// What a move does when the rounds no longer shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStall {
    /// Cut over if the predicted window fits the hard cap, else abort.
    #[default]
    Cutover,
    /// Give the application less and less of the processor until the rounds shrink; cut over at
    /// the end of that if the predicted window fits the hard cap, else abort. Where it cannot be
    /// held back, go on as [`OnStall::Wait`] does.
    Throttle,
    /// Go on with rounds until the writes calm down.
    Wait,
    /// Give up.
    Abort,
}

/// How an application moves, as the user wrote it: absent means the host's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationPolicy {
    /// The window to aim for.
    #[serde(default, with = "optional_seconds")]
    pub downtime_budget: Option<Duration>,
    /// The window that is never passed: the move aborts instead.
    #[serde(default, with = "optional_seconds")]
    pub hard_cap: Option<Duration>,
    /// The most pre-copy rounds.
    pub max_rounds: Option<u32>,
    /// How long existing connections may finish.
    #[serde(default, with = "optional_seconds")]
    pub drain: Option<Duration>,
    /// How long a connection may stay parked.
    #[serde(default, with = "optional_seconds")]
    pub park_timeout: Option<Duration>,
    /// How many connections a route may hold parked.
    pub park_limit: Option<u32>,
    /// Bytes per second on the wire.
    pub bandwidth_limit: Option<Bytes>,
    /// What happens when the rounds no longer shrink.
    pub on_stall: Option<OnStall>,
}

/// How an application moves, every value decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationLimits {
    /// See [`MigrationPolicy::downtime_budget`].
    #[serde(with = "seconds")]
    pub downtime_budget: Duration,
    /// See [`MigrationPolicy::hard_cap`].
    #[serde(with = "seconds")]
    pub hard_cap: Duration,
    /// See [`MigrationPolicy::max_rounds`].
    pub max_rounds: u32,
    /// See [`MigrationPolicy::drain`].
    #[serde(with = "seconds")]
    pub drain: Duration,
    /// See [`MigrationPolicy::park_timeout`].
    #[serde(with = "seconds")]
    pub park_timeout: Duration,
    /// See [`MigrationPolicy::park_limit`].
    pub park_limit: u32,
    /// See [`MigrationPolicy::bandwidth_limit`].
    pub bandwidth_limit: Option<Bytes>,
    /// See [`MigrationPolicy::on_stall`].
    pub on_stall: OnStall,
}

impl Default for MigrationLimits {
    fn default() -> Self {
        Self {
            downtime_budget: Duration::from_secs(3),
            hard_cap: Duration::from_secs(10),
            max_rounds: 8,
            drain: Duration::from_secs(2),
            park_timeout: Duration::from_mins(1),
            park_limit: 10_000,
            bandwidth_limit: None,
            on_stall: OnStall::Cutover,
        }
    }
}

impl MigrationLimits {
    /// These limits with what the user's policy says instead.
    #[must_use]
    pub fn with(self, policy: &MigrationPolicy) -> Self {
        Self {
            downtime_budget: policy.downtime_budget.unwrap_or(self.downtime_budget),
            hard_cap: policy.hard_cap.unwrap_or(self.hard_cap),
            max_rounds: policy.max_rounds.unwrap_or(self.max_rounds),
            drain: policy.drain.unwrap_or(self.drain),
            park_timeout: policy.park_timeout.unwrap_or(self.park_timeout),
            park_limit: policy.park_limit.unwrap_or(self.park_limit),
            bandwidth_limit: policy.bandwidth_limit.or(self.bandwidth_limit),
            on_stall: policy.on_stall.unwrap_or(self.on_stall),
        }
    }
}

/// An `Option<Duration>` as a number of seconds or null.
mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    // The signature is serde's: it passes the field by reference.
    #[expect(clippy::ref_option, reason = "serde's `with` passes `&Option<T>`")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|d| d.as_secs_f64()).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(d)?
            .map(|v| Duration::try_from_secs_f64(v).map_err(serde::de::Error::custom))
            .transpose()
    }
}
