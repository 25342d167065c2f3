//! The routes: what each external port leads to, and how new that knowledge is.
//!
//! Two writers change a table: the desired set of `migrated` ([`RouteTable::apply`]) and the
//! verbs of a handoff (module [`crate::gate`]). Invariant: within one application a route
//! changes only to a larger version; an equal version that says something else is as stale as
//! a smaller one. Routes of the configuration file have no version and belong to the file.

mod changes;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rehome_shared::api::proxy::{
    Announce, Content, Gate, ParkLimits, RouteIntent, RouteKey, RouteSpec, SetRoutes, Target,
};
use rehome_shared::ids::{AppName, HostAddr, RouteVersion};

pub use changes::Changes;
use routes::Routes;

/// Who says what a route is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// `migrated`, for an application.
    Application(AppName),
    /// The configuration file of this `proxyd`.
    File,
}

/// What a route does with connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// They flow.
    Open(Target),
    /// They are held.
    Parked(Parked),
    /// They are refused.
    Closed,
}

impl Phase {
    /// The word for people.
    #[must_use]
    pub fn gate(&self) -> Gate {
        match self {
            Self::Open(_) => Gate::Open,
            Self::Parked(_) => Gate::Parked,
            Self::Closed => Gate::Closed,
        }
    }

    /// Where connections flow, when they do.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Open(target) => Some(target),
            Self::Parked(_) | Self::Closed => None,
        }
    }

    fn agrees(&self, intent: &RouteIntent) -> bool {
        match (self, intent) {
            (Self::Open(now), RouteIntent::Open(wanted)) => now == wanted,
            (Self::Parked(_), RouteIntent::Park) | (Self::Closed, RouteIntent::Closed) => true,
            (Self::Open(_), RouteIntent::Park | RouteIntent::Closed)
            | (Self::Parked(_), RouteIntent::Open(_) | RouteIntent::Closed)
            | (Self::Closed, RouteIntent::Open(_) | RouteIntent::Park) => false,
        }
    }

    fn towards(&self, intent: &RouteIntent) -> Self {
        match intent {
            RouteIntent::Open(target) => Self::Open(target.clone()),
            RouteIntent::Park => Self::Parked(self.park(None)),
            RouteIntent::Closed => Self::Closed,
        }
    }

    /// The parked state that follows this one; it remembers the way back.
    pub(crate) fn park(&self, lease: Option<Duration>) -> Parked {
        match self {
            Self::Open(target) => Parked {
                before: Some(target.clone()),
                lease,
            },
            Self::Parked(parked) => Parked {
                before: parked.before.clone(),
                lease: lease.or(parked.lease),
            },
            Self::Closed => Parked {
                before: None,
                lease,
            },
        }
    }
}

/// A held route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Where it led before; a rollback leads there again.
    pub before: Option<Target>,
    /// After this long without a word the proxy asks; absent when nobody prepared a handoff.
    pub lease: Option<Duration>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whose it is.
    pub owner: Owner,
    /// The version in force.
    pub version: RouteVersion,
    /// What it does.
    pub phase: Phase,
    /// Limits while parked.
    pub limits: ParkLimits,
    /// What travels. A way on which the proxy does not see each byte is for plain bytes alone.
    pub content: Content,
    /// What the application is told of its clients; something only where the proxy sees each byte.
    pub announce: Announce,
}

/// A route of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRoute {
    /// Where it leads.
    pub target: Target,
    /// Limits while connections wait for that.
    pub limits: ParkLimits,
    /// What travels.
    pub content: Content,
    /// What the target is told of clients.
    pub announce: Announce,
}

impl Route {
    /// The application, when `migrated` owns the route.
    #[must_use]
    pub fn application(&self) -> Option<&AppName> {
        match &self.owner {
            Owner::Application(name) => Some(name),
            Owner::File => None,
        }
    }

