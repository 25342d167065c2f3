//! One socket of an external port.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::handover;
use proxyd_core::reload::{Place, Spot};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::config::daemon::ProxydTimeouts;
use tokio::net::{TcpListener, UdpSocket};

use super::clients;
use crate::context::Context;
use crate::handover::Shared;
use crate::socket::{Company, drop_syns, let_in, listen_tcp, listen_udp, stop_listening, tune};
use crate::udp;

/// How long the task of a closed port may take to end: no time, on a machine that runs everybody.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// A socket that listens, and the task that serves it once there is one. Dropping it closes the
/// socket when the task has ended.
#[derive(Debug)]
pub(super) struct Port {
    spot: Spot,
    socket: Socket,
    task: Option<Supervisor>,
}

#[derive(Debug, Clone)]
enum Socket {
    Tcp(Arc<TcpListener>),
    Udp(Arc<UdpSocket>),
}

impl Port {
    /// Listens, beside sockets of the same port that are to go. What comes meanwhile waits in the
    /// kernel.
    pub(super) fn open<'a>(
        spot: Spot,
        beside: impl Iterator<Item = &'a Self>,
        timeouts: &ProxydTimeouts,
    ) -> io::Result<Self> {
        let beside: Vec<&Socket> = beside.map(|port| &port.socket).collect();
        for old in &beside {
            old.let_in(Company::Shared)?;
        }
        let company = if beside.is_empty() {
            Company::Alone
        } else {
            Company::Shared
        };
        let opened = Socket::open(spot, timeouts, company);
        // Only for the moment of the binding: it would let any program of this user in.
        for socket in beside.into_iter().chain(opened.as_ref().ok()) {
            if company == Company::Shared {
                socket.let_in(Company::Alone)?;
            }
        }
        Ok(Self {
            spot,
            socket: opened?,
            task: None,
        })
    }

    /// Takes up the socket of another process.
    pub(super) fn inherit(spot: Spot, descriptor: OwnedFd) -> io::Result<Self> {
        let socket = if spot.key.is_udp() {
            Socket::Udp(Arc::new(UdpSocket::from_std(descriptor.into())?))
        } else {
            Socket::Tcp(Arc::new(TcpListener::from_std(descriptor.into())?))
        };
        Ok(Self {
            spot,
            socket,
            task: None,
        })
    }

    /// What another process is told of it.
    pub(super) fn described(&self) -> handover::Socket {
        self.spot.into()
    }

    /// The socket, for another process.
    pub(super) fn shared(&self) -> Shared {
        match &self.socket {
            Socket::Tcp(listener) => Arc::clone(listener).into(),
            Socket::Udp(socket) => Arc::clone(socket).into(),
        }
    }

    pub(super) fn key(&self) -> RouteKey {
        self.spot.key
    }

    /// Serves who comes, from now on.
    pub(super) fn serve(&mut self, context: &Context, supervisor: &Supervisor) {
        let (task, key) = (supervisor.group(), self.spot.key);
        match &self.socket {
            Socket::Tcp(listener) => {
                let (context, listener) = (context.clone(), Arc::clone(listener));
                let stop = task.token().clone();
                task.spawn("listener", Criticality::Ordinary, async move {
                    stop.run_until_cancelled(clients::listen(context, &listener, key))
                        .await;
                });
            }
            Socket::Udp(socket) => {
                if let Err(error) = udp::listen(context, &task, key, Arc::clone(socket)) {
                    tracing::error!(route = %key, %error, "a UDP port is not served");
                }
            }
        }
        self.task = Some(task);
    }

    /// Asks its task to stop, without waiting.
    pub(super) fn tire(&self) {
        self.task.iter().for_each(Supervisor::cancel);
    }

    /// Stops serving. Who comes waits in the kernel. Says whether nobody serves it any more.
    pub(super) async fn rest(&mut self) -> bool {
        let Some(task) = self.task.take() else {
            return true;
        };
        task.cancel();
        task.idle(CLOSE_TIME).await
    }

    /// Has those who come from now on try again in a second, while those who have begun are
    /// completed; true where that means something.
    pub(super) fn turn_newcomers_away(&self) -> bool {
        let Socket::Tcp(listener) = &self.socket else {
            return false;
        };
        drop_syns(listener)
            .inspect_err(|error| tracing::warn!(%error, "a closing port still greets clients"))
            .is_ok()
    }

    /// Takes in whom the kernel has completed. Datagrams that nobody has read are lost, as on any
    /// network.
    pub(super) fn take_queue(&self, context: &Context) {
        if let Socket::Tcp(listener) = &self.socket {
            clients::take_queue(context, listener, self.spot.key);
        }
    }

    /// Refuses who comes, wherever else the socket may still be open.
    pub(super) fn close(self) {
        if let Socket::Tcp(listener) = &self.socket {
            stop_listening(listener);
        }
    }

    pub(super) fn tune(&self, timeouts: &ProxydTimeouts) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(listener) => tune(listener, timeouts),
            Socket::Udp(_) => Ok(()),
        }
    }
}

impl Socket {
    fn open(spot: Spot, timeouts: &ProxydTimeouts, company: Company) -> io::Result<Self> {
        let port = spot.key.external();
        if spot.key.is_udp() {
            Ok(Self::Udp(Arc::new(listen_udp(spot.place, port, company)?)))
        } else {
            let listener = listen_tcp(spot.place, port, timeouts, company)?;
            Ok(Self::Tcp(Arc::new(listener)))
        }
    }

    fn let_in(&self, company: Company) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => let_in(listener, company),
            Self::Udp(socket) => let_in(socket, company),
        }
    }
}

/// Whether a port could be had now.
pub(super) fn try_port(place: Place, key: RouteKey) -> io::Result<()> {
    let spot = Spot { key, place };
    Socket::open(spot, &ProxydTimeouts::default(), Company::Alone).map(drop)
}

/// Why a port could not be had, with what to do about it.
pub(super) fn why_not(error: &io::Error, key: RouteKey) -> String {
    let port = key.external();
    let options = if key.is_udp() { "-lunp" } else { "-ltnp" };
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{error}; another program has it: `ss {options} 'sport = :{port}'` shows which")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{error}; `listen` in proxyd.yml names an address that this host has not")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{error}; proxyd needs CAP_NET_BIND_SERVICE for ports below 1024")
        }
        _ => error.to_string(),
    }
}
