//! What the book keeps for each route.

use std::collections::HashMap;
use std::sync::Arc;

use proxyd_core::line::{Flow, Line, Ticket};
use proxyd_core::table::{Phase, Route};
use tokio::sync::oneshot;

use crate::metrics::RouteMeters;

/// The connections of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Not yet relayed.
    pub(crate) held: u64,
    /// Accepted, and not announced yet.
    pub(crate) newcomers: u64,
    /// Of the held ones, those that wait for the gate or for the application.
    pub(crate) parked: u64,
    pub(crate) active: u64,
    pub(crate) from_trunk: u64,
    /// HTTP connections without a request in flight, also while their next one waits.
    pub(crate) resting: u64,
}

impl Counts {
    /// Those that take a place of the held ones.
    pub(super) fn held(&self) -> u64 {
        self.held.saturating_add(self.newcomers)
    }

    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) route: Arc<Route>,
    pub(super) line: Line,
    /// How to call those who wait in the line.
    pub(super) callers: HashMap<Ticket, oneshot::Sender<()>>,
    pub(super) counts: Counts,
    pub(super) listen_error: Option<Arc<str>>,
    /// Somebody has reached the target since the route leads there.
    pub(super) reached: bool,
    /// Made for the first connection: most of many routes never have one.
    pub(super) meters: Option<Arc<RouteMeters>>,
}

impl Lane {
    /// A lane; a route that comes back finds the connections that outlived it.
    pub(super) fn new(route: Arc<Route>, counts: Counts) -> Self {
        Self {
            route,
            line: Line::default(),
            callers: HashMap::new(),
            counts,
            listen_error: None,
            reached: false,
            meters: None,
        }
    }

    pub(super) fn meters(&mut self) -> Arc<RouteMeters> {
        Arc::clone(self.meters.get_or_insert_default())
    }

    /// Waits in the line until called.
    pub(super) fn enlist(&mut self, ticket: Ticket) -> oneshot::Receiver<()> {
        let (call, called) = oneshot::channel();
        self.callers.insert(ticket, call);
        called
    }

    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.line.leave(ticket);
        self.callers.remove(&ticket);
    }

    /// Calls those who may try now.
    pub(super) fn call(&mut self) {
        let flow = self.flow();
        while let Some(ticket) = self.line.next(flow) {
            let called = self
                .callers
                .remove(&ticket)
                .is_some_and(|call| call.send(()).is_ok());
            if !called {
                self.line.leave(ticket);
            }
        }
    }

    /// A closed gate lets its line move too: each one is then turned away.
    pub(super) fn flow(&self) -> Flow {
        match self.route.phase {
            Phase::Open(_) | Phase::Closed => Flow::May,
            Phase::Parked(_) => Flow::MustNot,
        }
    }
}
