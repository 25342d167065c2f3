//! The host that takes over: whether it can, and how it does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migrated_core::UnixMillis;
use migrated_core::failover::{self, Way, Wish};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Desired, FailoverMeans, FailoverReply, FailoverRequest};
use rehome_shared::api::peer::{FailoverOffer, VolumeIdentity};
use rehome_shared::ids::{AppName, Epoch, MigrationId, VolumeName};
use tokio::time::Instant;

use super::{FailoverError, QUESTION, alive, electorate, shows_life};
use crate::host::Host;
use crate::storage::{StorageError, VolumeInfo};
use crate::{clock, desired, destination, fence};

/// How long the other hosts may take to follow the deployment that names this one.
const SPREAD: Duration = Duration::from_secs(10);

/// The pause before they are asked again.
const SPREAD_PAUSE: Duration = Duration::from_millis(50);

/// How long a migration may take to turn round: its journal is all that it waits for.
const TURN: Duration = Duration::from_secs(10);

/// What to go on from: for each volume a snapshot, and when the newest data is from.
struct Base {
    volumes: Vec<VolumeInfo>,
    snapshot: String,
    newest: Option<SystemTime>,
}

fn way(
    host: &Host,
    registry: &Registry,
    request: &FailoverRequest,
    volumes: &[VolumeName],
) -> Result<Way, failover::CannotTakeOver> {
    let wish = Wish {
        application: &request.application,
        fenced: &request.fenced.host,
        epoch: request.fenced.epoch,
        volumes,
    };
    failover::way(registry, &host.address, wish)
}

fn volume_names(desired: &Desired, application: &AppName) -> Vec<VolumeName> {
    let spec = desired.applications.get(application);
    spec.map(|spec| spec.volumes.iter().map(|v| v.name.clone()).collect())
        .unwrap_or_default()
}

/// Whether, and how, this host could take over. Nothing is changed.
///
/// # Cancel safety
/// Cancel safe.
pub async fn examine(host: &Arc<Host>, request: &FailoverRequest) -> FailoverOffer {
    let names = volume_names(&host.desired.get(), &request.application);
    let way = host
        .ledger
        .read(|registry| way(host, registry, request, &names));
    let offer = |means| FailoverOffer {
        means: Some(means),
        loss: None,
        newest: None,
        refusal: None,
    };
    let refused = |reason: String| FailoverOffer {
        means: None,
        loss: None,
        newest: None,
        refusal: Some(reason),
    };
    match way {
        Err(cannot) => refused(cannot.to_string()),
        Ok(Way::Done) => offer(FailoverMeans::Already),
        Ok(Way::Grant { migration, .. }) => FailoverOffer {
            loss: may_have_gone_on(host, &migration, request),
            ..offer(FailoverMeans::Granted)
        },
        Ok(Way::TakeBack { migration, taken }) => FailoverOffer {
            loss: may_have_served(host, &migration, taken, request),
            ..offer(FailoverMeans::TakenBack)
        },
        Ok(Way::Claim { volumes }) if volumes.is_empty() => offer(FailoverMeans::Claimed),
        Ok(Way::Claim { volumes }) => match base(host, &volumes).await {
            Ok(base) => FailoverOffer {
                loss: Some(missing_since(&request.application, &base)),
                newest: base.newest.map(rfc3339),
                ..offer(FailoverMeans::Claimed)
            },
            Err(reason) => refused(reason),
        },
    }
}

/// A source that called the move off, and could not say so, opened its gate again: under a newer
/// version than the one that it told with the final snapshots. That nobody heard of one is no
/// proof, but all that there is.
fn may_have_gone_on(
    host: &Host,
    migration: &MigrationId,
    request: &FailoverRequest,
) -> Option<String> {
    let (application, gone) = (&request.application, &request.fenced.host);
    let has_volumes = host.ledger.read(|registry| {
        let handoff = registry.destinations().get(migration);
        handoff.is_some_and(|handoff| !handoff.reservation.volumes.is_empty())
    });
    if !has_volumes {
        return None;
    }
    let Some(parked) = destination::parked(host, migration) else {
        return Some(format!(
            "this host was restarted since all of {application} came, and does not know whether {gone} served it again"
        ));
    };
    let adverts = host.routes.tell(&host.address);
    let newer = adverts.iter().any(|advert| {
        advert.application == *application && advert.host == *gone && advert.version > parked
    });
    newer.then(|| {
        format!(
            "{gone} served {application} again after all of it had come; what it wrote then is lost"
        )
    })
}