    /// Whether the other one does the same with connections, by the same version.
    #[must_use]
    pub fn leads_as(&self, other: &Self) -> bool {
        (self.version, &self.phase) == (other.version, &other.phase)
    }

    /// Whether the application may be on its way, so that a refused connect means "not yet".
    #[must_use]
    pub fn may_move(&self) -> bool {
        self.application().is_some()
    }
}

/// A route that was offered with a version that is not newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// Which.
    pub key: RouteKey,
    /// What was offered.
    pub offered: RouteVersion,
    /// What stays in force.
    pub current: RouteVersion,
}

/// What became of a new desired set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Applied {
    /// What it changed.
    pub changes: Changes,
    /// Routes that were offered too late and stayed as they are.
    pub stale: Vec<Stale>,
    /// Routes that the configuration file has taken.
    pub taken: Vec<RouteKey>,
}

/// All routes of one `proxyd`.
///
/// A change costs what it changes, but for a new desired set, which costs as much as the set and
/// the table. A clone shares the routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteTable {
    pub(crate) host: Option<HostAddr>,
    pub(crate) peers: BTreeSet<HostAddr>,
    pub(crate) routes: Routes,
    /// The version at which an application's last handoff ended here.
    pub(crate) resolved: BTreeMap<AppName, RouteVersion>,
}

impl RouteTable {
    /// This host, once `migrated` has said who it is.
    #[must_use]
    pub fn host(&self) -> Option<&HostAddr> {
        self.host.as_ref()
    }

    /// The hosts that may send trunk connections.
    #[must_use]
    pub fn peers(&self) -> &BTreeSet<HostAddr> {
        &self.peers
    }

    /// Every route.
    #[must_use]
    pub fn routes(&self) -> &BTreeMap<RouteKey, Arc<Route>> {
        self.routes.by_key()
    }

    /// One route.
    #[must_use]
    pub fn route(&self, key: RouteKey) -> Option<&Arc<Route>> {
        self.routes.get(key)
    }

    /// The routes of an application.
    pub fn of(&self, application: &AppName) -> impl Iterator<Item = (RouteKey, &Route)> {
        self.routes
            .of(application)
            .map(|(key, route)| (key, route.as_ref()))
    }

    /// The applications of which something is known: routes, or how a handoff ended.
    pub fn applications(&self) -> impl Iterator<Item = &AppName> {
        let only_resolved = self.resolved.keys();
        let only_resolved = only_resolved.filter(move |name| !self.routes.has(name));
        self.routes.applications().chain(only_resolved)
    }

    /// Takes over a desired set: newer routes replace older ones, absent ones go.
    pub fn apply(&mut self, desired: &SetRoutes) -> Applied {
        let mut applied = Applied::default();
        applied.changes.cluster = self.meet(desired);
        let wanted: BTreeSet<RouteKey> = desired.routes.iter().map(|r| r.key).collect();
        self.retain(&mut applied.changes, |key, route| {
            route.owner == Owner::File || wanted.contains(&key)
        });
        for spec in &desired.routes {
            self.offer(spec, &mut applied);
        }
        self.forget_gone_applications(&mut applied.changes);
        applied
    }

    /// Takes over the routes of the configuration file; those of `migrated` give way.
    pub fn apply_file(&mut self, routes: &BTreeMap<RouteKey, FileRoute>) -> Changes {
        let mut changes = Changes::default();
        self.retain(&mut changes, |key, route| {
            route.owner != Owner::File || routes.contains_key(&key)
        });
        for (key, route) in routes {
            let route = Route {
                owner: Owner::File,
                version: RouteVersion::default(),
                phase: Phase::Open(route.target.clone()),
                limits: route.limits,
                content: route.content,
                announce: route.announce,
            };
            self.set(*key, route, &mut changes);
        }
        changes
    }

