//! What is dropped: remains of a handoff that was called off, older rounds, older bases.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use migrated_core::destination::{DestinationHandoff, Event, Phase};
use migrated_core::registry::Registry;
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
    let known = host
        .ledger
        .read(|registry| registry.destinations().get(id).cloned());
    let Some(handoff) = known.filter(|handoff| handoff.phase == Phase::Dropped) else {
        return;
    };
    // Streams that still come in, or wait for their source, end first.
    taking.end_streams();
    let _quiet = taking.streams.write().await;
    let application = &handoff.reservation.application;
    // Nobody claims it from what is discarded here meanwhile.
    let _held = host.hold(application).await;
    let owned = host
        .ledger
        .read(|registry| registry.owned(application).is_some());
    if !owned && let Err(error) = applications::remove(host, application, Duration::ZERO).await {
        let error = Report(&error).to_string();
        tracing::warn!(
            error,
            "the instance of a move that was called off cannot be removed"
        );
        return;
    }
    for volume in &handoff.reservation.volumes {
        if let Err(error) = discard_volume(host, &volume.identity.dataset, id).await {
            let error = Report(&error).to_string();
            tracing::warn!(
                error,
                "what came of a move that was called off cannot be dropped"
            );
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
    let prefix = format!("mig-{id}-");
    // A stream that broke off, or a crash, may have left a part that is no snapshot yet.
    host.storage.discard_partial(dataset, &prefix).await?;
    let Some(info) = host.storage.inspect(dataset).await? else {
        return Ok(());
    };
    let (ours, others): (Vec<_>, Vec<_>) = info
        .snapshots
        .into_iter()
        .partition(|snapshot| snapshot.name.starts_with(&prefix));
    if others.is_empty() && !info.live && info.diverged.is_empty() {
        return host.storage.destroy(dataset).await;
    }
    for snapshot in ours {
        host.storage
            .delete_snapshot(dataset, &snapshot.name)
            .await?;
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
    let Some(info) = host.storage.inspect(dataset).await? else {
        return Ok(());
    };
    for snapshot in info.snapshots {
        if snapshot.name.starts_with(prefix) && snapshot.name != newest {
            host.storage
                .delete_snapshot(dataset, &snapshot.name)
                .await?;
        }
    }
    Ok(())
}

/// Whether a handoff's final snapshots are the newest that both sides have: no change of owner
/// followed it, and none is under way.
fn has_newest_base(registry: &Registry, handoff: &DestinationHandoff) -> bool {
    let application = &handoff.reservation.application;
    let epoch = match &handoff.phase {
        Phase::Serving { .. } => handoff.epoch_here(),
        Phase::Returned { .. } => handoff.epoch_here().next(),
        Phase::Reserved | Phase::Verified { .. } | Phase::Owned { .. } | Phase::Dropped => {
            return false;
        }
    };
    registry
        .applications()
        .get(application)
        .is_some_and(|known| known.epoch == epoch)
        && registry.source_of(application).is_none()
        && registry.incoming(application).is_none()
}

/// After the end: of this migration and those before it only the common base stays.
pub(super) async fn prune(host: &Host, handoff: &DestinationHandoff) {
    if !host
        .ledger
        .read(|registry| has_newest_base(registry, handoff))
    {
        return;
    }
    // Of the migration's own snapshots only the final ones came to stay.
    let keep = format!("mig-{}-", handoff.id);
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
    while stop
        .run_until_cancelled(tokio::time::sleep(LOOK))
        .await
        .is_some()
    {
        let silent: Vec<DestinationHandoff> = host.ledger.read(|registry| {
            registry
                .destinations()
                .values()
                .filter(|h| is_silent(&host, h))
                .cloned()
                .collect()
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
/// "aborted", "returned" or "done" has written that down before; one that says how it ended needs nothing more of it.
/// Silence ends only what was merely reserved: after it the source offers anew.
fn ending(
    handoff: &DestinationHandoff,
    word: Option<MigrationState>,
    silent_for: Duration,
) -> Option<Event> {
    match (&handoff.phase, word) {
        // What its source has again, or another host, because an operator called one fenced, is
        // as little granted any more as what was called off.
        (
            Phase::Reserved | Phase::Verified { .. },
            Some(MigrationState::Aborted | MigrationState::Returned | MigrationState::Done),
        ) => Some(Event::Aborted),
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
    let answer: Result<Migration, _> = host
        .peers
        .request(source, Method::GET, &path, None::<&()>)
        .await;
    let silent_for = host.takings.get(&handoff.id).silent_for();
    let Some(event) = ending(handoff, answer.ok().map(|told| told.state), silent_for) else {
        return;
    };
    if event == Event::Closed {
        return end(host, handoff).await;
    }
    if step(host, &handoff.id, event).await.is_ok() {
        tracing::info!(migration.id = %handoff.id, "the source called it off while this host did not hear");
        run(host, &handoff.id).await;
    }
}

#[cfg(test)]
mod tests {
    use migrated_core::record::{DestinationRecord, Plan, Record, Reservation, SourceRecord};
    use rehome_shared::config::model::MigrationLimits;
    use rehome_shared::ids::{Attempt, DeploymentGeneration, Epoch};

    use super::*;
    use crate::fixtures::{app, host, spec};

    const STATES: [MigrationState; 5] = [
        MigrationState::Running,
        MigrationState::Done,
        MigrationState::Aborted,
        MigrationState::Returned,
        MigrationState::Blocked,
    ];

    fn at(phase: Phase) -> DestinationHandoff {
        let reservation = Reservation {
            from: host("h1"),
            application: app("db"),
            epoch: Epoch(1),
            generation: DeploymentGeneration(1),
            spec: spec(),
            volumes: Vec::new(),
            limits: MigrationLimits::default(),
        };
        let mut handoff = DestinationHandoff::begin(MigrationId::generate(), reservation);
        handoff.phase = phase;
        handoff
    }

    fn verified() -> DestinationHandoff {
        at(Phase::Verified {
            attempt: Attempt(1),
            finals: Vec::new(),
        })
    }

    #[test]
    fn a_promise_is_broken_by_nothing_but_the_word_that_it_is_over() {
        for state in STATES {
            let open = matches!(state, MigrationState::Running | MigrationState::Blocked);
            let expected = (!open).then_some(Event::Aborted);
            assert_eq!(
                ending(&verified(), Some(state), Duration::MAX),
                expected,
                "{state:?}"
            );
        }
        assert_eq!(ending(&verified(), None, Duration::MAX), None);
    }

    #[test]
    fn what_was_only_reserved_is_given_up_after_a_long_silence_and_not_before() {
        let reserved = at(Phase::Reserved);
        assert_eq!(ending(&reserved, None, EXPIRY), Some(Event::Expired));
        assert_eq!(ending(&reserved, None, EXPIRY / 2), None);
        assert_eq!(
            ending(&reserved, Some(MigrationState::Running), EXPIRY),
            None
        );
    }

    #[test]
    fn an_outcome_is_forgotten_only_when_the_source_says_how_it_ended() {
        let serving = at(Phase::Serving {
            attempt: Attempt(1),
            finals: Vec::new(),
        });
        let returned = at(Phase::Returned {
            attempt: Attempt(1),
            reason: String::new(),
        });
        for handoff in [serving, returned] {
            for state in STATES {
                let over = matches!(state, MigrationState::Done | MigrationState::Returned);
                let expected = over.then_some(Event::Closed);
                assert_eq!(
                    ending(&handoff, Some(state), Duration::MAX),
                    expected,
                    "{state:?}"
                );
            }
            assert_eq!(ending(&handoff, None, Duration::MAX), None);
        }
    }

    #[test]
    fn no_word_ends_what_this_host_owns() {
        let owned = at(Phase::Owned {
            attempt: Attempt(1),
            finals: Vec::new(),
        });
        for state in STATES {
            assert_eq!(ending(&owned, Some(state), Duration::MAX), None);
        }
    }

    /// The journal of a host that took the application and serves it.
    fn took(handoff: &DestinationHandoff) -> Vec<Record> {
        let steps = [
            DestinationRecord::Reserved(Box::new(handoff.reservation.clone())),
            DestinationRecord::Verified {
                attempt: Attempt(1),
                finals: Vec::new(),
            },
            DestinationRecord::Adopted,
            DestinationRecord::Serving,
        ];
        let record = |step| Record::Destination {
            migration: handoff.id.clone(),
            step,
        };
        steps.into_iter().map(record).collect()
    }

    #[test]
    fn older_bases_go_only_while_no_later_move_has_made_a_newer_one() {
        let serving = at(Phase::Serving {
            attempt: Attempt(1),
            finals: Vec::new(),
        });
        let mut journal = took(&serving);
        assert!(has_newest_base(&Registry::replay(&journal), &serving));
        let plan = Plan {
            application: app("db"),
            to: host("h3"),
            epoch: Epoch(2),
            generation: DeploymentGeneration(2),
            volumes: Vec::new(),
            limits: MigrationLimits::default(),
            was_running: true,
            started_at: migrated_core::UnixMillis(0),
        };
        let onwards = MigrationId::generate();
        for step in [
            SourceRecord::Planned(plan),
            SourceRecord::Released {
                attempt: Attempt(1),
            },
        ] {
            journal.push(Record::Source {
                migration: onwards.clone(),
                step,
            });
            assert!(!has_newest_base(&Registry::replay(&journal), &serving));
        }
        assert!(!has_newest_base(&Registry::default(), &verified()));
    }
}
