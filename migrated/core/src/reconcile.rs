//! What a host does next for one application: observe, plan, apply, again.
//!
//! The plan is one action, or none. It never starts what this host does not own, never makes a
//! volume twice, and leaves an application alone while a handoff has it in hand.

use std::time::Duration;

use rehome_shared::config::model::RestartPolicy;
use rehome_shared::ids::{AppName, DeploymentGeneration, HostAddr};

use crate::registry::{Ownership, Registry, Role};

/// What a host knows of an application when it plans.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Which application.
    pub application: &'a AppName,
    /// This host.
    pub here: &'a HostAddr,
    /// What the journal says.
    pub registry: &'a Registry,
    /// The host that it should run on, if it should run.
    pub desired_host: Option<&'a HostAddr>,
    /// Whether the deployment allows its birth, and by which generation.
    pub birth: Option<DeploymentGeneration>,
    /// The hash that its instance should have.
    pub desired_hash: Option<&'a str>,
    /// Its instance here.
    pub instance: Option<InstanceSeen<'a>>,
    /// What happens when it exits by itself.
    pub restart_policy: RestartPolicy,
    /// Exits by itself in a row, since it last was healthy for long.
    pub exits: u32,
    /// A move of this deployment failed already: it is not tried again until the next.
    pub move_failed: bool,
    /// Whether the host was started since the instance last ran.
    pub host_restarted: bool,
    /// Whether the other hosts were asked since the daemon was started, and none of them knows
    /// of a newer owner.
    pub cleared: bool,
}

/// An instance as the runtime tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceSeen<'a> {
    /// Its configuration's hash.
    pub config_hash: &'a str,
    /// Its state.
    pub state: InstancePhase,
}

/// The states of an instance that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstancePhase {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// With status 0.
        success: bool,
    },
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing: all is as it should be, or somebody else has it in hand.
    None,
    /// Record that it is this host's, and make its volumes.
    Birth,
    /// Make (or make anew) its instance and start it.
    Run,
    /// Start its instance as it is, after a pause.
    Start {
        /// The pause.
        after: Duration,
    },
    /// Stop and remove its instance; the volumes stay.
    Stop,
    /// Move it.
    Migrate {
        /// Where to.
        to: HostAddr,
    },
    /// An instance of something that this host does not own: stop and remove it.
    Evict,
}

/// Plans.
pub fn plan(seen: &Seen<'_>) -> Action {
    match plan_cleared(seen) {
        // What has changed hands while this host was gone must not run here again.
        Action::Run | Action::Start { .. } | Action::Migrate { .. } if !seen.cleared => {
            Action::None
        }
        action => action,
    }
}

fn plan_cleared(seen: &Seen<'_>) -> Action {
    if seen.registry.incoming(seen.application).is_some() {
        return Action::None;
    }
    if let Some(migration) = seen.registry.source_of(seen.application) {
        // A copy may take hours: an application that exits meanwhile is started again as ever.
        return if migration.phase.leaves_serving() {
            keep_going(seen)
        } else {
            Action::None
        };
    }
    match seen.registry.applications().get(seen.application) {
        None => plan_unknown(seen),
        Some(known) => match known.role {
            Role::Gone { .. } | Role::Left { .. } => evict(seen),
            Role::Owner => plan_owned(seen, known),
        },
    }
}

fn plan_unknown(seen: &Seen<'_>) -> Action {
    if seen.birth.is_some() && seen.desired_host == Some(seen.here) {
        Action::Birth
    } else {
        evict(seen)
    }
}

fn evict(seen: &Seen<'_>) -> Action {
    if seen.instance.is_some() {
        Action::Evict
    } else {
        Action::None
    }
}

fn plan_owned(seen: &Seen<'_>, owned: &Ownership) -> Action {
    match seen.desired_host {
        None if seen.instance.is_some() => Action::Stop,
        None => Action::None,
        Some(host) if host == seen.here => run_here(seen),
        // What was announced is made first: nobody takes a volume that may not be there.
        Some(_) if !owned.unmade.is_empty() => Action::Run,
        Some(host) if !seen.move_failed => Action::Migrate { to: host.clone() },
        // The move failed: it goes on here, and as it was where there is something to keep.
        Some(_) if seen.instance.is_none() => Action::Run,
        Some(_) => keep_going(seen),
    }
}

fn run_here(seen: &Seen<'_>) -> Action {
    match seen.instance {
        None => Action::Run,
        Some(instance) if Some(instance.config_hash) != seen.desired_hash => Action::Run,
        Some(_) => keep_going(seen),
    }
}

fn keep_going(seen: &Seen<'_>) -> Action {
    match seen.instance.map(|instance| instance.state) {
        None | Some(InstancePhase::Running) => Action::None,
        Some(InstancePhase::Created) => Action::Start {
            after: Duration::ZERO,
        },
        Some(InstancePhase::Exited { .. }) if seen.host_restarted => Action::Start {
            after: Duration::ZERO,
        },
        Some(InstancePhase::Exited { success }) => {
            restart(seen.restart_policy, success, seen.exits)
        }
    }
}

/// The answer of a restart policy to an exit.
fn restart(policy: RestartPolicy, success: bool, exits: u32) -> Action {
    let again = match policy {
        RestartPolicy::Never => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure {
            maximum_retry_count,
        } => !success && maximum_retry_count.is_none_or(|most| exits <= most),
    };
    if again {
        Action::Start {
            after: pause(exits),
        }
    } else {
        Action::None
    }
}

/// 100 ms doubled with each exit in a row, at most one minute, as Docker does.
fn pause(exits: u32) -> Duration {
    let doublings = exits.saturating_sub(1).min(10);
    Duration::from_millis(100)
        .saturating_mul(1 << doublings)
        .min(Duration::from_mins(1))
}

#[cfg(test)]
mod tests;