/// That a destination never served is certain only while it cannot have heard of the grant.
fn may_have_served(
    host: &Host,
    migration: &MigrationId,
    taken: bool,
    request: &FailoverRequest,
) -> Option<String> {
    let unheard = host
        .live
        .get(migration)
        .is_some_and(|run| !run.granted.load(Ordering::Relaxed));
    if unheard && !taken {
        return None;
    }
    let (application, gone) = (&request.application, &request.fenced.host);
    let knows = if taken {
        "took it"
    } else {
        "may have taken it"
    };
    Some(format!(
        "{gone} {knows}, and whatever {application} wrote there is not here"
    ))
}

/// The newest snapshots of volumes that this host keeps.
async fn base(host: &Host, volumes: &[VolumeIdentity]) -> Result<Base, String> {
    let said = |error: StorageError| Report(&error).to_string();
    let mut infos = Vec::new();
    for volume in volumes {
        let info = host.storage.inspect(&volume.dataset).await.map_err(said)?;
        let info = info.filter(|info| !info.snapshots.is_empty());
        infos.push(info.ok_or_else(|| format!("it keeps nothing of volume {}", volume.name))?);
    }
    let kept: Vec<Vec<String>> = infos
        .iter()
        .map(|info| info.snapshots.iter().map(|s| s.name.clone()).collect())
        .collect();
    let Some(snapshot) = failover::choose(&kept).map(str::to_owned) else {
        return Err("it keeps nothing of its volumes that is whole".to_owned());
    };
    let mut newest = None;
    for info in &infos {
        let taken = host.storage.taken_at(&info.dataset, &snapshot).await;
        newest = newest.max(Some(taken.map_err(said)?));
    }
    Ok(Base {
        volumes: infos,
        snapshot,
        newest,
    })
}

fn missing_since(application: &AppName, base: &Base) -> String {
    let age = base.newest.map(|taken| {
        let ago = taken.elapsed().unwrap_or_default();
        let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
        format!("is of {}, {ago} ago", rfc3339(taken))
    });
    let age = age.unwrap_or_else(|| "is of an unknown time".to_owned());
    format!(
        "the newest that it keeps of {application} {age}: what {application} wrote since is lost"
    )
}

fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    clock::rfc3339(UnixMillis(
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    ))
}

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
    let offer = examine(host, request).await;
    let Some(means) = offer.means else {
        let reason = offer.refusal.unwrap_or_default();
        return Err(FailoverError::Refused(format!(
            "it cannot take over: {reason}"
        )));
    };
    if let Some(loss) = offer.loss.as_ref().filter(|_| !request.accept_loss) {
        return Err(FailoverError::Refused(format!(
            "{loss}, and that is not accepted"
        )));
    }
    let desired = agreed(host, request).await?;
    let taken = host
        .desired
        .while_following(&desired, take(host, request))
        .await;
    taken.ok_or_else(superseded)??;
    host.kick();
    let epoch = request.fenced.epoch.next();
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
        loss: offer.loss,
    })
}

fn superseded() -> FailoverError {
    FailoverError::Refused(
        "another deployment came in between: look at `rehome status`, and run it again".to_owned(),
    )
}

