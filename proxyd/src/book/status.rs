//! What the control API shows of the book.

use std::time::Instant;

use rehome_shared::api::proxy::{ConnectionsReply, GateCounts, RouteKey, RouteStatus, RoutesReply};
use rehome_shared::ids::AppName;

use super::Book;

/// The most connections in one answer, as the API promises.
const SHOWN: usize = 10_000;

impl Book {
    /// Every route as it is now.
    pub(crate) fn routes(&self) -> RoutesReply {
        let inner = self.lock();
        let status = inner.table.routes().iter().filter_map(|(key, route)| {
            let lane = inner.lanes.get(key)?;
            Some(RouteStatus {
                key: *key,
                application: route.application().cloned().or_else(file_owner)?,
                version: route.version,
                gate: route.phase.gate(),
                target: route.phase.target().cloned(),
                listen_error: lane.listen_error.clone(),
                active: lane.active,
                parked: lane.parked,
                from_trunk: lane.from_trunk,
            })
        });
        RoutesReply {
            routes: status.collect(),
        }
    }

    /// The counts of an application's gate.
    pub(crate) fn counts(&self, application: &AppName) -> GateCounts {
        let inner = self.lock();
        let keys = inner.table.of(application).map(|(key, _)| key);
        let lanes = keys.filter_map(|key| inner.lanes.get(&key));
        let (active, parked) = lanes.fold((0, 0), |(active, parked), lane| {
            (active + lane.active, parked + lane.parked)
        });
        let oldest = inner.oldest_park(application, Instant::now());
        inner
            .tallies
            .get(application)
            .copied()
            .unwrap_or_default()
            .counts(active, parked, oldest)
    }

    /// How many connections are relayed, over all routes.
    pub(crate) fn active(&self) -> u64 {
        self.lock().lanes.values().map(|lane| lane.active).sum()
    }

    /// Live connections, the oldest first.
    pub(crate) fn connections(&self, route: Option<RouteKey>) -> ConnectionsReply {
        let inner = self.lock();
        let picked = inner.connections.values();
        let mut picked: Vec<_> = picked
            .filter(|c| route.is_none_or(|route| c.route == route))
            .cloned()
            .collect();
        drop(inner);
        picked.sort_unstable_by_key(|connection| connection.id);
        ConnectionsReply {
            connections: picked.iter().take(SHOWN).map(|c| c.info()).collect(),
        }
    }
}

/// What routes of the configuration file are listed under.
fn file_owner() -> Option<AppName> {
    AppName::try_new("static").ok()
}
