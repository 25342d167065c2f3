//! What this host says of itself, and what the hosts say together.

mod preflight;
mod silent;

pub use preflight::preflight;
pub(crate) use silent::last_owner;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use migrated_core::reconcile::Action;
use migrated_core::registry::{Registry, Role};
use migrated_core::source::{BeforeRelease, Phase};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{
    ApplicationState, ApplicationStatus, ConnectionGauge, Desired, Failure, HostStatus, Migration,
    MigrationState, Progress, Status, VolumeStatus,
};
use rehome_shared::api::peer::{Advert, HostReport, LeftOpen, OwnedApplication};
use rehome_shared::ids::{AppName, HostAddr, MigrationId};

use crate::applications;
use crate::desired;
use crate::destination;
use crate::failover::advice;
use crate::fence;
use crate::host::Host;
use crate::migrations::{self, AbortError};
use crate::reconcile;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The longest wait for a host that has been silent to say something of itself.
const QUESTION: Duration = Duration::from_secs(4);

/// And for one that has not.
const PATIENCE: Duration = Duration::from_secs(8);

/// What this host says of itself.
#[must_use]
pub fn report(host: &Host) -> HostReport {
    let desired = host.desired.get();
    let (owned, incoming): (_, Vec<AppName>) = host.ledger.read(|registry| {
        let owned: Vec<OwnedApplication> = registry
            .applications()
            .keys()
            .filter_map(|name| registry.owned(name).map(|known| (name, known)))
            .map(|(name, known)| OwnedApplication {
                application: name.clone(),
                epoch: known.epoch,
                volumes: known.volumes.clone(),
                config_hash: host.instance(name).map(|instance| instance.config_hash),
            })
            .collect();
        let coming = registry
            .destinations()
            .values()
            .map(|handoff| handoff.reservation.application.clone())
            .filter(|name| registry.incoming(name).is_some());
        // Between two owners it is nobody's, and all the more nobody else's.
        let going = registry
            .sources()
            .values()
            .filter(|migration| matches!(migration.phase, Phase::After(_)))
            .map(|migration| migration.plan.application.clone());
        let incoming: BTreeSet<AppName> = coming.chain(going).collect();
        (owned, incoming.into_iter().collect())
    });
    let applications = owned
        .iter()
        .map(|owned| application(host, &desired, owned))
        .collect();
    HostReport {
        host: host.address.clone(),
        version: VERSION.to_owned(),
        generation: desired.generation,
        desired_hash: desired::hash(&desired),
        applications,
        owned,
        migrations: migrations::all(host),
        incoming,
        settled: reconcile::is_settled(host),
        failures: failures(host, &desired),
        problem: problem(host),
        known: fence::told(host),
        heard: fence::heard(host),
        promised: host.ledger.read(fence::promised),
        diverged: host.memory().diverged.clone(),
        left: host.ledger.read(left),
        instances: running(host),
    }
}

/// What was left open when the journal was made anew.
fn left(registry: &Registry) -> Vec<LeftOpen> {
    let open = registry
        .left()
        .filter_map(|(name, known)| match &known.role {
            Role::Left { owner, why } => Some(LeftOpen {
                application: name.clone(),
                owner: owner.clone(),
                epoch: known.epoch,
                why: why.clone(),
            }),
            Role::Owner | Role::Gone { .. } => None,
        });
    open.collect()
}

/// `None` while nobody has looked: that is not to run nothing.
fn running(host: &Host) -> Option<Vec<AppName>> {
    let instances = host.instances.borrow();
    let instances = instances.as_ref()?;
    Some(instances.iter().map(|i| i.application.clone()).collect())
}

/// Why this host cannot do its work, if so.
fn problem(host: &Host) -> Option<String> {
    let journal = host.ledger.problem().borrow().clone();
    journal.or_else(|| host.routes.statuses().err())
}

