//! What is watched while a connection is held: its client, its time, and orders.

use std::time::Instant;

use proxyd_core::tally::End;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep_until;

use super::Failed;
use crate::book::held::Held;
use crate::book::orders::{Order, Orders};
use crate::unread::Unread;

/// What is watched while a connection waits.
pub(super) struct Watched<'a> {
    pub(super) client: &'a TcpStream,
    pub(super) unread: &'a mut Unread,
    pub(super) deadline: Instant,
}

impl Watched<'_> {
    /// Waits for `what`, watching the client, the deadline and orders.
    pub(super) async fn wait(
        &mut self,
        held: &Held,
        what: impl Future<Output = ()>,
    ) -> Result<(), Failed> {
        let orders = &held.connection().orders;
        // Every arm only waits.
        tokio::select! {
            () = what => Ok(()),
            () = gone(self.client, self.unread) => Err(Failed::End(End::ClientGone)),
            () = sleep_until(self.deadline.into()) => Err(Failed::End(timed_out(held))),
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

/// Waits until the client is certainly gone: a reset, or an end without any byte before it. An
/// end after bytes is a legal half-close; those bytes stay in the socket for the application, and
/// count meanwhile.
pub(super) async fn gone(client: &TcpStream, unread: &mut Unread) {
    let mut byte = [0_u8; 1];
    // Both only wait; nothing is taken out of the socket.
    tokio::select! {
        peeked = client.peek(&mut byte) => {
            if matches!(peeked, Ok(0) | Err(_)) {
                return;
            }
        }
        broken = client.ready(Interest::ERROR) => return drop(broken),
    }
    // Both only wait.
    tokio::select! {
        broken = client.ready(Interest::ERROR) => drop(broken),
        () = unread.watch(client) => {}
    }
}
