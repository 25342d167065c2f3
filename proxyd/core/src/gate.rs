//! The gate of an application: all its routes, changed together by the verbs of a handoff.
//!
//! ```text
//!            prepare v                    commit v' > v
//!   OPEN(t) ----------> PARKED(v, was t) ----------------> OPEN(t')
//!      ^                  |  drain v, freeze v: what flows ends
//!      +------------------+
//!          rollback v' >= v
//! ```
//!
//! Each verb may be repeated and is then without effect. A verb that is older than what the
//! gate knows is refused with the gate's state, so a message that was delayed can neither park
//! a gate again after its handoff ended nor open it before. The end of a lease is no
//! transition: only `migrated` knows the truth, so the gate stays parked.

use std::time::Duration;

use rehome_shared::api::proxy::{Commit, CommitTarget, Gate, GateRef, Prepare, RouteKey, Target};
use rehome_shared::ids::{AppName, RouteVersion};

use crate::table::{Phase, Route, RouteTable};

/// A verb that does not fit the gate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// There is no such gate.
    #[error("this proxy has no routes of {0}")]
    Unknown(AppName),
    /// The gate knows something newer.
    #[error("{offered} is not new: the gate of {application} is {} at {current}", gate.as_str())]
    Stale {
        /// Which gate.
        application: AppName,
        /// The verb's version.
        offered: RouteVersion,
        /// The gate's version.
        current: RouteVersion,
        /// The gate's state.
        gate: Gate,
    },
    /// The verb needs a `prepare` that this gate has not seen.
    #[error("{offered} was not prepared: the gate of {application} is {} at {current}", gate.as_str())]
    NotPrepared {
        /// Which gate.
        application: AppName,
        /// The verb's version.
        offered: RouteVersion,
        /// The gate's version.
        current: RouteVersion,
        /// The gate's state.
        gate: Gate,
    },
    /// The gate was parked from the start.
    #[error("the gate of {0} has no former target to go back to")]
    NoWayBack(AppName),
    /// A commit must say where every route leads.
    #[error("the commit of {application} has no target for {key}")]
    NoTarget {
        /// Which gate.
        application: AppName,
        /// The route without a target.
        key: RouteKey,
    },
    /// A commit names a route that is not the application's.
    #[error("{key} is not a route of {application}")]
    ForeignRoute {
        /// Which gate.
        application: AppName,
        /// The other route.
        key: RouteKey,
    },
}

impl GateError {
    /// Whether the caller is behind: it must learn the present state before it tries again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Stale { .. } | Self::NotPrepared { .. } | Self::NoWayBack(_) => true,
            Self::Unknown(_) | Self::NoTarget { .. } | Self::ForeignRoute { .. } => false,
        }
    }
}

/// What a verb did to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// The table is another one: keep it, then act on it.
    Changed,
    /// The gate was like that already.
    Same,
}

/// A gate, as its routes show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateView {
    /// The largest version of its routes.
    pub version: RouteVersion,
    /// Parked when any route is; else open when any is.
    pub gate: Gate,
    /// The lease of its `prepare`.
    pub lease: Option<Duration>,
}

impl RouteTable {
    /// The gate of an application.
    #[must_use]
    pub fn gate(&self, application: &AppName) -> Option<GateView> {
        self.of(application)
            .fold(None, |view: Option<GateView>, (_, route)| {
                let lease = match &route.phase {
                    Phase::Parked(parked) => parked.lease,
                    Phase::Open(_) | Phase::Closed => None,
                };
                let this = GateView {
                    version: route.version,
                    gate: route.phase.gate(),
                    lease,
                };
                Some(view.map_or(this, |other| GateView {
                    version: other.version.max(this.version),
                    gate: wider(other.gate, this.gate),
                    lease: other.lease.or(this.lease),
                }))
            })
    }

    /// Holds new connections from now on. Routes that are closed stay closed.
    ///
    /// # Errors
    /// [`GateError`] when the gate is unknown or newer.
    pub fn prepare(&mut self, verb: &Prepare) -> Result<Change, GateError> {
        let view = self.view(&verb.application)?;
        let ended = self
            .resolved
            .get(&verb.application)
            .is_some_and(|at| verb.version <= *at);
        if verb.version < view.version || ended {
            return Err(stale(&verb.application, verb.version, view));
        }
        let before = self.routes.clone();
        for route in self.of_mut(&verb.application) {
            route.version = verb.version;
            route.limits = verb.limits;
            if route.phase != Phase::Closed {
                route.phase = Phase::Parked(route.phase.park(Some(verb.lease)));
            }
        }
        Ok(if self.routes == before {
            Change::Same
        } else {
            Change::Changed
        })
    }

