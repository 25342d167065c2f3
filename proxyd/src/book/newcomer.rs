//! A client that was accepted and is not known yet: who it is stands in a header in front of its
//! bytes. It has a place among those that are held, so that limits hold for it too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::tally::End;
use rehome_shared::api::proxy::RouteKey;

use super::connection::Stage;
use super::held::Held;
use super::{Book, Inner, NotAdmitted, Origin};
use crate::metrics::{Metrics, RouteMeters};

/// A place for a client that is not known yet. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Newcomer {
    book: Arc<Book>,
    route: RouteKey,
    since: Instant,
    /// Its place is given back, or is a connection's.
    gone: bool,
}

impl Book {
    /// Gives a place to a client that was just accepted, whatever the limits.
    pub(crate) fn expect(self: &Arc<Self>, route: RouteKey) -> Result<Newcomer, NotAdmitted> {
        let mut inner = self.lock();
        if !inner.lanes.contains_key(&route) {
            return Err(NotAdmitted::NoRoute);
        }
        inner.expect_newcomer(route);
        drop(inner);
        Ok(self.newcomer(route, Duration::ZERO))
    }

    /// Gives a place to one that another process has accepted, and that has waited there.
    pub(crate) fn adopt_newcomer(self: &Arc<Self>, route: RouteKey, waited: Duration) -> Newcomer {
        let mut inner = self.lock();
        inner.expected.came(route, Stage::Connecting);
        inner.expect_newcomer(route);
        drop(inner);
        self.newcomer(route, waited)
    }

    fn newcomer(self: &Arc<Self>, route: RouteKey, waited: Duration) -> Newcomer {
        let now = Instant::now();
        Newcomer {
            book: Arc::clone(self),
            route,
            since: now.checked_sub(waited).unwrap_or(now),
            gone: false,
        }
    }

    /// Newcomers are turned away from now on.
    pub(crate) fn turn_newcomers_away(&self) {
        self.no_newcomers.cancel();
    }

    /// Waits until newcomers are turned away.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn turns_newcomers_away(&self) {
        self.no_newcomers.cancelled().await;
    }
}

impl Newcomer {
    pub(crate) fn route(&self) -> RouteKey {
        self.route
    }

    /// When it was accepted.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// The meters of its route.
    pub(crate) fn meters(&self) -> Arc<RouteMeters> {
        self.book.meters(self.route)
    }

    /// It is known: takes its connection in.
    pub(crate) fn admit(
        mut self,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Held, NotAdmitted> {
        let book = Arc::clone(&self.book);
        let mut inner = book.lock();
        if !inner.lanes.contains_key(&self.route) {
            // Its place is given back as it is dropped.
            drop(inner);
            Metrics::newcomer_ended(&self, None, (End::Refused, None));
            return Err(NotAdmitted::NoRoute);
        }
        inner.forget_newcomer(self.route);
        self.gone = true;
        book.enter(inner, self.route, (client, destination), Origin::Client)
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if !self.gone {
            let mut inner = self.book.lock();
            inner.forget_newcomer(self.route);
            self.book.tell_room(inner);
        }
    }
}

impl Inner {
    fn expect_newcomer(&mut self, route: RouteKey) {
        if !self.lanes.contains_key(&route) {
            self.outlived.entry(route).or_default();
        }
        self.count(route, |counts| {
            counts.newcomers = counts.newcomers.saturating_add(1);
        });
        self.connections = self.connections.saturating_add(1);
    }

    fn forget_newcomer(&mut self, route: RouteKey) {
        self.count(route, |counts| {
            counts.newcomers = counts.newcomers.saturating_sub(1);
        });
        self.connections = self.connections.saturating_sub(1);
    }
}
