//! What is true now: routes, connections, counts. One short lock; never held across a wait.
//!
//! The data plane asks the book before each step of a connection ([`held::Held`],
//! [`active::Active`]), and the keeper publishes each new table here. Because both happen under
//! the same lock, a verb has taken effect for every connection when its publication returns:
//! after a *prepare* no connection can become active any more on the old way.
//!
//! The bytes themselves never touch the book.

pub(crate) mod active;
mod adopt;
pub(crate) mod connection;
mod group;
pub(crate) mod held;
mod lane;
pub(crate) mod newcomer;
pub(crate) mod news;
pub(crate) mod orders;
pub(crate) mod status;
mod steady;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxyd_core::limits::{Full, Limits, Load, admit};
use proxyd_core::table::{Applied, Changes, Phase, Route, RouteTable};
use proxyd_core::tally::Tally;
use proxyd_core::way::Arrival;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::{AppName, HostAddr};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, RouteMeters};
pub(crate) use adopt::ByAge;
use adopt::Expected;
use connection::{Connection, Stage};
use group::Groups;
use held::{Held, Hold};
use lane::{Counts, Lane};
use news::{Board, News};
use orders::Order;

/// Where a connection came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// On the external port.
    Client,
    /// Over the trunk, from another host.
    Trunk(Box<Arrival>),
}

/// Why a connection cannot be taken in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// The route is gone.
    NoRoute,
    /// A limit is reached.
    Full(Full),
}

/// The shared state of the data plane.
pub(crate) struct Book {
    inner: Mutex<Inner>,
    /// Ticks when a listener that waits for room should look again.
    room: watch::Sender<()>,
    no_newcomers: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
}

struct Inner {
    host: Option<HostAddr>,
    /// By route, with what the keeper's table says of it.
    lanes: BTreeMap<RouteKey, Lane>,
    /// What is left of routes that are gone.
    outlived: HashMap<RouteKey, Counts>,
    groups: Groups,
    news: Board,
    limits: Limits,
    /// How many there are.
    connections: u64,
    /// How many of them are relayed.
    relayed: u64,
    last_id: u64,
    /// Somebody was not admitted since the last tick of `room`.
    starved: bool,
    expected: Expected,
}

