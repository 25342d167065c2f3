//! From ADOPT to clients that are served, or back to the source.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::destination::{DestinationHandoff, Event, Phase};
use migrated_core::registry::{Ownership, Role};
use migrated_core::routes::LocalRoute;
use migrated_core::stamp::Of;
use rehome_runtime::backoff::Backoff;
use rehome_runtime::report::Report;
use rehome_shared::api::peer::{FinalSnapshot, HandoffState};
use rehome_shared::ids::{Attempt, MigrationId};
use tokio::time::Instant;
use tracing::Instrument;

use super::{TakeError, Taking, step};
use crate::applications::{self, LaunchError};
use crate::health;
use crate::host::Host;
use crate::routes;
use crate::runtime::{Instance, InstanceState, RuntimeError};
use crate::storage::StorageError;

/// A runtime that does not answer gets so long before the application goes back.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(30);

/// Starts the task that brings an adopted application to serve.
pub(super) fn spawn(host: &Arc<Host>, id: &MigrationId) {
    let span = tracing::info_span!("handoff", migration.id = %id);
    let work = run(Arc::clone(host), id.clone()).instrument(span);
    host.spawn("handoff", work);
}

/// Goes on with what was given back before a crash came in between.
pub(super) fn spawn_give_back(host: &Arc<Host>, handoff: DestinationHandoff) {
    let owner = Arc::clone(host);
    host.spawn("give back", async move {
        let _held = owner.hold(&handoff.reservation.application).await;
        give_back(&owner, &handoff).await;
    });
}

async fn run(host: Arc<Host>, id: MigrationId) {
    let taking = host.takings.get(&id);
    // Granted twice is started once.
    let _working = taking.working.lock().await;
    // After a start of the daemon the other hosts are asked first: this epoch may be another
    // one's, or have been overtaken.
    host.clearance.asked().await;
    let mut pause = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    while !is_settled(&host, &id).await {
        tokio::time::sleep(pause.next_delay()).await;
    }
    host.kick();
}

/// One try. What an operator's word brought here has no way back, and is tried again.
async fn is_settled(host: &Arc<Host>, id: &MigrationId) -> bool {
    let known = || {
        host.ledger
            .read(|registry| registry.destinations().get(id).cloned())
    };
    let Some(handoff) = known() else { return true };
    host.clearance.of(&handoff.reservation.application).await;
    let Some(handoff) = known() else { return true };
    let Phase::Owned { finals, .. } = &handoff.phase else {
        return true;
    };
    // Whatever the reconcile loop still does about an earlier instance ends first.
    let _held = host.hold(&handoff.reservation.application).await;
    if known().is_none_or(|now| now.phase != handoff.phase) {
        return true;
    }
    tracing::info!(application = %handoff.reservation.application, "this host is the owner now");
    let reason = match bring_up(host, &handoff, finals).await {
        Ok(instance) => {
            tracing::info!("the application is healthy here");
            host.takings.get(id).set_trouble(None);
            open(host, &handoff, &instance).await;
            return true;
        }
        Err(error) => Report(&error).to_string(),
    };
    if handoff.entrusted {
        tracing::error!(
            reason,
            "the application cannot serve here yet, and has no way back"
        );
        take_down(host, &handoff).await;
        let trouble = format!("it cannot serve here yet, and is tried again: {reason}");
        host.takings.get(id).set_trouble(Some(trouble));
        return false;
    }
    tracing::warn!(reason, "the application cannot serve here: it goes back");
    take_down(host, &handoff).await;
    if persist(host, id, Event::Failed { reason }).await {
        give_back(host, &handoff).await;
    }
    true
}

/// Steps until it is durable; what does not fit the state any more was decided before.
async fn persist(host: &Host, id: &MigrationId, event: Event) -> bool {
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match step(host, id, event.clone()).await {
            Ok(()) => return true,
            Err(TakeError::Ledger(error)) => {
                let error = Report(&error).to_string();
                tracing::error!(error, "the journal cannot be written; trying again");
            }
            Err(error) => {
                tracing::error!(%error, "the handoff changed under the task that serves it");
                return false;
            }
        }
        tokio::time::sleep(pause.next_delay()).await;
    }
}

/// Makes the live trees from the final snapshots, starts the application, waits for health. An
/// instance that runs was started by an earlier try: its trees are left alone.
async fn bring_up(
    host: &Host,
    handoff: &DestinationHandoff,
    finals: &[FinalSnapshot],
) -> Result<Instance, LaunchError> {
    let taking = host.takings.get(&handoff.id);
    let application = &handoff.reservation.application;
    let began = Instant::now();
    observe(host, &taking).await?;
    let seen = host.instance(application);
    let running = seen
        .as_ref()
        .is_some_and(|i| i.state == InstanceState::Running && i.epoch == handoff.epoch_here());
    let owned = ownership(handoff);
    if !running {
        if seen.is_some() {
            // Of an earlier ownership: nothing may run on the tree that is replaced.
            applications::remove(host, application, handoff.reservation.spec.stop_grace).await?;
        }
        for snapshot in finals {
            let limit = handoff
                .reservation
                .volumes
                .iter()
                .find(|volume| volume.identity.dataset == snapshot.dataset)
                .and_then(|volume| volume.limit);
            host.storage
                .promote(&snapshot.dataset, &snapshot.name, limit)
                .await?;
        }
    }
    let instance =
        applications::start(host, application, &owned, &handoff.reservation.spec).await?;
    taking.spent("start", began.elapsed());
    let began = Instant::now();
    health::wait(host, application, &handoff.reservation.spec, &instance).await?;
    taking.spent("health", began.elapsed());
    applications::remember_healthy(host, &instance);
    Ok(instance)
}

