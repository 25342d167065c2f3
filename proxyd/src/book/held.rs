//! A connection that is held: accepted, and no byte has flowed yet.
//!
//! It either becomes [`Active`] or ends. Dropping it takes it out of the book, so a task that
//! is aborted leaves nothing behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::line::{Retry, Ticket, Turn};
use proxyd_core::retry;
use proxyd_core::table::{Phase, Route};
use proxyd_core::tally::End;
use proxyd_core::way::{self, TrunkWay, Way};
use rehome_shared::api::proxy::Target;
use rehome_shared::ids::{HostAddr, RouteVersion};
use rehome_shared::trunk::Refusal;
use tokio::sync::oneshot;

use super::active::Active;
use super::connection::{Connection, Stage};
use super::lane::flow;
use super::{Book, Inner, Origin};

/// What a held connection does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Try this target; it is the connection's turn.
    Try(Attempt),
    /// Wait until called, then ask again.
    Wait(oneshot::Receiver<()>),
    /// Wait until another table is published, then ask again.
    WaitForNews,
    /// Turn it away.
    Leave(Leave),
}

/// A try to reach the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) target: Target,
    /// The version of the route that it goes by.
    pub(crate) version: RouteVersion,
    /// Failed tries of the route before this one.
    pub(crate) failures: u32,
    /// Whether the application may be on its way.
    pub(crate) may_move: bool,
}

/// Why a connection is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leave {
    Refused(Refusal),
    Moved {
        host: HostAddr,
        trunk: String,
        version: RouteVersion,
    },
}

/// What a held connection does after a failed try.
#[derive(Debug)]
pub(crate) enum Pause {
    /// Wait this long, then ask again.
    For(Duration),
    /// Wait until called, then ask again.
    UntilCalled(oneshot::Receiver<()>),
}

/// A held connection.
#[derive(Debug)]
pub(crate) struct Held {
    book: Arc<Book>,
    connection: Arc<Connection>,
    origin: Origin,
    parked: bool,
    /// How it ended, unless it became active.
    end: Option<End>,
    released: bool,
}

impl Held {
    pub(super) fn new(book: Arc<Book>, connection: Arc<Connection>, origin: Origin) -> Self {
        Self {
            book,
            connection,
            origin,
            parked: false,
            end: None,
            released: false,
        }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(crate) fn book(&self) -> &Arc<Book> {
        &self.book
    }

    pub(crate) fn is_from_trunk(&self) -> bool {
        self.origin != Origin::Client
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.connection.id)
    }

    /// Until when it may be held. `connect` is the limit of routes that never move.
    pub(crate) fn deadline(&self, connect: Duration) -> Instant {
        let inner = self.book.lock();
        let limit = inner
            .table
            .route(self.connection.route)
            .map_or(connect, |route| {
                if route.may_move() {
                    route.limits.park_timeout
                } else {
                    connect
                }
            });
        self.connection.accepted + limit
    }

    /// Asks what to do next.
    pub(crate) fn step(&mut self) -> Step {
        let ticket = self.ticket();
        let book = Arc::clone(&self.book);
        let mut guard = book.lock();
        let Inner { table, lanes, .. } = &mut *guard;
        let (Some(route), Some(lane)) = (
            table.route(self.connection.route),
            lanes.get_mut(&self.connection.route),
        ) else {
            return Step::Leave(Leave::Refused(Refusal::UnknownRoute));
        };
        let heading = self.heading(route);
        let (step, waits_for_gate) = match heading {
            Heading::Go(target) => match lane.line.arrive(ticket, flow(route)) {
                Turn::Go => {
                    let (version, may_move) = (route.version, route.may_move());
                    let failures = lane.line.failures();
                    (
                        Step::Try(Attempt {
                            target,
                            version,
                            failures,
                            may_move,
                        }),
                        false,
                    )
                }
                Turn::Wait => (Step::Wait(lane.enlist(ticket)), lane.line.failures() > 0),
            },
            Heading::Hold if matches!(route.phase, Phase::Parked(_)) => {
                // A parked gate lets nobody go, so this always waits.
                let _waits: Turn = lane.line.arrive(ticket, flow(route));
                (Step::Wait(lane.enlist(ticket)), true)
            }
            Heading::Hold => {
                lane.leave(ticket);
                (Step::WaitForNews, true)
            }
            Heading::Leave(leave) => {
                lane.leave(ticket);
                (Step::Leave(leave), false)
            }
        };
        lane.call(route);
        if waits_for_gate {
            self.park(&mut guard);
        }
        step
    }

    fn heading(&self, route: &Route) -> Heading {
        match &self.origin {
            Origin::Client => match way::for_client(route) {
                Way::Go(target) => Heading::Go(target),
                Way::Hold => Heading::Hold,
                Way::Refuse => Heading::Leave(Leave::Refused(Refusal::Closed)),
            },
            Origin::Trunk(arrival) => match way::for_trunk(Some(route), arrival) {
                TrunkWay::Go(addr) => Heading::Go(Target::Local { addr }),
                TrunkWay::Hold => Heading::Hold,
                TrunkWay::Refuse(refusal) => Heading::Leave(Leave::Refused(refusal)),
                TrunkWay::Moved {
                    host,
                    trunk,
                    version,
                } => Heading::Leave(Leave::Moved {
                    host,
                    trunk,
                    version,
                }),
            },
        }
    }

