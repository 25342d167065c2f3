//! A connection that is held: accepted, and no byte has flowed yet, or none of the next request of
//! an HTTP connection.
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
use super::lane::Counts;
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
    /// Turn it away. Boxed: it is large and rare.
    Leave(Box<Leave>),
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
    /// It goes on in another process: nothing ended.
    departed: bool,
}

/// What the book knows of a held connection besides the connection itself.
#[derive(Debug)]
pub(super) struct Hold {
    connection: Arc<Connection>,
    origin: Origin,
    visit: Visit,
    ticket: Ticket,
    /// Since when it waits.
    since: Instant,
    parked: bool,
    /// How long it may be held; absent where the route never moves.
    limit: Option<Duration>,
}

/// Whether a connection was held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    First,
    /// It was, and reached its application: it takes no place of those that are held.
    Again,
}

impl Held {
    pub(super) fn new(book: Arc<Book>, hold: Hold, first: Step) -> Self {
        Self {
            book,
            hold,
            first: Some(first),
            end: None,
            released: false,
            departed: false,
        }
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.hold.origin
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.hold.parked
    }

    /// Another process has it now.
    pub(crate) fn depart(mut self) {
        self.departed = true;
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
        self.hold.since + self.hold.limit.unwrap_or(connect)
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
            lane.line.succeeded(self.hold.ticket);
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
        let origin = self.hold.origin.clone();
        let connection = Arc::clone(&self.hold.connection);
        Ok(Active::new(
            book,
            connection,
            origin,
            Arc::clone(&attempt.by),
        ))
    }

    /// One that was held again stops waiting, and rests without a way to its application.
    pub(crate) fn back(mut self) -> Active {
        let (connection, ticket) = (Arc::clone(&self.hold.connection), self.hold.ticket);
        let book = Arc::clone(&self.book);
        let mut inner = book.lock();
        self.released = true;
        if self.hold.parked {
            connection.interrupt_wait();
        }
        self.hold.depart(&mut inner);
        if let Some(lane) = inner.lanes.get_mut(&connection.route) {
            lane.leave(ticket);
            lane.call();
        }
        inner.relayed = inner.relayed.saturating_add(1);
        connection.set_stage(Stage::Resting);
        connection.set_upstream(None);
        drop(inner);
        let (origin, by) = (self.hold.origin.clone(), Arc::clone(connection.by()));
        Active::new(book, connection, origin, by)
    }

    /// It ended before a byte could flow.
    pub(crate) fn end(mut self, end: End) {
        self.end = Some(end);
    }
}

impl Hold {
    pub(super) fn new(connection: Arc<Connection>, origin: Origin) -> Self {
        Self {
            ticket: Ticket(connection.id),
            since: connection.accepted,
            connection,
            origin,
            visit: Visit::First,
            parked: false,
            limit: None,
        }
    }

    /// One that another proxy held, and counted as parked or not.
    pub(super) fn adopted(connection: Arc<Connection>, origin: Origin, parked: bool) -> Self {
        Self {
            parked,
            ..Self::new(connection, origin)
        }
    }

    /// One that has reached its application before, and stands in line behind who came meanwhile.
    /// One whose waiting was interrupted has waited, and was counted as parked, since then.
    pub(super) fn again(
        inner: &mut Inner,
        connection: Arc<Connection>,
        origin: Origin,
        since: Option<Instant>,
    ) -> Self {
        inner.last_id = inner.last_id.saturating_add(1);
        if since.is_some() {
            connection.set_stage(Stage::Parked);
            inner.count(connection.route, |counts| {
                counts.parked = counts.parked.saturating_add(1);
            });
        }
        Self {
            ticket: Ticket(inner.last_id),
            since: since.unwrap_or_else(Instant::now),
            visit: Visit::Again,
            parked: since.is_some(),
            ..Self::new(connection, origin)
        }
    }

