//! What is true now: routes, connections, counts. One short lock; never held across a wait.
//!
//! The data plane asks the book before each step of a connection ([`held::Held`],
//! [`active::Active`]), and the keeper publishes each new table here. Because both happen under
//! the same lock, a verb has taken effect for every connection when its publication returns:
//! after a *prepare* no connection can become active any more on the old way.
//!
//! The bytes themselves never touch the book.

pub(crate) mod active;
pub(crate) mod connection;
pub(crate) mod held;
mod lane;
pub(crate) mod orders;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proxyd_core::limits::{Full, Limits, Load, admit};
use proxyd_core::table::{Applied, Phase, Route, RouteTable};
use proxyd_core::tally::Tally;
use proxyd_core::way::Arrival;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::{AppName, HostAddr};
use tokio::sync::watch;

use crate::metrics::Metrics;
use connection::Connection;
use held::Held;
use lane::Lane;
use orders::Order;

/// Where a connection came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// On the external port.
    Client,
    /// Over the trunk, from another host.
    Trunk(Arrival),
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
    /// Counts the tables that were published.
    revision: watch::Sender<u64>,
    /// Ticks when a listener that waits for room should look again.
    room: watch::Sender<()>,
    pub(crate) metrics: Arc<Metrics>,
}

struct Inner {
    table: RouteTable,
    lanes: BTreeMap<RouteKey, Lane>,
    connections: HashMap<u64, Arc<Connection>>,
    tallies: HashMap<AppName, Tally>,
    limits: Limits,
    last_id: u64,
    /// Somebody was not admitted since the last tick of `room`.
    starved: bool,
}

