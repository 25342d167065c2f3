//! What the fast path asks the book, and tells it.

use std::net::SocketAddr;

use proxyd_core::tally::End;
use rehome_shared::api::proxy::{RouteKey, Target};
use rehome_shared::ids::AppName;

use super::Book;

impl Book {
    /// Whether a route leads to a target of this host of which this holds, nobody waits for it,
    /// and somebody has reached it since it leads there. Datagrams reach whoever is there.
    pub(crate) fn is_steady(&self, key: RouteKey, holds: impl Fn(SocketAddr) -> bool) -> bool {
        let inner = self.lock();
        let Some(lane) = inner.lanes.get(&key) else {
            return false;
        };
        let Some(Target::Local { addr }) = lane.route.phase.target() else {
            return false;
        };
        let served = lane.listen_error.is_none() && (lane.reached || key.is_udp());
        served && lane.counts.held == 0 && holds(*addr)
    }

    /// Somebody has to reach the target anew before the route is steady.
    pub(crate) fn doubt(&self, key: RouteKey) {
        if let Some(lane) = self.lock().lanes.get_mut(&key) {
            lane.reached = false;
        }
    }

    /// The routes of an application.
    pub(crate) fn keys(&self, application: &AppName) -> Vec<RouteKey> {
        let inner = self.lock();
        let group = inner.groups.get(application).into_iter();
        group
            .flat_map(|group| group.routes.iter().copied())
            .collect()
    }

    /// Notes how flows ended that only the kernel has seen.
    pub(crate) fn note_flows(&self, application: &AppName, end: End, flows: u64) {
        let mut inner = self.lock();
        if let Some(group) = inner.groups.find(Some(application)) {
            (0..flows).for_each(|_| group.tally.relay_ended(end));
        }
    }
}