/// Looks at the instances; a runtime that is just being started, as after a restart of the host,
/// is waited for.
async fn observe(host: &Host, taking: &Taking) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + RUNTIME_PATIENCE;
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut waited = false;
    while let Err(error) = host.observe().await {
        if Instant::now() >= deadline {
            return Err(error);
        }
        taking.set_trouble(Some(Report(&error).to_string()));
        waited = true;
        tokio::time::sleep(pause.next_delay()).await;
    }
    if waited {
        taking.set_trouble(None);
    }
    Ok(())
}

fn ownership(handoff: &DestinationHandoff) -> Ownership {
    Ownership {
        epoch: handoff.epoch_here(),
        role: Role::Owner,
        volumes: handoff.volumes(),
        unmade: Vec::new(),
    }
}

/// C2: the record first, then the gate.
async fn open(host: &Host, handoff: &DestinationHandoff, instance: &Instance) {
    let application = &handoff.reservation.application;
    let began = Instant::now();
    if !persist(host, &handoff.id, Event::Healthy).await {
        return;
    }
    if let Some(reach) = instance.reach() {
        host.routes
            .set(application, handoff.epoch_here(), LocalRoute::Open(reach));
    }
    if let Err(error) = routes::push(host).await {
        let error = Report(&error).to_string();
        tracing::warn!(
            error,
            "proxyd cannot be told that the application is here; the loop repeats it"
        );
    }
    host.takings.get(&handoff.id).spent("open", began.elapsed());
    tracing::info!("clients are served here");
    host.kick();
}

/// Stops what was started, until nothing of it is left. The live trees stay until it is written
/// down and stamped that they are of no use: a host that owns it and has none could not go on.
async fn take_down(host: &Host, handoff: &DestinationHandoff) {
    let application = &handoff.reservation.application;
    let grace = handoff
        .reservation
        .spec
        .stop_grace
        .min(Duration::from_secs(2));
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    // The return may not be written before nothing runs, however long that takes.
    while let Err(error) = applications::remove(host, application, grace).await {
        let error = Report(&error).to_string();
        tracing::error!(
            error,
            "what failed to start cannot be stopped yet; it is not given back before"
        );
        let trouble = format!("what failed to start there cannot be stopped: {error}");
        host.takings.get(&handoff.id).set_trouble(Some(trouble));
        tokio::time::sleep(pause.next_delay()).await;
    }
    host.routes.forget(application);
}

/// Stamps what was given back, lets its source hear of it, and drops the live trees: they may hold
/// what the failed start wrote, and no client was answered from them. The caller has the
/// application in hand.
async fn give_back(host: &Host, handoff: &DestinationHandoff) {
    let taking = host.takings.get(&handoff.id);
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    while is_given_back(host, handoff) {
        let Err(error) = mark_returned(host, handoff).await else {
            taking.set_trouble(None);
            host.takings.tell_returned(&handoff.id);
            return retire(host, handoff).await;
        };
        let error = Report(&error).to_string();
        tracing::error!(
            error,
            "what was given back cannot be stamped so; its source does not hear of it before"
        );
        let trouble = format!("what is given back cannot be stamped so there: {error}");
        taking.set_trouble(Some(trouble));
        tokio::time::sleep(pause.next_delay()).await;
    }
    // A later change of owner has stamped it since.
    host.takings.tell_returned(&handoff.id);
}

/// Whether the return is the newest that is known of the application here.
fn is_given_back(host: &Host, handoff: &DestinationHandoff) -> bool {
    host.ledger.read(|registry| {
        let open = registry.destinations().get(&handoff.id);
        let known = registry
            .applications()
            .get(&handoff.reservation.application);
        open.is_some_and(|open| matches!(open.phase, Phase::Returned { .. }))
            && known.is_some_and(|known| known.epoch == handoff.epoch_here().next())
    })
}

async fn retire(host: &Host, handoff: &DestinationHandoff) {
    for volume in &handoff.reservation.volumes {
        if let Err(error) = host.storage.retire(&volume.identity.dataset).await {
            let error = Report(&error).to_string();
            tracing::warn!(
                error,
                "a tree that is not this host's any more cannot be dropped"
            );
        }
    }
}

/// Stamps what was given back: it is the source's.
async fn mark_returned(host: &Host, handoff: &DestinationHandoff) -> Result<(), StorageError> {
    let reservation = &handoff.reservation;
    let of = Of {
        application: &reservation.application,
        volumes: &handoff.volumes(),
    };
    let epoch = handoff.epoch_here().next();
    applications::mark_gone(host, of, &reservation.from, epoch).await
}

/// Without volumes: runs it here while the source serves.
pub(super) async fn start_beside(
    host: Arc<Host>,
    handoff: DestinationHandoff,
    attempt: Attempt,
) -> Result<(), TakeError> {
    let taking = host.takings.get(&handoff.id);
    let _working = taking.working.lock().await;
    let state = super::view(&host, &handoff.id).state;
    if state != HandoffState::Reserved {
        return Ok(());
    }
    let _held = host.hold(&handoff.reservation.application).await;
    match bring_up(&host, &handoff, &[]).await {
        Ok(_) => {
            let epoch = handoff.reservation.epoch;
            step(
                &host,
                &handoff.id,
                Event::Verified {
                    attempt,
                    epoch,
                    finals: Vec::new(),
                },
            )
            .await
        }
        Err(error) => {
            let reason = Report(&error).to_string();
            take_down(&host, &handoff).await;
            Err(TakeError::Refused(reason))
        }
    }
}
