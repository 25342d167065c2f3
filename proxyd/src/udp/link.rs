//! The two ends of a session, and one direction between them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::datagram::Datagram;
use super::packet::{self, Path};
use crate::context::Context;
use crate::fair;
use crate::leg::Leg;

/// Where datagrams come from.
#[derive(Debug)]
pub(super) enum Source {
    /// What the port's socket received from the client.
    Inbox(mpsc::Receiver<Datagram>),
    /// A socket that is connected to the application.
    Socket(Arc<UdpSocket>),
    /// A trunk connection, each with its length in front.
    Trunk(BufReader<ReadHalf<Leg>>),
}

/// Where datagrams go.
#[derive(Debug)]
pub(super) enum Sink {
    /// The client, from the port's socket.
    Client(Arc<UdpSocket>, Path),
    /// The application.
    Socket(Arc<UdpSocket>),
    /// A trunk connection.
    Trunk(WriteHalf<Leg>),
}

/// Both directions of one end.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) source: Source,
    pub(super) sink: Sink,
}

impl From<Leg> for Link {
    fn from(stream: Leg) -> Self {
        let (read, write) = split(stream);
        Self {
            source: Source::Trunk(BufReader::new(read)),
            sink: Sink::Trunk(write),
        }
    }
}

impl From<UdpSocket> for Link {
    fn from(socket: UdpSocket) -> Self {
        let socket = Arc::new(socket);
        Self {
            source: Source::Socket(Arc::clone(&socket)),
            sink: Sink::Socket(socket),
        }
    }
}

/// When a session last saw a datagram.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until no datagram has passed for so long.
    pub(super) async fn silence(&self, limit: Duration) {
        loop {
            let last = self.last.load(Ordering::Relaxed);
            fair::sleep_until(self.began + Duration::from_millis(last) + limit).await;
            if self.last.load(Ordering::Relaxed) == last {
                return;
            }
        }
    }
}

/// Passes datagrams on until an end is closed.
///
/// Not cancel safe for trunks: drop the trunk with it.
pub(super) async fn pass(
    source: &mut Source,
    sink: &mut Sink,
    activity: &Activity,
    bytes: &Counter,
    context: &Context,
) -> io::Result<()> {
    loop {
        let datagram = source.next(context).await?;
        sink.send(&datagram).await?;
        activity.touch();
        bytes.inc_by(u64::try_from(datagram.len()).unwrap_or(u64::MAX));
    }
}

impl Source {
    /// The next one.
    async fn next(&mut self, context: &Context) -> io::Result<Datagram> {
        let (stores, metrics) = (&context.stores, &context.book.metrics);
        match self {
            Self::Inbox(inbox) => Ok(inbox.recv().await.ok_or(io::ErrorKind::BrokenPipe)?),
            Self::Socket(socket) => loop {
                socket.readable().await?;
                let mut buffer = stores.scratch();
                match socket.try_recv(buffer.space()) {
                    Ok(length) => {
                        let datagram = Datagram::keep(buffer.part(0, length), stores, metrics);
                        if let Some(datagram) = datagram {
                            return Ok(datagram);
                        }
                    }
                    // An ICMP message: nobody listened when an earlier datagram came. They are
                    // lost, as on any network; later ones may not be.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            },
            Self::Trunk(stream) => loop {
                let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut bytes).await?;
                if let Some(datagram) = Datagram::keep(&bytes, stores, metrics) {
                    return Ok(datagram);
                }
            },
        }
    }
}

impl Sink {
    async fn send(&mut self, datagram: &Datagram) -> io::Result<()> {
        match self {
            // What cannot be sent is lost, which is what datagrams are.
            Self::Client(socket, path) => {
                if let Err(error) = packet::send(socket, datagram, *path).await {
                    tracing::trace!(%error, "a datagram was not sent");
                }
                Ok(())
            }
            Self::Socket(socket) => {
                if let Err(error) = socket.send(datagram).await {
                    tracing::trace!(%error, "a datagram was not sent");
                }
                Ok(())
            }
            Self::Trunk(stream) => {
                let length = datagram.length()?;
                let mut frame = Vec::with_capacity(datagram.len().saturating_add(2));
                frame.extend_from_slice(&length.to_be_bytes());
                frame.extend_from_slice(datagram);
                stream.write_all(&frame).await?;
                stream.flush().await
            }
        }
    }
}
