//! How routes come to the proxies: what a daemon says of the applications that it owns, what
//! hosts tell each other of it, and what their proxies make of that.
//!
//! Which route a host wants, which advert is news and which generation comes next is decided by
//! the real [`routes`]; that a proxy takes a larger version only, and that a daemon which finds a
//! larger one at its proxy says its own again, is as `proxyd` and `migrated` do it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use migrated_core::UnixMillis;
use migrated_core::routes::{self, Adverts, LocalRoute, Locals};
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::proxy::{Announce, RouteIntent, Target};
use rehome_shared::config::model::{MigrationLimits, Port};
use rehome_shared::ids::{DeploymentGeneration, Epoch, Generation, Protocol, RouteVersion};

use super::state::{App, Place, State};
use super::{Label, Mutation, Routing, World};
use crate::values::{self, Symmetry};

/// An epoch and a generation in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
struct Version(u8, u8);

impl Version {
    fn real(self) -> RouteVersion {
        RouteVersion {
            epoch: Epoch(self.0.into()),
            generation: Generation(self.1.into()),
        }
    }

    fn of(version: RouteVersion) -> Self {
        Self(small(version.epoch.0), small(version.generation.0))
    }
}

fn small<N: TryInto<u8>>(number: N) -> u8 {
    number.try_into().ok().unwrap()
}

/// What a daemon wants as the owner: open, or parked.
type Local = Option<(Version, bool)>;

/// What somebody says of where an application is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Advert {
    version: Version,
    host: u8,
}

impl Advert {
    fn real(self) -> rehome_shared::api::peer::Advert {
        rehome_shared::api::peer::Advert {
            application: values::application(0),
            version: self.version.real(),
            host: values::host(self.host.into()),
        }
    }

    pub(super) fn mirror(self, symmetry: Symmetry) -> Self {
        Self {
            host: small(symmetry.host(self.host.into())),
            ..self
        }
    }
}

/// Where a proxy leads clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
enum Lead {
    /// Nowhere yet.
    #[default]
    Parked,
    /// To the instance of its own host.
    Here,
    /// To the proxy of the other host.
    There,
}

/// What a host knows and says of an application's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Route {
    /// What its daemon wants, as the owner: open, or parked.
    local: Local,
    /// The newest that it heard of others.
    advert: Option<Advert>,
    /// What its proxy does, and keeps over every crash.
    proxy: (Version, Lead),
}

impl Route {
    /// Where the application was born.
    pub(super) fn of_owner() -> Self {
        Self {
            local: Some((Version(1, 1), true)),
            advert: None,
            proxy: (Version(1, 1), Lead::Here),
        }
    }

    /// On the other host.
    pub(super) fn of_stranger(owner: usize) -> Self {
        Self {
            local: None,
            advert: Some(Advert {
                version: Version(1, 1),
                host: u8::try_from(owner).unwrap(),
            }),
            proxy: (Version(1, 1), Lead::There),
        }
    }

    /// The daemon is gone, the proxy goes on.
    pub(super) fn forget(&mut self) {
        self.local = None;
        self.advert = None;
    }

    pub(super) fn mirror(self, symmetry: Symmetry) -> Self {
        Self {
            advert: self.advert.map(|advert| advert.mirror(symmetry)),
            ..self
        }
    }

    fn locals(self) -> Locals {
        let local = self.local.map(|(version, open)| {
            let route = if open {
                LocalRoute::Open(ADDRESS.into())
            } else {
                LocalRoute::Park
            };
            (values::application(0), (version.real(), route))
        });
        local.into_iter().collect()
    }

    fn adverts(self) -> Adverts {
        let advert = self
            .advert
            .map(|advert| (values::application(0), advert.real()));
        advert.into_iter().collect()
    }
}

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Generations that matter only by their order are the smallest numbers in that order: a clock
/// that goes on is ahead of all of them.
pub(super) fn rank(app: &mut App) {
    let mut versions: Vec<&mut Version> = Vec::new();
    for side in &mut app.sides {
        let route = &mut side.route;
        versions.extend(route.local.as_mut().map(|(version, _)| version));
        versions.extend(route.advert.as_mut().map(|advert| &mut advert.version));
        versions.push(&mut route.proxy.0);
    }
    versions.extend(app.lingering.as_mut().map(|advert| &mut advert.version));
    let mut known: Vec<Version> = versions.iter().map(|version| **version).collect();
    known.sort_unstable();
    known.dedup();
    for version in versions {
        let before = known
            .iter()
            .filter(|other| other.0 == version.0 && other.1 > 0 && other.1 < version.1);
        if version.1 > 0 {
            version.1 = small(before.count()) + 1;
        }
    }
}

