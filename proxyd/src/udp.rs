//! UDP routes: a session for each client, kept while datagrams flow.
//!
//! ```text
//!   client ─► socket of the port ─► session ─► connected socket ─► application of this host
//!                  │                        └─► trunk connection ─► session on the owner
//!                  └─ hold: while the gate is parked
//! ```
//!
//! A session follows its route: when the route leads elsewhere, the next datagram goes there.
//! While the gate is parked the socket's newest [`HELD`] datagrams wait, older ones are dropped
//! as a network would, and so are those for which there is no memory. An owner that parks ends the
//! sessions that came over its trunk; their senders come again and wait for the answer. Sessions
//! are limited in number and end after a silence.

mod datagram;
mod link;
mod packet;
mod session;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::proxy::RouteKey;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::context::Context;
use crate::metrics::Shed;
use crate::relay::Buffer;
use datagram::Datagram;
use packet::{Control, Path};
use session::Session;
pub(crate) use session::from_trunk;

/// Datagrams of a socket that wait while its gate is parked.
const HELD: usize = 256;
/// Datagrams of one client that wait while its session is being made or is busy. All that a
/// gate held may be of one client.
const INBOX: usize = HELD;
/// Datagrams of a socket that are taken in a row.
const TURN: usize = 64;
/// How often sessions that ended are taken out of the socket's memory.
const SWEEP: Duration = Duration::from_secs(5);

/// The room for UDP sessions. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Semaphore>);

/// The place of one session.
#[derive(Debug)]
pub(crate) struct Place {
    context: Context,
    _permit: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(sessions: usize) -> Self {
        Self(Arc::new(Semaphore::new(
            sessions.min(Semaphore::MAX_PERMITS),
        )))
    }

    fn take(&self, context: &Context) -> Option<Place> {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else {
            context.book.metrics.shed(Shed::Session);
            return None;
        };
        context.book.metrics.udp_sessions.inc();
        Some(Place {
            context: context.clone(),
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.context.book.metrics.udp_sessions.dec();
    }
}

/// Starts serving a socket of a UDP route.
pub(crate) fn listen(
    context: &Context,
    tasks: &Supervisor,
    key: RouteKey,
    socket: Arc<UdpSocket>,
) -> io::Result<()> {
    packet::ask_for_paths(&socket)?;
    let listener = Listener {
        context: context.clone(),
        tasks: tasks.clone(),
        key,
        destination: socket.local_addr()?,
        socket,
        sessions: HashMap::new(),
        held: VecDeque::new(),
    };
    let stop = tasks.token().clone();
    tasks.spawn("udp listener", Criticality::Ordinary, async move {
        stop.run_until_cancelled(listener.run()).await;
    });
    Ok(())
}

struct Listener {
    context: Context,
    tasks: Supervisor,
    key: RouteKey,
    destination: SocketAddr,
    socket: Arc<UdpSocket>,
    sessions: HashMap<Path, mpsc::Sender<Datagram>>,
    held: VecDeque<(Path, Datagram)>,
}

impl Listener {
    async fn run(mut self) {
        let (socket, stores) = (Arc::clone(&self.socket), self.context.stores.clone());
        let mut news = self.context.book.news(self.key);
        let mut sweep = tokio::time::interval(SWEEP);
        let mut control = Control::new();
        loop {
            // Every arm is cancel safe; a datagram that was not received is still in the socket.
            tokio::select! {
                _ready = socket.readable() => self.receive(stores.scratch(), &mut control),
                changed = news.changed() => match changed {
                    Ok(()) => self.release(),
                    Err(_) => return,
                },
                _ = sweep.tick() => self.sessions.retain(|_, inbox| !inbox.is_closed()),
            }
        }
    }

    /// Takes what has come, up to a limit: other tasks run too.
    fn receive(&mut self, mut buffer: Buffer, control: &mut Control) {
        for _ in 0..TURN {
            match packet::receive(&self.socket, buffer.space(), control) {
                Ok((length, path)) => self.take_in(path, buffer.part(0, length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP message about an earlier answer; the socket is well.
                Err(error) => tracing::debug!(%error, "a datagram was not received"),
            }
        }
    }

    fn take_in(&mut self, path: Path, bytes: &[u8]) {
        if self.context.book.is_parked(self.key) {
            self.hold(path, bytes);
        } else if let Some(datagram) = self.keep(bytes) {
            self.deliver(path, datagram);
        }
    }

    fn keep(&self, bytes: &[u8]) -> Option<Datagram> {
        let context = &self.context;
        Datagram::keep(bytes, &context.stores, &context.book.metrics)
    }

    /// The newest are worth most: the oldest make room.
    fn hold(&mut self, path: Path, bytes: &[u8]) {
        if self.held.len() >= HELD {
            self.held.pop_front();
            self.context.book.metrics.shed(Shed::Datagram);
        }
        loop {
            if let Some(datagram) = self.keep(bytes) {
                self.held.push_back((path, datagram));
                return;
            }
            if self.held.pop_front().is_none() {
                return;
            }
        }
    }

    fn release(&mut self) {
        if self.context.book.is_parked(self.key) {
            return;
        }
        for (path, datagram) in std::mem::take(&mut self.held) {
            self.deliver(path, datagram);
        }
    }

    fn deliver(&mut self, path: Path, datagram: Datagram) {
        let known = self
            .sessions
            .get(&path)
            .filter(|inbox| !inbox.is_closed())
            .cloned();
        let Some(inbox) = known.or_else(|| self.begin(path)) else {
            return;
        };
        if inbox.try_send(datagram).is_err() {
            self.context.book.metrics.shed(Shed::Datagram);
        }
    }

    fn begin(&mut self, path: Path) -> Option<mpsc::Sender<Datagram>> {
        let source = path.client.ip().to_canonical();
        let Some(source) = self.context.sources.take(source) else {
            self.context.book.metrics.shed(Shed::Source);
            return None;
        };
        let place = self.context.udp_room.take(&self.context)?;
        let (inbox, datagrams) = mpsc::channel(INBOX);
        self.sessions.insert(path, inbox.clone());
        let session = Session::new(self.context.clone(), self.key, path, self.destination);
        let (socket, stop) = (Arc::clone(&self.socket), self.tasks.token().clone());
        self.context
            .connections
            .spawn("udp session", Criticality::Ordinary, async move {
                stop.run_until_cancelled(session.run(socket, datagrams))
                    .await;
                drop((place, source));
            });
        Some(inbox)
    }
}
