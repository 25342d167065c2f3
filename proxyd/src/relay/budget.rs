//! What buffers and pipes may hold together between a read and a write.
//!
//! Near the limit only small buffers are had, at the limit nothing: then nothing is read either,
//! until somebody has written and given back, who then calls those who wait.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use proxyd_core::gait::SMALL;
use tokio::sync::Notify;

use crate::metrics::{Metrics, Shed};

/// The budget of all relays. Clones share.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: AtomicUsize,
    /// How many wait for something to be given back.
    waiting: AtomicUsize,
    freed: Notify,
    /// What is spent is counted there.
    metrics: Arc<Metrics>,
}

/// A part of the budget. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Spent {
    bytes: usize,
    home: Budget,
}

/// Ready once something may have been given back.
pub(super) type Freed = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Budget {
    pub(super) fn new(limit: usize, metrics: &Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            limit: AtomicUsize::new(limit),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
            metrics: Arc::clone(metrics),
        }))
    }

    pub(super) fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
        self.0.freed.notify_waiters();
    }

    /// Spends so much, unless that is too much.
    pub(super) fn spend(&self, bytes: usize) -> Option<Spent> {
        let limit = self.0.limit.load(Ordering::Relaxed);
        let limit = if bytes > SMALL {
            limit - limit / 4
        } else {
            limit
        };
        let (part, limit) = (
            i64::try_from(bytes).ok()?,
            i64::try_from(limit).unwrap_or(i64::MAX),
        );
        // The first small one always fits: whatever the limit, bytes go on.
        let fits = |spent: &i64| *spent <= limit || (bytes <= SMALL && *spent == part);
        let spend = |spent: i64| Some(spent.saturating_add(part)).filter(fits);
        self.spent()
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend)
            .ok()?;
        Some(Spent {
            bytes,
            home: self.clone(),
        })
    }

    /// Waits until something is given back. Look again after the first poll: only from then on it
    /// is sure to hear.
    pub(super) fn freed(&self) -> Freed {
        let home = self.clone();
        Box::pin(async move {
            home.note_shortage();
            let _waits = Waits::begin(&home.0.waiting);
            home.0.freed.notified().await;
        })
    }

    /// Counts that something was not to be had.
    fn note_shortage(&self) {
        self.0.metrics.shed(Shed::Memory);
    }

    fn spent(&self) -> &AtomicI64 {
        self.0.metrics.relay_bytes.inner()
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        let bytes = i64::try_from(self.bytes).unwrap_or(0);
        self.home.spent().fetch_sub(bytes, Ordering::SeqCst);
        let waiting = self.home.0.waiting.load(Ordering::SeqCst);
        // What was large is enough for several.
        for _ in 0..waiting.min((self.bytes / SMALL).max(1)) {
            self.home.0.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::registry::Registry;
    use tokio::time::timeout;

    use super::*;

    fn budget(limit: usize) -> Budget {
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        Budget::new(limit, &metrics)
    }

    #[test]
    fn large_parts_leave_room_for_small_ones() {
        let budget = budget(8 * SMALL);
        let large = budget.spend(4 * SMALL);
        assert!(large.is_some() && budget.spend(4 * SMALL).is_none());
        let small: Vec<_> = (0..4).map(|_| budget.spend(SMALL)).collect();
        assert!(small.iter().all(Option::is_some) && budget.spend(SMALL).is_none());
        drop((large, small));
        assert!(budget.spend(4 * SMALL).is_some());
    }

    #[test]
    fn the_first_small_one_fits_into_any_budget() {
        let budget = budget(1);
        assert!(budget.spend(4 * SMALL).is_none());
        let first = budget.spend(SMALL);
        assert!(first.is_some() && budget.spend(SMALL).is_none());
    }

    #[tokio::test]
    async fn who_waits_is_called_when_something_is_given_back() {
        let budget = budget(SMALL);
        let first = budget.spend(SMALL);
        let (mut one, mut two) = (budget.freed(), budget.freed());
        let soon = Duration::from_millis(20);
        assert!(timeout(soon, &mut one).await.is_err());
        assert!(timeout(soon, &mut two).await.is_err());
        drop(first);
        timeout(Duration::from_secs(5), one).await.unwrap();
        assert!(timeout(soon, &mut two).await.is_err(), "one for one");
        budget.set_limit(2 * SMALL);
        timeout(Duration::from_secs(5), two).await.unwrap();
        budget.set_limit(8 * SMALL);
        let large = budget.spend(4 * SMALL);
        let (mut three, mut four) = (budget.freed(), budget.freed());
        assert!(timeout(soon, &mut three).await.is_err());
        assert!(timeout(soon, &mut four).await.is_err());
        drop(large);
        let both = async { tokio::join!(three, four) };
        timeout(Duration::from_secs(5), both).await.unwrap();
        assert_eq!(budget.0.waiting.load(Ordering::SeqCst), 0);
    }
}