impl Book {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                host: None,
                lanes: BTreeMap::new(),
                outlived: HashMap::new(),
                groups: Groups::default(),
                news: Board::default(),
                limits,
                connections: 0,
                relayed: 0,
                last_id: 0,
                starved: false,
                expected: Expected::default(),
            }),
            room: watch::Sender::new(()),
            no_newcomers: CancellationToken::new(),
            metrics,
        })
    }

    /// This host, as `migrated` named it.
    pub(crate) fn host(&self) -> Option<HostAddr> {
        self.lock().host.clone()
    }

    /// One route, as it is now.
    pub(crate) fn route(&self, key: RouteKey) -> Option<Arc<Route>> {
        let inner = self.lock();
        inner.lanes.get(&key).map(|lane| Arc::clone(&lane.route))
    }

    /// Whether a route's gate holds what comes.
    pub(crate) fn is_parked(&self, key: RouteKey) -> bool {
        let route = self.route(key);
        route.is_some_and(|route| matches!(route.phase, Phase::Parked(_)))
    }

    /// Whether a gate of the application holds what comes.
    pub(crate) fn parks(&self, application: &AppName) -> bool {
        self.lock().parks(application)
    }

    /// Tells of every change of a route from now on, known or not.
    pub(crate) fn news(&self, key: RouteKey) -> News {
        self.lock().news.of(key)
    }

    /// Tells when there may be room again.
    pub(crate) fn room(&self) -> watch::Receiver<()> {
        self.room.subscribe()
    }

    /// The meters of a route. Those of one that is gone are seen by nobody.
    pub(crate) fn meters(&self, key: RouteKey) -> Arc<RouteMeters> {
        let mut inner = self.lock();
        inner
            .lanes
            .get_mut(&key)
            .map(Lane::meters)
            .unwrap_or_default()
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        let mut inner = self.lock();
        inner.limits = limits;
        self.tell_room(inner);
    }

    /// Has listeners that were turned away look again.
    pub(crate) fn call_starved(&self) {
        self.tell_room(self.lock());
    }

    /// Puts what changed of a table in force and lets those go who may go now.
    pub(crate) fn publish(&self, table: &RouteTable, changes: &Changes) {
        let mut inner = self.lock();
        if changes.cluster {
            inner.host = table.host().cloned();
        }
        for key in changes.keys() {
            match table.route(key) {
                Some(route) => inner.lead(key, route),
                None => inner.close(key),
            }
            inner.news.tell(key);
        }
        // Other limits may let more in.
        self.tell_room(inner);
    }

    /// Begins a new count for an application: its gate was prepared.
    pub(crate) fn begin_tally(&self, application: &AppName) {
        let mut inner = self.lock();
        let held = inner.parked_of(application);
        if let Some(group) = inner.groups.find(Some(application)) {
            group.tally = Tally::default();
            (0..held).for_each(|_| group.tally.parked());
        }
    }

    /// Remembers why a route's port cannot be listened on, or that it can.
    pub(crate) fn set_listen_error(&self, key: RouteKey, error: Option<String>) {
        if let Some(lane) = self.lock().lanes.get_mut(&key) {
            lane.listen_error = error.map(Into::into);
        }
    }

    /// Whether another connection may be accepted on a route.
    pub(crate) fn may_admit(&self, key: RouteKey) -> Result<(), NotAdmitted> {
        self.lock().may_admit(key, &self.metrics)
    }

    /// Takes a connection in, if a limit does not forbid it: it is held from now on.
    pub(crate) fn admit(
        self: &Arc<Self>,
        key: RouteKey,
        client: SocketAddr,
        destination: SocketAddr,
        origin: Origin,
    ) -> Result<Held, NotAdmitted> {
        let mut inner = self.lock();
        inner.may_admit(key, &self.metrics)?;
        self.enter(inner, key, (client, destination), origin)
    }

    /// Takes a connection in that the kernel has completed already, whatever the limits: to turn
    /// it away now would be worse than one too many.
    pub(crate) fn admit_accepted(
        self: &Arc<Self>,
        key: RouteKey,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Held, NotAdmitted> {
        self.enter(self.lock(), key, (client, destination), Origin::Client)
    }

    fn enter(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner>,
        key: RouteKey,
        (client, destination): (SocketAddr, SocketAddr),
        origin: Origin,
    ) -> Result<Held, NotAdmitted> {
        inner.last_id = inner.last_id.saturating_add(1);
        let id = inner.last_id;
        let Some(lane) = inner.lanes.get_mut(&key) else {
            return Err(NotAdmitted::NoRoute);
        };
        lane.counts.held = lane.counts.held.saturating_add(1);
        let by = (key, Arc::clone(&lane.route));
        let connection = Connection::new(id, by, client, destination, lane.meters());
        let connection = Arc::new(connection);
        inner.connections = inner.connections.saturating_add(1);
        inner.groups.add(&connection);
        let mut hold = Hold::new(connection, origin);
        let first = hold.step(&mut inner);
        drop(inner);
        Ok(Held::new(Arc::clone(self), hold, first))
    }

    /// How many connections of a route wait to reach their application, or to be announced.
    pub(crate) fn held(&self, key: RouteKey) -> u64 {
        let inner = self.lock();
        inner.lanes.get(&key).map_or(0, |lane| lane.counts.held())
    }

    /// How many connections of an application match.
    pub(crate) fn count(&self, application: &AppName, pick: impl Fn(&Connection) -> bool) -> u64 {
        let inner = self.lock();
        let group = inner.groups.get(application);
        let connections = group
            .into_iter()
            .flat_map(|group| group.connections.values());
        let picked = connections.filter(|connection| pick(connection)).count();
        u64::try_from(picked).unwrap_or(u64::MAX)
    }

    /// Gives an order to every connection of an application that matches; returns how many there
    /// were.
    pub(crate) fn order(
        &self,
        application: &AppName,
        order: Order,
        pick: impl Fn(&Connection) -> bool,
    ) -> usize {
        let inner = self.lock();
        let group = inner.groups.get(application);
        let connections = group
            .into_iter()
            .flat_map(|group| group.connections.values());
        give(order, connections, pick)
    }

    /// Gives an order to every connection that matches.
    pub(crate) fn order_all(&self, order: Order, pick: impl Fn(&Connection) -> bool) {
        let inner = self.lock();
        give(order, inner.groups.connections(), pick);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under this lock leaves counts that are at worst off by one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells listeners that there is room, when one of them was turned away.
    fn tell_room(&self, mut inner: MutexGuard<'_, Inner>) {
        let starved = std::mem::take(&mut inner.starved);
        drop(inner);
        if starved {
            self.room.send_replace(());
        }
    }
}

fn give<'a>(
    order: Order,
    to: impl Iterator<Item = &'a Arc<Connection>>,
    pick: impl Fn(&Connection) -> bool,
) -> usize {
    let picked = to.filter(|connection| pick(connection));
    picked
        .map(|connection| connection.orders.give(order))
        .count()
}

