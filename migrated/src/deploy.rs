//! A deployment as the host that takes it sees it: who has what, what changes, whether every
//! host agrees, and then every host follows.
//!
//! Nothing changes anywhere unless every host of the old and of the new deployment answers and
//! has nothing against it.

mod drain;
mod fenced;
mod plan;
mod turn;

pub(crate) use fenced::{Known, known};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{Method, StatusCode};
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{
    Change, DeployReply, DeployRequest, Desired, DrainRequest, Failure, MigrationState,
    MoveRequest, Prediction,
};
use rehome_shared::api::peer::{Accepted, HostReport, PreflightReply};
use rehome_shared::ids::{AppName, DeploymentGeneration, HostAddr};

use crate::desired::{self, AcceptError};
use crate::host::Host;
use crate::peers::once_more;
use crate::{prediction, status};
use turn::Turn;

/// Why a deployment was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Hosts do not answer, or have something against it. Nothing was changed.
    #[error("nothing was changed: {}", join(.0))]
    Refused(Vec<Failure>),
    /// The one in force is about to be replaced. Nothing was changed.
    #[error("a newer deployment is on its way to this host: run it again in a moment")]
    Behind,
    /// Some hosts took it and others did not.
    #[error(
        "{}; the hosts that took it tell the others when they answer: run it again to be sure",
        join(.0)
    )]
    Partial(Vec<Failure>),
    /// This host could not take it.
    #[error("this host cannot take the deployment")]
    Accept(#[from] AcceptError),
}

impl DeployError {
    /// Whether another deployment came first, and nothing else is in the way.
    fn is_late(&self) -> bool {
        match self {
            Self::Behind | Self::Accept(AcceptError::Older { .. }) => true,
            Self::Invalid(_)
            | Self::Refused(_)
            | Self::Partial(_)
            | Self::Accept(AcceptError::Save(_)) => false,
        }
    }
}

fn join(failures: &[Failure]) -> String {
    let all: Vec<String> = failures
        .iter()
        .map(|failure| format!("{}: {}", failure.host, failure.reason))
        .collect();
    all.join("; ")
}

/// Takes a deployment for the whole cluster.
///
/// # Errors
/// [`DeployError`].
///
/// # Cancel safety
/// Dropping it may leave some hosts with the deployment; they tell the others.
pub async fn deploy(host: &Arc<Host>, request: DeployRequest) -> Result<DeployReply, DeployError> {
    let _making = host.desired.making.lock().await;
    make(host, request, None).await
}

/// Makes the deployment; `named` is the application that it is about, when it names one.
async fn make(
    host: &Arc<Host>,
    request: DeployRequest,
    named: Option<AppName>,
) -> Result<DeployReply, DeployError> {
    let current = host.desired.get();
    let reports = reports(host, &hosts_of(host, &request), &current.fenced).await?;
    let hosts: BTreeSet<HostAddr> = reports.keys().cloned().collect();
    let silent = fenced::silent(&current, &reports);
    let newest = reports
        .values()
        .map(|r| r.generation)
        .max()
        .unwrap_or_default();
    if newest > current.generation {
        return Err(DeployError::Behind);
    }
    let mut owners = owners(&reports, &current.fenced)?;
    fenced::attribute(&mut owners, &current, &reports, &silent);
    fenced::check(
        &current,
        &request,
        &owners,
        &silent,
        &fenced::known(host, &reports),
    )?;
    let mut desired = Desired {
        generation: current.generation,
        fenced: fenced::still(&current, &reports),
        births: births(&current, &request, &owners),
        asked: BTreeMap::new(),
        kept: kept(&request, &owners),
        applications: request.applications,
        placement: request.placement,
    };
    let changes = plan::changes(&current, &desired, &owners, &reports);
    let same = desired.applications == current.applications
        && desired.placement == current.placement
        && desired.fenced == current.fenced;
    if same && changes.is_empty() {
        return Ok(DeployReply {
            generation: current.generation,
            changes,
        });
    }
    number(&mut desired, &current);
    desired.asked = asked(&current, &desired, same, &changes, named);
    preflight(host, &hosts, &desired).await?;
    if request.dry_run {
        return Ok(DeployReply {
            generation: current.generation,
            changes,
        });
    }
    spread(host, &hosts, &desired).await?;
    Ok(DeployReply {
        generation: desired.generation,
        changes,
    })
}

