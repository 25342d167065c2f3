//! A connection that is held: accepted, and no byte has flowed yet.
//!
//! It either becomes [`Active`] or ends. Dropping it takes it out of the book, so a task that
//! is aborted leaves nothing behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::line::{Flow, Retry, Ticket, Turn};
use proxyd_core::retry;
use proxyd_core::table::Route;
use proxyd_core::tally::{End, Tally};
use proxyd_core::way::{self, TrunkWay, Way};
use rehome_shared::api::proxy::Target;
use rehome_shared::ids::{HostAddr, RouteVersion};
use rehome_shared::trunk::Refusal;
use tokio::sync::oneshot;

use super::active::Active;
use super::connection::{Connection, Stage};
use super::news::News;
use super::{Book, Inner, Origin};
use crate::metrics::Metrics;

/// What a held connection does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Try this target; it is the connection's turn.
    Try(Attempt),
    /// Wait until called, then ask again.
    Wait(oneshot::Receiver<()>),
    /// Wait until the route changes, then ask again.
    WaitForNews(News),
    /// Turn it away.
    Leave(Leave),
}

/// A try to reach the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// The route that it goes by.
    pub(crate) by: Arc<Route>,
    /// Failed tries of the route before this one.
    pub(crate) failures: u32,
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
    /// Wait this long, or until the route changes, then ask again.
    For(Duration, News),
    /// Wait until called, then ask again.
    UntilCalled(oneshot::Receiver<()>),
}

/// A held connection.
#[derive(Debug)]
pub(crate) struct Held {
    book: Arc<Book>,
    hold: Hold,
    /// What it does first, found out when it was taken in.
    first: Option<Step>,
    /// How it ended, unless it became active.
    end: Option<End>,
    released: bool,
}

/// What the book knows of a held connection besides the connection itself.
#[derive(Debug)]
pub(super) struct Hold {
    connection: Arc<Connection>,
    origin: Origin,
    parked: bool,
    /// How long it may be held; absent where the route never moves.
    limit: Option<Duration>,
}

impl Held {
    pub(super) fn new(book: Arc<Book>, hold: Hold, first: Step) -> Self {
        Self {
            book,
            hold,
            first: Some(first),
            end: None,
            released: false,
        }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.hold.connection
    }

    pub(crate) fn book(&self) -> &Arc<Book> {
        &self.book
    }

    pub(crate) fn is_from_trunk(&self) -> bool {
        self.hold.origin != Origin::Client
    }

    /// Until when it may be held, as the last step found. `connect` is the limit of routes that
    /// never move.
    pub(crate) fn deadline(&self, connect: Duration) -> Instant {
        self.hold.connection.accepted + self.hold.limit.unwrap_or(connect)
    }

    /// Asks what to do next.
    pub(crate) fn step(&mut self) -> Step {
        match self.first.take() {
            Some(first) => first,
            None => self.hold.step(&mut self.book.lock()),
        }
    }

    /// A try failed: the connection counts as parked from now on.
    pub(crate) fn failed(&mut self) -> Pause {
        self.hold.failed(&mut self.book.lock())
    }

    /// The trunk took the connection over; others need not wait behind it. While the route is
    /// failing, only the answer says whether it works again.
    pub(crate) fn passed_on(&mut self) {
        let mut inner = self.book.lock();
        if let Some(lane) = inner.lanes.get_mut(&self.hold.connection.route)
            && lane.line.failures() == 0
        {
            lane.line.succeeded(self.hold.ticket());
            lane.call();
        }
    }

    /// Bytes may flow: true unless the gate changed since the attempt began. Then the upstream
    /// connection, which has not seen a byte, is to be dropped and the next step asked for.
    pub(crate) fn activate(mut self, attempt: &Attempt) -> Result<Active, Self> {
        let book = Arc::clone(&self.book);
        let mut inner = book.lock();
        if !self.hold.activate(&mut inner, attempt) {
            drop(inner);
            return Err(self);
        }
        self.hold.unpark(&mut inner, &book);
        self.released = true;
        book.tell_room(inner);
        let from_trunk = self.is_from_trunk();
        let connection = Arc::clone(&self.hold.connection);
        Ok(Active::new(book, connection, from_trunk))
    }

    /// It ended before a byte could flow.
    pub(crate) fn end(mut self, end: End) {
        self.end = Some(end);
    }
}

impl Hold {
    pub(super) fn new(connection: Arc<Connection>, origin: Origin) -> Self {
        Self {
            connection,
            origin,
            parked: false,
            limit: None,
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.connection.id)
    }