fn application(host: &Host, desired: &Desired, owned: &OwnedApplication) -> ApplicationStatus {
    let name = &owned.application;
    let spec = desired.applications.get(name);
    let instance = host.instance(name);
    let unproven = instance
        .as_ref()
        .filter(|instance| !applications::is_healthy(host, instance))
        .and_then(|instance| reconcile::unproven_reason(host, instance));
    let running = instance.filter(|instance| instance.started_at.is_some());
    let runs = running.is_some();
    let memory = host.memory();
    let volumes = owned
        .volumes
        .iter()
        .map(|volume| VolumeStatus {
            name: volume.name.to_string(),
            bytes: memory
                .sizes
                .get(&volume.dataset)
                .copied()
                .unwrap_or_default(),
            maximum_size: spec
                .and_then(|spec| spec.volumes.iter().find(|v| v.name == volume.name))
                .and_then(|volume| volume.maximum_size),
        })
        .collect();
    let fault = memory.faults.get(name).map(|fault| fault.reason.clone());
    let pull = memory
        .pulls
        .get(name)
        .map(|pull| format!("fetching its image: {} of {}", pull.current, pull.total));
    drop(memory);
    let (state, blocked) = state(host, name);
    ApplicationStatus {
        name: name.clone(),
        state,
        host: Some(host.address.clone()),
        desired_host: desired.host_of(name).filter(|_| spec.is_some()).cloned(),
        epoch: owned.epoch,
        ports: spec.map(|spec| spec.ports.clone()).unwrap_or_default(),
        volumes,
        instance: running.as_ref().map(|instance| instance.id.clone()),
        started_at: running.and_then(|instance| instance.started_at),
        connections: connections(host, name),
        reason: blocked
            .or_else(|| host.clearance.withheld(name))
            .or_else(|| {
                let waits = !runs && !host.clearance.is_clear(name);
                waits.then(|| "other hosts are asked whether it is still this host's".to_owned())
            })
            .or(pull)
            .or(fault)
            .or(unproven)
            .or_else(|| last_move_failure(host, desired, name)),
        diverged: Vec::new(),
    }
}

fn state(host: &Host, name: &AppName) -> (ApplicationState, Option<String>) {
    if let Some(reason) = fence::contested(host, name) {
        return (ApplicationState::Blocked, Some(reason));
    }
    let moving = host.ledger.read(|registry| {
        registry
            .source_of(name)
            .map(|m| (m.id.clone(), m.phase.clone()))
    });
    match moving {
        None => match destination::entrusted_trouble(host, name) {
            Some(trouble) => (ApplicationState::Blocked, Some(trouble)),
            None => (reconcile::state_of(host, name), None),
        },
        Some((id, Phase::After(_))) => {
            let view = host.live.get(&id).map(|run| run.view());
            match view {
                Some(view) if view.state == MigrationState::Blocked => {
                    (ApplicationState::Blocked, view.error)
                }
                _ => (ApplicationState::Migrating, None),
            }
        }
        Some((_, Phase::Before(BeforeRelease::Aborting { reason }))) => {
            (ApplicationState::Migrating, Some(reason))
        }
        Some((id, Phase::Before(_) | Phase::Ended(_))) => {
            let waits = host.live.get(&id).and_then(|run| run.waits());
            let reason = waits.map(|why| format!("waits: {why}"));
            (ApplicationState::Migrating, reason)
        }
    }
}

fn last_move_failure(host: &Host, desired: &Desired, name: &AppName) -> Option<String> {
    host.ledger.read(|registry| {
        migrations::failed(registry.history(), desired, name).and_then(|past| past.error.clone())
    })
}

fn connections(host: &Host, name: &AppName) -> ConnectionGauge {
    let routes = host.routes.statuses().unwrap_or_default();
    let ours = routes.iter().filter(|route| route.application == *name);
    ours.fold(ConnectionGauge::default(), |sum, route| ConnectionGauge {
        active: sum.active.saturating_add(route.active),
        parked: sum.parked.saturating_add(route.parked),
    })
}

/// What went wrong here under the deployment in force.
fn failures(host: &Host, desired: &Desired) -> Vec<Failure> {
    let failure = |application: Option<AppName>, reason: String| Failure {
        host: host.address.clone(),
        application,
        reason,
    };
    let faults = host.memory().faults.clone();
    let mut failures: Vec<Failure> = faults
        .into_iter()
        .filter(|(name, fault)| {
            // What this host neither has nor has anything left to do for is not its failure.
            let concerned = host.ledger.read(|registry| registry.owned(name).is_some())
                || reconcile::next_action(host, name) != Action::None;
            fault.generation == desired.generation && concerned
        })
        .map(|(name, fault)| failure(Some(name), fault.reason))
        .collect();
    for open in host.ledger.read(left) {
        if desired.applications.contains_key(&open.application) {
            let reason = silent::left_open(&host.address, &open);
            failures.push(failure(Some(open.application), reason));
        }
    }
    let moved = host.ledger.read(|registry| registry.history().to_vec());
    for name in desired.applications.keys() {
        if let Some(past) = migrations::failed(&moved, desired, name)
            && let Some(error) = &past.error
        {
            failures.push(failure(Some(name.clone()), error.clone()));
        }
    }
    for (key, error) in host.routes.listen_errors() {
        failures.push(failure(
            None,
            format!("external port {key} cannot be listened on: {error}"),
        ));
    }
    failures
}

