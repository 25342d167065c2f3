//! What is dropped: remains of a handoff that was called off, older rounds, older bases.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use migrated_core::destination::{DestinationHandoff, Event, Phase};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Migration, MigrationState};
use rehome_shared::api::peer::HandoffState;
use rehome_shared::ids::{DatasetId, MigrationId};

use super::step;
use crate::applications;
use crate::host::Host;
use crate::storage::StorageError;

/// Without a word from the source for so long, it is asked.
const SILENCE: Duration = Duration::from_secs(10);

/// After so long without a word what is merely reserved is given up.
const EXPIRY: Duration = Duration::from_hours(6);

/// How often promises are looked at.
const LOOK: Duration = Duration::from_secs(3);

/// Starts the task that discards what came of a handoff that was called off.
pub(super) fn spawn(host: &Arc<Host>, id: &MigrationId) {
    let (owner, id) = (Arc::clone(host), id.clone());
    host.spawn("discard", async move { run(&owner, &id).await });
}

/// Discards what came of a handoff that was called off, and forgets it.
pub(super) async fn run(host: &Host, id: &MigrationId) {
    let taking = host.takings.get(id);
    let _working = taking.working.lock().await;
    // Streams that still come in end first.
    let _quiet = taking.streams.write().await;
    let known = host.ledger.read(|registry| registry.destinations().get(id).cloned());
    let Some(handoff) = known.filter(|handoff| handoff.phase == Phase::Dropped) else { return };
    let application = &handoff.reservation.application;
    let owned = host.ledger.read(|registry| registry.owned(application).is_some());
    if !owned && let Err(error) = applications::remove(host, application, Duration::ZERO).await {
        let error = Report(&error).to_string();
        tracing::warn!(error, "the instance of a move that was called off cannot be removed");
        return;
    }
    for volume in &handoff.reservation.volumes {
        if let Err(error) = discard_volume(host, &volume.identity.dataset, id).await {
            let error = Report(&error).to_string();
            tracing::warn!(error, "what came of a move that was called off cannot be dropped");
            return;
        }
    }
    match step(host, id, Event::Discarded).await {
        Ok(()) => host.takings.forget(id),
        Err(error) => tracing::warn!(%error, "the end of a handoff cannot be written down"),
    }
}

/// Drops the migration's snapshots. What was here before it stays; a volume that has nothing
/// left goes.
async fn discard_volume(
    host: &Host,
    dataset: &DatasetId,
    id: &MigrationId,
) -> Result<(), StorageError> {
    let Some(info) = host.storage.inspect(dataset).await? else { return Ok(()) };
    let prefix = format!("mig-{id}-");
    let (ours, others): (Vec<_>, Vec<_>) =
        info.snapshots.into_iter().partition(|snapshot| snapshot.name.starts_with(&prefix));
    if others.is_empty() && !info.live {
        return host.storage.destroy(dataset).await;
    }
    for snapshot in ours {
        host.storage.delete_snapshot(dataset, &snapshot.name).await?;
    }
    Ok(())
}

/// Drops the rounds of a migration before `newest`.
pub(super) async fn drop_rounds(
    host: &Host,
    dataset: &DatasetId,
    prefix: &str,
    newest: &str,
) -> Result<(), StorageError> {
    let Some(info) = host.storage.inspect(dataset).await? else { return Ok(()) };
    for snapshot in info.snapshots {
        if snapshot.name.starts_with(prefix) && snapshot.name != newest {
            host.storage.delete_snapshot(dataset, &snapshot.name).await?;
        }
    }
    Ok(())
}

