//! Failover: another host takes over from an owner that is gone, on an operator's word that it
//! runs nothing any more.
//!
//! The host that is asked makes sure that the word fits what all the others know, has every host
//! follow a deployment that names the new place, and then has the new owner take over. Two
//! operators cannot both succeed: the new owner takes over only while every host that is not
//! fenced follows the very deployment that names it, which is how an application is born, too.

pub(crate) mod advice;
mod claim;
mod life;
mod plan;
mod take;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{
    ApplicationState, Desired, FailoverMeans, FailoverReply, FailoverRequest, MigrationState,
};
use rehome_shared::api::peer::{FailoverOffer, HostReport};
use rehome_shared::ids::{AppName, Epoch, HostAddr};

use crate::deploy::{self, DeployError};
use crate::desired;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::peers::once_more;
use crate::status;
use crate::storage::StorageError;

pub use plan::examine;
pub use take::carry_out;

use life::{alive, shows_life};

/// The host that takes over makes live trees of snapshots and waits for the journal: so long the
/// one that asks it waits.
const ORDER: Duration = Duration::from_mins(2);

/// The longest wait for a host that may be gone to say something of itself.
const QUESTION: Duration = Duration::from_secs(4);

/// Why nobody took over.
#[derive(Debug, thiserror::Error)]
pub enum FailoverError {
    /// What was asked for does not exist.
    #[error("{0}")]
    Invalid(String),
    /// It must not be, or cannot. Nothing was changed but, perhaps, where the application should
    /// be.
    #[error("{0}")]
    Refused(String),
    /// Not every host follows the deployment that names the new place.
    #[error("the hosts do not agree on the new place")]
    Deploy(#[from] DeployError),
    /// The host that takes over does not answer.
    #[error("{host} was told to take over and does not answer: run it again")]
    Unanswered {
        /// That host.
        host: HostAddr,
        /// The cause.
        #[source]
        source: ClientError,
    },
    /// The volumes cannot be made ready.
    #[error("the volumes cannot be made ready")]
    Storage(#[from] StorageError),
    /// The journal failed.
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
}

/// Has another host take over.
///
/// # Errors
/// [`FailoverError`].
///
/// # Cancel safety
/// May have taken effect; asking again is safe.
pub async fn run(
    host: &Arc<Host>,
    request: &FailoverRequest,
) -> Result<FailoverReply, FailoverError> {
    let _making = host.desired.making.lock().await;
    let current = host.desired.get();
    check_names(&current, request)?;
    let reports = hear(host, &current, request).await?;
    if reports.values().any(|r| r.generation > current.generation) {
        return Err(FailoverError::Refused(
            "a newer deployment is on its way to this host: run it again in a moment".to_owned(),
        ));
    }
    check_owner(&deploy::known(host, &reports), &reports, request)?;
    let offer = offer(host, request).await?;
    check_offer(&reports, request, &offer)?;
    let desired = new_place(&current, request, &reports);
    if desired.generation > current.generation {
        let hosts = reports.keys().cloned().collect();
        deploy::spread(host, &hosts, &desired).await?;
    }
    order(host, request).await
}

/// A refusal that begins with the word of another host begins with its name.
fn from_host(host: &HostAddr, reason: &str) -> FailoverError {
    FailoverError::Refused(format!("{host}: {reason}"))
}

fn check_names(current: &Desired, request: &FailoverRequest) -> Result<(), FailoverError> {
    let FailoverRequest {
        application,
        to,
        also_fenced,
        ..
    } = request;
    let known: Vec<&str> = current.placement.keys().map(HostAddr::as_str).collect();
    let hosts = known.join(", ");
    if !current.applications.contains_key(application) {
        return Err(FailoverError::Invalid(format!(
            "the deployment does not describe {application}"
        )));
    }
    if !current.placement.contains_key(to) {
        return Err(FailoverError::Invalid(format!(
            "{to} is not a host of the deployment, which has {hosts}"
        )));
    }
    // What the host that is asked left open it may take over from itself: that is its to know.
    if also_fenced.contains(to) {
        return Err(FailoverError::Invalid(format!(
            "{to} cannot take over and be fenced"
        )));
    }
    Ok(())
}

/// What the hosts say that must answer. Those that are called fenced must not, unless they have
/// nothing of it.
async fn hear(
    host: &Arc<Host>,
    current: &Desired,
    request: &FailoverRequest,
) -> Result<BTreeMap<HostAddr, HostReport>, FailoverError> {
    let mut hosts = host.other_hosts();
    hosts.extend(current.fenced.iter().cloned());
    hosts.extend(request.also_fenced.iter().cloned());
    hosts.insert(request.fenced.host.clone());
    hosts.insert(host.address.clone());
    let asked = hosts.into_iter().map(|peer| async move {
        if peer == host.address {
            return (peer, Some(status::report(host)));
        }
        let answer = if is_named(&peer, request) {
            let answer = tokio::time::timeout(QUESTION, host.peers.report(&peer)).await;
            answer.ok().and_then(Result::ok)
        } else {
            let asked = host.peers.report_unless_gone(&peer, &current.fenced);
            asked.await.ok()
        };
        (peer, answer)
    });
    let mut reports = BTreeMap::new();
    for (peer, answer) in futures_util::future::join_all(asked).await {
        let named = is_named(&peer, request);
        match answer {
            // One that has no part in it any more has to agree like all others.
            Some(report) if !named || report.is_out_of(&request.application) => {
                drop(reports.insert(peer, report));
            }
            Some(_) => return Err(FailoverError::Refused(alive(&peer, request))),
            None if named && shows_life(host, &peer).await => {
                return Err(FailoverError::Refused(alive(&peer, request)));
            }
            None if named || current.fenced.contains(&peer) => {}
            None => {
                return Err(FailoverError::Refused(format!(
                    "{peer} does not answer, and may know more than the others: bring it back, or, if it is gone for good as well and runs nothing, add --also-fenced {peer}"
                )));
            }
        }
    }
    Ok(reports)
}

/// Whether the operator says of a host that it is gone.
fn is_named(peer: &HostAddr, request: &FailoverRequest) -> bool {
    *peer == request.fenced.host || request.also_fenced.contains(peer)
}

/// The epoch must be the newest that anybody knows, and its owner the one that is fenced: else
/// the operator has another history in mind than the one that happened.
fn check_owner(
    known: &deploy::Known,
    reports: &BTreeMap<HostAddr, HostReport>,
    request: &FailoverRequest,
) -> Result<(), FailoverError> {
    let FailoverRequest {
        application,
        to,
        fenced,
        ..
    } = request;
    let Some((epoch, owner)) = known.get(application) else {
        // Nobody remembers it, so nothing speaks against it.
        return Ok(());
    };
    let done = *epoch == fenced.epoch.next() && owner == to;
    // Of two owners of one epoch the one that is not fenced stays.
    let stays = *epoch == fenced.epoch
        && owner == to
        && owns(reports, to, application, *epoch)
        && may_be_another(reports, request);
    if done || stays || (*epoch == fenced.epoch && *owner == fenced.host) {
        return Ok(());
    }
    let answers = reports.get(owner);
    if answers.is_some_and(|report| !report.is_out_of(application)) {
        return Err(FailoverError::Refused(format!(
            "{owner}, which answers, owns {application} at epoch {epoch}, or is about to: `rehome status` shows how it stands"
        )));
    }
    Err(FailoverError::Refused(format!(
        "the last owner of {application} that is known is {owner}, at epoch {epoch}, and not {fenced}: make sure that {owner} runs nothing, and run it with --fenced {owner}@{epoch}"
    )))
}

/// Whether the host that is fenced may be the other one of two owners: somebody knows it as one,
/// or the one that stays waits for a word about another.
fn may_be_another(reports: &BTreeMap<HostAddr, HostReport>, request: &FailoverRequest) -> bool {
    let FailoverRequest {
        application,
        to,
        fenced,
        ..
    } = request;
    let known = reports.values().any(|report| {
        let known = report.known_owner(application);
        known.is_some_and(|known| known.owner == fenced.host && known.epoch == fenced.epoch)
    });
    let of = reports.get(to).map(|report| report.applications.iter());
    let mut of = of.into_iter().flatten();
    let waits = of.any(|of| of.name == *application && of.state != ApplicationState::Running);
    known || waits
}

fn owns(
    reports: &BTreeMap<HostAddr, HostReport>,
    host: &HostAddr,
    application: &AppName,
    epoch: Epoch,
) -> bool {
    let owned = reports.get(host).map(|report| report.owned.iter());
    owned
        .into_iter()
        .flatten()
        .any(|owned| owned.application == *application && owned.epoch == epoch)
}

async fn offer(
    host: &Arc<Host>,
    request: &FailoverRequest,
) -> Result<FailoverOffer, FailoverError> {
    if request.to == host.address {
        return Ok(examine(host, request).await);
    }
    once_more(|| ask(host, &request.to, request))
        .await
        .map_err(|error| from_host(&request.to, &Report(&error).to_string()))
}

/// Asks a host whether, and how, it could take over.
async fn ask(
    host: &Host,
    to: &HostAddr,
    request: &FailoverRequest,
) -> Result<FailoverOffer, ClientError> {
    let path = "/peer/v1/failovers/examine";
    host.peers
        .request(to, Method::POST, path, Some(request))
        .await
}

fn check_offer(
    reports: &BTreeMap<HostAddr, HostReport>,
    request: &FailoverRequest,
    offer: &FailoverOffer,
) -> Result<(), FailoverError> {
    let FailoverRequest {
        application,
        to,
        fenced,
        ..
    } = request;
    let Some(means) = offer.means else {
        let reason = offer.refusal.as_deref().unwrap_or("no reason given");
        return Err(from_host(to, &format!("it cannot take over: {reason}")));
    };
    if means == FailoverMeans::Claimed
        && let Some(better) = better(reports, request)
    {
        return Err(FailoverError::Refused(format!(
            "{better} has all of {application}: run `rehome failover {application} --to {better} --fenced {fenced}`, and move it afterwards"
        )));
    }
    match &offer.loss {
        Some(loss) if !request.accept_loss => Err(from_host(
            to,
            &format!("{loss}. To go on all the same, add --accept-loss"),
        )),
        Some(_) | None => Ok(()),
    }
}

/// A host other than the one that would claim it that has all of it: what came to it whole could
/// still be granted by the fenced host, should it come back, and what it released is newer.
fn better<'a>(
    reports: &'a BTreeMap<HostAddr, HostReport>,
    request: &FailoverRequest,
) -> Option<&'a HostAddr> {
    let FailoverRequest {
        application,
        to,
        fenced,
        ..
    } = request;
    let others = || reports.iter().filter(|(host, _)| *host != to);
    let promised = others().find(|(_, report)| {
        report
            .promised
            .get(application)
            .is_some_and(|epoch| *epoch > fenced.epoch)
    });
    let released = others().find(|(_, report)| {
        report.migrations.iter().any(|migration| {
            migration.application == *application
                && migration.to == fenced.host
                && migration.epoch == fenced.epoch
                && matches!(
                    migration.state,
                    MigrationState::Running | MigrationState::Blocked
                )
        })
    });
    promised.or(released).map(|(host, _)| host)
}

