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

use std::collections::BTreeMap;
use std::time::Duration;

use rehome_shared::api::proxy::{Commit, CommitTarget, Gate, GateRef, Prepare, RouteKey, Target};
use rehome_shared::ids::{AppName, RouteVersion};

use crate::table::{Changes, Phase, RouteTable};

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
    /// [`GateError`] when the gate is unknown or newer; nothing is changed then.
    pub fn prepare(&mut self, verb: &Prepare) -> Result<Changes, GateError> {
        let view = self.view(&verb.application)?;
        let ended = self
            .resolved
            .get(&verb.application)
            .is_some_and(|at| verb.version <= *at);
        if verb.version < view.version || ended {
            return Err(stale(&verb.application, verb.version, view));
        }
        Ok(self.edit(&verb.application, |_, route| {
            route.version = verb.version;
            route.limits = verb.limits;
            if route.phase != Phase::Closed {
                route.phase = Phase::Parked(route.phase.park(Some(verb.lease)));
            }
        }))
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
    /// [`GateError`] when the version is not larger, or the targets are not those of the routes;
    /// nothing is changed then.
    pub fn commit(&mut self, verb: &Commit) -> Result<Changes, GateError> {
        let view = self.view(&verb.application)?;
        let targets = self.checked_targets(verb)?;
        if verb.version == view.version && self.already_leads(verb) {
            return Ok(Changes::default());
        }
        if verb.version <= view.version {
            return Err(stale(&verb.application, verb.version, view));
        }
        let mut changes = self.edit(&verb.application, |key, route| {
            if let Some(target) = targets.get(&key) {
                route.version = verb.version;
                route.phase = Phase::Open(Target::clone(target));
            }
        });
        self.resolve(&verb.application, verb.version, &mut changes);
        Ok(changes)
    }

    /// Opens to the old target. On a gate that was never prepared it changes nothing but the
    /// version, so that a `prepare` which comes after its own rollback is stale.
    ///
    /// # Errors
    /// [`GateError`] when the gate is newer, or has no old target; nothing is changed then.
    pub fn rollback(&mut self, verb: &GateRef) -> Result<Changes, GateError> {
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
        let mut changes = self.edit(&verb.application, |_, route| {
            route.version = verb.version;
            if let Phase::Parked(parked) = &route.phase
                && let Some(target) = parked.before.clone()
            {
                route.phase = Phase::Open(target);
            }
        });
        self.resolve(&verb.application, verb.version, &mut changes);
        Ok(changes)
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

    /// The targets of a commit by route: one for each route of the application, and no others.
    fn checked_targets<'a>(
        &self,
        verb: &'a Commit,
    ) -> Result<BTreeMap<RouteKey, &'a Target>, GateError> {
        let application = &verb.application;
        let targets = verb.targets.iter();
        let targets: BTreeMap<RouteKey, &Target> = targets.map(|t| (t.key, &t.target)).collect();
        if let Some((key, _)) = self
            .of(application)
            .find(|(key, _)| !targets.contains_key(key))
        {
            let application = application.clone();
            return Err(GateError::NoTarget { application, key });
        }
        let owner = |key: &RouteKey| self.route(*key).and_then(|route| route.application());
        if let Some(key) = targets.keys().find(|key| owner(key) != Some(application)) {
            let (application, key) = (application.clone(), *key);
            return Err(GateError::ForeignRoute { application, key });
        }
        Ok(targets)
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