/// What every host of the deployment says; `None` for those that do not answer.
pub(crate) async fn reports(host: &Arc<Host>) -> Reports {
    let mut hosts: BTreeSet<HostAddr> = host.other_hosts();
    hosts.insert(host.address.clone());
    let asked = hosts.into_iter().map(|peer| async move {
        if peer == host.address {
            return (peer, Some(report(host)));
        }
        // One that was there a moment ago may only be slow.
        let answer = if host.silence.of(&peer).is_none() {
            tokio::time::timeout(PATIENCE, host.peers.report_patiently(&peer)).await
        } else {
            tokio::time::timeout(QUESTION, host.peers.report(&peer)).await
        };
        (peer, answer.ok().and_then(Result::ok))
    });
    futures_util::future::join_all(asked)
        .await
        .into_iter()
        .collect()
}

/// The cluster, as its hosts tell it now.
///
/// # Cancel safety
/// Cancel safe.
pub async fn cluster(host: &Arc<Host>) -> Status {
    let reports = reports(host).await;
    let desired = host.desired.get();
    let hosts = reports
        .iter()
        .map(|(address, report)| HostStatus {
            address: address.clone(),
            reachable: report.is_some(),
            version: report.as_ref().map(|report| report.version.clone()),
            problem: report.as_ref().and_then(|report| report.problem.clone()),
            fenced: desired.fenced.contains(address),
        })
        .collect();
    let mut applications = merge(&desired, &reports, &host.routes.tell(&host.address));
    silent::add_diverged(&mut applications, &reports);
    advice::advise(host, &mut applications, &reports).await;
    Status {
        generation: desired.generation,
        hosts,
        applications,
    }
}

/// What the hosts that were asked said; `None` of those that did not answer.
pub(crate) type Reports = BTreeMap<HostAddr, Option<HostReport>>;

/// One entry for each application: its owner's, or what the deployment says where no owner
/// speaks.
fn merge(desired: &Desired, reports: &Reports, adverts: &[Advert]) -> Vec<ApplicationStatus> {
    let unowned = |name: &AppName| {
        let advert = adverts.iter().find(|advert| advert.application == *name);
        let last = last_owner(reports, name)
            .map(|known| &known.owner)
            .or_else(|| advert.map(|advert| &advert.host))
            .or_else(|| desired.host_of(name));
        match last.and_then(|last| Some((last, reports.get(last)?))) {
            Some((last, None)) => unowned(desired, name, Some(silent::nothing(last))),
            Some((last, Some(report))) if silent::is_lost(reports, report, name) => {
                unowned(desired, name, Some(silent::another_journal(last)))
            }
            Some(_) | None => unowned(desired, name, None),
        }
    };
    let mut all: BTreeMap<AppName, ApplicationStatus> = BTreeMap::new();
    let mut moving: BTreeMap<AppName, Migration> = BTreeMap::new();
    for report in reports.values().flatten() {
        for status in &report.applications {
            let newer = all
                .get(&status.name)
                .is_none_or(|known| known.epoch < status.epoch);
            if newer {
                all.insert(status.name.clone(), status.clone());
            }
        }
        for migration in &report.migrations {
            if matches!(
                migration.state,
                MigrationState::Running | MigrationState::Blocked
            ) {
                moving.insert(migration.application.clone(), migration.clone());
            }
        }
    }
    for (name, migration) in moving {
        // Between release and adoption nobody owns it.
        let entry = all.entry(name.clone()).or_insert_with(|| unowned(&name));
        let blocked = migration.state == MigrationState::Blocked;
        entry.state = if blocked {
            ApplicationState::Blocked
        } else {
            ApplicationState::Migrating
        };
        if blocked {
            entry.reason = migration.error;
        }
    }
    for name in desired.applications.keys() {
        if !all.contains_key(name) && desired.host_of(name).is_some() {
            all.insert(name.clone(), unowned(name));
        }
    }
    let mut all: Vec<ApplicationStatus> = all.into_values().collect();
    silent::add_left(&mut all, reports);
    all
}

/// An application that no host that answers owns; `blocked` says why nobody can.
fn unowned(desired: &Desired, name: &AppName, blocked: Option<String>) -> ApplicationStatus {
    ApplicationStatus {
        name: name.clone(),
        state: match blocked {
            Some(_) => ApplicationState::Blocked,
            None => ApplicationState::Starting,
        },
        host: None,
        desired_host: desired.host_of(name).cloned(),
        epoch: rehome_shared::ids::Epoch(0),
        ports: desired
            .applications
            .get(name)
            .map(|spec| spec.ports.clone())
            .unwrap_or_default(),
        volumes: Vec::new(),
        instance: None,
        started_at: None,
        connections: ConnectionGauge::default(),
        reason: blocked,
        diverged: Vec::new(),
    }
}

