//! What `migrated` says to `migrated` on another host, over mutual TLS (HTTP, JSON).
//!
//! | request | body → answer | who → whom |
//! |---|---|---|
//! | `GET /peer/v1/host` | → [`HostReport`] | anyone |
//! | `POST /peer/v1/preflight` | [`super::cluster::Desired`] → [`PreflightReply`] | the host that takes a deployment → all |
//! | `PUT /peer/v1/desired` | [`super::cluster::Desired`] → [`Accepted`] | the same |
//! | `POST /peer/v1/gossip` | [`Gossip`] → [`Gossip`] | anyone |
//! | `POST /peer/v1/volumes` | [`VolumesQuery`] → [`VolumesReply`] | source → destination, for a prediction |
//! | `GET`, `POST /peer/v1/gc`, `?diverged=APPLICATION` | → [`super::gc::HostGarbage`] | anyone |
//! | `POST /peer/v1/handoffs/{id}/prepare` | [`Offer`] → [`Ready`] | source → destination |
//! | `PUT /peer/v1/handoffs/{id}/stream` | a backend's stream in frames, [`StreamQuery`] → [`Received`] | |
//! | `GET /peer/v1/handoffs/{id}/stream` | `?stream=ID` → [`StreamProgress`] | |
//! | `POST /peer/v1/handoffs/{id}/verify` | [`VerifyRequest`] → [`HandoffView`] | |
//! | `POST /peer/v1/handoffs/{id}/start` | [`HandoffRef`] → [`HandoffView`]; only without volumes | |
//! | `POST /peer/v1/handoffs/{id}/grant` | [`HandoffRef`] → [`HandoffView`] | |
//! | `GET /peer/v1/handoffs/{id}` | `?wait=SECONDS&seen=STATE` → [`HandoffView`] | |
//! | `POST /peer/v1/handoffs/{id}/abort` | [`HandoffRef`] → [`HandoffView`] | |
//! | `POST /peer/v1/handoffs/{id}/close` | [`HandoffRef`] → [`HandoffView`] | |
//! | `POST /peer/v1/failovers/examine` | [`super::cluster::FailoverRequest`] → [`FailoverOffer`] | the host that takes a failover, or is asked for the status → those that may take over |
//! | `POST /peer/v1/failovers` | [`super::cluster::FailoverRequest`] → [`super::cluster::FailoverReply`] | the host that takes a failover → the one that takes over |
//! | `GET /peer/v1/volumes/{dataset}` | → [`KeptVolume`] | a fenced host → the owner |
//!
//! Every message of a handoff carries migration, attempt and epoch. One that is stale is
//! answered with the state as it is; nothing happens twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::cluster::{
    ApplicationStatus, DivergedCopy, FailoverMeans, Failure, Migration, MigrationState,
};
use crate::config::model::{Application, MigrationLimits};
use crate::ids::{
    AppName, Attempt, DatasetId, DeploymentGeneration, Epoch, HostAddr, MigrationId, RouteVersion,
    StreamId, VolumeName,
};
use crate::units::Bytes;

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// Its address.
    pub host: HostAddr,
    /// The version of its `migrated`.
    pub version: String,
    /// The deployment it follows, with a hash of its content.
    pub generation: DeploymentGeneration,
    /// Hash of the deployment it follows.
    pub desired_hash: String,
    /// The applications that it owns.
    pub owned: Vec<OwnedApplication>,
    /// The state of each application that it owns.
    pub applications: Vec<ApplicationStatus>,
    /// Migrations that it coordinates or coordinated.
    pub migrations: Vec<Migration>,
    /// Applications that are on their way to it, or from it, and nobody's yet.
    pub incoming: Vec<AppName>,
    /// Whether it has nothing left to do for this deployment.
    pub settled: bool,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// Why its journal, `proxyd` or runtime cannot be used, if so.
    pub problem: Option<String>,
    /// The newest owner of every application that it knows of. Facts, never promises.
    #[serde(default)]
    pub known: Vec<KnownOwner>,
    /// Of what it knows, the applications that it only heard of: its own journal says nothing of
    /// them but what others told.
    #[serde(default)]
    pub heard: BTreeSet<AppName>,
    /// Applications that have come to it whole and wait for their source's grant, with the epoch
    /// that they are granted at.
    #[serde(default)]
    pub promised: BTreeMap<AppName, Epoch>,
    /// What was written here by who was not the owner any more.
    #[serde(default)]
    pub diverged: Vec<DivergedCopy>,
    /// Applications whose owner was left open when its journal was made anew.
    #[serde(default)]
    pub left: Vec<LeftOpen>,
    /// The applications that it has instances of, whoever owns them; `None` while it has not
    /// looked.
    #[serde(default)]
    pub instances: Option<Vec<AppName>>,
}