impl Book {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                table: RouteTable::default(),
                lanes: BTreeMap::new(),
                connections: HashMap::new(),
                tallies: HashMap::new(),
                limits,
                last_id: 0,
                starved: false,
            }),
            revision: watch::Sender::new(0),
            room: watch::Sender::new(()),
            metrics,
        })
    }

    /// A copy of the table in force.
    pub(crate) fn table(&self) -> RouteTable {
        self.lock().table.clone()
    }

    /// This host, as `migrated` named it.
    pub(crate) fn host(&self) -> Option<HostAddr> {
        self.lock().table.host().cloned()
    }

    /// One route, as it is now.
    pub(crate) fn route(&self, key: RouteKey) -> Option<Route> {
        self.lock().table.route(key).cloned()
    }

    /// Whether a route's gate holds what comes.
    pub(crate) fn is_parked(&self, key: RouteKey) -> bool {
        let inner = self.lock();
        inner
            .table
            .route(key)
            .is_some_and(|route| matches!(route.phase, Phase::Parked(_)))
    }

    /// Tells of every published table.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Tells when there may be room again.
    pub(crate) fn room(&self) -> watch::Receiver<()> {
        self.room.subscribe()
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
        self.room.send_replace(());
    }

    /// Puts a table in force and lets those go who may go now.
    pub(crate) fn publish(&self, table: RouteTable) {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.table, table);
        let Inner {
            table,
            lanes,
            connections,
            tallies,
            ..
        } = &mut *inner;
        lanes.retain(|key, _| table.route(*key).is_some());
        tallies.retain(|application, _| table.of(application).next().is_some());
        for (key, route) in table.routes() {
            let lane = lanes.entry(*key).or_insert_with(|| {
                // A route that comes back finds the connections that outlived it.
                let alive = connections.values().filter(|c| c.route == *key);
                Lane::new(*key, &self.metrics).with(alive.map(|c| c.stage()))
            });
            let same = before.route(*key).is_some_and(|old| old.leads_as(route));
            if !same {
                lane.line.forgive();
                lane.call(route);
            }
        }
        let gone = before
            .routes()
            .keys()
            .filter(|key| table.route(**key).is_none());
        for key in gone {
            self.metrics.forget(*key);
        }
        self.metrics.show_routes(table);
        drop(inner);
        self.revision
            .send_modify(|count| *count = count.wrapping_add(1));
        self.room.send_replace(());
    }

    /// Begins a new count for an application: its gate was prepared.
    pub(crate) fn begin_tally(&self, application: &AppName) {
        let mut inner = self.lock();
        let held = inner.parked_of(application);
        let mut tally = Tally::default();
        (0..held).for_each(|_| tally.parked());
        inner.tallies.insert(application.clone(), tally);
    }

    /// Remembers why a route's port cannot be listened on, or that it can.
    pub(crate) fn set_listen_error(&self, key: RouteKey, error: Option<String>) {
        if let Some(lane) = self.lock().lanes.get_mut(&key) {
            lane.listen_error = error;
        }
    }

    /// Whether another connection may be accepted on a route.
    pub(crate) fn may_admit(&self, key: RouteKey) -> Result<(), NotAdmitted> {
        self.lock().may_admit(key)
    }

    /// Takes a connection in: it is held from now on.
    pub(crate) fn admit(
        self: &Arc<Self>,
        key: RouteKey,
        client: SocketAddr,
        destination: SocketAddr,
        origin: Origin,
    ) -> Result<Held, NotAdmitted> {
        let mut inner = self.lock();
        inner.may_admit(key)?;
        let (Some(route), Some(lane)) =
            (inner.table.route(key).cloned(), inner.lanes.get_mut(&key))
        else {
            return Err(NotAdmitted::NoRoute);
        };
        lane.held = lane.held.saturating_add(1);
        let meters = Arc::clone(&lane.meters);
        inner.last_id = inner.last_id.saturating_add(1);
        let id = inner.last_id;
        let application = route.application().cloned();
        let connection = Arc::new(Connection::new(
            id,
            key,
            application,
            client,
            destination,
            meters,
        ));
        inner.connections.insert(id, Arc::clone(&connection));
        drop(inner);
        Ok(Held::new(Arc::clone(self), connection, origin))
    }

    /// How many connections match.
    pub(crate) fn count(&self, pick: impl Fn(&Connection) -> bool) -> u64 {
        let inner = self.lock();
        let picked = inner
            .connections
            .values()
            .filter(|connection| pick(connection));
        u64::try_from(picked.count()).unwrap_or(u64::MAX)
    }

    /// Gives an order to every connection that matches; returns how many there were.
    pub(crate) fn order(&self, order: Order, pick: impl Fn(&Connection) -> bool) -> usize {
        let inner = self.lock();
        let picked = inner
            .connections
            .values()
            .filter(|connection| pick(connection));
        picked
            .map(|connection| connection.orders.give(order))
            .count()
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

impl Inner {
    fn may_admit(&mut self, key: RouteKey) -> Result<(), NotAdmitted> {
        let (Some(route), Some(lane)) = (self.table.route(key), self.lanes.get(&key)) else {
            return Err(NotAdmitted::NoRoute);
        };
        let load = Load {
            route_held: lane.held,
            route_active: lane.active,
            all: u64::try_from(self.connections.len()).unwrap_or(u64::MAX),
        };
        admit(&self.limits, &route.limits, &load).map_err(|full| {
            self.starved = true;
            NotAdmitted::Full(full)
        })
    }

    fn parked_of(&self, application: &AppName) -> u64 {
        let keys = self.table.of(application).map(|(key, _)| key);
        keys.filter_map(|key| self.lanes.get(&key))
            .map(|lane| lane.parked)
            .sum()
    }

    fn tally(&mut self, connection: &Connection) -> Option<&mut Tally> {
        let application = connection.application.clone()?;
        Some(self.tallies.entry(application).or_default())
    }

    fn oldest_park(&self, application: &AppName, now: Instant) -> std::time::Duration {
        let parked = self.connections.values().filter_map(|connection| {
            (connection.application.as_ref() == Some(application))
                .then(|| connection.parked_for(now))?
        });
        parked.max().unwrap_or_default()
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").finish_non_exhaustive()
    }
}

/// Says what a change of the table did, once, where people look.
pub(crate) fn log_applied(applied: &Applied) {
    if applied.changed() {
        tracing::info!(
            added = applied.added.len(),
            removed = applied.removed.len(),
            updated = applied.updated.len(),
            "routes changed"
        );
    }
    for stale in &applied.stale {
        let (key, offered, current) = (stale.key, stale.offered, stale.current);
        tracing::debug!(route = %key, %offered, %current, "a route that is not new was ignored");
    }
    for key in &applied.taken {
        tracing::warn!(route = %key, "the port belongs to a route of the configuration file");
    }
}