    /// A try failed: the connection counts as parked from now on.
    pub(crate) fn failed(&mut self) -> Pause {
        let ticket = self.ticket();
        let book = Arc::clone(&self.book);
        let mut guard = book.lock();
        let Inner { table, lanes, .. } = &mut *guard;
        let key = self.connection.route;
        let (Some(route), Some(lane)) = (table.route(key), lanes.get_mut(&key)) else {
            // The next step says that the route is gone.
            return Pause::For(Duration::ZERO);
        };
        let pause = match lane.line.failed(ticket) {
            Retry::Again(failures) => Pause::For(retry::pause(failures)),
            Retry::Wait => Pause::UntilCalled(lane.enlist(ticket)),
        };
        lane.call(route);
        self.park(&mut guard);
        pause
    }

    /// The trunk took the connection over; others need not wait behind it. While the route is
    /// failing, only the answer says whether it works again.
    pub(crate) fn passed_on(&mut self) {
        let ticket = self.ticket();
        let mut guard = self.book.lock();
        let Inner { table, lanes, .. } = &mut *guard;
        let key = self.connection.route;
        if let (Some(route), Some(lane)) = (table.route(key), lanes.get_mut(&key))
            && lane.line.failures() == 0
        {
            lane.line.succeeded(ticket);
            lane.call(route);
        }
    }

    /// Bytes may flow: true unless the gate changed since the attempt began. Then the upstream
    /// connection, which has not seen a byte, is to be dropped and the next step asked for.
    pub(crate) fn activate(mut self, attempt: &Attempt) -> Result<Active, Self> {
        let ticket = self.ticket();
        let book = Arc::clone(&self.book);
        let mut guard = book.lock();
        let inner = &mut *guard;
        let key = self.connection.route;
        let (Some(route), Some(lane)) = (inner.table.route(key), inner.lanes.get_mut(&key)) else {
            drop(guard);
            return Err(self);
        };
        // Behind a trunk the owner's gate decides; here it is the only one.
        let local = matches!(attempt.target, Target::Local { .. });
        let unchanged =
            route.version == attempt.version && route.phase.target() == Some(&attempt.target);
        if local && !unchanged {
            lane.leave(ticket);
            drop(guard);
            return Err(self);
        }
        lane.line.succeeded(ticket);
        lane.call(route);
        lane.held = lane.held.saturating_sub(1);
        lane.active = lane.active.saturating_add(1);
        if self.is_from_trunk() {
            lane.from_trunk = lane.from_trunk.saturating_add(1);
        }
        lane.show();
        self.unpark(inner);
        self.connection.set_stage(Stage::Relaying);
        self.connection.touch();
        self.released = true;
        book.tell_room(guard);
        let active = Active::new(
            Arc::clone(&book),
            Arc::clone(&self.connection),
            self.is_from_trunk(),
        );
        Ok(active)
    }

    /// It ended before a byte could flow.
    pub(crate) fn end(mut self, end: End) {
        self.end = Some(end);
    }

    fn park(&mut self, inner: &mut Inner) {
        if self.parked {
            return;
        }
        self.parked = true;
        self.connection.set_stage(Stage::Parked);
        if let Some(lane) = inner.lanes.get_mut(&self.connection.route) {
            lane.parked = lane.parked.saturating_add(1);
            lane.show();
        }
        if let Some(tally) = inner.tally(&self.connection) {
            tally.parked();
        }
    }

    fn unpark(&mut self, inner: &mut Inner) {
        if !std::mem::take(&mut self.parked) {
            return;
        }
        let held = self.connection.accepted.elapsed();
        if let Some(lane) = inner.lanes.get_mut(&self.connection.route) {
            lane.parked = lane.parked.saturating_sub(1);
            lane.show();
        }
        if let Some(tally) = inner.tally(&self.connection) {
            tally.unparked(held);
        }
        self.book.metrics.park_seconds.observe(held.as_secs_f64());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let end = self.end.unwrap_or(End::Stopped);
        let book = Arc::clone(&self.book);
        let mut guard = book.lock();
        let inner = &mut *guard;
        self.unpark(inner);
        let (key, ticket) = (self.connection.route, self.ticket());
        inner.connections.remove(&self.connection.id);
        if let Some(lane) = inner.lanes.get_mut(&key) {
            lane.leave(ticket);
            lane.held = lane.held.saturating_sub(1);
            if let Some(route) = inner.table.route(key) {
                lane.call(route);
            }
            lane.show();
        }
        if let Some(tally) = inner.tally(&self.connection) {
            tally.held_ended(end);
        }
        book.tell_room(guard);
        book.metrics.connection_ended(&self.connection, end);
    }
}

enum Heading {
    Go(Target),
    Hold,
    Leave(Leave),
}
