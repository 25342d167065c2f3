//! A connection whose bytes flow. Dropping it takes it out of the book.

use std::sync::Arc;

use proxyd_core::tally::End;

use super::Book;
use super::connection::Connection;

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
        let mut guard = self.book.lock();
        let inner = &mut *guard;
        inner.connections.remove(&self.connection.id);
        if let Some(lane) = inner.lanes.get_mut(&self.connection.route) {
            lane.active = lane.active.saturating_sub(1);
            if self.from_trunk {
                lane.from_trunk = lane.from_trunk.saturating_sub(1);
            }
            lane.show();
        }
        if let Some(tally) = inner.tally(&self.connection) {
            tally.relay_ended(end);
        }
        self.book.tell_room(guard);
        self.book.metrics.connection_ended(&self.connection, end);
    }
}
