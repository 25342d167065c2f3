//! Draining and freezing: what the verbs do to connections whose bytes flow to the application
//! on this host. Those that go on to another host are that host's to drain.

use std::time::{Duration, Instant};

use proxyd_core::drain::{Step, Told, Turn, Verdict, step, verdict};
use rehome_shared::api::proxy::GateCounts;
use rehome_shared::ids::AppName;
use tokio::time::sleep;

use crate::book::Book;
use crate::book::connection::{Connection, Stage};
use crate::book::orders::Order;
use crate::fair;

/// Silence after which a connection counts as idle when the application has spoken last: long
/// enough for a busy client's next question, short enough to leave a drain of two seconds its
/// time. Near the end of a drain less is enough.
pub(crate) const IDLE_AFTER: Duration = Duration::from_millis(200);

/// Closes idle connections of an application, near the deadline those between two questions too,
/// and waits until nothing flows, or until the deadline.
///
/// # Cancel safety
/// Cancel safe: what was closed stays closed; call it again for the rest.
pub(crate) async fn drain(
    book: &Book,
    application: &AppName,
    deadline: Duration,
    idle_after: Duration,
) -> GateCounts {
    let started = Instant::now();
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        book.order(application, Order::ClosePolitely, |connection| {
            connection.is_local() && is_to_be_closed(connection, idle_after, left)
        });
        let left = book.count(application, relays);
        match verdict(left, started.elapsed(), deadline) {
            Verdict::Drained | Verdict::Deadline => return book.counts(application),
            // Who could not speak because nobody ran is not silent.
            Verdict::Again(after) => fair::sleep(after).await,
        }
    }
}

/// Resets what still flows and waits until it is gone.
///
/// # Cancel safety
/// Cancel safe: the order is given at once.
pub(crate) async fn freeze(book: &Book, application: &AppName) -> GateCounts {
    /// A reset takes no time; this only bounds a machine that is busy.
    const AT_MOST: Duration = Duration::from_secs(5);
    let started = Instant::now();
    loop {
        let left = book.order(application, Order::Cut, relays);
        if left == 0 || started.elapsed() >= AT_MOST {
            return book.counts(application);
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// An HTTP connection counts while a request is in flight. Without one nothing has to be ended:
/// its next request finds the gate as it is then.
fn relays(connection: &Connection) -> bool {
    let flows = match connection.stage() {
        Stage::Relaying | Stage::Answering => true,
        Stage::Connecting | Stage::Parked | Stage::Resting => false,
    };
    flows && connection.is_local()
}

/// Whether a connection is idle and was not told goodbye yet, with so much left of the drain. One
/// that answers a request never is, however long that takes.
pub(crate) fn is_to_be_closed(
    connection: &Connection,
    idle_after: Duration,
    left: Duration,
) -> bool {
    let told = if connection.orders.given() == Order::Run {
        Told::No
    } else {
        Told::Yes
    };
    let turn = if connection.was_answered() {
        Turn::Client
    } else {
        Turn::Application
    };
    if connection.stage() != Stage::Relaying {
        return false;
    }
    // A client that reads slowly is not idle: a goodbye would cut off what it has not got yet.
    !connection.has_in_hand()
        && step(connection.quiet_for(), idle_after, left, turn, told) == Step::Close
}
