//! The routes: what each external port leads to, and how new that knowledge is.
//!
//! Two writers change a table: the desired set of `migrated` ([`RouteTable::apply`]) and the
//! verbs of a handoff (module [`crate::gate`]). Invariant: within one application a route
//! changes only to a larger version; an equal version that says something else is as stale as
//! a smaller one. Routes of the configuration file have no version and belong to the file.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rehome_shared::api::proxy::{
    Gate, ParkLimits, RouteIntent, RouteKey, RouteSpec, SetRoutes, Target,
};
use rehome_shared::ids::{AppName, HostAddr, RouteVersion};

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

/// What a new desired set changed. Only the routes named here are touched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Applied {
    /// Routes that were not there before.
    pub added: Vec<RouteKey>,
    /// Routes that are no more.
    pub removed: Vec<RouteKey>,
    /// Routes that changed.
    pub updated: Vec<RouteKey>,
    /// Routes that were offered too late and stayed as they are.
    pub stale: Vec<Stale>,
    /// Routes that the configuration file has taken.
    pub taken: Vec<RouteKey>,
}

impl Applied {
    /// Whether the table is another one now.
    #[must_use]
    pub fn changed(&self) -> bool {
        !(self.added.is_empty() && self.removed.is_empty() && self.updated.is_empty())
    }
}

/// All routes of one `proxyd`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteTable {
    pub(crate) host: Option<HostAddr>,
    pub(crate) peers: BTreeSet<HostAddr>,
    pub(crate) routes: BTreeMap<RouteKey, Route>,
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
    pub fn routes(&self) -> &BTreeMap<RouteKey, Route> {
        &self.routes
    }

    /// One route.
    #[must_use]
    pub fn route(&self, key: RouteKey) -> Option<&Route> {
        self.routes.get(&key)
    }

    /// Takes over a desired set: newer routes replace older ones, absent ones go.
    pub fn apply(&mut self, desired: &SetRoutes) -> Applied {
        let mut applied = Applied::default();
        self.host = Some(desired.host.clone());
        self.peers = desired.peers.iter().cloned().collect();
        let wanted: BTreeSet<RouteKey> = desired.routes.iter().map(|r| r.key).collect();
        self.routes.retain(|key, route| {
            let keep = route.owner == Owner::File || wanted.contains(key);
            if !keep {
                applied.removed.push(*key);
            }
            keep
        });
        for spec in &desired.routes {
            self.offer(spec, &mut applied);
        }
        self.forget_gone_applications();
        applied
    }

    /// Takes over the routes of the configuration file; those of `migrated` give way.
    pub fn apply_file(&mut self, routes: &BTreeMap<RouteKey, (Target, ParkLimits)>) -> Applied {
        let mut applied = Applied::default();
        self.routes.retain(|key, route| {
            let keep = route.owner != Owner::File || routes.contains_key(key);
            if !keep {
                applied.removed.push(*key);
            }
            keep
        });
        for (key, (target, limits)) in routes {
            let route = Route {
                owner: Owner::File,
                version: RouteVersion::default(),
                phase: Phase::Open(target.clone()),
                limits: *limits,
            };
            match self.routes.insert(*key, route.clone()) {
                None => applied.added.push(*key),
                Some(before) if before != route => applied.updated.push(*key),
                Some(_) => {}
            }
        }
        applied
    }

    fn offer(&mut self, spec: &RouteSpec, applied: &mut Applied) {
        let Some(route) = self.routes.get_mut(&spec.key) else {
            self.routes.insert(spec.key, fresh(spec));
            applied.added.push(spec.key);
            return;
        };
        match &route.owner {
            Owner::File => applied.taken.push(spec.key),
            // Versions of different applications say nothing about each other.
            Owner::Application(name) if *name != spec.application => {
                *route = fresh(spec);
                applied.updated.push(spec.key);
            }
            Owner::Application(_) if spec.version > route.version => {
                route.phase = route.phase.towards(&spec.intent);
                route.version = spec.version;
                route.limits = spec.limits;
                applied.updated.push(spec.key);
            }
            Owner::Application(_) => {
                let same = spec.version == route.version && route.phase.agrees(&spec.intent);
                if !same {
                    let (offered, current) = (spec.version, route.version);
                    applied.stale.push(Stale {
                        key: spec.key,
                        offered,
                        current,
                    });
                } else if route.limits != spec.limits {
                    route.limits = spec.limits;
                    applied.updated.push(spec.key);
                }
            }
        }
    }

    fn forget_gone_applications(&mut self) {
        let live: BTreeSet<&AppName> = self
            .routes
            .values()
            .filter_map(Route::application)
            .collect();
        self.resolved.retain(|name, _| live.contains(name));
    }
}

fn fresh(spec: &RouteSpec) -> Route {
    Route {
        owner: Owner::Application(spec.application.clone()),
        version: spec.version,
        phase: Phase::Closed.towards(&spec.intent),
        limits: spec.limits,
    }
}
