//! An operator's order to take an application back from a host that is fenced: given by who
//! answers the operator, carried out by the driver of the migration.
//!
//! An order is no older than what it was agreed on: it stands only while somebody waits for it,
//! and what does not hold any more ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rehome_shared::api::cluster::Desired;
use tokio::sync::watch;

/// An order, and what it was agreed on.
#[derive(Debug)]
pub struct TakeBack {
    /// Why.
    pub reason: String,
    /// The deployment that every host has agreed to: it happens only while this host follows it.
    pub desired: Arc<Desired>,
    /// Whether the destination was known to have taken the application.
    pub taken: bool,
    /// Whether what was written on the destination may be lost.
    pub accept_loss: bool,
}

impl TakeBack {
    /// Whether it still holds when the destination is known to have taken the application or not,
    /// and may or cannot have heard that it is the owner.
    #[must_use]
    fn holds(&self, taken: bool, heard: bool) -> bool {
        self.taken == taken && (self.accept_loss || !(taken || heard))
    }
}

/// Where an order is put; a newer one takes the place of an older one.
#[derive(Debug, Clone)]
pub struct Orders(watch::Sender<Option<Arc<TakeBack>>>);

impl Default for Orders {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Orders {
    /// Gives one. It stands until it is withdrawn, or what this returns is dropped.
    #[must_use]
    pub fn give(&self, order: TakeBack) -> Given {
        let order = Arc::new(order);
        self.0.send_replace(Some(Arc::clone(&order)));
        Given {
            orders: self.clone(),
            order,
        }
    }

    /// To wait on: it changes with every order that is given or withdrawn.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Arc<TakeBack>>> {
        self.0.subscribe()
    }

    /// Whether this one was not withdrawn.
    #[must_use]
    pub fn stands(&self, order: &Arc<TakeBack>) -> bool {
        let now = self.0.borrow();
        now.as_ref().is_some_and(|now| Arc::ptr_eq(now, order))
    }

    /// Withdraws this one, and no newer one.
    pub fn withdraw(&self, order: &Arc<TakeBack>) {
        self.0.send_if_modified(|now| {
            let stands = now.as_ref().is_some_and(|now| Arc::ptr_eq(now, order));
            if stands {
                *now = None;
            }
            stands
        });
    }

    /// Returns with an order that holds. One that does not is withdrawn.
    ///
    /// # Cancel safety
    /// Cancel safe: an order that nobody took stands.
    pub async fn next(&self, taken: bool, heard: &AtomicBool) -> Arc<TakeBack> {
        let mut orders = self.changes();
        loop {
            let now = orders.borrow_and_update().clone();
            if let Some(order) = now {
                if order.holds(taken, heard.load(Ordering::Relaxed)) {
                    return order;
                }
                tracing::warn!("the order to take it back was agreed on for something else");
                self.withdraw(&order);
            }
            if orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// An order that somebody waits for: dropped, it is withdrawn.
#[derive(Debug)]
pub struct Given {
    orders: Orders,
    order: Arc<TakeBack>,
}

impl Given {
    /// Whether nobody has withdrawn it.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.orders.stands(&self.order)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.orders.withdraw(&self.order);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;
    use crate::fixtures::deployment;

    pub(crate) fn order(taken: bool, accept_loss: bool) -> TakeBack {
        TakeBack {
            reason: "an operator called h2 fenced".to_owned(),
            desired: Arc::new(deployment(3, &[("h1", &["db"]), ("h2", &[])])),
            taken,
            accept_loss,
        }
    }

    async fn is_taken(orders: &Orders, taken: bool, heard: bool) -> bool {
        let heard = AtomicBool::new(heard);
        let mut next = std::pin::pin!(orders.next(taken, &heard));
        poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn an_order_that_loses_nothing_is_taken_only_while_nothing_can_be_lost() {
        let orders = Orders::default();
        let given = orders.give(order(false, false));
        assert!(is_taken(&orders, false, false).await && given.stands());
        assert!(!is_taken(&orders, false, true).await, "it may have heard");
        assert!(!given.stands(), "whoever waits is told");
        let given = orders.give(order(false, false));
        assert!(
            !is_taken(&orders, true, true).await,
            "the destination said in between that it took it"
        );
        assert!(!given.stands());
    }

    #[tokio::test]
    async fn a_loss_is_accepted_for_what_was_known_then() {
        let orders = Orders::default();
        let _given = orders.give(order(false, true));
        assert!(is_taken(&orders, false, true).await);
        assert!(
            !is_taken(&orders, true, true).await,
            "that it took it is news"
        );
        let _given = orders.give(order(true, true));
        assert!(is_taken(&orders, true, true).await);
        let _given = orders.give(order(true, false));
        assert!(!is_taken(&orders, true, false).await);
    }

    #[tokio::test]
    async fn an_order_ends_with_who_waits_for_it_and_a_newer_one_does_not() {
        let orders = Orders::default();
        let old = orders.give(order(false, false));
        let new = orders.give(order(false, false));
        assert!(!old.stands() && new.stands());
        drop(old);
        assert!(new.stands() && is_taken(&orders, false, false).await);
        drop(new);
        assert!(!is_taken(&orders, false, false).await, "nobody waits");
    }

    #[tokio::test]
    async fn an_order_that_comes_later_is_heard() {
        let orders = Orders::default();
        let heard = AtomicBool::new(false);
        let give = async {
            tokio::task::yield_now().await;
            orders.give(order(false, false))
        };
        let (order, given) = tokio::join!(orders.next(false, &heard), give);
        assert!(orders.stands(&order) && given.stands());
    }
}
