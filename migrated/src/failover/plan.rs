//! Whether, and how, this host could take over, and what that would lose. Nothing is changed here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migrated_core::UnixMillis;
use migrated_core::failover::{self, Way, Wish};
use migrated_core::registry::Registry;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Desired, FailoverMeans, FailoverRequest};
use rehome_shared::api::peer::{FailoverOffer, VolumeIdentity};
use rehome_shared::ids::{AppName, MigrationId, VolumeName};

use crate::host::Host;
use crate::storage::{StorageError, VolumeInfo};
use crate::{clock, destination};

/// How this host would take over as things are now.
pub(super) struct Plan {
    pub(super) way: Way,
    /// Of a claim with volumes.
    pub(super) base: Option<Base>,
    /// What may be lost by it, for people.
    pub(super) loss: Option<String>,
}

impl Plan {
    pub(super) fn means(&self) -> FailoverMeans {
        match self.way {
            Way::Done => FailoverMeans::Already,
            Way::Grant { .. } => FailoverMeans::Granted,
            Way::TakeBack { .. } => FailoverMeans::TakenBack,
            Way::Claim { .. } => FailoverMeans::Claimed,
        }
    }
}

/// What to go on from: a snapshot that each volume has, and when the newest data is from; without
/// one the live trees of what was left open here.
pub(super) struct Base {
    pub(super) volumes: Vec<VolumeInfo>,
    pub(super) snapshot: Option<String>,
    newest: Option<SystemTime>,
}

impl Base {
    fn is_live(&self) -> bool {
        self.snapshot.is_none()
    }
}

/// The way by which the journal lets this host take over.
pub(super) fn way(
    host: &Host,
    registry: &Registry,
    request: &FailoverRequest,
) -> Result<Way, failover::CannotTakeOver> {
    let volumes = volume_names(&host.desired.get(), &request.application);
    let wish = Wish {
        application: &request.application,
        fenced: &request.fenced.host,
        epoch: request.fenced.epoch,
        volumes: &volumes,
    };
    failover::way(registry, &host.address, wish)
}

fn volume_names(desired: &Desired, application: &AppName) -> Vec<VolumeName> {
    let spec = desired.applications.get(application);
    spec.map(|spec| spec.volumes.iter().map(|v| v.name.clone()).collect())
        .unwrap_or_default()
}

/// How this host could take over now, or why it cannot.
///
/// # Errors
/// Why it cannot, for people.
///
/// # Cancel safety
/// Cancel safe.
pub(super) async fn plan(host: &Host, request: &FailoverRequest) -> Result<Plan, String> {
    let way = host.ledger.read(|registry| way(host, registry, request));
    let way = way.map_err(|cannot| cannot.to_string())?;
    let base = match &way {
        Way::Claim { volumes } if !volumes.is_empty() => {
            Some(base(host, &request.application, volumes).await?)
        }
        Way::Claim { .. } | Way::Done | Way::Grant { .. } | Way::TakeBack { .. } => None,
    };
    let loss = match &base {
        Some(base) => Some(missing_since(&request.application, base)),
        None => loss(host, request, &way),
    };
    Ok(Plan { way, base, loss })
}

/// What may be lost by a way other than a claim, as far as this host knows now.
pub(super) fn loss(host: &Host, request: &FailoverRequest, way: &Way) -> Option<String> {
    match way {
        Way::Grant { migration, .. } => may_have_gone_on(host, migration, request),
        Way::TakeBack { migration, taken } => may_have_served(host, migration, *taken, request),
        Way::Done | Way::Claim { .. } => None,
    }
}

/// Whether, and how, this host could take over. Nothing is changed.
///
/// # Cancel safety
/// Cancel safe.
pub async fn examine(host: &Arc<Host>, request: &FailoverRequest) -> FailoverOffer {
    match plan(host, request).await {
        Ok(plan) => FailoverOffer {
            means: Some(plan.means()),
            live: plan.base.as_ref().is_some_and(Base::is_live),
            newest: plan.base.and_then(|base| base.newest).map(rfc3339),
            loss: plan.loss,
            refusal: None,
        },
        Err(reason) => FailoverOffer {
            means: None,
            loss: None,
            newest: None,
            live: false,
            refusal: Some(reason),
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

/// The newest snapshots of volumes that this host keeps, or what it has of an application that
/// was left open.
async fn base(
    host: &Host,
    application: &AppName,
    volumes: &[VolumeIdentity],
) -> Result<Base, String> {
    let said = |error: StorageError| Report(&error).to_string();
    let left = host.ledger.read(|registry| registry.is_left(application));
    let mut infos = Vec::new();
    for volume in volumes {
        let info = host.storage.inspect(&volume.dataset).await.map_err(said)?;
        let info = info.filter(|info| !info.snapshots.is_empty() || (left && info.live));
        infos.push(info.ok_or_else(|| format!("it keeps nothing of volume {}", volume.name))?);
    }
    if left && infos.iter().all(|info| info.live) {
        return Ok(Base {
            volumes: infos,
            snapshot: None,
            newest: None,
        });
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
        snapshot: Some(snapshot),
        newest,
    })
}

fn missing_since(application: &AppName, base: &Base) -> String {
    if base.is_live() {
        return format!(
            "it goes on with the volumes of {application} as they are here: what {application} wrote elsewhere since, or before they were brought back, is lost"
        );
    }
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