/// What is needed to ask the real functions.
pub(super) struct Book {
    desired: Desired,
    now: UnixMillis,
    computed: HashMap<(Local, Option<Advert>), (Version, Lead)>,
    heard: HashMap<(Option<Advert>, Advert), bool>,
    tells: HashMap<(Local, Option<Advert>, usize), Option<Advert>>,
}

impl Book {
    pub(super) fn new(routing: Routing) -> Self {
        let mut spec = values::reservation(0, 0, 1).spec;
        spec.ports = vec![Port {
            internal: 80,
            external: 80,
            protocol: Protocol::Tcp,
            send_proxy: Announce::default(),
        }];
        let name = values::application(0);
        Self {
            desired: Desired {
                generation: DeploymentGeneration(1),
                applications: BTreeMap::from([(name.clone(), spec)]),
                placement: BTreeMap::from([(values::host(0), [name].into_iter().collect())]),
                ..Desired::default()
            },
            now: match routing {
                Routing::AtOnce | Routing::ClockStands => UnixMillis(0),
                Routing::Told => UnixMillis(100),
            },
            computed: HashMap::new(),
            heard: HashMap::new(),
            tells: HashMap::new(),
        }
    }

    /// Takes up what somebody says.
    fn hear(&mut self, route: &mut Route, news: Advert) {
        let heard = &mut self.heard;
        let is_news = *heard
            .entry((route.advert, news))
            .or_insert_with(|| routes::merge(&mut route.adverts(), &news.real()));
        if is_news {
            route.advert = Some(news);
        }
    }

    /// What a host tells others.
    fn tell(&mut self, route: Route, here: usize) -> Option<Advert> {
        let key = (route.local, route.advert, here);
        *self.tells.entry(key).or_insert_with(|| {
            let mut known = route.adverts();
            for own in routes::own_adverts(&route.locals(), &values::host(here)) {
                routes::merge(&mut known, &own);
            }
            known.into_values().next().map(|advert| Advert {
                version: Version::of(advert.version),
                host: u8::from(advert.host == values::host(1)),
            })
        })
    }

    /// What a host tells its proxy. What others repeat of this host itself leads nowhere but
    /// here, so it says nothing of that.
    fn compute(&mut self, route: Route, here: usize) -> (Version, Lead) {
        let advert = route
            .advert
            .filter(|advert| usize::from(advert.host) != here);
        let key = (route.local, advert);
        let Self {
            desired, computed, ..
        } = self;
        *computed.entry(key).or_insert_with(|| {
            let route = Route { advert, ..route };
            let (locals, adverts) = (route.locals(), route.adverts());
            let limits = MigrationLimits::default();
            let specs = routes::compute(desired, &locals, &adverts, 7421, limits);
            let spec = &specs[0];
            let lead = match &spec.intent {
                RouteIntent::Open(Target::Local { .. }) => Lead::Here,
                RouteIntent::Open(Target::Remote { .. }) => Lead::There,
                RouteIntent::Park | RouteIntent::Closed => Lead::Parked,
            };
            (Version::of(spec.version), lead)
        })
    }
}

impl World {
    fn told(&self) -> bool {
        self.bounds.routing != Routing::AtOnce
    }

    /// The epoch that a host says something of an application at.
    pub(super) fn epoch_of(&self, state: &State, place: Place) -> u8 {
        let registry = self.machines.registry(state.journal(place));
        let known = registry.applications().get(&values::application(place.app));
        known.map_or(0, |known| small(known.epoch.0))
    }

    /// The next version of what a host says.
    fn set(&self, state: &mut State, place: Place, open: bool) -> Version {
        let epoch = self.epoch_of(state, place);
        let route = &mut state.side_mut(place).route;
        let last = match route.local {
            Some((version, known)) if version.0 == epoch && known == open => return version,
            Some((version, _)) if version.0 == epoch => version.1,
            _ => route
                .advert
                .filter(|advert| advert.version.0 == epoch)
                .map_or(0, |advert| advert.version.1),
        };
        let next = routes::next_generation(Generation(last.into()), self.routing.now);
        let version = Version(epoch, small(next.0));
        route.local = Some((version, open));
        version
    }

    /// What the proxy of a host makes of what it is told.
    fn offer(
        &self,
        state: &mut State,
        place: Place,
        offered: (Version, Lead),
        again: bool,
    ) -> bool {
        let current = state.side(place).route.proxy.0;
        let newer = offered.0 > current || (again && offered.0 == current);
        if !newer && !self.mutated(Mutation::ProxyTakesAnything) {
            return false;
        }
        state.apps[place.app].went_back |= offered.0 < current;
        let side = state.side_mut(place);
        side.route.proxy = offered;
        side.gate = offered.1 == Lead::Here;
        true
    }

