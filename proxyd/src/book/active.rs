//! A connection whose bytes flow. Dropping it takes it out of the book.

use std::sync::Arc;

use proxyd_core::tally::End;

use super::Book;
use super::connection::Connection;
use crate::metrics::Metrics;

/// A relayed connection.
#[derive(Debug)]
pub(crate) struct Active {
    book: Arc<Book>,
    connection: Arc<Connection>,
    from_trunk: bool,
    end: Option<End>,
}

impl Active {
    pub(super) fn new(book: Arc<Book>, connection: Arc<Connection>, from_trunk: bool) -> Self {
        Self {
            book,
            connection,
            from_trunk,
            end: None,
        }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// It is over.
    pub(crate) fn end(mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // Without a verdict the task was dropped, which happens only when the proxy stops.
        let end = self.end.unwrap_or(End::Stopped);
        let mut inner = self.book.lock();
        inner.relayed = inner.relayed.saturating_sub(1);
        inner.count(self.connection.route, |counts| {
            counts.active = counts.active.saturating_sub(1);
            if self.from_trunk {
                counts.from_trunk = counts.from_trunk.saturating_sub(1);
            }
        });
        inner.forget(&self.connection, |tally| tally.relay_ended(end));
        self.book.tell_room(inner);
        Metrics::connection_ended(&self.connection, end);
    }
}