impl Inner {
    /// A route is this one now.
    fn lead(&mut self, key: RouteKey, route: &Arc<Route>) {
        let Some(lane) = self.lanes.get_mut(&key) else {
            let counts = self.outlived.remove(&key).unwrap_or_default();
            self.groups.give(key, route.application());
            self.lanes.insert(key, Lane::new(Arc::clone(route), counts));
            return;
        };
        let before = std::mem::replace(&mut lane.route, Arc::clone(route));
        if !before.leads_as(route) {
            lane.line.forgive();
            lane.reached = false;
            lane.call();
        }
        if before.application() != route.application() {
            self.groups.take(key, before.application());
            self.groups.give(key, route.application());
        }
    }

    /// A route is no more. Who waits in its line hears of it by the loss of its caller.
    fn close(&mut self, key: RouteKey) {
        let Some(lane) = self.lanes.remove(&key) else {
            return;
        };
        self.groups.take(key, lane.route.application());
        if !lane.counts.is_none() {
            self.outlived.insert(key, lane.counts);
        }
    }

    fn may_admit(&mut self, key: RouteKey, metrics: &Metrics) -> Result<(), NotAdmitted> {
        let Some(lane) = self.lanes.get(&key) else {
            return Err(NotAdmitted::NoRoute);
        };
        let meters = lane.meters.as_ref();
        let expected = self.expected.of(key);
        let load = Load {
            route_held: lane.counts.held().saturating_add(expected.held),
            route_active: [lane.counts.active, lane.counts.resting, expected.active]
                .into_iter()
                .fold(0, u64::saturating_add),
            all: self.connections.saturating_add(self.expected.all()),
            route_unread: meters.map_or(0, |meters| meters.unread.load(Ordering::Relaxed)),
            unread: u64::try_from(metrics.parked_bytes.get()).unwrap_or(0),
        };
        admit(&self.limits, &lane.route.limits, &load).map_err(|full| {
            self.starved = true;
            NotAdmitted::Full(full)
        })
    }

    /// Changes the counts of a route, also of one that is gone.
    fn count(&mut self, key: RouteKey, change: impl FnOnce(&mut Counts)) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            change(&mut lane.counts);
        } else if let Some(counts) = self.outlived.get_mut(&key) {
            change(counts);
            if counts.is_none() {
                self.outlived.remove(&key);
            }
        }
    }

    /// Takes a connection out, and notes how it ended.
    fn forget(&mut self, connection: &Connection, note: impl FnOnce(&mut Tally)) {
        self.groups.remove(connection, note);
        self.connections = self.connections.saturating_sub(1);
    }

    fn lanes_of(&self, application: &AppName) -> impl Iterator<Item = &Lane> {
        let group = self.groups.get(application);
        let keys = group.into_iter().flat_map(|group| &group.routes);
        keys.filter_map(move |key| self.lanes.get(key))
    }

    /// Whether a connection that was reached by this route is led there still. What is gone,
    /// closed or another application's leads nobody elsewhere.
    fn leads_on(&self, connection: &Connection, by: &Route) -> bool {
        let Some(lane) = self.lanes.get(&connection.route) else {
            return true;
        };
        match &lane.route.phase {
            _ if lane.route.application() != connection.application() => true,
            Phase::Open(target) => by.phase.target() == Some(target),
            Phase::Parked(_) => false,
            Phase::Closed => true,
        }
    }

    /// A connection takes up another stage of those in which it has reached its application.
    fn shift(&mut self, connection: &Connection, to: Stage) {
        let rests = |stage| stage == Stage::Resting;
        let (before, now) = (rests(connection.stage()), rests(to));
        if before != now {
            self.count(connection.route, |counts| {
                let (less, more) = if now {
                    (&mut counts.active, &mut counts.resting)
                } else {
                    (&mut counts.resting, &mut counts.active)
                };
                *less = less.saturating_sub(1);
                *more = more.saturating_add(1);
            });
        }
        connection.set_stage(to);
    }

    fn parks(&self, application: &AppName) -> bool {
        let mut lanes = self.lanes_of(application);
        lanes.any(|lane| matches!(lane.route.phase, Phase::Parked(_)))
    }

    fn parked_of(&self, application: &AppName) -> u64 {
        let lanes = self.lanes_of(application);
        lanes.map(|lane| lane.counts.parked).sum()
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}

/// Says what became of a new desired set, once, where people look.
pub(crate) fn log_applied(applied: &Applied) {
    log_changes(&applied.changes);
    for stale in &applied.stale {
        let (key, offered, current) = (stale.key, stale.offered, stale.current);
        tracing::debug!(route = %key, %offered, %current, "a route that is not new was ignored");
    }
    for key in &applied.taken {
        tracing::warn!(route = %key, "the port belongs to a route of the configuration file");
    }
}

/// Says which routes changed, in number.
pub(crate) fn log_changes(changes: &Changes) {
    if changes.keys().next().is_some() {
        tracing::info!(
            added = changes.added.len(),
            removed = changes.removed.len(),
            updated = changes.updated.len(),
            "routes changed"
        );
    }
}
