//! What a connection does, one part after the other.
//!
//! Each part is in a box of its own and ends with what follows it. So a connection that is idle holds
//! what it needs for that: what it took to reach its application, which is much, is gone by then.

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context as Polled, Poll, ready};

use tracing::Instrument;

use crate::book::connection::Connection;
use crate::context::Context;
use crate::sources::Place;

/// A part of what a connection does, with all that follows it.
///
/// # Cancel safety
/// Dropping it closes the connection and takes it out of the book.
#[must_use]
pub(crate) struct Course(Pin<Box<dyn Future<Output = Option<Course>> + Send>>);

impl Course {
    /// This part, and what it says that follows. Where it is over, nothing does.
    ///
    /// Give it an `async` block that uses what it captures where that is: an `async fn` has its
    /// arguments in its future twice.
    pub(crate) fn of(part: impl Future<Output = Option<Self>> + Send + 'static) -> Self {
        Self(Box::pin(part))
    }

    /// Has a task follow it, to the end. The connection has its place among those of its address
    /// for as long.
    pub(crate) fn start(self, context: &Context, connection: &Connection, place: Place) {
        let task = self.task(connection, place);
        context.connections.spawn_light("connection", task);
    }

    fn task(
        self,
        connection: &Connection,
        place: Place,
    ) -> impl Future<Output = ()> + Send + use<> {
        let span = tracing::debug_span!(
            "connection",
            connection.id = connection.id,
            route = %connection.route,
            client.addr = %connection.client
        );
        let task = async move {
            self.await;
            drop(place);
        };
        task.instrument(span)
    }
}

impl Future for Course {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Polled<'_>) -> Poll<()> {
        while let Some(next) = ready!(self.0.as_mut().poll(cx)) {
            *self = next;
        }
        Poll::Ready(())
    }
}
