//! What the book keeps for each route.

use std::collections::HashMap;
use std::sync::Arc;

use proxyd_core::line::{Flow, Line, Ticket};
use proxyd_core::table::{Phase, Route};
use rehome_shared::api::proxy::RouteKey;
use tokio::sync::oneshot;

use super::connection::Stage;
use crate::metrics::{Metrics, RouteMeters};

pub(super) struct Lane {
    pub(super) line: Line,
    /// How to call those who wait in the line.
    pub(super) callers: HashMap<Ticket, oneshot::Sender<()>>,
    pub(super) held: u64,
    /// Of the held ones, those that wait for the gate or for the application.
    pub(super) parked: u64,
    pub(super) active: u64,
    pub(super) from_trunk: u64,
    pub(super) listen_error: Option<String>,
    pub(super) meters: Arc<RouteMeters>,
}

impl Lane {
    pub(super) fn new(key: RouteKey, metrics: &Metrics) -> Self {
        Self {
            line: Line::default(),
            callers: HashMap::new(),
            held: 0,
            parked: 0,
            active: 0,
            from_trunk: 0,
            listen_error: None,
            meters: Arc::new(metrics.route(key)),
        }
    }

    /// Counts connections that are there already.
    pub(super) fn with(mut self, alive: impl Iterator<Item = Stage>) -> Self {
        for stage in alive {
            let count = match stage {
                Stage::Relaying => &mut self.active,
                Stage::Connecting | Stage::Parked => &mut self.held,
            };
            *count = count.saturating_add(1);
        }
        self
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
    pub(super) fn call(&mut self, route: &Route) {
        while let Some(ticket) = self.line.next(flow(route)) {
            let called = self
                .callers
                .remove(&ticket)
                .is_some_and(|call| call.send(()).is_ok());
            if !called {
                self.line.leave(ticket);
            }
        }
    }

    pub(super) fn show(&self) {
        self.meters
            .active
            .set(i64::try_from(self.active).unwrap_or(i64::MAX));
        self.meters
            .parked
            .set(i64::try_from(self.parked).unwrap_or(i64::MAX));
    }
}

/// A closed gate lets its line move too: each one is then turned away.
pub(super) fn flow(route: &Route) -> Flow {
    match route.phase {
        Phase::Open(_) | Phase::Closed => Flow::May,
        Phase::Parked(_) => Flow::MustNot,
    }
}