/// Gives a deployment its generation, which what it brings for the first time is born under.
fn number(desired: &mut Desired, current: &Desired) {
    desired.generation = current.generation.next();
    for (name, born) in &mut desired.births {
        if !current.births.contains_key(name) {
            *born = desired.generation;
        }
    }
}

/// One move: the deployment in force with the application on another host. When another
/// deployment comes first, it is a move in that one.
///
/// # Errors
/// [`DeployError`].
///
/// # Cancel safety
/// As [`deploy`].
pub async fn relocate(host: &Arc<Host>, request: MoveRequest) -> Result<DeployReply, DeployError> {
    let mut turn = Turn::new(&host.address);
    loop {
        let taken = relocate_once(host, request.clone()).await;
        match (&taken, turn.pause()) {
            (Err(error), Some(pause)) if error.is_late() => tokio::time::sleep(pause).await,
            _ => return taken,
        }
    }
}

async fn relocate_once(host: &Arc<Host>, request: MoveRequest) -> Result<DeployReply, DeployError> {
    let _making = host.desired.making.lock().await;
    let current = host.desired.get();
    check_move(&current, &request)?;
    let mut placement = current.placement.clone();
    for names in placement.values_mut() {
        names.retain(|name| *name != request.application);
    }
    placement
        .entry(request.to)
        .or_default()
        .push(request.application.clone());
    let applications = current.applications.clone();
    make(
        host,
        DeployRequest {
            applications,
            placement,
            dry_run: false,
        },
        Some(request.application),
    )
    .await
}

/// Empties a host: the deployment in force with everything that is placed there on the other
/// hosts of it. When another deployment comes first, it is that one's.
///
/// # Errors
/// [`DeployError`].
///
/// # Cancel safety
/// As [`deploy`].
pub async fn drain(host: &Arc<Host>, request: DrainRequest) -> Result<DeployReply, DeployError> {
    let mut turn = Turn::new(&host.address);
    loop {
        let taken = drain_once(host, request.clone()).await;
        match (&taken, turn.pause()) {
            (Err(error), Some(pause)) if error.is_late() => tokio::time::sleep(pause).await,
            _ => return taken,
        }
    }
}

async fn drain_once(host: &Arc<Host>, request: DrainRequest) -> Result<DeployReply, DeployError> {
    let _making = host.desired.making.lock().await;
    let current = host.desired.get();
    let DrainRequest {
        host: empty,
        dry_run,
    } = request;
    check_host(&current, &empty)?;
    let placed = current.placement.keys();
    let others: BTreeSet<HostAddr> = placed
        .filter(|other| !current.fenced.contains(*other))
        .cloned()
        .collect();
    let Some(placement) = drain::emptied(&current.placement, &empty, &others) else {
        return Err(DeployError::Invalid(format!(
            "there is no other host in the deployment that could take what is on {empty}"
        )));
    };
    let applications = current.applications.clone();
    make(
        host,
        DeployRequest {
            applications,
            placement,
            dry_run,
        },
        None,
    )
    .await
}

fn check_host(current: &Desired, to: &HostAddr) -> Result<(), DeployError> {
    if current.placement.contains_key(to) {
        return Ok(());
    }
    let known: Vec<&str> = current.placement.keys().map(HostAddr::as_str).collect();
    Err(DeployError::Invalid(format!(
        "{to} is not a host of the deployment, which has {}",
        known.join(", ")
    )))
}

