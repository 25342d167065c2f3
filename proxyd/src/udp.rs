//! UDP routes: a session for each client, kept while datagrams flow.
//!
//! ```text
//!   client ─► socket of the port ─► session ─► connected socket ─► application of this host
//!                                          └─► trunk connection ─► session on the owner
//! ```
//!
//! A session follows its route: when the route leads elsewhere, the next datagram goes there.
//! While the gate is parked each session keeps its newest datagrams, and all of a route share
//! [`QUEUED`]; beyond it the oldest is dropped, as a network would. Sessions are limited and end
//! after a silence.

mod session;
mod upstream;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use proxyd_core::way::Arrival;
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::trunk::{Answer, Header, Refusal};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::context::Context;
use crate::metrics::Shed;
use crate::serve::answer;
use session::{Client, Session};

/// Datagrams that wait in a session: what comes in a burst before the task runs, and what a
/// parked gate holds. Older ones are dropped.
pub(crate) const QUEUED: usize = 256;
/// The largest datagram there is.
pub(crate) const LARGEST: usize = 65_535;

/// Starts serving a socket of a UDP route.
pub(crate) fn listen(
    context: &Context,
    tasks: &Supervisor,
    key: RouteKey,
    socket: Arc<UdpSocket>,
) -> io::Result<()> {
    let destination = socket.local_addr()?;
    let listener =
        Listener { context: context.clone(), key, socket, destination, sessions: Sessions::default() };
    let stop = tasks.token().clone();
    tasks.spawn("udp listener", Criticality::Ordinary, async move {
        stop.run_until_cancelled(listener.run()).await;
    });
    Ok(())
}

/// The clients of one socket and the way into their sessions. Clones share.
#[derive(Debug, Clone, Default)]
struct Sessions(Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Box<[u8]>>>>>);

impl Sessions {
    fn find(&self, client: SocketAddr) -> Option<mpsc::Sender<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&client).cloned()
    }

    fn insert(&self, client: SocketAddr, sender: mpsc::Sender<Box<[u8]>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(client, sender);
    }

    fn remove(&self, client: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&client);
    }
}

struct Listener {
    context: Context,
    key: RouteKey,
    socket: Arc<UdpSocket>,
    destination: SocketAddr,
    sessions: Sessions,
}

impl Listener {
    async fn run(self) {
        let mut buffer = vec![0; LARGEST];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((length, client)) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    self.deliver(client, datagram.into());
                }
                // An ICMP message about an earlier answer; the socket is well.
                Err(error) => {
                    tracing::debug!(%error, "a datagram was not received");
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
        }
    }

    fn deliver(&self, client: SocketAddr, datagram: Box<[u8]>) {
        let sender = match self.sessions.find(client).filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => match self.begin(client) {
                Some(sender) => sender,
                None => return self.context.book.metrics.shed(Shed::Session),
            },
        };
        if sender.try_send(datagram).is_err() {
            self.context.book.metrics.shed(Shed::Datagram);
        }
    }

    fn begin(&self, client: SocketAddr) -> Option<mpsc::Sender<Box<[u8]>>> {
        let permit = self.context.udp_sessions()?;
        let (sender, datagrams) = mpsc::channel(QUEUED);
        self.sessions.insert(client, sender.clone());
        let shown = SocketAddr::new(client.ip().to_canonical(), client.port());
        let session = Session::new(self.context.clone(), self.key, shown, self.destination, None);
        let (socket, sessions) = (Arc::clone(&self.socket), self.sessions.clone());
        self.context.connections.spawn("udp session", Criticality::Ordinary, async move {
            session.run(Client::Socket { socket, client, datagrams }).await;
            sessions.remove(client);
            drop::<OwnedSemaphorePermit>(permit);
        });
        Some(sender)
    }
}

/// A session that another host sends here: its datagrams come over the trunk connection.
pub(crate) async fn from_trunk(
    context: &Context,
    mut stream: TcpStream,
    header: &Header,
    arrival: Arrival,
) {
    let Some(permit) = context.udp_sessions() else {
        context.book.metrics.shed(Shed::Session);
        let _sent = answer(&mut stream, &Answer::Refused(Refusal::Full)).await;
        return;
    };
    let destination = SocketAddr::new(header.destination.ip(), header.route.external());
    let (context, key, client) = (context.clone(), header.route, header.client);
    let session = Session::new(context, key, client, destination, Some(arrival));
    session.run_for_trunk(stream).await;
    drop(permit);
}