    /// What to do next.
    pub(super) fn step(&mut self, inner: &mut Inner) -> Step {
        let (ticket, key) = (self.ticket, self.connection.route);
        let Some(lane) = inner.lanes.get_mut(&key) else {
            return Step::Leave(Box::new(Leave::Refused(Refusal::UnknownRoute)));
        };
        let route = Arc::clone(&lane.route);
        self.limit = route.may_move().then_some(route.limits.park_timeout);
        let heading = self.heading(&route);
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
                (Step::Leave(Box::new(leave)), false)
            }
        };
        lane.call();
        if waits_for_gate {
            self.park(inner);
        }
        step
    }

    fn failed(&mut self, inner: &mut Inner) -> Pause {
        let (ticket, key) = (self.ticket, self.connection.route);
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
        let ticket = self.ticket;
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
        lane.reached = true;
        lane.call();
        if self.visit == Visit::First {
            self.enter(&mut lane.counts);
        }
        inner.relayed = inner.relayed.saturating_add(1);
        self.connection.begin_to_flow();
        true
    }

    /// Counts it among those that have reached their application, for the first time.
    fn enter(&self, counts: &mut Counts) {
        counts.held = counts.held.saturating_sub(1);
        let of = if self.connection.is_http() {
            &mut counts.resting
        } else {
            &mut counts.active
        };
        *of = of.saturating_add(1);
        if self.origin != Origin::Client {
            counts.from_trunk = counts.from_trunk.saturating_add(1);
        }
    }

    /// Counts it no longer.
    fn leave(&self, counts: &mut Counts) {
        match self.visit {
            Visit::First => counts.held = counts.held.saturating_sub(1),
            Visit::Again => {
                counts.resting = counts.resting.saturating_sub(1);
                if self.origin != Origin::Client {
                    counts.from_trunk = counts.from_trunk.saturating_sub(1);
                }
            }
        }
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

    /// It waits on, but not here.
    fn depart(&mut self, inner: &mut Inner) {
        if std::mem::take(&mut self.parked) {
            inner.count(self.connection.route, |counts| {
                counts.parked = counts.parked.saturating_sub(1);
            });
        }
    }

    fn unpark(&mut self, inner: &mut Inner, book: &Book) {
        if !std::mem::take(&mut self.parked) {
            return;
        }
        let held = self.since.elapsed();
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
        let (connection, ticket) = (Arc::clone(&self.hold.connection), self.hold.ticket);
        let mut inner = self.book.lock();
        if self.departed {
            self.hold.depart(&mut inner);
        } else {
            self.hold.unpark(&mut inner, &self.book);
        }
        if let Some(lane) = inner.lanes.get_mut(&connection.route) {
            lane.leave(ticket);
            lane.call();
        }
        inner.count(connection.route, |counts| self.hold.leave(counts));
        if self.departed {
            inner.forget(&connection, |_| {});
            return self.book.tell_room(inner);
        }
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

impl Hold {
    fn heading(&self, route: &Route) -> Heading {
        match (self.visit, &self.origin) {
            (Visit::First, Origin::Client) => way::for_client(route).into(),
            (Visit::First, Origin::Trunk(arrival)) => way::for_trunk(Some(route), arrival).into(),
            (Visit::Again, _) => way::for_next(route, self.connection.application()).into(),
        }
    }
}

impl From<Way<'_>> for Heading {
    fn from(way: Way<'_>) -> Self {
        match way {
            Way::Go(_) => Self::Go,
            Way::Hold => Self::Hold,
            Way::Refuse => Self::Leave(Leave::Refused(Refusal::Closed)),
        }
    }
}

impl From<TrunkWay> for Heading {
    fn from(way: TrunkWay) -> Self {
        match way {
            TrunkWay::Go(_) => Self::Go,
            TrunkWay::Hold => Self::Hold,
            TrunkWay::Refuse(refusal) => Self::Leave(Leave::Refused(refusal)),
            TrunkWay::Moved {
                host,
                trunk,
                version,
            } => Self::Leave(Leave::Moved {
                host,
                trunk,
                version,
            }),
        }
    }
}
