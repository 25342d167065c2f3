//! The host that takes over.
//!
//! What takes time comes first: the others are waited for, live trees are made. The change of owner
//! is one record, which is written only while this host follows the deployment that all agreed on;
//! nothing else is done while no other deployment can come in.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::failover::Way;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Desired, FailoverMeans, FailoverReply, FailoverRequest};
use rehome_shared::api::peer::HostReport;
use rehome_shared::ids::{AppName, Epoch, HostAddr};
use tokio::time::Instant;

use super::claim::claim;
use super::life::{alive, shows_life};
use super::plan::{Plan, loss, plan, way};
use super::{FailoverError, QUESTION, electorate};
use crate::host::Host;
use crate::migrations::TakeBack;
use crate::{desired, destination};

/// How long the other hosts may take to follow the deployment that names this one.
const SPREAD: Duration = Duration::from_secs(10);

/// The pause before they are asked again.
const SPREAD_PAUSE: Duration = Duration::from_millis(50);

/// How long a migration may take to turn round: it waits for its journal, and before that for the
/// answer to a grant that is on its way.
const TURN: Duration = Duration::from_secs(10);

/// Takes over, on the word of an operator that another host has checked.
///
/// # Errors
/// [`FailoverError`]; nobody took over.
///
/// # Cancel safety
/// May have taken effect; asking again is safe.
pub async fn carry_out(
    host: &Arc<Host>,
    request: &FailoverRequest,
) -> Result<FailoverReply, FailoverError> {
    let means = possible(host, request).await?.means();
    let desired = agreed(host, request).await?;
    let plan = take(host, request, &desired, means).await?;
    host.kick();
    let epoch = owned_epoch(host, &request.application).unwrap_or(request.fenced.epoch.next());
    tracing::warn!(
        application = %request.application,
        fenced = %request.fenced,
        %epoch,
        ?means,
        "an operator gave an application to this host"
    );
    Ok(FailoverReply {
        generation: desired.generation,
        epoch,
        means,
        loss: plan.loss,
    })
}

/// How this host can take over now, if what that loses is accepted.
async fn possible(host: &Host, request: &FailoverRequest) -> Result<Plan, FailoverError> {
    let plan = plan(host, request)
        .await
        .map_err(|reason| FailoverError::Refused(format!("it cannot take over: {reason}")))?;
    accepted(request, plan.loss.as_deref())?;
    Ok(plan)
}

