//! Sealed connections to other hosts that are kept ready, so that a client waits for no handshake.
//!
//! They are opened for hosts that clients go to, one after the other for each, carry one client each,
//! and are replaced when they are used. One that has died meanwhile costs no byte: none of the client
//! was read when that shows, and the next try opens a fresh one.
//!
//! Whom a host does not believe, or has no place for, hears of that when its own handshake is over:
//! so one that dies is as much a failure as one that cannot be opened, and the pause after it grows.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rehome_shared::ids::HostAddr;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::dial;
use crate::leg::{Leg, Sealed};
use crate::seal::Seal;

/// How long one is kept. Shorter than what the other side allows.
pub(crate) const KEPT: Duration = Duration::from_mins(1);
/// For how long after its last client a host has some.
const WANTED: Duration = Duration::from_mins(1);
/// After the first failure; it doubles until one has served a client.
const PAUSE: Duration = Duration::from_secs(2);
/// After many, and between two looks whether a host is still one to which trunks are plain.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Between two looks at what is kept.
const LOOK: Duration = Duration::from_secs(1);
/// Hosts that have some; a cluster is smaller.
const HOSTS: usize = 256;
/// Hosts to which one is opened at a time.
const OPENED_AT_ONCE: usize = 32;

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
    shelves: Mutex<Shelves>,
    /// Something was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct Shelves {
    of: HashMap<Hop, Shelf>,
    /// How often all were dropped.
    cleared: u64,
}

/// What is kept for a host.
#[derive(Debug)]
struct Shelf {
    kept: VecDeque<(Box<Sealed>, Instant)>,
    /// Another one is being opened.
    opening: bool,
    /// When a client went there.
    used: Instant,
    /// Not before this is another one opened.
    not_before: Instant,
    /// After the next failure.
    pause: Duration,
}

/// Another one that is to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    hop: Hop,
    cleared: u64,
}

/// What came of it.
enum Opened {
    Sealed(Box<Sealed>),
    /// It would be plain, of which none is kept.
    Plain,
    Failed,
}

/// How many there may be.
#[derive(Debug, Clone, Copy)]
struct Most {
    of_a_host: usize,
    in_all: usize,
    /// That are opened now.
    begun: usize,
}

impl Ready {
    /// One that lives, as far as can be known. That a client goes there is noted either way.
    pub(crate) fn take(&self, hop: &Hop, now: Instant) -> Option<Leg> {
        let mut shelves = self.lock();
        if shelves.of.len() >= HOSTS && !shelves.of.contains_key(hop) {
            return None;
        }
        let shelf = shelves.of.entry(hop.clone());
        let shelf = shelf.or_insert_with(|| Shelf::new(now));
        shelf.used = now;
        shelf.sort_out(now);
        let taken = shelf.kept.pop_front();
        drop(shelves);
        self.0.taken.notify_one();
        taken.map(|(sealed, _)| sealed.into())
    }

    /// One has carried a client to its answer: the other side takes what this host keeps.
    pub(crate) fn served(&self, hop: &Hop) {
        if let Some(shelf) = self.lock().of.get_mut(hop) {
            shelf.pause = PAUSE;
        }
    }

    /// One was dead when it was used: what is kept beside it hardly lives.
    pub(crate) fn broke(&self, hop: &Hop, now: Instant) {
        if let Some(shelf) = self.lock().of.get_mut(hop) {
            shelf.kept.clear();
            shelf.failed(now);
        }
    }

    /// Drops all: other certificates may be in force.
    pub(crate) fn clear(&self) {
        let mut shelves = self.lock();
        shelves.of.clear();
        shelves.cleared = shelves.cleared.wrapping_add(1);
    }

    /// Drops those for hosts that are not of the cluster any more.
    pub(crate) fn keep_only(&self, peers: &BTreeSet<HostAddr>) {
        self.lock().of.retain(|hop, _| peers.contains(&hop.host));
    }

    /// Drops what is old, dead or not wanted any more.
    fn sort_out(&self, now: Instant) {
        let mut shelves = self.lock();
        let wanted = |shelf: &Shelf| now.saturating_duration_since(shelf.used) < WANTED;
        shelves.of.retain(|_, shelf| wanted(shelf));
        shelves
            .of
            .values_mut()
            .for_each(|shelf| shelf.sort_out(now));
    }

