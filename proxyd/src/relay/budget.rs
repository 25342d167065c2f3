//! What may be held together between a read and a write.
//!
//! Of that of the buffers and pipes: near the limit only small buffers are had, at the limit only
//! tiny ones, beyond it. So whoever does not read what it is sent slows others down at most, and
//! holds back nobody. Datagrams have one of their own, for the same reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;
use proxyd_core::gait::SMALL;

use crate::metrics::{Metrics, Shed};

/// One such limit. Clones share.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: AtomicUsize,
    spent: Gauge,
    metrics: Arc<Metrics>,
}

/// A part of the budget. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Spent {
    bytes: i64,
    home: Budget,
}

impl Budget {
    pub(super) fn new(limit: usize, spent: &Gauge, metrics: &Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            limit: AtomicUsize::new(limit),
            spent: spent.clone(),
            metrics: Arc::clone(metrics),
        }))
    }

    pub(super) fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// Spends so much, unless that is too much.
    pub(super) fn spend(&self, bytes: usize) -> Option<Spent> {
        let limit = self.0.limit.load(Ordering::Relaxed);
        let limit = if bytes > SMALL {
            limit - limit / 4
        } else {
            limit
        };
        let (bytes, limit) = (
            i64::try_from(bytes).ok()?,
            i64::try_from(limit).unwrap_or(i64::MAX),
        );
        let spend = |spent: i64| Some(spent.saturating_add(bytes)).filter(|spent| *spent <= limit);
        self.spent()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .ok()?;
        Some(self.part(bytes))
    }

    /// Spends so much whatever there is, and counts that there was a shortage.
    pub(super) fn overdraw(&self, bytes: usize) -> Spent {
        self.tell(Shed::Memory);
        self.spend_anyway(bytes)
    }

    /// Spends so much whatever there is: it is needed for what was read already.
    pub(super) fn spend_anyway(&self, bytes: usize) -> Spent {
        let bytes = i64::try_from(bytes).unwrap_or(0);
        self.spent().fetch_add(bytes, Ordering::Relaxed);
        self.part(bytes)
    }

    fn part(&self, bytes: i64) -> Spent {
        Spent {
            bytes,
            home: self.clone(),
        }
    }

    /// Counts that less was done than asked.
    pub(super) fn tell(&self, why: Shed) {
        self.0.metrics.shed(why);
    }

    fn spent(&self) -> &AtomicI64 {
        self.0.spent.inner()
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        self.home.spent().fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn budget(limit: usize) -> Budget {
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        Budget::new(limit, &metrics.relay_bytes, &metrics)
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
    fn what_is_overdrawn_is_owed_until_it_is_given_back() {
        let budget = budget(2 * SMALL);
        let first = budget.overdraw(SMALL);
        let beyond = budget.overdraw(2 * SMALL);
        assert!(budget.spend(SMALL).is_none());
        drop(first);
        assert!(budget.spend(SMALL).is_none(), "it is spent up to the limit");
        drop(beyond);
        assert!(budget.spend(SMALL).is_some());
    }

    #[test]
    fn another_limit_is_in_force_for_what_is_spent_next() {
        let budget = budget(SMALL);
        let _first = budget.spend(SMALL);
        assert!(budget.spend(SMALL).is_none());
        budget.set_limit(2 * SMALL);
        assert!(budget.spend(SMALL).is_some());
    }
}
