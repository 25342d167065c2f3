//! How many tasks there are, without anything kept for each of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A number of tasks.
#[derive(Debug, Default)]
pub(super) struct Running {
    count: AtomicUsize,
    /// Told when it becomes none.
    none: Notify,
}

impl Running {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(super) fn enter(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn leave(&self) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.none.notify_waiters();
        }
    }

    /// Waits until there is none.
    pub(super) async fn none(&self) {
        loop {
            let mut none = std::pin::pin!(self.none.notified());
            // From here on the last one to leave is not missed.
            none.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}