/// An application that a host does not know the owner of for certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOpen {
    /// Which.
    pub application: AppName,
    /// Who is said to own it.
    pub owner: HostAddr,
    /// At which epoch.
    pub epoch: Epoch,
    /// Why that is not certain.
    pub why: String,
}

/// Who owns an application, as far as a host knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownOwner {
    /// Which.
    pub application: AppName,
    /// Since which change of owner.
    pub epoch: Epoch,
    /// The owner.
    pub owner: HostAddr,
    /// How it knows.
    #[serde(default)]
    pub basis: Basis,
}

/// How a host knows who owns an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Its own journal says so: it owns or owned it, and gave it away or gave way.
    Journal,
    /// It was told.
    #[default]
    Heard,
    /// It is said, and was left open when its journal was made anew.
    Open,
}

impl HostReport {
    /// What the host knows of an application's owner.
    #[must_use]
    pub fn known_owner(&self, application: &AppName) -> Option<&KnownOwner> {
        self.known
            .iter()
            .find(|known| known.application == *application)
    }

    /// Whether the host has no part in an application, although others may know it as the owner:
    /// it is another machine, has lost all that it knew of it, or left open whose it is. It runs
    /// nothing of it and will not start it by itself.
    ///
    /// A daemon answers only when it has read its journal, and refuses to start with an empty one
    /// beside volumes. Whoever owns an application, gives it away or takes it says so, and whoever
    /// had it has that in its own journal; what it merely heard it may have heard as a new machine.
    #[must_use]
    pub fn is_out_of(&self, application: &AppName) -> bool {
        let mut owned = self.owned.iter();
        let has_part = owned.any(|owned| owned.application == *application)
            || self.incoming.contains(application)
            || self.promised.contains_key(application)
            || self.may_run(application)
            || self.gives_away(application);
        let mut left = self.left.iter();
        let is_left = left.any(|left| left.application == *application);
        let known = self.known_owner(application);
        let heard =
            |known: &KnownOwner| known.owner == self.host || self.heard.contains(application);
        !has_part && (is_left || known.is_none_or(heard))
    }

    /// Its containers may run without it: what it has not looked at it may run.
    fn may_run(&self, application: &AppName) -> bool {
        let instances = self.instances.as_ref();
        instances.is_none_or(|all| all.contains(application))
    }

    fn gives_away(&self, application: &AppName) -> bool {
        let open =
            |m: &&Migration| matches!(m.state, MigrationState::Running | MigrationState::Blocked);
        let mut open = self.migrations.iter().filter(open);
        open.any(|migration| migration.application == *application)
    }
}

/// Whether, and how, a host could take over from an owner that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverOffer {
    /// How; `None` when it cannot.
    pub means: Option<FailoverMeans>,
    /// What may be lost then, for people.
    pub loss: Option<String>,
    /// When the newest of what it would go on from was taken, RFC 3339.
    pub newest: Option<String>,
    /// Whether it would go on from the volumes as they are there, which nobody took a snapshot
    /// of: what was left open.
    #[serde(default)]
    pub live: bool,
    /// Why it cannot.
    pub refusal: Option<String>,
}

/// What a host keeps of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVolume {
    /// The identities of its snapshots.
    pub snapshots: Vec<String>,
}

/// An application's owner speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedApplication {
    /// Which.
    pub application: AppName,
    /// Since which change of owner.
    pub epoch: Epoch,
    /// Its volumes.
    pub volumes: Vec<VolumeIdentity>,
    /// Hash of the configuration that its instance was made with; `None` without an instance.
    pub config_hash: Option<String>,
}

/// A volume's name and identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeIdentity {
    /// Its name in the application.
    pub name: VolumeName,
    /// Its identity.
    pub dataset: DatasetId,
}

/// The answer to a preflight: nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightReply {
    /// What would fail.
    pub problems: Vec<Failure>,
}

/// The answer to a new desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The generation that the host follows now.
    pub generation: DeploymentGeneration,
}

/// What does a host have of these volumes?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesQuery {
    /// The volumes.
    pub datasets: Vec<DatasetId>,
}

/// What a host has of volumes that it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesReply {
    /// Guids of the snapshots of each, oldest first; nothing of those that it does not have.
    pub snapshots: BTreeMap<DatasetId, Vec<String>>,
}