/// How far the deployment in force is.
///
/// # Cancel safety
/// Cancel safe.
pub async fn progress(host: &Arc<Host>) -> Progress {
    let desired = host.desired.get();
    let reports = reports(host).await;
    let hash = desired::hash(&desired);
    let applications = merge(&desired, &reports, &host.routes.tell(&host.address));
    let mut failures = Vec::new();
    let mut migrations: Vec<Migration> = Vec::new();
    let mut settled = true;
    for (address, report) in &reports {
        let Some(report) = report else {
            if desired.fenced.contains(address) {
                // Nobody waits for it.
                continue;
            }
            settled = false;
            failures.push(Failure {
                host: address.clone(),
                application: None,
                reason: "it does not answer".to_owned(),
            });
            continue;
        };
        settled &= report.settled
            && report.generation == desired.generation
            && report.desired_hash == hash;
        failures.extend(report.failures.iter().cloned());
        migrations.extend(report.migrations.iter().cloned());
    }
    keep_asked(&desired, &mut migrations);
    let waiting = silent::waiting(&desired, &reports, &applications);
    let told = |failure: &Failure| {
        failures
            .iter()
            .any(|known| known.host == failure.host && known.application == failure.application)
    };
    let waiting: Vec<Failure> = waiting.into_iter().filter(|f| !told(f)).collect();
    failures.extend(waiting);
    let unborn = applications
        .iter()
        .any(|application| application.host.is_none() && !is_told(&failures, application));
    let untold: Vec<Failure> = applications
        .iter()
        .filter(|s| s.state == ApplicationState::Failed && !is_told(&failures, s))
        .map(|status| failed(host, status))
        .collect();
    failures.extend(untold);
    Progress {
        generation: desired.generation,
        settled: settled && !unborn,
        applications,
        migrations,
        failures,
    }
}

/// Keeps the migrations that a deployment asked for, oldest first: those begun since it, or one
/// that it left as it is, asked for the application, and the last of an application whoever began
/// it, when it goes where the application is wanted and did not end badly.
fn keep_asked(desired: &Desired, migrations: &mut Vec<Migration>) {
    migrations.sort_by(|a, b| a.id.cmp(&b.id));
    let last: BTreeMap<AppName, MigrationId> = migrations
        .iter()
        .map(|m| (m.application.clone(), m.id.clone()))
        .collect();
    migrations.retain(|m| {
        let badly = matches!(m.state, MigrationState::Aborted | MigrationState::Returned);
        let serves = !badly && desired.host_of(&m.application) == Some(&m.to);
        m.generation >= desired.asked(&m.application)
            || (serves && last.get(&m.application) == Some(&m.id))
    });
}

fn is_told(failures: &[Failure], application: &ApplicationStatus) -> bool {
    failures
        .iter()
        .any(|failure| failure.application.as_ref() == Some(&application.name))
}

fn failed(host: &Host, status: &ApplicationStatus) -> Failure {
    let reason = status.reason.clone();
    Failure {
        host: status.host.clone().unwrap_or_else(|| host.address.clone()),
        application: Some(status.name.clone()),
        reason: reason.unwrap_or_else(|| "it has exited".to_owned()),
    }
}

/// The migrations that the hosts tell of, oldest first.
///
/// # Cancel safety
/// Cancel safe.
pub async fn all_migrations(host: &Arc<Host>) -> Vec<Migration> {
    let reports = reports(host).await;
    let mut all: Vec<Migration> = reports
        .into_values()
        .flatten()
        .flat_map(|report| report.migrations)
        .collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

/// Asks the host that coordinates a migration to call it off.
///
/// # Errors
/// [`AbortError`].
///
/// # Cancel safety
/// May have taken effect.
pub async fn abort(host: &Arc<Host>, id: &MigrationId) -> Result<Migration, AbortError> {
    let known = all_migrations(host)
        .await
        .into_iter()
        .find(|known| known.id == *id);
    let Some(known) = known else {
        return Err(AbortError::Unknown(id.clone()));
    };
    if known.from == host.address {
        return migrations::abort(host, id, "an operator called it off");
    }
    let path = format!("/peer/v1/migrations/{id}/abort");
    let answer = host
        .peers
        .request(&known.from, Method::POST, &path, None::<&()>)
        .await;
    answer.map_err(|error| AbortError::Coordinator {
        host: known.from.clone(),
        reason: Report(&error).to_string(),
    })
}

#[cfg(test)]
mod tests;