    /// How many there are.
    fn count(&self) -> usize {
        self.lock().count()
    }

    /// The hosts for which another one is to be opened now, and [`Ready::lay_down`] called then.
    fn wanting(&self, most: Most, now: Instant) -> Vec<Wanted> {
        let mut shelves = self.lock();
        let room = most.in_all.saturating_sub(shelves.count());
        let room = room.min(OPENED_AT_ONCE).saturating_sub(most.begun);
        let cleared = shelves.cleared;
        let wants = |shelf: &Shelf| {
            !shelf.opening && shelf.not_before <= now && shelf.kept.len() < most.of_a_host
        };
        let wanting = shelves.of.iter_mut().filter(|(_, shelf)| wants(shelf));
        let begin = |(hop, shelf): (&Hop, &mut Shelf)| {
            shelf.opening = true;
            let hop = hop.clone();
            Wanted { hop, cleared }
        };
        wanting.take(room).map(begin).collect()
    }

    /// Keeps what was opened, unless everything was dropped meanwhile.
    fn lay_down(&self, wanted: &Wanted, opened: Opened, now: Instant) {
        let mut shelves = self.lock();
        if shelves.cleared != wanted.cleared {
            return;
        }
        let Some(shelf) = shelves.of.get_mut(&wanted.hop) else {
            return;
        };
        shelf.opening = false;
        match opened {
            Opened::Sealed(sealed) => shelf.kept.push_back((sealed, now)),
            Opened::Plain => shelf.not_before = now + LONGEST_PAUSE,
            Opened::Failed => shelf.failed(now),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.0
            .shelves
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelves {
    fn count(&self) -> usize {
        self.of.values().map(|shelf| shelf.kept.len()).sum()
    }
}

impl Shelf {
    fn new(now: Instant) -> Self {
        Self {
            kept: VecDeque::new(),
            opening: false,
            used: now,
            not_before: now,
            pause: PAUSE,
        }
    }

    /// Drops what is old or dead.
    fn sort_out(&mut self, now: Instant) {
        let fresh = |since: Instant| now.saturating_duration_since(since) < KEPT;
        self.kept.retain(|(_, since)| fresh(*since));
        let before = self.kept.len();
        self.kept.retain(|(sealed, _)| sealed.is_quiet());
        if self.kept.len() < before {
            self.failed(now);
        }
    }

    fn failed(&mut self, now: Instant) {
        self.not_before = now + self.pause;
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// Opens what is wanted, until the stop.
///
/// # Cancel safety
/// Cancel safe: what is being opened is closed.
pub(crate) async fn keep(context: Context, stop: CancellationToken) {
    let ready = &context.ready;
    let work = async {
        let mut opening = FuturesUnordered::new();
        let mut looked = Instant::now();
        loop {
            let now = Instant::now();
            if now.saturating_duration_since(looked) >= LOOK {
                ready.sort_out(now);
                looked = now;
            }
            let settings = context.settings();
            let most = Most {
                of_a_host: settings.seal.as_ref().map_or(0, Seal::ready),
                in_all: settings.ready_places,
                begun: opening.len(),
            };
            let wanting = ready.wanting(most, now);
            opening.extend(wanting.into_iter().map(|wanted| open(&context, wanted)));
            let count = i64::try_from(ready.count()).unwrap_or(i64::MAX);
            context.book.metrics.trunks_ready.set(count);
            // Each only waits: what is being opened is among the others until it is there.
            tokio::select! {
                Some(()) = opening.next() => {}
                () = ready.0.taken.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Opens one and keeps it.
async fn open(context: &Context, wanted: Wanted) {
    // Those that are in force after it was wanted: others come with a drop of all.
    let settings = context.settings();
    let opened = match dial::open_ahead(context, &settings, &wanted.hop).await {
        Ok(Some(sealed)) => Opened::Sealed(sealed),
        Ok(None) => Opened::Plain,
        Err(error) => {
            dial::note(context, &error);
            Opened::Failed
        }
    };
    context.ready.lay_down(&wanted, opened, Instant::now());
}

#[cfg(test)]
mod tests;
