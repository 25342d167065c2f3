//! The open ports as the service manager keeps them, so that clients who come while this program
//! is not there wait in the kernel and are not refused: after a crash, and during a restart.
//!
//! Only TCP. A port that closes is shut down, wherever else it is open, and the manager drops what
//! was shut down by itself; a UDP socket in its hands would keep its port from everyone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use proxyd_core::handover::Socket;
use proxyd_core::reload::Spot;
use rehome_runtime::descriptor_store;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::config::daemon::ProxydConfig;
use rehome_shared::ids::Protocol;
use socket2::SockRef;
use tokio::net::TcpListener;

use super::Inherited;
use crate::handover::Shared;
use crate::socket::{as_new, place_of, stop_listening, trunk_place};

/// The most ports that are kept. The manager compares each one that it gets with all that it has.
const MOST: usize = 1024;

/// What the manager has, and what it has not been told.
#[derive(Debug)]
pub(super) struct Kept {
    hears: bool,
    has: BTreeSet<String>,
    waiting: BTreeMap<String, Shared>,
    /// Whether it has been said that not all are kept.
    complained: bool,
}

impl Kept {
    /// Of a manager that has these already.
    pub(super) fn new(has: BTreeSet<String>) -> Self {
        Self {
            hears: descriptor_store::is_there(),
            has,
            waiting: BTreeMap::new(),
            complained: false,
        }
    }

    /// A socket is open; the manager is to keep it.
    pub(super) fn opened(&mut self, socket: Socket, shared: Shared) {
        let name = name(socket).filter(|name| self.hears && !self.has.contains(name));
        if let Some(name) = name {
            self.waiting.insert(name, shared);
        }
    }

    /// A socket was shut down, and the manager forgets it by itself.
    pub(super) fn closed(&mut self, socket: Socket) {
        if let Some(name) = name(socket) {
            self.waiting.remove(&name);
            self.has.remove(&name);
        }
    }

    /// Tells the manager what it has not been told, as far as it listens.
    pub(super) fn tell(&mut self) {
        while self.has.len() < MOST
            && let Some((name, shared)) = self.waiting.pop_first()
        {
            match descriptor_store::keep(&name, &shared) {
                Ok(()) => drop(self.has.insert(name)),
                // It is told with the next look.
                Err(error) => {
                    self.waiting.insert(name, shared);
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.complain(&error.to_string());
                    }
                    return;
                }
            }
        }
        if !self.waiting.is_empty() {
            self.complain(&format!("there are more than {MOST}"));
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            let ports = self.waiting.len();
            tracing::warn!(ports, why, "ports are not kept for the next start");
        }
    }
}

/// The name of a socket that is kept.
fn name(socket: Socket) -> Option<String> {
    match socket {
        Socket::Trunk => Some("trunk".to_owned()),
        Socket::Port { key, at } if !key.is_udp() => {
            let at = at.map_or_else(|| "everywhere".to_owned(), |ip| ip.to_string());
            // The manager's own words for several names have colons between them.
            Some(format!("{}@{at}", key.external()).replace(':', "_"))
        }
        Socket::Port { .. } | Socket::Control | Socket::Metrics => None,
    }
}

/// What was kept for this start, by where it is bound: the trunk's socket, where it is the one of
/// this configuration, and those of ports, wanted or not. What is in the way of something else, or
/// cannot be used, is shut down.
pub(crate) fn sort(
    kept: Vec<std::net::TcpListener>,
    config: &ProxydConfig,
) -> (Option<TcpListener>, Inherited) {
    let (mut trunk, mut inherited) = (None, Inherited::default());
    let wanted = (trunk_place(config.trunk.listen), config.trunk.listen.port());
    let taken = [config.trunk.listen, config.metrics].map(|address: SocketAddr| address.port());
    // The manager may not have noticed yet that one was shut down.
    let listens = |socket: &std::net::TcpListener| SockRef::from(socket).is_listener();
    for listener in kept.into_iter().filter(|one| listens(one).unwrap_or(false)) {
        match as_new(&listener).and_then(|()| place_of(&listener)) {
            Ok(at) if at == wanted && trunk.is_none() => trunk = Some(listener),
            Ok((place, port)) if !taken.contains(&port) => {
                let key = RouteKey::new(port, Protocol::Tcp);
                let spot = Spot { key, place };
                inherited.kept.extend(name(spot.into()));
                let before = inherited.open.insert(spot, listener.into());
                before.iter().for_each(stop_listening);
            }
            Ok(_) => stop_listening(&listener),
            Err(error) => {
                tracing::warn!(%error, "a port that was kept cannot be used");
                stop_listening(&listener);
            }
        }
    }
    let trunk = trunk.and_then(|listener| TcpListener::from_std(listener).ok());
    inherited
        .kept
        .extend(trunk.iter().filter_map(|_| name(Socket::Trunk)));
    (trunk, inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_for_the_manager() {
        let key = RouteKey::new(8080, Protocol::Tcp);
        let at = |at| name(Socket::Port { key, at });
        assert_eq!(at(None).as_deref(), Some("8080@everywhere"));
        assert_eq!(
            at("10.0.0.1".parse().ok()).as_deref(),
            Some("8080@10.0.0.1")
        );
        assert_eq!(at("fd00::1".parse().ok()).as_deref(), Some("8080@fd00__1"));
        let key = RouteKey::new(53, Protocol::Udp);
        assert_eq!(name(Socket::Port { key, at: None }), None);
    }
}
