//! What the journal says. A record is a promise: it is on disk before the act that it permits.
//!
//! Records are JSON inside the journal's binary frame. Fields are only ever added, with a
//! default; the golden lines in the tests keep old journals readable.

use rehome_shared::api::cluster::{Migration, Round};
use rehome_shared::api::peer::{FinalSnapshot, OfferedVolume, VolumeIdentity};
use rehome_shared::config::model::{Application, MigrationLimits};
use rehome_shared::ids::{AppName, Attempt, DeploymentGeneration, Epoch, HostAddr, MigrationId};
use serde::{Deserialize, Serialize};

use crate::UnixMillis;
use crate::registry::Role;

/// One record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// An application that nobody held is this host's, at epoch 1. Durable before its volumes
    /// are made.
    Born {
        /// Which.
        application: AppName,
        /// Its volumes.
        volumes: Vec<VolumeIdentity>,
    },
    /// An application of this host got further volumes. Durable before they are made.
    VolumesAdded {
        /// Which.
        application: AppName,
        /// The new ones.
        volumes: Vec<VolumeIdentity>,
    },
    /// The volumes that a birth or an addition announced are there: from now on their absence
    /// is an error.
    VolumesMade {
        /// Which.
        application: AppName,
    },
    /// A step of a migration that this host coordinates.
    Source {
        /// Which.
        migration: MigrationId,
        /// The step.
        step: SourceRecord,
    },
    /// A step of a migration that comes to this host.
    Destination {
        /// Which.
        migration: MigrationId,
        /// The step.
        step: DestinationRecord,
    },
    /// How this host stands to an application, as a whole. Only where a journal is made anew: by
    /// compaction, and by the rebuild out of stamps.
    Held {
        /// Which.
        application: AppName,
        /// The newest epoch that this host knows.
        epoch: Epoch,
        /// Who owns it at that epoch.
        role: Role,
        /// Its volumes.
        volumes: Vec<VolumeIdentity>,
        /// Of these, the ones that were announced and perhaps not made yet.
        unmade: Vec<VolumeIdentity>,
    },
    /// A migration that is over. Only where a journal is made anew.
    Past {
        /// What people are shown of it.
        report: Box<Migration>,
    },
    /// Another host owns an application of this host's at an epoch as large or larger: an operator
    /// gave it away while this host was gone. Durable before what is here of it is set aside.
    Fenced {
        /// Which.
        application: AppName,
        /// The new owner's epoch.
        epoch: Epoch,
        /// The new owner.
        owner: HostAddr,
        /// The migration from here that ended with it, for people.
        #[serde(default)]
        report: Option<Box<Migration>>,
    },
    /// An operator says that the owner is fenced: this host takes the next epoch, with the data
    /// that it keeps. Durable before the application starts here.
    Claimed {
        /// Which.
        application: AppName,
        /// This host's epoch.
        epoch: Epoch,
        /// Its volumes; their live trees are there.
        volumes: Vec<VolumeIdentity>,
        /// The owner before.
        fenced: HostAddr,
    },
    /// Others say that an application has a newer owner than this host knew of. What this host
    /// never had itself it would otherwise forget at its next start.
    Heard {
        /// Which.
        application: AppName,
        /// The owner's epoch.
        epoch: Epoch,
        /// The owner.
        owner: HostAddr,
    },
}

/// What a migration is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What moves.
    pub application: AppName,
    /// Where to.
    pub to: HostAddr,
    /// The source's epoch.
    pub epoch: Epoch,
    /// The deployment that asks for it.
    pub generation: DeploymentGeneration,
    /// The volumes; without any the move is make-before-break.
    pub volumes: Vec<VolumeIdentity>,
    /// How it moves.
    pub limits: MigrationLimits,
    /// Whether the application ran when the migration began, and so must run after an abort.
    pub was_running: bool,
    /// When it began.
    pub started_at: UnixMillis,
}

/// A step on the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceRecord {
    /// It begins.
    Planned(Plan),
    /// A round arrived.
    Round(Round),
    /// From now on clients may notice; past the deadline only an abort is possible.
    CutOver {
        /// Which try.
        attempt: Attempt,
        /// The end of patience.
        deadline: UnixMillis,
    },
    /// It is called off. Durable before the application starts again here.
    Aborted {
        /// Why.
        reason: String,
    },
    /// C1: the next epoch belongs to the destination. Durable before the grant is sent.
    Released {
        /// Which try.
        attempt: Attempt,
    },
    /// The destination says that it is the owner.
    Adopted,
    /// The destination serves clients.
    Served,
    /// The destination gave it back: the epoch after the next is this host's. Durable before
    /// the application starts again here.
    Reclaimed {
        /// Why.
        reason: String,
    },
    /// Nothing is left to do.
    Closed {
        /// What people are shown for ever after.
        report: Box<Migration>,
    },
}

/// What a destination promised to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reservation {
    /// The source.
    pub from: HostAddr,
    /// What comes.
    pub application: AppName,
    /// The source's epoch.
    pub epoch: Epoch,
    /// The deployment that asks for it.
    pub generation: DeploymentGeneration,
    /// How it is meant to run.
    pub spec: Application,
    /// Its volumes.
    pub volumes: Vec<OfferedVolume>,
    /// How it moves.
    pub limits: MigrationLimits,
}

/// A step on the destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationRecord {
    /// There is room; rounds may come.
    Reserved(Box<Reservation>),
    /// The final snapshots are all here: a promise to wait for the grant or an abort.
    Verified {
        /// Which try.
        attempt: Attempt,
        /// The snapshots.
        finals: Vec<FinalSnapshot>,
    },
    /// The next epoch is this host's. Durable before anything is mounted writable.
    Adopted,
    /// The same on an operator's word, in the place of a source that is fenced: there is no way
    /// back.
    Entrusted,
    /// Clients may be served. Durable before the gate opens; from now on there is no way back.
    Serving,
    /// It cannot be served here: the epoch after the next is the source's. Durable after the
    /// application was stopped here and before the source hears of it.
    Returned {
        /// Why.
        reason: String,
    },
    /// It was called off. Durable before what came is discarded.
    Dropped,
    /// Nothing is left to do.
    Closed,
}

#[cfg(test)]
pub(crate) mod tests;
