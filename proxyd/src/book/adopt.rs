//! Connections that come from another process, or leave for one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proxyd_core::handover::{self, Coming, Counts as Counted, Identity};
use proxyd_core::table::{Owner, Phase, Route};
use proxyd_core::way::Arrival;
use rehome_shared::api::proxy::{Announce, Content, ParkLimits, RouteKey, Target};
use rehome_shared::ids::{AppName, RouteVersion};

use super::active::Active;
use super::connection::{Connection, Stage};
use super::held::{Held, Hold};
use super::lane::{Counts, Lane};
use super::{Book, Inner, Origin};

/// Connections by their number, which is their age.
pub(crate) type ByAge = BTreeMap<u64, Arc<Connection>>;

impl From<&Origin> for handover::Origin {
    fn from(origin: &Origin) -> Self {
        match origin {
            Origin::Client => Self::Client,
            Origin::Trunk(arrival) => Self::Trunk {
                application: arrival.application.clone(),
                known: arrival.known,
                hops: arrival.hops,
            },
        }
    }
}

impl From<&handover::Origin> for Origin {
    fn from(origin: &handover::Origin) -> Self {
        match origin {
            handover::Origin::Client => Self::Client,
            handover::Origin::Trunk {
                application,
                known,
                hops,
            } => Self::Trunk(Box::new(Arrival {
                application: application.clone(),
                known: *known,
                hops: *hops,
            })),
        }
    }
}

impl Book {
    /// Takes in a connection that another process held. No limit is asked: it was let in there.
    pub(crate) fn adopt_held(self: &Arc<Self>, known: &Identity, parked: bool) -> Held {
        let stage = if parked {
            Stage::Parked
        } else {
            Stage::Connecting
        };
        let mut inner = self.lock();
        let connection = inner.adopt(known, stage, |counts| {
            counts.held = counts.held.saturating_add(1);
            if parked {
                counts.parked = counts.parked.saturating_add(1);
            }
        });
        let mut hold = Hold::adopted(connection, Origin::from(&known.origin), parked);
        let first = hold.step(&mut inner);
        drop(inner);
        Held::new(Arc::clone(self), hold, first)
    }

    /// Takes in a connection that another process relayed.
    pub(crate) fn adopt_active(self: &Arc<Self>, known: &Identity) -> Active {
        self.adopt_flowing(known, Stage::Relaying)
    }

    /// Takes in a connection whose requests another process followed, between two of them; with
    /// the microseconds that the next one has waited there, if it was parked.
    pub(crate) fn adopt_resting(self: &Arc<Self>, known: &Identity, waited: Option<u64>) -> Active {
        let active = self.adopt_flowing(known, Stage::Resting);
        if let Some(waited) = waited {
            active.connection().waits_on_for(waited);
        }
        active
    }

    fn adopt_flowing(self: &Arc<Self>, known: &Identity, stage: Stage) -> Active {
        let origin = Origin::from(&known.origin);
        let mut inner = self.lock();
        inner.relayed = inner.relayed.saturating_add(1);
        let connection = inner.adopt(known, stage, |counts| {
            let of = if stage == Stage::Resting {
                &mut counts.resting
            } else {
                &mut counts.active
            };
            *of = of.saturating_add(1);
            if origin != Origin::Client {
                counts.from_trunk = counts.from_trunk.saturating_add(1);
            }
        });
        drop(inner);
        let by = Arc::clone(connection.by());
        Active::new(Arc::clone(self), connection, origin, by)
    }

    /// What was counted so far, and who is here.
    pub(crate) fn counted(&self) -> Counted {
        let inner = self.lock();
        let tallies = inner.groups.tallies();
        let tallies = tallies.map(|(name, tally)| (name.clone(), *tally));
        let lanes = inner.lanes.iter().map(|(key, lane)| (key, &lane.counts));
        let counts = lanes.chain(&inner.outlived);
        let coming = counts.filter(|(_, counts)| !counts.is_none());
        let coming = coming.map(|(key, counts)| {
            let active = counts.active.saturating_add(counts.resting);
            let held = counts.held();
            (*key, Coming { held, active })
        });
        Counted {
            last_id: inner.last_id,
            tallies: tallies.collect(),
            heard: BTreeMap::new(),
            coming: coming.collect(),
        }
    }

    /// Goes on counting where another process stopped. Who comes from there has a place already.
    pub(crate) fn count_on(&self, counted: &Counted) {
        let mut inner = self.lock();
        inner.last_id = inner.last_id.max(counted.last_id);
        inner.expected = Expected::new(&counted.coming);
        for (application, tally) in &counted.tallies {
            if let Some(group) = inner.groups.find(Some(application)) {
                group.tally = *tally;
            }
        }
    }

    /// Nobody comes from another process any more: places that were kept for them are free.
    pub(crate) fn all_came(&self) {
        let mut inner = self.lock();
        inner.expected = Expected::default();
        self.tell_room(inner);
    }

    /// Everyone who can leave, if only after a request, and was not asked to yet: those that wait
    /// for their application first, the oldest first.
    pub(crate) fn leavers(&self) -> VecDeque<Arc<Connection>> {
        let inner = self.lock();
        let all = inner.groups.connections();
        let mut all: Vec<_> = all
            .filter(|connection| !connection.orders.is_bound() && !connection.orders.is_leaving())
            .cloned()
            .collect();
        drop(inner);
        // Those with a request in flight last: nobody is to stand still for them.
        all.sort_unstable_by_key(|c| {
            let stage = c.stage();
            (flows(stage), stage == Stage::Answering, c.id)
        });
        all.into()
    }

