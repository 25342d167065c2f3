//! What a connection is told to do while it runs.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// What a connection is to do. Orders only grow stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Go on.
    Run,
    /// Tell the client that it is over and let it finish.
    ClosePolitely,
    /// End now, with a reset.
    Cut,
    /// End now: the proxy stops.
    Stop,
}

impl Order {
    fn number(self) -> u8 {
        match self {
            Self::Run => 0,
            Self::ClosePolitely => 1,
            Self::Cut => 2,
            Self::Stop => 3,
        }
    }

    fn numbered(number: u8) -> Self {
        match number {
            0 => Self::Run,
            1 => Self::ClosePolitely,
            2 => Self::Cut,
            _ => Self::Stop,
        }
    }
}

/// The strongest order that a connection was given, and the one task that waits for it: that of
/// the connection.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    given: AtomicU8,
    /// The connection is to go on somewhere else; not an order, because it can be taken back.
    leaves: AtomicBool,
    /// In the middle of a request, too.
    hurries: AtomicBool,
    /// It cannot.
    bound: AtomicBool,
    waits: AtomicWaker,
}

impl Orders {
    /// Gives an order. One that is not stronger than the last is without effect.
    pub(crate) fn give(&self, order: Order) {
        let before = self.given.fetch_max(order.number(), Ordering::AcqRel);
        if before < order.number() {
            self.waits.wake();
        }
    }

    /// Takes this order back: the connection goes on all the same. Any other one stays.
    pub(super) fn take_back(&self, order: Order) {
        let (given, run) = (order.number(), Order::Run.number());
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        match self.given.compare_exchange(given, run, success, failure) {
            Ok(_) | Err(_) => {}
        }
    }

    /// The strongest one so far.
    pub(crate) fn given(&self) -> Order {
        Order::numbered(self.given.load(Ordering::Acquire))
    }

