//! The addresses that trunk connections may come from.
//!
//! Hosts that are named by address count at once; names are resolved in the background and
//! again from time to time.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rehome_shared::ids::HostAddr;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a resolved name is believed.
const REFRESH: Duration = Duration::from_secs(30);
const LOOKUP: Duration = Duration::from_secs(5);

/// The allowed addresses. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    allowed: Arc<ArcSwap<HashSet<IpAddr>>>,
    /// As `migrated` named them.
    named: watch::Sender<BTreeSet<HostAddr>>,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            allowed: Arc::default(),
            named: watch::Sender::new(BTreeSet::new()),
        }
    }
}

impl Peers {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.allowed.load().contains(&address.to_canonical())
    }

    /// Whether a host is one of them, by its name.
    pub(crate) fn has(&self, host: &HostAddr) -> bool {
        self.named.borrow().contains(host)
    }

    /// Takes over the peers that are addresses, and keeps what names had led to.
    pub(crate) fn set(&self, peers: &BTreeSet<HostAddr>) {
        let names = peers.iter().any(|peer| literal(peer).is_none());
        let known = if names {
            self.allowed.load_full()
        } else {
            Arc::default()
        };
        let literals = peers.iter().filter_map(literal);
        self.allowed
            .store(Arc::new(literals.chain(known.iter().copied()).collect()));
        self.named.send_replace(peers.clone());
    }

    /// Resolves names until the stop.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn keep_resolved(self, stop: CancellationToken) {
        let mut named = self.named.subscribe();
        let work = async {
            loop {
                let peers = named.borrow_and_update().clone();
                if peers.iter().any(|peer| literal(peer).is_none()) {
                    let resolved = resolve(&peers).await;
                    self.allowed.store(Arc::new(resolved));
                }
                // Either way it is time to look again.
                drop(timeout(REFRESH, named.changed()).await);
            }
        };
        stop.run_until_cancelled(work).await;
    }
}

async fn resolve(peers: &BTreeSet<HostAddr>) -> HashSet<IpAddr> {
    let mut found = HashSet::new();
    for peer in peers {
        if let Some(address) = literal(peer) {
            found.insert(address);
            continue;
        }
        match timeout(LOOKUP, lookup_host((peer.as_str(), 0))).await {
            Ok(Ok(addresses)) => found.extend(addresses.map(|a| a.ip().to_canonical())),
            Ok(Err(error)) => tracing::warn!(%peer, %error, "peer not resolved"),
            Err(_) => tracing::warn!(%peer, "peer not resolved in time"),
        }
    }
    found
}

fn literal(peer: &HostAddr) -> Option<IpAddr> {
    peer.as_str()
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_are_let_in_whatever_the_form_of_their_address() {
        let peers = Peers::default();
        peers.set(&BTreeSet::from([HostAddr::try_new("10.0.0.2").unwrap()]));
        assert!(peers.contains("10.0.0.2".parse().unwrap()));
        assert!(peers.contains("::ffff:10.0.0.2".parse().unwrap()));
        assert!(!peers.contains("10.0.0.3".parse().unwrap()));
        peers.set(&BTreeSet::new());
        assert!(!peers.contains("10.0.0.2".parse().unwrap()));
    }
}