/// Waits until every host that is not fenced follows the deployment that names this one, and none
/// of them knows of a newer owner.
async fn agreed(
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
    let names_this = desired.host_of(&request.application) == Some(&host.address);
    if !names_this || !desired.fenced.contains(gone) {
        return Some(Objection::Behind(
            "this host follows another deployment".to_owned(),
        ));
    }
    let asked = electorate(host, desired)
        .into_iter()
        .map(|peer| async move {
            let answer = tokio::time::timeout(QUESTION, host.peers.report(&peer)).await;
            (peer, answer.ok().and_then(Result::ok))
        });
    let (answers, revived) = tokio::join!(
        futures_util::future::join_all(asked),
        tokio::time::timeout(QUESTION, host.peers.report(gone))
    );
    if matches!(revived, Ok(Ok(_))) || shows_life(host, gone).await {
        return Some(Objection::Never(alive(gone, request)));
    }
    let hash = desired::hash(desired);
    for (peer, answer) in answers {
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

/// The change of owner itself, while no other deployment can be followed.
async fn take(host: &Arc<Host>, request: &FailoverRequest) -> Result<(), FailoverError> {
    let names = volume_names(&host.desired.get(), &request.application);
    let way = host
        .ledger
        .read(|registry| way(host, registry, request, &names));
    match way.map_err(|cannot| FailoverError::Refused(cannot.to_string()))? {
        Way::Done => Ok(()),
        Way::Grant {
            migration,
            attempt,
            epoch,
        } => destination::grant_by_operator(host, &migration, attempt, epoch)
            .await
            .map_err(|error| FailoverError::Refused(Report(&error).to_string())),
        Way::TakeBack { migration, .. } => take_back(host, request, &migration).await,
        Way::Claim { volumes } => claim(host, request, volumes, &names).await,
    }
}

/// Turns a migration round that waits for the fenced host.
async fn take_back(
    host: &Arc<Host>,
    request: &FailoverRequest,
    migration: &MigrationId,
) -> Result<(), FailoverError> {
    let Some(run) = host.live.get(migration) else {
        return Err(FailoverError::Refused(format!(
            "migration {migration} is just being taken up: try again in a moment"
        )));
    };
    let mut changes = host.ledger.changes();
    let gone = &request.fenced.host;
    run.take_back
        .send_replace(Some(format!("an operator called {gone} fenced")));
    let epoch = request.fenced.epoch.next();
    let turned = async {
        loop {
            changes.borrow_and_update();
            if owns(host, &request.application, epoch) {
                return true;
            }
            if changes.changed().await.is_err() {
                return false;
            }
        }
    };
    if tokio::time::timeout(TURN, turned).await == Ok(true) {
        return Ok(());
    }
    // Whoever asks again says so again.
    run.take_back.send_replace(None);
    if owns(host, &request.application, epoch) {
        return Ok(());
    }
    Err(FailoverError::Refused(
        "the migration does not turn round: look at `rehome status`, and run it again".to_owned(),
    ))
}

fn owns(host: &Host, application: &AppName, epoch: Epoch) -> bool {
    host.ledger.read(|registry| {
        registry
            .owned(application)
            .is_some_and(|owned| owned.epoch == epoch)
    })
}

/// Makes the live trees and writes the claim down. Until it is, the trees are of no use to anybody
/// and are dropped again.
async fn claim(
    host: &Arc<Host>,
    request: &FailoverRequest,
    volumes: Vec<VolumeIdentity>,
    names: &[VolumeName],
) -> Result<(), FailoverError> {
    let application = &request.application;
    let _held = host.hold(application).await;
    if !volumes.is_empty() {
        let base = base(host, &volumes).await.map_err(FailoverError::Refused)?;
        for info in &base.volumes {
            make_live(host, application, &volumes, info, &base.snapshot).await?;
        }
    }
    let decided = {
        let (owner, request, names) = (Arc::clone(host), request.clone(), names.to_vec());
        let wanted = volumes.clone();
        host.ledger.transact(move |registry| {
            let now = way(&owner, registry, &request, &names);
            if now
                != Ok(Way::Claim {
                    volumes: wanted.clone(),
                })
            {
                return (Vec::new(), false);
            }
            let record = Record::Claimed {
                application: request.application,
                epoch: request.fenced.epoch.next(),
                volumes: wanted,
                fenced: request.fenced.host,
            };
            (vec![record], true)
        })
    };
    if decided.await? {
        return Ok(());
    }
    for volume in &volumes {
        host.storage.retire(&volume.dataset).await?;
    }
    Err(FailoverError::Refused(
        "something else came to this host of it meanwhile: look at `rehome status`, and run it again"
            .to_owned(),
    ))
}

/// Makes a snapshot live. What is live already is of an earlier try, or of an earlier ownership
/// and then kept.
async fn make_live(
    host: &Host,
    application: &AppName,
    volumes: &[VolumeIdentity],
    info: &VolumeInfo,
    snapshot: &str,
) -> Result<(), StorageError> {
    let dataset = &info.dataset;
    if info.live {
        if host.storage.is_unchanged(dataset, snapshot).await? {
            return Ok(());
        }
        let epoch = info.stamp.as_ref().map(|stamp| stamp.epoch);
        if let Some(volume) = volumes.iter().find(|volume| volume.dataset == *dataset) {
            fence::keep_copy(host, application, volume, epoch.unwrap_or_default()).await?;
        }
    }
    host.storage.promote(dataset, snapshot, info.limit).await
}