/// The deployment with the application on its new host; the same when it is there already. Who
/// answers is not fenced: it follows.
fn new_place(
    current: &Desired,
    request: &FailoverRequest,
    reports: &BTreeMap<HostAddr, HostReport>,
) -> Desired {
    let FailoverRequest {
        application,
        to,
        fenced,
        also_fenced,
        ..
    } = request;
    let mut desired = current.clone();
    if desired.host_of(application) != Some(to) {
        for names in desired.placement.values_mut() {
            names.retain(|name| name != application);
        }
        let there = desired.placement.entry(to.clone()).or_default();
        there.push(application.clone());
    }
    // It has had an owner: whatever becomes of it, it is not born any more.
    desired.births.remove(application);
    desired.kept.remove(application);
    let mut gone = also_fenced.clone();
    gone.insert(fenced.host.clone());
    gone.retain(|host| !reports.contains_key(host));
    desired.fenced.extend(gone);
    if desired != *current {
        desired.generation = current.generation.next();
        let again = BTreeSet::from([application.clone()]);
        desired.asked = desired::asked(current, &desired, &again);
    }
    desired
}

async fn order(
    host: &Arc<Host>,
    request: &FailoverRequest,
) -> Result<FailoverReply, FailoverError> {
    if request.to == host.address {
        return carry_out(host, request).await;
    }
    let client = host.peers.client(&request.to);
    let answer = client
        .request_json(Method::POST, "/peer/v1/failovers", Some(request), ORDER)
        .await;
    answer.map_err(|error| match error {
        ClientError::Status { reply, .. } => from_host(&request.to, &reply.error),
        source => FailoverError::Unanswered {
            host: request.to.clone(),
            source,
        },
    })
}

/// The hosts that must agree before this one takes over: all others that are not fenced.
fn electorate(host: &Host, desired: &Desired) -> BTreeSet<HostAddr> {
    let mut hosts = host.other_hosts();
    hosts.retain(|other| !desired.fenced.contains(other));
    hosts
}

#[cfg(test)]
mod tests;
