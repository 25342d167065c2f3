//! What a connection is told to do while it runs.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;

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
