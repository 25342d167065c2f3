//! The table as it is kept on disk, so that `proxyd` serves after a restart without anybody.
//!
//! A parked gate comes back parked: what happened meanwhile is for `migrated` to say. Routes
//! of the configuration file are not kept; the file has them.
//!
//! What is written are [`Record`]s, appended as the table changes. [`Saved`] is the whole table in
//! one piece, which was the form on disk before; it is still read.

mod record;

use std::sync::Arc;
use std::time::Duration;

use rehome_shared::api::proxy::{Announce, Content, ParkLimits, RouteKey, Target};
use rehome_shared::ids::{AppName, HostAddr, RouteVersion};
use serde::{Deserialize, Serialize};

use crate::table::{Owner, Parked, Phase, Route, RouteTable};

pub use record::{KIND, KeptRoute, Record};

/// The only form of a table in one piece.
pub const FORM: u32 = 1;

/// A table in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    form: u32,
    host: Option<HostAddr>,
    peers: Vec<HostAddr>,
    routes: Vec<SavedRoute>,
    resolved: Vec<SavedResolution>,
}

/// A kept table that this version cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// Written by another version.
    #[error("form {0} of the kept routes is unknown to this version")]
    Form(u32),
    /// A route is there twice.
    #[error("the route {0} is there twice")]
    Twice(RouteKey),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRoute {
    key: RouteKey,
    application: AppName,
    version: RouteVersion,
    phase: SavedPhase,
    limits: ParkLimits,
    #[serde(default, skip_serializing_if = "Content::is_bytes")]
    content: Content,
    #[serde(default, skip_serializing_if = "Announce::is_nothing")]
    announce: Announce,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum SavedPhase {
    Open(Target),
    Parked {
        before: Option<Target>,
        lease: Option<Duration>,
    },
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedResolution {
    application: AppName,
    version: RouteVersion,
}

impl From<&Phase> for SavedPhase {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Open(target) => Self::Open(target.clone()),
            Phase::Parked(Parked { before, lease }) => Self::Parked {
                before: before.clone(),
                lease: *lease,
            },
            Phase::Closed => Self::Closed,
        }
    }
}

impl From<SavedPhase> for Phase {
    fn from(phase: SavedPhase) -> Self {
        match phase {
            SavedPhase::Open(target) => Self::Open(target),
            SavedPhase::Parked { before, lease } => Self::Parked(Parked { before, lease }),
            SavedPhase::Closed => Self::Closed,
        }
    }
}

impl From<&RouteTable> for Saved {
    fn from(table: &RouteTable) -> Self {
        let keep = |(key, route): (&RouteKey, &Arc<Route>)| {
            Some(SavedRoute {
                key: *key,
                application: route.application()?.clone(),
                version: route.version,
                phase: (&route.phase).into(),
                limits: route.limits,
                content: route.content,
                announce: route.announce,
            })
        };
        let resolution = |(application, version): (&AppName, &RouteVersion)| SavedResolution {
            application: application.clone(),
            version: *version,
        };
        Self {
            form: FORM,
            host: table.host.clone(),
            peers: table.peers.iter().cloned().collect(),
            routes: table.routes().iter().filter_map(keep).collect(),
            resolved: table.resolved.iter().map(resolution).collect(),
        }
    }
}

impl TryFrom<Saved> for RouteTable {
    type Error = SavedError;

    fn try_from(saved: Saved) -> Result<Self, SavedError> {
        if saved.form != FORM {
            return Err(SavedError::Form(saved.form));
        }
        let mut table = Self {
            host: saved.host,
            peers: saved.peers.into_iter().collect(),
            resolved: saved
                .resolved
                .into_iter()
                .map(|r| (r.application, r.version))
                .collect(),
            ..Self::default()
        };
        for SavedRoute {
            key,
            application,
            version,
            phase,
            limits,
            content,
            announce,
        } in saved.routes
        {
            let route = Route {
                owner: Owner::Application(application),
                version,
                phase: phase.into(),
                limits,
                content,
                announce,
            };
            if table.routes.put(key, route).is_some() {
                return Err(SavedError::Twice(key));
            }
        }
        Ok(table)
    }
}