    /// Waits for one that is stronger than what was seen. For one task only.
    ///
    /// # Cancel safety
    /// Cancel safe: orders stay given.
    pub(crate) async fn beyond(&self, seen: Order) -> Order {
        let stronger = || Some(self.given()).filter(|order| *order > seen);
        poll_fn(|cx| {
            if let Some(order) = stronger() {
                return Poll::Ready(order);
            }
            self.waits.register(cx.waker());
            // One may have been given between the look and the registration.
            stronger().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// From now on it cannot go on anywhere else, whether it was asked to or not.
    pub(crate) fn bind(&self) {
        self.bound.store(true, Ordering::Release);
    }

    /// Whether it cannot go on anywhere else.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound.load(Ordering::Acquire)
    }

    /// Asks the connection to stop where it is, after the request in flight if that is followed,
    /// and go on somewhere else; false when it was asked before, or cannot.
    pub(crate) fn leave(&self) -> bool {
        let first = !self.is_bound() && !self.leaves.swap(true, Ordering::AcqRel);
        if first {
            self.waits.wake();
        }
        first
    }

    /// Asks one that was asked to leave not to wait for the end of a request.
    pub(crate) fn hurry(&self) {
        self.hurries.store(true, Ordering::Release);
        self.waits.wake();
    }

    /// Whether it was asked to leave, and can.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaves.load(Ordering::Acquire) && !self.is_bound()
    }

    /// It is to stay after all.
    pub(crate) fn stay(&self) {
        self.hurries.store(false, Ordering::Release);
        self.leaves.store(false, Ordering::Release);
    }

    /// Waits for an order that is stronger than what was seen, or, `None`, until the connection
    /// is to leave. For one task only.
    ///
    /// # Cancel safety
    /// Cancel safe: orders stay given.
    pub(crate) async fn next(&self, seen: Order) -> Option<Order> {
        poll_fn(|cx| self.poll_next(seen, cx)).await
    }

    /// The same, polled.
    pub(crate) fn poll_next(&self, seen: Order, cx: &mut Context<'_>) -> Poll<Option<Order>> {
        let next = || {
            let order = self.given();
            if order > seen {
                Some(Some(order))
            } else {
                self.is_leaving().then_some(None)
            }
        };
        if let Some(next) = next() {
            return Poll::Ready(next);
        }
        self.waits.register(cx.waker());
        // One may have been given between the look and the registration.
        next().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits until it is to leave. For one task only, which may wait for an order meanwhile.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn leaving(&self) {
        self.until(|| self.is_leaving()).await;
    }

    /// Waits until it is to leave in the middle of a request. For one task only, which may wait
    /// for an order meanwhile.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn hurried(&self) {
        let hurries = || self.is_leaving() && self.hurries.load(Ordering::Acquire);
        self.until(hurries).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        poll_fn(|cx| {
            if is_so() {
                return Poll::Ready(());
            }
            self.waits.register(cx.waker());
            // It may have become so between the look and the registration.
            if is_so() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits for one that is at least this strong. For one task only.
    ///
    /// # Cancel safety
    /// Cancel safe: orders stay given.
    pub(crate) async fn at_least(&self, order: Order) {
        let mut seen = self.given();
        while seen < order {
            seen = self.beyond(seen).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_only_grow_stronger() {
        let orders = Orders::default();
        assert_eq!(orders.given(), Order::Run);
        for (order, then) in [
            (Order::Cut, Order::Cut),
            (Order::ClosePolitely, Order::Cut),
            (Order::Stop, Order::Stop),
            (Order::Run, Order::Stop),
        ] {
            orders.give(order);
            assert_eq!(orders.given(), then);
        }
    }

    #[test]
    fn only_the_order_that_is_meant_is_taken_back() {
        for given in [Order::ClosePolitely, Order::Cut, Order::Stop] {
            for back in [Order::ClosePolitely, Order::Cut] {
                let orders = Orders::default();
                orders.give(given);
                orders.take_back(back);
                let then = if given == back { Order::Run } else { given };
                assert_eq!(orders.given(), then);
            }
        }
    }

    #[tokio::test]
    async fn who_is_asked_to_leave_hears_of_it_beside_orders_and_may_stay() {
        let orders = Orders::default();
        let ask = async { assert!(orders.leave() && !orders.leave()) };
        assert_eq!(tokio::join!(orders.next(Order::Run), ask).0, None);
        // An order goes first: it may end the connection here.
        orders.give(Order::ClosePolitely);
        let first = orders.next(Order::Run).await;
        assert_eq!(first, Some(Order::ClosePolitely));
        assert_eq!(orders.next(Order::ClosePolitely).await, None);
        orders.stay();
        let cut = async { orders.give(Order::Cut) };
        let next = tokio::join!(orders.next(Order::ClosePolitely), cut).0;
        assert_eq!(next, Some(Order::Cut));
    }

    #[test]
    fn who_is_bound_is_not_asked_to_leave_and_need_not_if_it_was() {
        let (bound, asked) = (Orders::default(), Orders::default());
        bound.bind();
        assert!(!bound.leave() && !bound.is_leaving());
        assert!(asked.leave() && asked.is_leaving());
        asked.bind();
        assert!(!asked.is_leaving());
    }

    #[tokio::test]
    async fn only_who_was_asked_to_leave_is_hurried_and_not_any_more_once_it_may_stay() {
        let orders = Orders::default();
        let is_hurried = async || {
            let hurried = std::pin::pin!(orders.hurried());
            futures_util::poll!(hurried).is_ready()
        };
        orders.hurry();
        assert!(!is_hurried().await);
        orders.leave();
        assert!(is_hurried().await);
        orders.stay();
        orders.leave();
        assert!(!is_hurried().await);
        let hurry = async { orders.hurry() };
        tokio::join!(orders.hurried(), hurry);
    }

    #[tokio::test]
    async fn who_waits_hears_of_every_stronger_order() {
        let orders = Orders::default();
        let cut = async { orders.give(Order::Cut) };
        assert_eq!(tokio::join!(orders.beyond(Order::Run), cut).0, Order::Cut);
        assert_eq!(orders.beyond(Order::ClosePolitely).await, Order::Cut);
        let stop = async {
            orders.give(Order::ClosePolitely);
            tokio::task::yield_now().await;
            orders.give(Order::Stop);
        };
        tokio::join!(orders.at_least(Order::Stop), stop);
    }
}
