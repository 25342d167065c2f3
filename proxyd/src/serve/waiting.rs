//! What is watched while a connection is held: its client, its time, and orders.

use std::time::Instant;

use proxyd_core::tally::End;

use super::Failed;
use crate::book::held::Held;
use crate::book::orders::{Order, Orders};
use crate::fair;
use crate::leg::Leg;
use crate::unread::Unread;

/// What was read of a client that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// All that it has sent is in its socket.
    Nothing,
    /// The begin of a request.
    Something,
}

/// What is watched while a connection waits.
pub(super) struct Watched<'a> {
    pub(super) client: &'a Leg,
    pub(super) unread: &'a mut Unread,
    pub(super) read: Read,
    pub(super) deadline: Instant,
}

impl Watched<'_> {
    /// Waits until the client is certainly gone: a reset, or an end without any byte before it. An
    /// end after bytes is a legal half-close; those bytes stay in the socket for the application,
    /// and count meanwhile.
    pub(super) async fn gone(&mut self) {
        let client = self.client;
        // Both only wait. What it was answered before may not be with the kernel.
        tokio::select! {
            () = self.is_gone() => {}
            () = client.flushes() => {}
        }
    }

    async fn is_gone(&mut self) {
        if self.read == Read::Nothing && is_gone_at_once(self.client).await {
            return;
        }
        // Both only wait.
        tokio::select! {
            () = self.client.breaks() => {}
            () = self.unread.watch(self.client.socket()) => {}
        }
    }

    /// Waits for `what`, watching the client, the deadline and orders.
    pub(super) async fn wait(
        &mut self,
        held: &Held,
        what: impl Future<Output = ()>,
    ) -> Result<(), Failed> {
        let (orders, deadline) = (&held.connection().orders, self.deadline);
        // Every arm only waits. After a time in which this machine ran nobody several may be over at
        // once: then the time is not what counts.
        tokio::select! {
            biased;
            () = what => Ok(()),
            () = self.gone() => Err(Failed::End(End::ClientGone)),
            () = fair::sleep_until(deadline) => Err(Failed::End(timed_out(held))),
            () = stopped(orders) => Err(Failed::End(End::Stopped)),
        }
    }
}

fn timed_out(held: &Held) -> End {
    if held.connection().application().is_some() {
        End::ParkTimeout
    } else {
        End::ConnectFailed
    }
}

/// A freeze cuts relays; what is held stays held.
pub(super) async fn stopped(orders: &Orders) {
    orders.at_least(Order::Stop).await;
}

/// Waits until there is a byte; true, when an end or a reset came first.
async fn is_gone_at_once(client: &Leg) -> bool {
    // Both only wait; nothing is taken out of the socket.
    tokio::select! {
        has_byte = client.has_byte() => !has_byte.unwrap_or(false),
        () = client.breaks() => true,
    }
}
