//! What a held client has sent and nobody has read: it lies in its socket, and the sockets of many
//! parked clients are much memory. While there is more of it than the limit, routes that hold some
//! accept nobody.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::book::Book;
use crate::metrics::RouteMeters;

/// A connection that waits for less is not looked at.
const PATIENCE: Duration = Duration::from_millis(100);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// What one held client has sent. Dropping it takes it off the count.
#[derive(Debug)]
pub(crate) struct Unread {
    book: Arc<Book>,
    meters: Arc<RouteMeters>,
    bytes: u64,
}

impl Unread {
    pub(crate) fn new(book: &Arc<Book>, meters: &Arc<RouteMeters>) -> Self {
        Self {
            book: Arc::clone(book),
            meters: Arc::clone(meters),
            bytes: 0,
        }
    }

    /// Looks again and again how much there is. Never ends.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn watch(&mut self, client: &TcpStream) {
        sleep(PATIENCE).await;
        loop {
            // A socket that cannot say has nothing that counts.
            self.set(rustix::io::ioctl_fionread(client).unwrap_or(0));
            sleep(LOOK).await;
        }
    }

    fn set(&mut self, bytes: u64) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let total = self.book.metrics.parked_bytes.inner();
        if bytes >= before {
            let more = bytes.saturating_sub(before);
            self.meters.unread.fetch_add(more, Ordering::Relaxed);
            total.fetch_add(signed(more), Ordering::Relaxed);
        } else {
            let less = before.saturating_sub(bytes);
            self.meters.unread.fetch_sub(less, Ordering::Relaxed);
            total.fetch_sub(signed(less), Ordering::Relaxed);
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Drop for Unread {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.set(0);
            // There may be listeners that wait for just this.
            self.book.call_starved();
        }
    }
}