    /// The owner leads clients to its instance.
    pub(super) fn open(&self, state: &mut State, place: Place) {
        if self.told() {
            self.set(state, place, true);
        } else {
            state.side_mut(place).gate = true;
        }
    }

    /// Whether it does so, as far as its daemon knows.
    pub(super) fn wants_open(&self, state: &State, place: Place) -> bool {
        let side = state.side(place);
        if self.told() {
            let epoch = self.epoch_of(state, place);
            matches!(side.route.local, Some((version, true)) if version.0 == epoch)
        } else {
            side.gate
        }
    }

    /// A host has nothing to say of an application any more.
    pub(super) fn close(&self, state: &mut State, place: Place) {
        let told = self.told();
        let side = state.side_mut(place);
        side.route.local = None;
        side.gate &= told;
    }

    /// A cut-over holds new connections; `false` when the proxy knows something newer.
    pub(super) fn park(&self, state: &mut State, place: Place) -> bool {
        if self.told() {
            let version = self.set(state, place, false);
            self.offer(state, place, (version, Lead::Parked), true)
        } else {
            state.side_mut(place).gate = false;
            true
        }
    }

    /// A source that gave it away leads clients to the next owner.
    pub(super) fn lead_away(&mut self, state: &mut State, place: Place, number: u8) {
        if !self.told() {
            return;
        }
        let live = self.machines.live(state.side(place).live);
        let epoch = live
            .filter(|m| m.id == values::id(number))
            .unwrap()
            .plan
            .epoch;
        let route = &mut state.side_mut(place).route;
        route.local = None;
        let owner = Advert {
            version: Version(small(epoch.next().0), 0),
            host: small(1 - place.at),
        };
        self.routing.hear(route, owner);
    }

    /// Whether the other host's proxy leads clients here.
    pub(super) fn leads_here(&self, state: &State, place: Place) -> bool {
        let there = place.there();
        let leads = state.side(there).route.proxy.1 == Lead::There;
        !self.told() || (state.hosts[there.at].up && leads)
    }

    /// All that is told of routes from, at and to a host.
    pub(super) fn tell_routes(&mut self, state: &State, place: Place) {
        if !self.told() {
            return;
        }
        let label = |what| Label(what, place, None);
        let mut next = *state;
        let wanted = self.routing.compute(state.side(place).route, place.at);
        self.offer(&mut next, place, wanted, false);
        self.overtake(&mut next, place, wanted);
        self.edge_if_new(label("tells its proxy"), state, next);

        let there = place.there();
        let tell = self.routing.tell(state.side(there).route, there.at);
        if let Some(news) = tell.filter(|_| state.hosts[there.at].up) {
            let mut next = *state;
            self.routing.hear(&mut next.side_mut(place).route, news);
            self.edge_if_new(label("hears of a route"), state, next);
        }
        let own = self.routing.tell(state.side(place).route, place.at);
        self.stale = true;
        if let Some(news) = state.apps[place.app].lingering {
            let mut next = *state;
            self.routing.hear(&mut next.side_mut(place).route, news);
            self.edge_if_new(label("hears of an old route"), state, next);
        } else if own.is_some() {
            let mut next = *state;
            next.apps[place.app].lingering = own;
            self.edge(label("tells of a route, much later"), next);
        }
        self.stale = false;
        if self.mutated(Mutation::LeaseOpens) && state.side(place).route.proxy.1 == Lead::Parked {
            let mut next = *state;
            let version = next.side(place).route.proxy.0;
            next.side_mut(place).route.proxy = (version, Lead::Here);
            next.side_mut(place).gate = true;
            self.edge(label("opens at the end of its lease"), next);
        }
    }

    /// The proxy has something newer than its daemon says, or the same version for something
    /// else: the daemon says its own again under a larger one.
    fn overtake(&self, state: &mut State, place: Place, wanted: (Version, Lead)) {
        let now = self.routing.now;
        let route = &mut state.side_mut(place).route;
        let (at_proxy, lead) = route.proxy;
        if let Some((version, open)) = &mut route.local
            && !self.mutated(Mutation::NoOvertake)
        {
            let ignored = at_proxy == *version && *open && lead != wanted.1;
            if at_proxy.0 == version.0 && (at_proxy > *version || ignored) {
                let next = routes::next_generation(Generation(at_proxy.1.into()), now);
                version.1 = small(next.0);
            }
        }
    }

    pub(super) fn edge_if_new(&mut self, label: Label, state: &State, next: State) {
        if next != *state {
            self.edge(label, next);
        }
    }
}
