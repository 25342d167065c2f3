//! The external ports: one task per socket, and the set of them kept equal to the table.
//!
//! A port that cannot be had is reported on its route and tried again; the others do not
//! notice. A closed gate has no listener: its clients are refused by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::table::{Changes, Phase, RouteTable};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::proxy::{PortProblem, RouteKey};
use rehome_shared::config::daemon::{ListenOn, ProxydTimeouts};
use tokio::net::{TcpListener, TcpStream};
use tracing::Instrument;

use crate::accept::accept;
use crate::book::held::Held;
use crate::book::{NotAdmitted, Origin};
use crate::context::Context;
use crate::metrics::Shed;
use crate::serve::serve;
use crate::socket::{listen_tcp, listen_udp, reset_on_drop, tune};
use crate::udp;

/// How long the task of a closed port may take to end.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// The open external ports. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Listeners {
    context: Context,
    supervisor: Supervisor,
    open: BTreeMap<RouteKey, Port>,
    failed: BTreeMap<RouteKey, String>,
    on: ListenOn,
    timeouts: ProxydTimeouts,
}

/// An open port.
#[derive(Debug)]
struct Port {
    tasks: Supervisor,
    /// Of a TCP port: what is set on them is set on what they accept.
    sockets: Vec<Arc<TcpListener>>,
}

impl Listeners {
    pub(crate) fn new(context: Context, supervisor: &Supervisor) -> Self {
        let settings = context.settings();
        let (on, timeouts) = (settings.listen.clone(), settings.timeouts);
        let supervisor = supervisor.group();
        Self {
            context,
            supervisor,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            on,
            timeouts,
        }
    }

    /// After a change: opens and closes so that exactly the routes of the table that are not
    /// closed listen. Only what changed is looked at, and what could not be had the last time;
    /// everything, when the addresses are others.
    ///
    /// # Cancel safety
    /// A dropped call leaves ports unopened until the next one.
    pub(crate) async fn reconcile(&mut self, table: &RouteTable, changes: &Changes) {
        let settings = self.context.settings();
        let other_addresses = self.on != settings.listen;
        self.on = settings.listen.clone();
        if self.timeouts != settings.timeouts {
            self.timeouts = settings.timeouts;
            self.tune_all();
        }
        let wanted = |key: &RouteKey| table.route(*key).is_some_and(|r| r.phase != Phase::Closed);
        let keys: BTreeSet<RouteKey> = if other_addresses {
            let open = self.open.keys().copied();
            open.chain(table.routes().keys().copied()).collect()
        } else {
            let failed = self.failed.keys().copied();
            changes.keys().chain(failed).collect()
        };
        let is_open = |key: &RouteKey| self.open.contains_key(key);
        let unwanted: Vec<RouteKey> = keys
            .iter()
            .filter(|key| is_open(key) && (other_addresses || !wanted(key)))
            .copied()
            .collect();
        for key in unwanted {
            if let Some(Port { tasks, sockets }) = self.open.remove(&key) {
                drop(sockets);
                tasks.cancel();
                // Once the task has ended its port is free, should a later table want it.
                tasks.idle(CLOSE_TIME).await;
            }
        }
        self.failed.retain(|key, _| wanted(key));
        for key in keys.into_iter().filter(wanted) {
            if !self.open.contains_key(&key) {
                self.open_one(key);
            }
        }
        let failures = i64::try_from(self.failed.len()).unwrap_or(i64::MAX);
        self.context.book.metrics.listen_failures.set(failures);
    }