/// After the end: of this migration and those before it only the common base stays.
pub(super) async fn prune(host: &Host, handoff: &DestinationHandoff) {
    match &handoff.phase {
        Phase::Serving { .. } | Phase::Returned { .. } => {}
        Phase::Reserved | Phase::Verified { .. } | Phase::Owned { .. } | Phase::Dropped => return,
    }
    // Of the migration's own snapshots only the final ones came to stay.
    let keep = format!("mig-{}-", handoff.id);
    let application = &handoff.reservation.application;
    let moving = host.ledger.read(|registry| {
        registry.source_of(application).is_some() || registry.incoming(application).is_some()
    });
    if moving {
        return;
    }
    for volume in &handoff.reservation.volumes {
        let dataset = &volume.identity.dataset;
        let info = host.storage.inspect(dataset).await.ok().flatten();
        for snapshot in info.map(|info| info.snapshots).unwrap_or_default() {
            let name = snapshot.name.as_str();
            if !name.starts_with("mig-") || name.starts_with(&keep) {
                continue;
            }
            if let Err(error) = host.storage.delete_snapshot(dataset, name).await {
                let error = Report(&error).to_string();
                tracing::warn!(error, "an older snapshot cannot be dropped");
            }
        }
    }
}

/// Asks the sources of handoffs that have gone silent whether they are over. An abort that was
/// never delivered ends here; a promise is never broken on silence alone. Runs until the stop.
///
/// # Cancel safety
/// Cancel safe.
pub async fn watch_promises(host: Arc<Host>) {
    let stop = host.supervisor.token().clone();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let silent: Vec<DestinationHandoff> = host.ledger.read(|registry| {
            registry.destinations().values().filter(|h| is_silent(&host, h)).cloned().collect()
        });
        for handoff in silent {
            match handoff.state() {
                HandoffState::Dropped => run(&host, &handoff.id).await,
                _ => ask(&host, &handoff).await,
            }
        }
    }
}

fn is_silent(host: &Host, handoff: &DestinationHandoff) -> bool {
    // The owner's start is its own task; its source asks for the outcome.
    let waits = handoff.state() != HandoffState::Owned;
    waits && host.takings.get(&handoff.id).silent_for() >= SILENCE
}

/// What the source's word, or its silence, means for a handoff that waits. A source that says
/// "aborted" has written that down before; one that says how it ended needs nothing more of it.
/// Silence ends only what was merely reserved: after it the source offers anew.
fn ending(
    handoff: &DestinationHandoff,
    word: Option<MigrationState>,
    silent_for: Duration,
) -> Option<Event> {
    match (&handoff.phase, word) {
        (Phase::Reserved | Phase::Verified { .. }, Some(MigrationState::Aborted)) => {
            Some(Event::Aborted)
        }
        (Phase::Reserved, None) if silent_for >= EXPIRY => Some(Event::Expired),
        (
            Phase::Serving { .. } | Phase::Returned { .. },
            Some(MigrationState::Done | MigrationState::Returned),
        ) => Some(Event::Closed),
        (
            Phase::Reserved
            | Phase::Verified { .. }
            | Phase::Owned { .. }
            | Phase::Serving { .. }
            | Phase::Returned { .. }
            | Phase::Dropped,
            _,
        ) => None,
    }
}

/// The source needs nothing of it any more: of its snapshots only the common base stays.
pub(super) async fn end(host: &Host, handoff: &DestinationHandoff) {
    prune(host, handoff).await;
    match step(host, &handoff.id, Event::Closed).await {
        Ok(()) => host.takings.forget(&handoff.id),
        Err(error) => tracing::debug!(%error, "a handoff was closed already"),
    }
}

/// Asks the source of a handoff that has gone silent how it ended.
async fn ask(host: &Arc<Host>, handoff: &DestinationHandoff) {
    let path = format!("/peer/v1/migrations/{}", handoff.id);
    let source = &handoff.reservation.from;
    let answer: Result<Migration, _> =
        host.peers.request(source, Method::GET, &path, None::<&()>).await;
    match ending(handoff, answer.ok().map(|migration| migration.state), host.takings.get(&handoff.id).silent_for()) {
        Some(Event::Closed) => end(host, handoff).await,
        Some(event) => {
            if step(host, &handoff.id, event).await.is_ok() {
                tracing::info!(migration.id = %handoff.id, "the source called it off while this host did not hear");
                run(host, &handoff.id).await;
            }
        }
        None => {}
    }
}