fn accepted(request: &FailoverRequest, loss: Option<&str>) -> Result<(), FailoverError> {
    match loss {
        Some(loss) if !request.accept_loss => Err(FailoverError::Refused(format!(
            "{loss}, and that is not accepted"
        ))),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn superseded() -> FailoverError {
    FailoverError::Refused(
        "another deployment came in between: look at `rehome status`, and run it again".to_owned(),
    )
}

pub(super) fn changed() -> FailoverError {
    FailoverError::Refused(
        "something else came to this host of it meanwhile: look at `rehome status`, and run it again"
            .to_owned(),
    )
}

/// Waits until every host that is not fenced follows the deployment that names this one, and none
/// of them knows of a newer owner.
pub(super) async fn agreed(
    host: &Arc<Host>,
    request: &FailoverRequest,
) -> Result<Arc<Desired>, FailoverError> {
    let deadline = Instant::now() + SPREAD;
    loop {
        let desired = host.desired.get();
        match objection(host, &desired, request).await {
            None => return Ok(desired),
            Some(Objection::Behind(_)) if Instant::now() < deadline => {
                tokio::time::sleep(SPREAD_PAUSE).await;
            }
            Some(Objection::Behind(reason) | Objection::Never(reason)) => {
                return Err(FailoverError::Refused(reason));
            }
        }
    }
}

enum Objection {
    /// It may pass.
    Behind(String),
    /// It does not.
    Never(String),
}

async fn objection(
    host: &Arc<Host>,
    desired: &Desired,
    request: &FailoverRequest,
) -> Option<Objection> {
    let gone = &request.fenced.host;
    let another = || Objection::Behind("this host follows another deployment".to_owned());
    if desired.host_of(&request.application) != Some(&host.address) {
        return Some(another());
    }
    let mut others = electorate(host, desired);
    // One that answers and has no part in it is not fenced: it agrees like all others.
    let counts = others.remove(gone) || *gone == host.address || desired.fenced.contains(gone);
    let asked = others.into_iter().map(|peer| async move {
        let answer = tokio::time::timeout(QUESTION, host.peers.report(&peer)).await;
        (peer, answer.ok().and_then(Result::ok))
    });
    let (answers, replaced) = tokio::join!(
        futures_util::future::join_all(asked),
        replaced(host, gone, &request.application)
    );
    let Ok(replaced) = replaced else {
        return Some(Objection::Never(alive(gone, request)));
    };
    // Where it answers, the deployment need not know it.
    if !counts && replaced.is_none() {
        return Some(another());
    }
    let replaced = replaced.map(|report| (gone.clone(), Some(report)));
    let hash = desired::hash(desired);
    for (peer, answer) in answers.into_iter().chain(replaced) {
        let Some(report) = answer else {
            return Some(Objection::Behind(format!("{peer} does not answer")));
        };
        if report.generation != desired.generation || report.desired_hash != hash {
            return Some(Objection::Behind(format!(
                "{peer} does not follow this deployment"
            )));
        }
        let newest = report.known_owner(&request.application);
        if newest
            .is_some_and(|known| known.epoch > request.fenced.epoch && known.owner != host.address)
        {
            return Some(Objection::Never(format!(
                "{peer} knows of a newer owner: look at `rehome status`"
            )));
        }
    }
    None
}

/// Who is called fenced may run it.
struct Alive;

/// What the host that is called fenced says, if it answers and has no part in the application any
/// more.
async fn replaced(
    host: &Host,
    gone: &HostAddr,
    application: &AppName,
) -> Result<Option<HostReport>, Alive> {
    if *gone == host.address {
        return Ok(None);
    }
    match tokio::time::timeout(QUESTION, host.peers.report(gone)).await {
        Ok(Ok(report)) if report.is_out_of(application) => Ok(Some(report)),
        Ok(Ok(_)) => Err(Alive),
        Ok(Err(_)) | Err(_) if shows_life(host, gone).await => Err(Alive),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// The change of owner, by the same means and with no other loss than was agreed to.
async fn take(
    host: &Arc<Host>,
    request: &FailoverRequest,
    desired: &Arc<Desired>,
    means: FailoverMeans,
) -> Result<Plan, FailoverError> {
    // Nobody else touches its trees while they are made live. What is granted or taken back is in
    // the hand of who starts it.
    let _held = match means {
        FailoverMeans::Claimed => Some(host.hold(&request.application).await),
        FailoverMeans::Already | FailoverMeans::Granted | FailoverMeans::TakenBack => None,
    };
    let plan = possible(host, request).await?;
    if plan.means() != means {
        return Err(changed());
    }
    match &plan.way {
        Way::Done => {}
        Way::Grant { .. } => grant(host, request, desired, &plan.way).await?,
        Way::TakeBack { .. } => take_back(host, request, desired, &plan.way).await?,
        Way::Claim { volumes } => claim(host, request, desired, &plan, volumes).await?,
    }
    Ok(plan)
}

/// Grants a handoff in the place of its source.
async fn grant(
    host: &Arc<Host>,
    request: &FailoverRequest,
    desired: &Desired,
    wanted: &Way,
) -> Result<(), FailoverError> {
    let Way::Grant {
        migration,
        attempt,
        epoch,
    } = wanted
    else {
        return Err(changed());
    };
    let granting = async {
        // An advert of the source may have come meanwhile.
        accepted(request, loss(host, request, wanted).as_deref())?;
        let now = host.ledger.read(|registry| way(host, registry, request));
        if now.as_ref() != Ok(wanted) {
            return Err(changed());
        }
        destination::grant_by_operator(host, migration, *attempt, *epoch)
            .await
            .map_err(|error| FailoverError::Refused(Report(&error).to_string()))
    };
    let granted = host.desired.while_following(desired, granting).await;
    granted.ok_or_else(superseded)?
}

/// Has the driver of a migration turn round that waits for the fenced host: its record, too, is
/// written only while this host follows the deployment, and somebody waits for it here.
async fn take_back(
    host: &Arc<Host>,
    request: &FailoverRequest,
    desired: &Arc<Desired>,
    wanted: &Way,
) -> Result<(), FailoverError> {
    let &Way::TakeBack {
        ref migration,
        taken,
    } = wanted
    else {
        return Err(changed());
    };
    let Some(run) = host.live.get(migration) else {
        return Err(FailoverError::Refused(format!(
            "migration {migration} is just being taken up: try again in a moment"
        )));
    };
    let (mut changes, mut orders) = (host.ledger.changes(), run.orders.changes());
    let given = run.orders.give(TakeBack {
        reason: format!("an operator called {} fenced", request.fenced.host),
        desired: Arc::clone(desired),
        taken,
        accept_loss: request.accept_loss,
    });
    let wanted = Some(request.fenced.epoch.next());
    let turned = async {
        loop {
            changes.borrow_and_update();
            orders.borrow_and_update();
            let ended = !given.stands();
            if owned_epoch(host, &request.application) == wanted {
                return Ok(());
            }
            if ended {
                return Err(stuck());
            }
            // Both arms wait on a level.
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = orders.changed() => changed,
            };
            if changed.is_err() {
                return Err(stuck());
            }
        }
    };
    let turned = tokio::time::timeout(TURN, turned).await;
    // Whoever asks again says so again.
    drop(given);
    if owned_epoch(host, &request.application) == wanted {
        return Ok(());
    }
    turned.unwrap_or_else(|_elapsed| Err(stuck()))
}

fn stuck() -> FailoverError {
    FailoverError::Refused(
        "the migration did not turn round, because the journal failed or something else came in between: look at `rehome status`, and run it again"
            .to_owned(),
    )
}

fn owned_epoch(host: &Host, application: &AppName) -> Option<Epoch> {
    host.ledger
        .read(|registry| registry.owned(application).map(|owned| owned.epoch))
}
