//! What an accident left on the hosts: `GET /v1/gc` lists it, `POST /v1/gc` removes it, and each
//! host is asked by `GET` and `POST /peer/v1/gc`.

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, DatasetId, HostAddr};
use crate::units::Bytes;

/// The answer of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Host by host.
    pub hosts: Vec<HostGarbage>,
}

/// What one host found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGarbage {
    /// Which.
    pub host: HostAddr,
    /// Why it could not be looked at, or not all of it.
    pub problem: Option<String>,
    /// What nobody needs.
    pub garbage: Vec<Item>,
    /// What may be garbage, and why that is not certain now. It is kept.
    pub doubts: Vec<String>,
}

/// Something that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// The application, where it is known.
    pub application: Option<AppName>,
    /// The volume that it is, or is of.
    pub dataset: Option<DatasetId>,
    /// Its name: of a snapshot, a volume or an instance.
    pub name: String,
    /// What removing it frees.
    pub bytes: Bytes,
    /// Why nobody needs it.
    pub why: String,
    /// Whether it was removed.
    pub removed: bool,
    /// Why it could not be removed.
    pub error: Option<String>,
}

/// Kinds of garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A snapshot that was made for a migration.
    Snapshot,
    /// Part of a snapshot that was being received.
    Partial,
    /// A volume that was received and never became the host's.
    Volume,
    /// An instance of an application that is not the host's.
    Instance,
}

impl Kind {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Partial => "partial",
            Self::Volume => "volume",
            Self::Instance => "instance",
        }
    }
}