fn check_move(current: &Desired, request: &MoveRequest) -> Result<(), DeployError> {
    let MoveRequest { application, to } = request;
    check_host(current, to)?;
    if current.host_of(application).is_none() {
        let known: Vec<&str> = current
            .placement
            .values()
            .flatten()
            .map(AppName::as_str)
            .collect();
        return Err(DeployError::Invalid(format!(
            "{application} is not placed on any host; the deployment places {}",
            known.join(", ")
        )));
    }
    Ok(())
}

/// What a move would take.
///
/// # Errors
/// [`DeployError`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn predict(host: &Arc<Host>, request: &MoveRequest) -> Result<Prediction, DeployError> {
    let current = host.desired.get();
    check_move(&current, request)?;
    let hosts: BTreeSet<HostAddr> = current.placement.keys().cloned().collect();
    let reports = reports(host, &hosts, &current.fenced).await?;
    let owners = owners(&reports, &current.fenced)?;
    let owner = owners.get(&request.application).ok_or_else(|| {
        DeployError::Invalid(format!("{} does not run anywhere yet", request.application))
    })?;
    if *owner == host.address {
        return Ok(prediction::predict(host, request).await);
    }
    let answer = host
        .peers
        .request(owner, Method::POST, "/peer/v1/predictions", Some(request))
        .await;
    answer.map_err(|error| DeployError::Refused(vec![failure(owner, &error)]))
}

/// Every host that has a say: of both deployments, and those that still hold something.
fn hosts_of(host: &Host, request: &DeployRequest) -> BTreeSet<HostAddr> {
    let mut hosts: BTreeSet<HostAddr> = request.placement.keys().cloned().collect();
    hosts.extend(host.other_hosts());
    hosts.extend(host.desired.get().fenced.iter().cloned());
    hosts.insert(host.address.clone());
    hosts
}

/// The applications that nobody is to run, with the hosts that keep their volumes.
fn kept(
    request: &DeployRequest,
    owners: &BTreeMap<AppName, HostAddr>,
) -> BTreeMap<AppName, HostAddr> {
    let placed = |name: &AppName| request.placement.values().any(|names| names.contains(name));
    owners
        .iter()
        .filter(|(name, _)| !placed(name))
        .map(|(name, owner)| (name.clone(), owner.clone()))
        .collect()
}

/// What the hosts say of themselves. All must answer, but those that an operator fenced.
async fn reports(
    host: &Arc<Host>,
    hosts: &BTreeSet<HostAddr>,
    fenced: &BTreeSet<HostAddr>,
) -> Result<BTreeMap<HostAddr, HostReport>, DeployError> {
    let asked = hosts.iter().map(|peer| async move {
        if *peer == host.address {
            return (peer.clone(), Ok(status::report(host)));
        }
        let answer = host.peers.report_unless_gone(peer, fenced).await;
        (peer.clone(), answer)
    });
    let mut reports = BTreeMap::new();
    let mut failures = Vec::new();
    for (peer, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(report) => drop(reports.insert(peer, report)),
            Err(_) if fenced.contains(&peer) => {}
            Err(error) => failures.push(failure(&peer, &error)),
        }
    }
    if failures.is_empty() {
        Ok(reports)
    } else {
        Err(DeployError::Refused(failures))
    }
}

fn failure(peer: &HostAddr, error: &ClientError) -> Failure {
    Failure {
        host: peer.clone(),
        application: None,
        reason: Report(error).to_string(),
    }
}

