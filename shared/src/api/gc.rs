//! What an accident left on the hosts: `GET /v1/gc` lists it, `POST /v1/gc` removes it, and each
//! host is asked by `GET` and `POST /peer/v1/gc`. Diverged copies are listed and stay; with
//! `?diverged=APPLICATION` only those of one application are meant, by either verb.

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
    /// What was written there by who was not the owner any more. It is kept for people until they
    /// ask for its removal.
    #[serde(default)]
    pub diverged: Vec<Item>,
}

/// What is meant, beside garbage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meant {
    /// Only the diverged copies of this application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<AppName>,
}

impl Meant {
    /// A path with this as its query.
    #[must_use]
    pub fn at(&self, path: &str) -> String {
        match &self.diverged {
            None => path.to_owned(),
            // A name needs no escapes.
            Some(application) => format!("{path}?diverged={application}"),
        }
    }
}

/// Something that nobody needs, or a diverged copy.
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
    /// Why nobody needs it, or what it is.
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
    /// A live tree that was written to by who was not the owner any more.
    Diverged,
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
            Self::Diverged => "diverged copy",
        }
    }
}
