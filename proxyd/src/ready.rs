//! Sealed connections to other hosts that are kept ready, so that a client waits for no handshake.
//!
//! They are opened for hosts that traffic goes to, carry one client each, and are replaced when they
//! are used. One that has died meanwhile costs nothing: no byte of a client was read when that
//! shows, and the next try opens a fresh one.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rehome_shared::ids::HostAddr;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::dial;
use crate::leg::{Leg, Sealed};

/// How long one is kept. Shorter than what the other side allows.
pub(crate) const KEPT: Duration = Duration::from_mins(1);
/// For how long after its last client a host has some.
const WANTED: Duration = Duration::from_mins(1);
/// After a try that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at what is kept.
const LOOK: Duration = Duration::from_secs(1);
/// Hosts that have some; a cluster is smaller.
const HOSTS: usize = 256;

/// Where a trunk connection goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Hop {
    /// Who answers there.
    pub(crate) host: HostAddr,
    /// `address:port`.
    pub(crate) trunk: String,
}

/// What is kept. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    hops: Mutex<HashMap<Hop, Shelf>>,
    /// Something was taken.
    taken: Notify,
}

/// What is kept for a host.
#[derive(Debug)]
struct Shelf {
    kept: VecDeque<(Box<Sealed>, Instant)>,
    /// When a client went there.
    used: Instant,
    /// Not before this is another one opened.
    not_before: Instant,
}

impl Ready {
    /// One that lives, as far as can be known. That a client goes there is noted either way.
    pub(crate) fn take(&self, hop: &Hop) -> Option<Leg> {
        let now = Instant::now();
        let mut hops = self.lock();
        if hops.len() >= HOSTS && !hops.contains_key(hop) {
            return None;
        }
        let shelf = hops.entry(hop.clone()).or_insert_with(|| Shelf::new(now));
        shelf.used = now;
        shelf.sort_out(now);
        let taken = shelf.kept.pop_front();
        drop(hops);
        self.0.taken.notify_one();
        taken.map(|(sealed, _)| sealed.into())
    }

    /// Drops all: other certificates may be in force.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Drops those for hosts that are not of the cluster any more.
    pub(crate) fn keep_only(&self, peers: &BTreeSet<HostAddr>) {
        self.lock().retain(|hop, _| peers.contains(&hop.host));
    }

    /// How many there are.
    fn count(&self) -> usize {
        self.lock().values().map(|shelf| shelf.kept.len()).sum()
    }

    /// The hosts that want another one, after what is old or dead was dropped.
    fn wanting(&self, most: usize) -> Vec<Hop> {
        let now = Instant::now();
        let mut hops = self.lock();
        hops.retain(|_, shelf| now.saturating_duration_since(shelf.used) < WANTED);
        for shelf in hops.values_mut() {
            shelf.sort_out(now);
        }
        let wants =
            |(_, shelf): &(&Hop, &Shelf)| shelf.kept.len() < most && shelf.not_before <= now;
        hops.iter()
            .filter(wants)
            .map(|(hop, _)| hop.clone())
            .collect()
    }

    fn lay_down(&self, hop: &Hop, opened: Option<Box<Sealed>>) {
        let now = Instant::now();
        if let Some(shelf) = self.lock().get_mut(hop) {
            match opened {
                Some(sealed) => shelf.kept.push_back((sealed, now)),
                None => shelf.not_before = now + PAUSE,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Hop, Shelf>> {
        self.0.hops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn new(now: Instant) -> Self {
        Self {
            kept: VecDeque::new(),
            used: now,
            not_before: now,
        }
    }

    /// Drops what is old or dead.
    fn sort_out(&mut self, now: Instant) {
        let lives = |(sealed, since): &(Box<Sealed>, Instant)| {
            now.saturating_duration_since(*since) < KEPT && sealed.is_quiet()
        };
        self.kept.retain(lives);
    }
}

/// Opens what is wanted, until the stop.
///
/// # Cancel safety
/// Cancel safe: what is being opened is closed.
pub(crate) async fn keep(context: Context, stop: CancellationToken) {
    let work = async {
        loop {
            let settings = context.settings();
            let most = settings.seal.as_ref().map_or(0, crate::seal::Seal::ready);
            for hop in context.ready.wanting(most) {
                let opened = dial::open(&context, &settings, &hop).await;
                // Other certificates may have come into force meanwhile.
                let in_force = Arc::ptr_eq(&settings, &context.settings());
                let sealed = match opened {
                    Ok(Leg::Sealed(sealed)) if in_force => Some(sealed),
                    Ok(_) => None,
                    Err(error) => {
                        dial::note(&context, &error);
                        None
                    }
                };
                context.ready.lay_down(&hop, sealed);
            }
            let count = i64::try_from(context.ready.count()).unwrap_or(i64::MAX);
            context.book.metrics.trunks_ready.set(count);
            if context.ready.wanting(most).is_empty() {
                // Both only wait.
                drop(timeout(LOOK, context.ready.0.taken.notified()).await);
            } else {
                sleep(Duration::from_millis(1)).await;
            }
        }
    };
    stop.run_until_cancelled(work).await;
}