/// The owner of each application; of one that is between two owners, the next.
fn owners(
    reports: &BTreeMap<HostAddr, HostReport>,
    fenced: &BTreeSet<HostAddr>,
) -> Result<BTreeMap<AppName, HostAddr>, DeployError> {
    let mut owners: BTreeMap<AppName, HostAddr> = BTreeMap::new();
    for (peer, report) in reports {
        for owned in &report.owned {
            if fenced.contains(peer) && fenced::is_overtaken(reports, peer, owned) {
                // It gives way as soon as it has heard of it.
                continue;
            }
            if let Some(other) = owners.insert(owned.application.clone(), peer.clone()) {
                return Err(DeployError::Refused(vec![Failure {
                    host: peer.clone(),
                    application: Some(owned.application.clone()),
                    reason: format!("{other} says that it owns {} as well", owned.application),
                }]));
            }
        }
    }
    let moving = reports.values().flat_map(|report| &report.migrations);
    for migration in
        moving.filter(|m| matches!(m.state, MigrationState::Running | MigrationState::Blocked))
    {
        owners
            .entry(migration.application.clone())
            .or_insert_with(|| migration.to.clone());
    }
    Ok(owners)
}

/// The applications that nobody has.
fn births(
    current: &Desired,
    request: &DeployRequest,
    owners: &BTreeMap<AppName, HostAddr>,
) -> BTreeMap<AppName, rehome_shared::ids::DeploymentGeneration> {
    request
        .placement
        .values()
        .flatten()
        .filter(|name| !owners.contains_key(*name))
        .map(|name| {
            let since = current.births.get(name).copied().unwrap_or_default();
            (name.clone(), since)
        })
        .collect()
}

/// What the deployment asks for. One that is submitted as it is in force asks for all that it has
/// still to change: there is no other reason to submit it again.
fn asked(
    current: &Desired,
    desired: &Desired,
    same: bool,
    changes: &[Change],
    named: Option<AppName>,
) -> BTreeMap<AppName, DeploymentGeneration> {
    let mut again: BTreeSet<AppName> = named.into_iter().collect();
    if same && again.is_empty() {
        again.extend(changes.iter().map(|change| change.application.clone()));
    }
    desired::asked(current, desired, &again)
}

async fn preflight(
    host: &Arc<Host>,
    hosts: &BTreeSet<HostAddr>,
    desired: &Desired,
) -> Result<(), DeployError> {
    let asked = hosts.iter().map(|peer| async move {
        if *peer == host.address {
            return status::preflight(host, desired).await;
        }
        let client = host.peers.client(peer);
        let limit = std::time::Duration::from_secs(30);
        let answer: Result<PreflightReply, ClientError> = once_more(|| {
            client.request_json(Method::POST, "/peer/v1/preflight", Some(desired), limit)
        })
        .await;
        answer.unwrap_or_else(|error| PreflightReply {
            problems: vec![failure(peer, &error)],
        })
    });
    let problems: Vec<Failure> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flat_map(|reply| reply.problems)
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(DeployError::Refused(problems))
    }
}

/// Every host follows. This host first: what it has taken it tells the others for ever.
pub(crate) async fn spread(
    host: &Arc<Host>,
    hosts: &BTreeSet<HostAddr>,
    desired: &Desired,
) -> Result<(), DeployError> {
    host.desired.accept_own(desired.clone()).await?;
    host.kick();
    let others = hosts
        .iter()
        .filter(|peer| **peer != host.address)
        .map(|peer| async move {
            let answer: Result<Accepted, ClientError> = once_more(|| {
                host.peers
                    .request(peer, Method::PUT, "/peer/v1/desired", Some(desired))
            })
            .await;
            answer.err().map(|error| {
                let other_first = error.status() == Some(StatusCode::CONFLICT);
                (other_first, failure(peer, &error))
            })
        });
    let failed: Vec<(bool, Failure)> = futures_util::future::join_all(others)
        .await
        .into_iter()
        .flatten()
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    // The host that prefers another one of this generation tells this host too.
    if failed.iter().any(|(other_first, _)| *other_first)
        && let Some(known) = turn::overtaken(host, desired).await
    {
        return Err(AcceptError::Older { known }.into());
    }
    let failures = failed.into_iter().map(|(_, failure)| failure).collect();
    Err(DeployError::Partial(failures))
}

#[cfg(test)]
mod tests;