    /// What to do next.
    pub(super) fn step(&mut self, inner: &mut Inner) -> Step {
        let (ticket, key) = (self.ticket(), self.connection.route);
        let Some(lane) = inner.lanes.get_mut(&key) else {
            return Step::Leave(Leave::Refused(Refusal::UnknownRoute));
        };
        let route = Arc::clone(&lane.route);
        self.limit = route.may_move().then_some(route.limits.park_timeout);
        let heading = heading(&self.origin, &route);
        let (step, waits_for_gate) = match heading {
            Heading::Go => match lane.line.arrive(ticket, lane.flow()) {
                Turn::Go => {
                    let failures = lane.line.failures();
                    (
                        Step::Try(Attempt {
                            by: route,
                            failures,
                        }),
                        false,
                    )
                }
                Turn::Wait => (Step::Wait(lane.enlist(ticket)), lane.line.failures() > 0),
            },
            Heading::Hold if lane.flow() == Flow::MustNot => {
                // A parked gate lets nobody go, so this always waits.
                let _waits: Turn = lane.line.arrive(ticket, Flow::MustNot);
                (Step::Wait(lane.enlist(ticket)), true)
            }
            Heading::Hold => {
                lane.leave(ticket);
                (Step::WaitForNews(inner.news.of(key)), true)
            }
            Heading::Leave(leave) => {
                lane.leave(ticket);
                (Step::Leave(leave), false)
            }
        };
        lane.call();
        if waits_for_gate {
            self.park(inner);
        }
        step
    }

    fn failed(&mut self, inner: &mut Inner) -> Pause {
        let (ticket, key) = (self.ticket(), self.connection.route);
        let Some(lane) = inner.lanes.get_mut(&key) else {
            // The next step says that the route is gone.
            return Pause::For(Duration::ZERO, inner.news.of(key));
        };
        let pause = match lane.line.failed(ticket) {
            Retry::Again(failures) => Pause::For(retry::pause(failures), inner.news.of(key)),
            Retry::Wait => Pause::UntilCalled(lane.enlist(ticket)),
        };
        lane.call();
        self.park(inner);
        pause
    }

    /// Counts it among the relayed ones, unless its attempt led where the route does not lead.
    fn activate(&mut self, inner: &mut Inner, attempt: &Attempt) -> bool {
        let ticket = self.ticket();
        let Some(lane) = inner.lanes.get_mut(&self.connection.route) else {
            return false;
        };
        // Behind a trunk the owner's gate decides; here it is the only one.
        let target = attempt.by.phase.target();
        let local = matches!(target, Some(Target::Local { .. }));
        let unchanged =
            lane.route.version == attempt.by.version && lane.route.phase.target() == target;
        if local && !unchanged {
            lane.leave(ticket);
            return false;
        }
        lane.line.succeeded(ticket);
        lane.call();
        lane.counts.held = lane.counts.held.saturating_sub(1);
        lane.counts.active = lane.counts.active.saturating_add(1);
        if self.origin != Origin::Client {
            lane.counts.from_trunk = lane.counts.from_trunk.saturating_add(1);
        }
        inner.relayed = inner.relayed.saturating_add(1);
        self.connection.begin_to_flow();
        true
    }

    fn park(&mut self, inner: &mut Inner) {
        if self.parked {
            return;
        }
        self.parked = true;
        self.connection.set_stage(Stage::Parked);
        inner.count(self.connection.route, |counts| {
            counts.parked = counts.parked.saturating_add(1);
        });
        inner.groups.note(&self.connection, Tally::parked);
    }

    fn unpark(&mut self, inner: &mut Inner, book: &Book) {
        if !std::mem::take(&mut self.parked) {
            return;
        }
        let held = self.connection.accepted.elapsed();
        inner.count(self.connection.route, |counts| {
            counts.parked = counts.parked.saturating_sub(1);
        });
        let groups = &mut inner.groups;
        groups.note(&self.connection, |tally| tally.unparked(held));
        book.metrics.park_seconds.observe(held.as_secs_f64());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let end = self.end.unwrap_or(End::Stopped);
        let (connection, ticket) = (Arc::clone(&self.hold.connection), self.hold.ticket());
        let mut inner = self.book.lock();
        self.hold.unpark(&mut inner, &self.book);
        if let Some(lane) = inner.lanes.get_mut(&connection.route) {
            lane.leave(ticket);
            lane.call();
        }
        inner.count(connection.route, |counts| {
            counts.held = counts.held.saturating_sub(1);
        });
        inner.forget(&connection, |tally| tally.held_ended(end));
        self.book.tell_room(inner);
        Metrics::connection_ended(&connection, end);
    }
}

enum Heading {
    /// Where the route leads.
    Go,
    Hold,
    Leave(Leave),
}

fn heading(origin: &Origin, route: &Route) -> Heading {
    match origin {
        Origin::Client => match way::for_client(route) {
            Way::Go(_) => Heading::Go,
            Way::Hold => Heading::Hold,
            Way::Refuse => Heading::Leave(Leave::Refused(Refusal::Closed)),
        },
        Origin::Trunk(arrival) => match way::for_trunk(Some(route), arrival) {
            TrunkWay::Go(_) => Heading::Go,
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
