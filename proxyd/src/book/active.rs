//! A connection that has reached its application. Dropping it takes it out of the book.
//!
//! That of an HTTP connection also says when a request may begin: under the lock of the book, so
//! that none begins on the old way once a verb has taken effect.

use std::sync::Arc;

use proxyd_core::table::Route;
use proxyd_core::tally::End;

use super::connection::{Connection, Stage};
use super::held::{Held, Hold};
use super::orders::Order;
use super::{Book, Origin};
use crate::metrics::Metrics;

/// A connection whose bytes flow.
#[derive(Debug)]
pub(crate) struct Active {
    book: Arc<Book>,
    connection: Arc<Connection>,
    origin: Origin,
    /// The route by which it was reached.
    by: Arc<Route>,
    end: Option<End>,
    /// It is held again.
    waits: bool,
    /// It goes on in another process: nothing ended.
    departed: bool,
}

impl Active {
    pub(super) fn new(
        book: Arc<Book>,
        connection: Arc<Connection>,
        origin: Origin,
        by: Arc<Route>,
    ) -> Self {
        Self {
            book,
            connection,
            origin,
            by,
            end: None,
            waits: false,
            departed: false,
        }
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Another process has it now.
    pub(crate) fn depart(mut self) {
        self.departed = true;
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Whether the route leads where the connection goes.
    pub(crate) fn leads_on(&self) -> bool {
        self.book.lock().leads_on(&self.connection, &self.by)
    }

    /// Whether the gate holds its next request.
    pub(crate) fn is_parked(&self) -> bool {
        self.book.is_parked(self.connection.route)
    }

    /// A request begins, or whatever else travels from now on: true, unless the route leads
    /// elsewhere.
    pub(crate) fn begin(&self, stage: Stage) -> bool {
        let mut inner = self.book.lock();
        let leads_on = inner.leads_on(&self.connection, &self.by);
        if leads_on {
            inner.shift(&self.connection, stage);
        }
        leads_on
    }

    /// What is in flight is no request that anybody can follow. A goodbye was meant for the
    /// boundary after it, which never comes: whoever gave it gives it again at a pause.
    pub(crate) fn become_plain(&self) {
        let mut inner = self.book.lock();
        inner.shift(&self.connection, Stage::Relaying);
        self.connection.orders.take_back(Order::ClosePolitely);
    }

    /// A response is whole. True, when the route leads where the connection goes.
    pub(crate) fn rest(&self) -> bool {
        let mut inner = self.book.lock();
        inner.shift(&self.connection, Stage::Resting);
        self.connection.orders.take_back(Order::Cut);
        self.connection.touch();
        inner.leads_on(&self.connection, &self.by)
    }

    /// Its next request waits for its turn.
    pub(crate) fn wait(mut self) -> Held {
        self.waits = true;
        let book = Arc::clone(&self.book);
        let mut inner = book.lock();
        inner.shift(&self.connection, Stage::Resting);
        self.connection.orders.take_back(Order::Cut);
        let since = self.connection.begin_to_wait();
        inner.relayed = inner.relayed.saturating_sub(1);
        let connection = Arc::clone(&self.connection);
        let mut hold = Hold::again(&mut inner, connection, self.origin.clone(), since);
        let first = hold.step(&mut inner);
        drop(inner);
        Held::new(book, hold, first)
    }

    /// It is over.
    pub(crate) fn end(mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.waits {
            return;
        }
        // Without a verdict the task was dropped, which happens only when the proxy stops.
        let end = self.end.unwrap_or(End::Stopped);
        let rests = self.connection.stage() == Stage::Resting;
        let mut inner = self.book.lock();
        inner.relayed = inner.relayed.saturating_sub(1);
        inner.count(self.connection.route, |counts| {
            let of = if rests {
                &mut counts.resting
            } else {
                &mut counts.active
            };
            *of = of.saturating_sub(1);
            if self.origin != Origin::Client {
                counts.from_trunk = counts.from_trunk.saturating_sub(1);
            }
        });
        if self.departed {
            inner.forget(&self.connection, |_| {});
            return self.book.tell_room(inner);
        }
        inner.forget(&self.connection, |tally| tally.relay_ended(end));
        self.book.tell_room(inner);
        Metrics::connection_ended(&self.connection, end);
    }
}