    /// Changes each route of an application.
    pub(crate) fn edit(
        &mut self,
        application: &AppName,
        mut edit: impl FnMut(RouteKey, &mut Route),
    ) -> Changes {
        let mut changes = Changes::default();
        let routes: Vec<(RouteKey, Route)> = self
            .of(application)
            .map(|(key, route)| (key, route.clone()))
            .collect();
        for (key, mut route) in routes {
            edit(key, &mut route);
            self.set(key, route, &mut changes);
        }
        changes
    }

    /// Notes the version at which a handoff ended.
    pub(crate) fn resolve(&mut self, application: &AppName, at: RouteVersion, to: &mut Changes) {
        if self.resolved.insert(application.clone(), at) != Some(at) {
            to.touch(application);
        }
    }

    /// Learns who this host and its peers are; whether that is news.
    fn meet(&mut self, desired: &SetRoutes) -> bool {
        let peers: BTreeSet<HostAddr> = desired.peers.iter().cloned().collect();
        let news = self.host.as_ref() != Some(&desired.host) || self.peers != peers;
        self.host = Some(desired.host.clone());
        self.peers = peers;
        news
    }

    fn set(&mut self, key: RouteKey, route: Route, changes: &mut Changes) {
        if self.routes.get(key).is_some_and(|now| **now == route) {
            return;
        }
        if let Some(application) = route.application() {
            changes.touch(application);
        }
        match self.routes.put(key, route) {
            None => changes.added.push(key),
            Some(before) => {
                if let Some(application) = before.application() {
                    changes.touch(application);
                }
                changes.updated.push(key);
            }
        }
    }

    fn retain(&mut self, changes: &mut Changes, keep: impl Fn(RouteKey, &Route) -> bool) {
        let all = self.routes.by_key().iter();
        let gone = all.filter(|(key, route)| !keep(**key, route));
        let gone: Vec<RouteKey> = gone.map(|(key, _)| *key).collect();
        for key in gone {
            if let Some(application) = self.routes.take(key).as_ref().and_then(|r| r.application())
            {
                changes.touch(application);
            }
            changes.removed.push(key);
        }
    }

    fn offer(&mut self, spec: &RouteSpec, applied: &mut Applied) {
        let Some(now) = self.routes.get(spec.key) else {
            return self.set(spec.key, fresh(spec), &mut applied.changes);
        };
        let next = match &now.owner {
            Owner::File => return applied.taken.push(spec.key),
            // Versions of different applications say nothing about each other.
            Owner::Application(name) if *name != spec.application => fresh(spec),
            Owner::Application(_) if spec.version > now.version => Route {
                owner: now.owner.clone(),
                version: spec.version,
                phase: now.phase.towards(&spec.intent),
                limits: spec.limits,
                content: spec.content,
                announce: spec.announce,
            },
            Owner::Application(_)
                if spec.version < now.version || !now.phase.agrees(&spec.intent) =>
            {
                return applied.stale.push(Stale {
                    key: spec.key,
                    offered: spec.version,
                    current: now.version,
                });
            }
            // What it leads to is a matter of versions; how it is treated is not.
            Owner::Application(_)
                if (now.limits, now.content, now.announce)
                    == (spec.limits, spec.content, spec.announce) =>
            {
                return;
            }
            Owner::Application(_) => Route {
                limits: spec.limits,
                content: spec.content,
                announce: spec.announce,
                ..Route::clone(now)
            },
        };
        self.set(spec.key, next, &mut applied.changes);
    }

    fn forget_gone_applications(&mut self, changes: &mut Changes) {
        let routes = &self.routes;
        self.resolved.retain(|application, _| {
            let live = routes.has(application);
            if !live {
                changes.touch(application);
            }
            live
        });
    }
}

fn fresh(spec: &RouteSpec) -> Route {
    Route {
        owner: Owner::Application(spec.application.clone()),
        version: spec.version,
        phase: Phase::Closed.towards(&spec.intent),
        limits: spec.limits,
        content: spec.content,
        announce: spec.announce,
    }
}
