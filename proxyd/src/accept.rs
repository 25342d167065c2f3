//! Accepting without spinning: when descriptors run out the backlog holds what comes.

use std::net::SocketAddr;
use std::time::Duration;

use rehome_runtime::backoff::Backoff;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::metrics::{Metrics, Shed};
use crate::socket::{canonical, is_exhausted};

/// The next connection. Waits out errors.
///
/// # Cancel safety
/// Cancel safe: a connection is either returned or still in the backlog.
pub(crate) async fn accept(metrics: &Metrics, listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, canonical(peer)),
            Err(error) if is_exhausted(&error) => {
                metrics.shed(Shed::Descriptors);
                tracing::debug!(%error, "no room for connections, the backlog holds them");
                // The listener stays readable; without the pause this would spin.
                sleep(backoff.next_delay()).await;
            }
            // The connection ended before it was accepted; there may be others.
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}