    /// Checks that a drain or a freeze means the handoff that is going on, or one that has led
    /// the application away: what still flows to its old instance here may always be ended.
    ///
    /// # Errors
    /// [`GateError`] when it means another one.
    pub fn check_prepared(&self, verb: &GateRef) -> Result<(), GateError> {
        let view = self.view(&verb.application)?;
        if self.leads_away(&verb.application) {
            return Ok(());
        }
        if verb.version < view.version {
            return Err(stale(&verb.application, verb.version, view));
        }
        if verb.version > view.version || view.gate == Gate::Open {
            return Err(GateError::NotPrepared {
                application: verb.application.clone(),
                offered: verb.version,
                current: view.version,
                gate: view.gate,
            });
        }
        Ok(())
    }

    /// Leads somewhere else and opens.
    ///
    /// # Errors
    /// [`GateError`] when the version is not larger, or the targets are not those of the routes.
    pub fn commit(&mut self, verb: &Commit) -> Result<Change, GateError> {
        let view = self.view(&verb.application)?;
        self.check_targets(verb)?;
        if verb.version == view.version && self.already_leads(verb) {
            return Ok(Change::Same);
        }
        if verb.version <= view.version {
            return Err(stale(&verb.application, verb.version, view));
        }
        for CommitTarget { key, target } in &verb.targets {
            if let Some(route) = self.routes.get_mut(key) {
                route.version = verb.version;
                route.phase = Phase::Open(target.clone());
            }
        }
        self.resolved.insert(verb.application.clone(), verb.version);
        Ok(Change::Changed)
    }

    /// Opens to the old target. On a gate that was never prepared it changes nothing but the
    /// version, so that a `prepare` which comes after its own rollback is stale.
    ///
    /// # Errors
    /// [`GateError`] when the gate is newer, or has no old target.
    pub fn rollback(&mut self, verb: &GateRef) -> Result<Change, GateError> {
        let view = self.view(&verb.application)?;
        if verb.version < view.version {
            return Err(stale(&verb.application, verb.version, view));
        }
        let stuck = self.of(&verb.application).any(
            |(_, route)| matches!(&route.phase, Phase::Parked(parked) if parked.before.is_none()),
        );
        if stuck {
            return Err(GateError::NoWayBack(verb.application.clone()));
        }
        let before = self.routes.clone();
        for route in self.of_mut(&verb.application) {
            route.version = verb.version;
            if let Phase::Parked(parked) = &route.phase
                && let Some(target) = parked.before.clone()
            {
                route.phase = Phase::Open(target);
            }
        }
        let known = self.resolved.insert(verb.application.clone(), verb.version);
        let same = self.routes == before && known == Some(verb.version);
        Ok(if same { Change::Same } else { Change::Changed })
    }

    /// The routes of an application.
    pub fn of<'a>(
        &'a self,
        application: &'a AppName,
    ) -> impl Iterator<Item = (RouteKey, &'a Route)> {
        self.routes
            .iter()
            .filter(move |(_, route)| route.application() == Some(application))
            .map(|(key, route)| (*key, route))
    }

    fn of_mut(&mut self, application: &AppName) -> impl Iterator<Item = &mut Route> {
        self.routes
            .values_mut()
            .filter(move |route| route.application() == Some(application))
    }

    /// Whether every route leads to another host.
    fn leads_away(&self, application: &AppName) -> bool {
        self.of(application)
            .all(|(_, route)| matches!(route.phase.target(), Some(Target::Remote { .. })))
    }

    fn view(&self, application: &AppName) -> Result<GateView, GateError> {
        self.gate(application)
            .ok_or_else(|| GateError::Unknown(application.clone()))
    }

    fn check_targets(&self, verb: &Commit) -> Result<(), GateError> {
        let application = &verb.application;
        for (key, _) in self.of(application) {
            if !verb.targets.iter().any(|target| target.key == key) {
                return Err(GateError::NoTarget {
                    application: application.clone(),
                    key,
                });
            }
        }
        for CommitTarget { key, .. } in &verb.targets {
            if self.route(*key).and_then(Route::application) != Some(application) {
                let (application, key) = (application.clone(), *key);
                return Err(GateError::ForeignRoute { application, key });
            }
        }
        Ok(())
    }

    fn already_leads(&self, verb: &Commit) -> bool {
        verb.targets.iter().all(|CommitTarget { key, target }| {
            self.route(*key).is_some_and(|route| {
                route.version == verb.version && route.phase.target() == Some(target)
            })
        })
    }
}

fn stale(application: &AppName, offered: RouteVersion, view: GateView) -> GateError {
    let (current, gate) = (view.version, view.gate);
    GateError::Stale {
        application: application.clone(),
        offered,
        current,
        gate,
    }
}

fn wider(a: Gate, b: Gate) -> Gate {
    match (a, b) {
        (Gate::Parked, _) | (_, Gate::Parked) => Gate::Parked,
        (Gate::Open, _) | (_, Gate::Open) => Gate::Open,
        (Gate::Closed, Gate::Closed) => Gate::Closed,
    }
}
