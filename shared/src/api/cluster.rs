//! The API of `migrated` for people and programs: on the Unix socket of a host, or over mutual
//! TLS with an operator's certificate. Any host answers for the whole cluster.
//!
//! | request | body → answer |
//! |---|---|
//! | `GET /v1/status` | → [`Status`] |
//! | `POST /v1/deployments` | [`DeployRequest`] → [`DeployReply`] |
//! | `GET /v1/deployments/current` | → [`Desired`] |
//! | `GET /v1/progress` | → [`Progress`] of the current deployment |
//! | `POST /v1/moves` | [`MoveRequest`] → [`DeployReply`] |
//! | `POST /v1/drains` | [`DrainRequest`] → [`DeployReply`] |
//! | `POST /v1/predictions` | [`MoveRequest`] → [`Prediction`] |
//! | `POST /v1/failovers` | [`FailoverRequest`] → [`FailoverReply`] |
//! | `GET /v1/migrations` | → list of [`Migration`], oldest first |
//! | `GET /v1/migrations/{id}` | → [`Migration`] |
//! | `POST /v1/migrations/{id}/abort` | → [`Migration`] |
//! | `GET`, `POST /v1/gc`, `?diverged=APPLICATION` | → [`super::gc::Collected`] |
//!
//! An answer that is not a success has an [`super::ErrorReply`] as its body.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::model::{Applications, Placement, Port};
use crate::ids::{AppName, DeploymentGeneration, Epoch, HostAddr, MigrationId};
use crate::units::{Bytes, seconds};

/// What the cluster is meant to look like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Desired {
    /// Grows with every accepted deployment; 0 before the first.
    pub generation: DeploymentGeneration,
    /// The applications.
    pub applications: Applications,
    /// Where each runs.
    pub placement: Placement,
    /// Applications that no host held when this was accepted, by the generation that brought
    /// them: only these may be born, on the host that they are placed on.
    pub births: BTreeMap<AppName, DeploymentGeneration>,
    /// Applications that are not placed and that a host still keeps the volumes of: that host has
    /// a say in every deployment, so that none of them is ever born a second time, empty.
    #[serde(default)]
    pub kept: BTreeMap<AppName, HostAddr>,
    /// Hosts that an operator declared fenced: they run nothing, and need not answer. One that
    /// answers again leaves at the next deployment.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fenced: BTreeSet<HostAddr>,
    /// The generation that last asked for each application, by another specification or place or
    /// by naming it: a move that ended badly is tried again only when it is asked for anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub asked: BTreeMap<AppName, DeploymentGeneration>,
}

impl Desired {
    /// The generation that last asked for an application; this one where nobody wrote it down.
    #[must_use]
    pub fn asked(&self, application: &AppName) -> DeploymentGeneration {
        self.asked
            .get(application)
            .copied()
            .unwrap_or(self.generation)
    }

    /// The host that an application is placed on.
    #[must_use]
    pub fn host_of(&self, application: &AppName) -> Option<&HostAddr> {
        self.placement
            .iter()
            .find_map(|(host, names)| names.contains(application).then_some(host))
    }
}

/// `POST /v1/deployments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// The applications.
    pub applications: Applications,
    /// Where each runs.
    pub placement: Placement,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// The answer to a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployReply {
    /// The generation in force: a new one, unless nothing had to change.
    pub generation: DeploymentGeneration,
    /// What changes; empty when everything is as it should be.
    pub changes: Vec<Change>,
}

/// One change of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which application.
    pub application: AppName,
    /// What happens to it.
    pub kind: ChangeKind,
}

/// What happens to an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum ChangeKind {
    /// It starts for the first time.
    Create {
        /// Where.
        host: HostAddr,
    },
    /// It starts again; its volumes were kept.
    Start {
        /// Where.
        host: HostAddr,
    },
    /// It moves.
    Move {
        /// From this host.
        from: HostAddr,
        /// To this one.
        to: HostAddr,
        /// With its volumes, or make-before-break without any.
        volumes: bool,
    },
    /// Its configuration changed: it restarts where it is.
    Restart {
        /// Where.
        host: HostAddr,
    },
    /// Only its ports, limits or policies change; it keeps running.
    Update {
        /// Where.
        host: HostAddr,
    },
    /// It stops; its volumes are kept.
    Stop {
        /// Where.
        host: HostAddr,
    },
}

/// `POST /v1/moves`: one move, as if the deployment had been edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRequest {
    /// Which application.
    pub application: AppName,
    /// Where to.
    pub to: HostAddr,
}

