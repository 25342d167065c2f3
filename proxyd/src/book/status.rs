//! What the control API shows of the book.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use proxyd_core::table::Route;
use rehome_shared::api::proxy::{ConnectionsReply, GateCounts, RouteKey, RouteStatus, RoutesReply};
use rehome_shared::ids::AppName;

use super::Book;
use super::lane::Counts;
use crate::metrics::RouteMeters;

/// The most connections in one answer, as the API promises.
const SHOWN: usize = 10_000;

/// So many routes are looked at under one lock: connections need not wait for all of them.
const AT_ONCE: usize = 512;

/// A route at one moment.
#[derive(Debug)]
pub(crate) struct Glimpse {
    pub(crate) key: RouteKey,
    pub(crate) route: Arc<Route>,
    pub(crate) counts: Counts,
    pub(crate) listen_error: Option<Arc<str>>,
    /// Absent before the first connection.
    pub(crate) meters: Option<Arc<RouteMeters>>,
}

impl Book {
    /// Every route, each as it is at a moment of its own.
    pub(crate) fn glimpse(&self) -> Vec<Glimpse> {
        let mut seen: Vec<Glimpse> = Vec::new();
        loop {
            let before = seen.len();
            let after = seen
                .last()
                .map_or(Bound::Unbounded, |last| Bound::Excluded(last.key));
            let inner = self.lock();
            let lanes = inner.lanes.range((after, Bound::Unbounded)).take(AT_ONCE);
            seen.extend(lanes.map(|(key, lane)| Glimpse {
                key: *key,
                route: Arc::clone(&lane.route),
                counts: lane.counts,
                listen_error: lane.listen_error.clone(),
                meters: lane.meters.clone(),
            }));
            drop(inner);
            if seen.len() == before {
                return seen;
            }
        }
    }

    /// Every route as it is now.
    pub(crate) fn routes(&self) -> RoutesReply {
        let status = self.glimpse().into_iter().filter_map(|seen| {
            let Glimpse {
                key,
                route,
                counts,
                listen_error,
                ..
            } = seen;
            Some(RouteStatus {
                key,
                application: route.application().cloned().or_else(file_owner)?,
                version: route.version,
                gate: route.phase.gate(),
                target: route.phase.target().cloned(),
                listen_error: listen_error.map(|error| error.to_string()),
                active: counts.active,
                parked: counts.parked,
                from_trunk: counts.from_trunk,
                resting: counts.resting,
                content: route.content,
                fast_path: None,
            })
        });
        RoutesReply {
            routes: status.collect(),
        }
    }

    /// The counts of an application's gate.
    pub(crate) fn counts(&self, application: &AppName) -> GateCounts {
        let inner = self.lock();
        let Some(group) = inner.groups.get(application) else {
            return GateCounts::default();
        };
        let (active, parked) = inner
            .lanes_of(application)
            .fold((0, 0), |(active, parked), lane| {
                (active + lane.counts.active, parked + lane.counts.parked)
            });
        let now = Instant::now();
        let waits = group.connections.values();
        let oldest = waits
            .filter_map(|connection| connection.parked_for(now))
            .max();
        group
            .tally
            .counts(active, parked, oldest.unwrap_or_default())
    }

    /// How many connections are relayed, over all routes.
    #[cfg(test)]
    pub(crate) fn active(&self) -> u64 {
        self.lock().relayed
    }

    /// Live connections, the oldest first.
    pub(crate) fn connections(&self, route: Option<RouteKey>) -> ConnectionsReply {
        let inner = self.lock();
        let mut picked: Vec<_> = inner
            .groups
            .connections()
            .filter(|c| route.is_none_or(|route| c.route == route))
            .cloned()
            .collect();
        drop(inner);
        picked.sort_unstable_by_key(|connection| connection.id);
        ConnectionsReply {
            total: u64::try_from(picked.len()).unwrap_or(u64::MAX),
            connections: picked.iter().take(SHOWN).map(|c| c.info()).collect(),
        }
    }
}

/// What routes of the configuration file are listed under.
fn file_owner() -> Option<AppName> {
    AppName::try_new("static").ok()
}