    /// Whether somebody was asked to leave and is not gone.
    pub(crate) fn has_late_leavers(&self) -> bool {
        let inner = self.lock();
        let mut all = inner.groups.connections();
        all.any(|connection| connection.orders.is_leaving())
    }

    /// Who was asked to leave does not wait for the end of its request any more.
    pub(crate) fn hurry_leavers(&self) {
        let inner = self.lock();
        let all = inner.groups.connections();
        let leavers = all.filter(|connection| connection.orders.is_leaving());
        leavers.for_each(|connection| connection.orders.hurry());
    }

    /// Nobody is to leave any more.
    pub(crate) fn all_stay(&self) {
        let inner = self.lock();
        let all = inner.groups.connections();
        all.for_each(|connection| connection.orders.stay());
    }

    /// Forgets those that have ended, and those that cannot leave now.
    pub(crate) fn keep_leavers(&self, connections: &mut ByAge) {
        let inner = self.lock();
        connections.retain(|_, connection| connection.may_leave() && inner.groups.has(connection));
    }

    /// The applications of all connections, as far as a drain here would count them.
    pub(crate) fn applications(&self) -> BTreeSet<AppName> {
        let inner = self.lock();
        let counted = inner
            .groups
            .connections()
            .filter(|connection| !flows(connection.stage()) || connection.is_local());
        let newcomers = inner
            .lanes
            .values()
            .filter(|lane| lane.counts.newcomers > 0);
        let newcomers = newcomers.filter_map(|lane| lane.route.application().cloned());
        counted
            .filter_map(|connection| connection.application().cloned())
            .chain(newcomers)
            .collect()
    }

    /// How many connections there are.
    pub(crate) fn connection_count(&self) -> u64 {
        self.lock().connections
    }
}

/// Connections that another process still has: their places are not given to newcomers.
#[derive(Debug, Default)]
pub(super) struct Expected {
    of: BTreeMap<RouteKey, Coming>,
    all: u64,
}

impl Expected {
    fn new(coming: &BTreeMap<RouteKey, Coming>) -> Self {
        let each = coming.values().flat_map(|c| [c.held, c.active]);
        Self {
            of: coming.clone(),
            all: each.fold(0, u64::saturating_add),
        }
    }

    /// Those of a route.
    pub(super) fn of(&self, key: RouteKey) -> Coming {
        self.of.get(&key).copied().unwrap_or_default()
    }

    pub(super) fn all(&self) -> u64 {
        self.all
    }

    /// One of them is here. It may have waited when it was counted, and flow now.
    pub(super) fn came(&mut self, key: RouteKey, stage: Stage) {
        let Some(Coming { held, active }) = self.of.get_mut(&key) else {
            return;
        };
        let (own, other) = if flows(stage) {
            (active, held)
        } else {
            (held, active)
        };
        let count = if *own > 0 { own } else { other };
        if *count > 0 {
            *count = count.saturating_sub(1);
            self.all = self.all.saturating_sub(1);
        }
    }
}

impl Inner {
    /// Takes a connection in and counts it with its route, also when that is gone.
    fn adopt(
        &mut self,
        known: &Identity,
        stage: Stage,
        count: impl FnOnce(&mut Counts),
    ) -> Arc<Connection> {
        let lane = self.lanes.get_mut(&known.route);
        let by = lane
            .as_ref()
            .map(|lane| Arc::clone(&lane.route))
            .filter(|route| route.application() == known.application.as_ref());
        let by = by.unwrap_or_else(|| former(known));
        let by = if stage == Stage::Resting {
            as_it_was(by, known)
        } else {
            by
        };
        let meters = lane.map(Lane::meters).unwrap_or_default();
        self.last_id = self.last_id.max(known.id);
        let id = if self.groups.knows(by.application(), known.id) {
            // The process that it comes from gave one number twice.
            self.last_id = self.last_id.saturating_add(1);
            self.last_id
        } else {
            known.id
        };
        let connection = Connection::adopted((id, known), by, stage, meters);
        let connection = Arc::new(connection);
        self.expected.came(known.route, stage);
        if !self.lanes.contains_key(&known.route) {
            self.outlived.entry(known.route).or_default();
        }
        self.count(known.route, count);
        self.connections = self.connections.saturating_add(1);
        self.groups.adopt(&connection);
        connection
    }
}

/// Whether a connection has reached its application.
fn flows(stage: Stage) -> bool {
    match stage {
        Stage::Relaying | Stage::Answering | Stage::Resting => true,
        Stage::Connecting | Stage::Parked => false,
    }
}

/// The route as it was for a connection that rests, where it is treated in another way now, or
/// leads elsewhere.
fn as_it_was(by: Arc<Route>, known: &Identity) -> Arc<Route> {
    let phase = match (&known.upstream, by.phase.target()) {
        (Some(handover::Upstream::Local(was)), Some(Target::Local { addr })) if was != addr => {
            Phase::Open(Target::Local { addr: *was })
        }
        _ => by.phase.clone(),
    };
    if by.content == Content::Http && by.phase == phase {
        return by;
    }
    Arc::new(Route {
        content: Content::Http,
        phase,
        ..Route::clone(&by)
    })
}

/// A route that is another one's now, or no more, as far as its connections ask.
fn former(known: &Identity) -> Arc<Route> {
    let owner = known.application.clone();
    Arc::new(Route {
        owner: owner.map_or(Owner::File, Owner::Application),
        version: RouteVersion::default(),
        phase: Phase::Closed,
        content: Content::default(),
        announce: Announce::default(),
        limits: ParkLimits {
            park_limit: 0,
            park_timeout: std::time::Duration::ZERO,
        },
    })
}