/// `POST /v1/drains`: everything that is placed on a host goes to the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequest {
    /// Which host.
    pub host: HostAddr,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/failovers`: another host takes over from an owner that is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverRequest {
    /// Which application.
    pub application: AppName,
    /// Who takes over.
    pub to: HostAddr,
    /// The owner, of which the operator vouches that it runs nothing any more.
    pub fenced: FencedOwner,
    /// Further hosts that do not answer and of which the operator vouches the same.
    #[serde(default)]
    pub also_fenced: BTreeSet<HostAddr>,
    /// Whether acknowledged writes may be lost.
    #[serde(default)]
    pub accept_loss: bool,
}

/// An owner that an operator fenced, and the epoch that it owned the application at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedOwner {
    /// The host.
    pub host: HostAddr,
    /// Its epoch.
    pub epoch: Epoch,
}

impl std::fmt::Display for FencedOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.host, self.epoch)
    }
}

/// The answer to a failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverReply {
    /// The deployment that names the new owner's host.
    pub generation: DeploymentGeneration,
    /// The new owner's epoch.
    pub epoch: Epoch,
    /// How it was done.
    pub means: FailoverMeans,
    /// What may be lost, for people; nothing can be when this is empty.
    #[serde(default)]
    pub loss: Option<String>,
}

/// How a host takes over. The first is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverMeans {
    /// It was done before.
    Already,
    /// All of it had come; the operator's word stands for the grant.
    Granted,
    /// It had released the application and takes it back, as it left it.
    TakenBack,
    /// It goes on from the newest that it keeps.
    Claimed,
}

/// `POST /v1/predictions`: what a move would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Bytes of the first round.
    pub bytes: Bytes,
    /// Whether the destination has a common snapshot already, so that a delta is enough.
    pub delta: bool,
    /// That snapshot.
    #[serde(default)]
    pub base: Option<String>,
    /// Bytes per second that the application wrote just now; `None` when that is not known.
    #[serde(default)]
    pub dirty_rate: Option<Bytes>,
    /// Bytes per second that the way to the destination is expected to take.
    #[serde(default)]
    pub bandwidth: Bytes,
    /// The expected number of rounds before the window.
    #[serde(default)]
    pub rounds: u32,
    /// How long they take, in seconds.
    #[serde(default)]
    pub copy_seconds: f64,
    /// The predicted window, in seconds.
    pub window_seconds: f64,
    /// Its two shares.
    #[serde(default)]
    pub window: Option<Window>,
    /// How much less of the processor the application would have in the end, in percent.
    #[serde(default)]
    pub throttled: Option<u8>,
    /// Why the move would be given up as things are now.
    #[serde(default)]
    pub gives_up: Option<String>,
    /// What it rests on, for people.
    pub basis: String,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The deployment in force.
    pub generation: DeploymentGeneration,
    /// The hosts.
    pub hosts: Vec<HostStatus>,
    /// The applications, by name.
    pub applications: Vec<ApplicationStatus>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its address.
    pub address: HostAddr,
    /// Whether its `migrated` answers.
    pub reachable: bool,
    /// The version of its `migrated`.
    pub version: Option<String>,
    /// Whether `migrated` there reaches its `proxyd`, and why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether an operator declared it fenced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
}

/// What was written on a host that was not the owner any more: a live tree that was kept for
/// people. Nothing deletes it by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergedCopy {
    /// Whose.
    pub application: AppName,
    /// Where.
    pub host: HostAddr,
    /// The volume's name in the application.
    pub volume: String,
    /// The copy's name: the epoch that it was written at, and when it was set aside.
    pub name: String,
    /// Where it lies on that host.
    pub path: String,
}

/// The state of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplicationState {
    /// It runs and is not healthy yet.
    Starting,
    /// It runs and is healthy.
    Running,
    /// It does not run, as it should be.
    Stopped,
    /// It is on its way to another host.
    Migrating,
    /// It should run and does not.
    Failed,
    /// Nobody may run it until an operator decides.
    Blocked,
}

impl ApplicationState {
    /// The word in JSON and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Migrating => "migrating",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
        }
    }
}

/// An application as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationStatus {
    /// Its name.
    pub name: AppName,
    /// Its state.
    pub state: ApplicationState,
    /// Its owner.
    pub host: Option<HostAddr>,
    /// Where it should run.
    pub desired_host: Option<HostAddr>,
    /// Its owner's epoch.
    pub epoch: Epoch,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
    /// The instance's id (a container id).
    #[serde(default)]
    pub instance: Option<String>,
    /// When it started, RFC 3339.
    #[serde(default)]
    pub started_at: Option<String>,
    /// Connections: relayed and held on the owner's host.
    #[serde(default)]
    pub connections: ConnectionGauge,
    /// Why it is not as it should be.
    #[serde(default)]
    pub reason: Option<String>,
    /// What former owners wrote and the owner does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diverged: Vec<DivergedCopy>,
}

/// Connections now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConnectionGauge {
    /// Relayed.
    pub active: u64,
    /// Held.
    pub parked: u64,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name in the application.
    pub name: String,
    /// Bytes that it holds.
    pub bytes: Bytes,
    /// Its limit.
    #[serde(default)]
    pub maximum_size: Option<Bytes>,
}

/// `GET /v1/progress`: how far the current deployment is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The deployment.
    pub generation: DeploymentGeneration,
    /// Whether nothing is left to do: everything is as it should be, or has failed.
    pub settled: bool,
    /// The applications.
    pub applications: Vec<ApplicationStatus>,
    /// The migrations that this deployment asked for, and those under way that it took over.
    pub migrations: Vec<Migration>,
    /// What went wrong, by host.
    pub failures: Vec<Failure>,
}

/// Something that went wrong on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where.
    pub host: HostAddr,
    /// Which application.
    pub application: Option<AppName>,
    /// What, with its cause.
    pub reason: String,
}

/// How a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigrationState {
    /// Under way.
    Running,
    /// The destination serves.
    Done,
    /// Given up before the handoff; the source serves.
    Aborted,
    /// It did not stay at the destination: that gave it back and the source serves, or an operator
    /// gave it to another host before the source heard that the destination serves.
    Returned,
    /// An operator must decide.
    Blocked,
}

impl MigrationState {
    /// The word in JSON and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::Returned => "returned",
            Self::Blocked => "blocked",
        }
    }
}

/// A migration, as its source tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// What moves.
    pub application: AppName,
    /// From this host, the coordinator.
    pub from: HostAddr,
    /// To this one.
    pub to: HostAddr,
    /// How it stands.
    pub state: MigrationState,
    /// The owner's epoch: the destination's after the handoff.
    pub epoch: Epoch,
    /// The deployment that asked for it.
    pub generation: DeploymentGeneration,
    /// RFC 3339.
    pub started_at: String,
    /// The pre-copy rounds.
    pub rounds: Vec<Round>,
    /// Seconds by phase, in the order of [`PHASES`] where they happened.
    pub phases: BTreeMap<String, f64>,
    /// The window; `None` until the destination serves, or when there was none.
    pub window_seconds: Option<Window>,
    /// The window in seconds, as predicted when the rounds ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_window: Option<f64>,
    /// How much less of the processor the application had in the rounds, in percent, at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<u8>,
    /// Bytes sent in all.
    pub bytes: Bytes,
    /// What happened to connections.
    pub connections: Connections,
    /// Why it did not end well.
    pub error: Option<String>,
    /// What it is doing now.
    #[serde(default)]
    pub now: Option<MigrationNow>,
}

/// The phases of a move in their order; [`Migration::phases`] is keyed by these.
pub const PHASES: [&str; 13] = [
    "queue",
    "prepare",
    "precopy",
    "park",
    "drain",
    "stop",
    "flush",
    "final_delta",
    "release",
    "adopt",
    "start",
    "health",
    "open",
];

/// One pre-copy round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Bytes on the wire.
    pub bytes: Bytes,
    /// Seconds it took.
    pub seconds: f64,
}

/// The window's two shares, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// What Rehome and the runtime took.
    pub platform: f64,
    /// What the application took to stop and to become healthy.
    pub application: f64,
}

/// What happened to connections, counted on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connections {
    /// Ended by themselves or politely before the stop.
    pub drained: u64,
    /// Held until the destination served.
    pub parked: u64,
    /// Turned away.
    pub refused: u64,
}

/// What a running migration is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationNow {
    /// The phase.
    pub phase: String,
    /// The pre-copy round, from 1; 0 outside of pre-copy.
    pub round: u32,
    /// Bytes of the current stream so far.
    pub bytes: Bytes,
    /// Bytes per second of the current stream.
    pub rate: Bytes,
    /// The window as predicted now, in seconds.
    pub predicted_window: Option<f64>,
    /// Seconds since the migration began.
    #[serde(with = "seconds")]
    pub elapsed: Duration,
    /// What it waits for, while it cannot begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}