/// What hosts tell each other again and again. The larger version wins everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    /// Who speaks.
    pub host: HostAddr,
    /// The deployment it follows.
    pub generation: DeploymentGeneration,
    /// A hash of it: of two of one generation the larger hash wins.
    pub desired_hash: String,
    /// Where each application is, as far as the host knows.
    pub adverts: Vec<Advert>,
    /// Who owns each, as far as the host knows.
    #[serde(default)]
    pub known: Vec<KnownOwner>,
}

/// Where an application is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// Which.
    pub application: AppName,
    /// How new.
    pub version: RouteVersion,
    /// Its owner.
    pub host: HostAddr,
}

/// The source offers an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which.
    pub application: AppName,
    /// The deployment that asks for the move.
    pub generation: DeploymentGeneration,
    /// The source.
    pub from: HostAddr,
    /// The source's epoch.
    pub epoch: Epoch,
    /// How it is meant to run.
    pub spec: Application,
    /// Its volumes.
    pub volumes: Vec<OfferedVolume>,
    /// How it moves.
    pub limits: MigrationLimits,
}

/// A volume of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedVolume {
    /// Name and identity.
    pub identity: VolumeIdentity,
    /// Bytes that it holds.
    pub used: Bytes,
    /// Its limit.
    pub limit: Option<Bytes>,
}

/// The destination can take it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// The state of the handoff there.
    pub view: HandoffView,
    /// Guids of the snapshots that it has of each volume.
    pub snapshots: BTreeMap<DatasetId, Vec<String>>,
    /// What it understands in a stream; nothing when it is of a version before frames.
    #[serde(default)]
    pub encodings: Vec<StreamEncoding>,
}

/// How a frame of a stream may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamEncoding {
    /// As it is. Who understands this understands frames.
    Plain,
    /// Each frame compressed by zstd.
    Zstd,
    /// One of a later version.
    #[serde(other)]
    Other,
}

/// What a stream carries, as query parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamQuery {
    /// The volume.
    pub dataset: DatasetId,
    /// The snapshot's name.
    pub snapshot: String,
    /// The snapshot's identity.
    pub guid: String,
    /// Which stream: it goes on over another connection under the same id.
    pub stream: StreamId,
    /// Where in the stream this connection begins, in bytes of the stream itself.
    pub offset: u64,
    /// Which connection of the stream this is; grows.
    pub connection: u32,
}

/// A stream arrived whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Bytes of the stream itself, not of the wire.
    pub bytes: Bytes,
}

/// How much of a stream arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamProgress {
    /// Bytes of the stream itself that were taken: here it goes on after a cut.
    pub bytes: u64,
    /// The newest connection of the stream.
    pub connection: u32,
    /// Bytes that came over that connection.
    pub wire: u64,
    /// Whether the network is waited for, and not this host's own storage.
    pub hungry: bool,
    /// Whether the stream is over here, well or not: its answer waits to be heard.
    pub answered: bool,
}

/// The final snapshots were sent: are they all there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Which attempt.
    pub attempt: Attempt,
    /// The source's epoch.
    pub epoch: Epoch,
    /// The final snapshot of each volume.
    pub finals: Vec<FinalSnapshot>,
    /// The version that the source's gate is parked under. A newer one of the same epoch says that
    /// the source opened it again.
    #[serde(default)]
    pub parked: Option<RouteVersion>,
}

/// The final snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalSnapshot {
    /// The volume.
    pub dataset: DatasetId,
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub guid: String,
}

/// Which attempt of a handoff, and at which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffRef {
    /// The attempt.
    pub attempt: Attempt,
    /// For a grant the new owner's epoch, else the source's.
    pub epoch: Epoch,
}

/// How a handoff stands on the destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandoffView {
    /// Its id.
    pub migration: MigrationId,
    /// The newest attempt that the destination knows.
    pub attempt: Attempt,
    /// The state.
    pub state: HandoffState,
    /// Seconds by phase on the destination.
    pub phases: BTreeMap<String, f64>,
    /// Why it was returned.
    pub reason: Option<String>,
}

/// The states of a handoff on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandoffState {
    /// Nothing is known of it.
    Unknown,
    /// Space and instance are reserved; rounds arrive.
    Reserved,
    /// The final snapshots are all there; waiting for the grant or an abort.
    Verified,
    /// It is the owner and starts the application.
    Owned,
    /// Clients are served.
    Serving,
    /// It could not serve and gave the application back.
    Returned,
    /// It was called off.
    Dropped,
}