    /// Whether some port could not be had.
    pub(crate) fn has_failures(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Other times are those of connections from now on.
    fn tune_all(&self) {
        for socket in self.open.values().flat_map(|port| &port.sockets) {
            if let Err(error) = tune(socket, &self.timeouts) {
                tracing::warn!(%error, "new timeouts are not in force on an open port");
            }
        }
    }

    fn open_one(&mut self, key: RouteKey) {
        let tasks = self.supervisor.group();
        match start(&self.context, &tasks, (&self.on, &self.timeouts), key) {
            Ok(sockets) => {
                self.open.insert(key, Port { tasks, sockets });
                if self.failed.remove(&key).is_some() {
                    tracing::info!(route = %key, "listening at last");
                }
                self.context.book.set_listen_error(key, None);
            }
            Err(error) => {
                let error = format!("cannot listen on port {key}: {error}");
                if self.failed.insert(key, error.clone()).as_ref() != Some(&error) {
                    tracing::error!(route = %key, error, "route not served here");
                }
                self.context.book.set_listen_error(key, Some(error));
            }
        }
    }

    /// Says which of these ports could not be listened on.
    pub(crate) fn check(&self, keys: &[RouteKey], table: &RouteTable) -> Vec<PortProblem> {
        let problem = |key: &RouteKey| {
            let file = table
                .route(*key)
                .is_some_and(|route| route.application().is_none());
            let reason = if file {
                Some("the proxy's configuration file has a route on it".to_owned())
            } else if self.open.contains_key(key) {
                None
            } else {
                try_port(&self.on, *key)
                    .err()
                    .map(|error| error.to_string())
            };
            reason.map(|reason| PortProblem { key: *key, reason })
        };
        keys.iter().filter_map(problem).collect()
    }
}

fn try_port(on: &ListenOn, key: RouteKey) -> io::Result<()> {
    if key.is_udp() {
        listen_udp(on, key.external()).map(drop)
    } else {
        listen_tcp(on, key.external(), &ProxydTimeouts::default()).map(drop)
    }
}

fn start(
    context: &Context,
    tasks: &Supervisor,
    (on, timeouts): (&ListenOn, &ProxydTimeouts),
    key: RouteKey,
) -> io::Result<Vec<Arc<TcpListener>>> {
    let mut sockets = Vec::new();
    if key.is_udp() {
        for socket in listen_udp(on, key.external())? {
            udp::listen(context, tasks, key, socket)?;
        }
    } else {
        for listener in listen_tcp(on, key.external(), timeouts)? {
            let listener = Arc::new(listener);
            sockets.push(Arc::clone(&listener));
            let (context, stop) = (context.clone(), tasks.token().clone());
            tasks.spawn("listener", Criticality::Ordinary, async move {
                stop.run_until_cancelled(listen(context, listener, key))
                    .await;
            });
        }
    }
    Ok(sockets)
}

/// Accepts connections of one socket.
async fn listen(context: Context, listener: Arc<TcpListener>, key: RouteKey) {
    let mut room = context.book.room();
    loop {
        // Beyond a limit nothing is accepted: the kernel's backlog holds what comes.
        room.borrow_and_update();
        match context.book.may_admit(key) {
            Ok(()) => {}
            Err(NotAdmitted::NoRoute) => return,
            Err(NotAdmitted::Full(full)) => {
                context.book.metrics.shed(Shed::Limit(full));
                if room.changed().await.is_err() {
                    return;
                }
                continue;
            }
        }
        let (stream, client) = accept(&context.book.metrics, &listener).await;
        let Ok(destination) = stream.local_addr() else {
            continue;
        };
        match context.book.admit(key, client, destination, Origin::Client) {
            Ok(held) => spawn(&context, held, stream, key),
            // Between the look and the accept another listener took the last place.
            Err(NotAdmitted::Full(_)) => {
                wait_for_room(&context, key, (client, destination), stream);
            }
            Err(NotAdmitted::NoRoute) => {
                reset_on_drop(&stream);
                return;
            }
        }
    }
}

/// Waits for a place with a client in hand, on a task of its own: this listener may close
/// meanwhile, and another one of the route take it up again. Each time that places run out, a
/// listener accepts at most one client too many.
fn wait_for_room(
    context: &Context,
    key: RouteKey,
    (client, destination): (SocketAddr, SocketAddr),
    stream: TcpStream,
) {
    let (inner, stop) = (context.clone(), context.connections.token().clone());
    let waits = async move {
        let mut room = inner.book.room();
        loop {
            room.borrow_and_update();
            match inner.book.admit(key, client, destination, Origin::Client) {
                Ok(held) => return spawn(&inner, held, stream, key),
                Err(NotAdmitted::Full(_)) if room.changed().await.is_ok() => {}
                Err(NotAdmitted::NoRoute | NotAdmitted::Full(_)) => return reset_on_drop(&stream),
            }
        }
    };
    let task = async move {
        stop.run_until_cancelled(waits).await;
    };
    context
        .connections
        .spawn("waiting client", Criticality::Ordinary, task);
}

fn spawn(context: &Context, held: Held, stream: TcpStream, key: RouteKey) {
    let connection = held.connection();
    let span = tracing::debug_span!(
        "connection",
        connection.id = connection.id,
        route = %key,
        client.addr = %connection.client
    );
    let task = serve(context.clone(), held, stream).instrument(span);
    context.connections.spawn_light("connection", task);
}
