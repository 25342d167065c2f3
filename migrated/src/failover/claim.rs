//! A claim: live trees of what this host keeps of an application, and the record that makes it this
//! host's.

use std::sync::Arc;

use migrated_core::failover::Way;
use migrated_core::record::Record;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Desired, FailoverRequest};
use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::ids::AppName;

use super::FailoverError;
use super::plan::{Plan, way};
use super::take::{agreed, changed, superseded};
use crate::fence;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::storage::{StorageError, VolumeInfo};

/// Makes the live trees, asks the others once more, then writes the claim down. Until it is, the
/// trees are of no use to anybody and are dropped again. Whoever calls it holds the application.
pub(super) async fn claim(
    host: &Arc<Host>,
    request: &FailoverRequest,
    desired: &Desired,
    plan: &Plan,
    volumes: &[VolumeIdentity],
) -> Result<(), FailoverError> {
    let application = &request.application;
    fence::stop_former(host, application)
        .await
        .map_err(FailoverError::Refused)?;
    let base = plan.base.as_ref();
    // What was left open here is gone on with as it is.
    let made = base.and_then(|base| Some((base, base.snapshot.as_ref()?)));
    if let Some((base, snapshot)) = made {
        for info in &base.volumes {
            make_live(host, application, volumes, info, snapshot).await?;
        }
    }
    // A journal that fails may hold it all the same: the next try finds the trees as they are.
    let Some(refusal) = settle(host, request, desired, volumes).await? else {
        return Ok(());
    };
    if made.is_some() {
        drop_made(host, volumes).await;
    }
    Err(refusal)
}

/// Writes it down if nothing came in between; why not otherwise.
async fn settle(
    host: &Arc<Host>,
    request: &FailoverRequest,
    desired: &Desired,
    volumes: &[VolumeIdentity],
) -> Result<Option<FailoverError>, LedgerError> {
    if let Err(refusal) = still_agreed(host, request, desired).await {
        return Ok(Some(refusal));
    }
    let writing = write_claim(host, request, volumes);
    let written = host.desired.while_following(desired, writing).await;
    match written {
        None => Ok(Some(superseded())),
        Some(written) => Ok((!written?).then(changed)),
    }
}

/// The trees took their time, and what the others said before them is old: above all the host that
/// is called fenced may own it again, if it answers.
async fn still_agreed(
    host: &Arc<Host>,
    request: &FailoverRequest,
    desired: &Desired,
) -> Result<(), FailoverError> {
    let now = agreed(host, request).await?;
    if *now == *desired {
        Ok(())
    } else {
        Err(superseded())
    }
}

/// The refusal is what matters: a tree that stays is set aside by whoever comes next.
async fn drop_made(host: &Host, volumes: &[VolumeIdentity]) {
    for volume in volumes {
        if let Err(error) = host.storage.retire(&volume.dataset).await {
            let error = Report(&error).to_string();
            tracing::warn!(volume = %volume.name, error, "a live tree that was made for nothing cannot be dropped");
        }
    }
}

/// Whether it is written down: not if something came of the application meanwhile.
async fn write_claim(
    host: &Arc<Host>,
    request: &FailoverRequest,
    volumes: &[VolumeIdentity],
) -> Result<bool, LedgerError> {
    let (owner, request, volumes) = (Arc::clone(host), request.clone(), volumes.to_vec());
    host.ledger
        .transact(move |registry| {
            let wanted = Way::Claim {
                volumes: volumes.clone(),
            };
            if way(&owner, registry, &request) != Ok(wanted) {
                return (Vec::new(), false);
            }
            let record = Record::Claimed {
                application: request.application,
                epoch: request.fenced.epoch.next(),
                volumes,
                fenced: request.fenced.host,
            };
            (vec![record], true)
        })
        .await
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
