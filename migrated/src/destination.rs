//! Handoffs to this host: what the source asks for, answered by [`migrated_core::destination`].
//!
//! The journal's thread decides each message against the state as it is; what follows from the
//! decision is done by tasks of this host, so that a source that hangs up changes nothing. Every
//! message must come from the host that the handoff is from.

mod arrive;
mod discard;
mod serve;
mod take;
mod taking;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use migrated_core::admission;
use migrated_core::destination::{DestinationHandoff, Event, Phase, Stale};
use migrated_core::record::Record;
use rehome_runtime::report::Report;
use rehome_runtime::tls::PeerIdentity;
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::{HandoffRef, HandoffState, HandoffView, VerifyRequest};
use rehome_shared::ids::{AppName, Attempt, Epoch, HostAddr, MigrationId, RouteVersion};
use tokio::time::Instant;

use crate::host::Host;
use crate::ledger::LedgerError;
use crate::storage::StorageError;
use crate::stream::FeedError;

pub use arrive::{progress, receive};
pub use discard::watch_promises;
pub use take::prepare;
pub use taking::{Taking, Takings};

/// Why a message of a handoff is refused.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is not the host that the handoff is from.
    #[error("this handoff is not yours to speak of")]
    Forbidden,
    /// Nothing is known of it here.
    #[error("nothing is known of migration {0} here")]
    Unknown(MigrationId),
    /// The state does not allow it.
    #[error("the message is stale")]
    Stale(#[from] Stale),
    /// This host cannot take the application; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// As many come here already as may at a time.
    #[error("busy with {}: no more come to it at a time", names(.0))]
    Busy(Vec<AppName>),
    /// The volume cannot be stored.
    #[error("the volume cannot be stored here")]
    Storage(#[from] StorageError),
    /// The journal failed.
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
    /// Nothing is known of the stream, or not any more.
    #[error("nothing is known of this stream here")]
    NoStream,
    /// A connection does not bring the stream to its end.
    #[error("the stream did not arrive")]
    Feed(#[source] FeedError),
    /// What became of a stream, which more than one connection may ask for.
    #[error(transparent)]
    Stream(Arc<TakeError>),
}

fn names(applications: &[AppName]) -> String {
    let names: Vec<&str> = applications.iter().map(AppName::as_str).collect();
    names.join(", ")
}

/// The other applications that this host takes just now. One whose source is silent takes
/// nobody's turn.
fn others_coming(host: &Host, application: &AppName) -> Vec<AppName> {
    let coming: Vec<(MigrationId, AppName)> = host.ledger.read(|registry| {
        admission::coming(registry, application)
            .map(|handoff| (handoff.id.clone(), handoff.reservation.application.clone()))
            .collect()
    });
    coming
        .into_iter()
        .filter(|(id, _)| host.takings.get(id).is_active())
        .map(|(_, application)| application)
        .collect()
}

/// The handoff, if the peer may speak of it.
fn handoff(
    host: &Host,
    peer: &PeerIdentity,
    id: &MigrationId,
) -> Result<DestinationHandoff, TakeError> {
    let handoff = host
        .ledger
        .read(|registry| registry.destinations().get(id).cloned())
        .ok_or_else(|| TakeError::Unknown(id.clone()))?;
    if !peer.is(&handoff.reservation.from) {
        return Err(TakeError::Forbidden);
    }
    host.takings.get(id).hear();
    Ok(handoff)
}

/// Steps the machine by an event, durably.
async fn step(host: &Host, id: &MigrationId, event: Event) -> Result<(), TakeError> {
    let (id, here) = (id.clone(), host.address.clone());
    host.ledger
        .transact(move |registry| {
            let Some(handoff) = registry.destinations().get(&id) else {
                return (Vec::new(), Err(TakeError::Unknown(id)));
            };
            if matches!(event, Event::Granted { .. } | Event::Entrusted { .. })
                && let Err(cannot) = admission::may_adopt(registry, &here, handoff)
            {
                let refusal = TakeError::Refused(Report(&cannot).to_string());
                return (Vec::new(), Err(refusal));
            }
            match handoff.step(event) {
                Ok(step) => {
                    let records = step
                        .records
                        .into_iter()
                        .map(|step| Record::Destination {
                            migration: id.clone(),
                            step,
                        })
                        .collect();
                    (records, Ok(()))
                }
                Err(stale) => (Vec::new(), Err(stale.into())),
            }
        })
        .await?
}

/// How a handoff stands, as far as its source may hear of it.
#[must_use]
pub fn view(host: &Host, id: &MigrationId) -> HandoffView {
    let handoff = host
        .ledger
        .read(|registry| registry.destinations().get(id).cloned());
    let taking = host.takings.known().get(id).cloned();
    let phases = taking.as_ref().map(|taking| {
        taking
            .phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    });
    let stamped = taking
        .as_ref()
        .is_some_and(|taking| taking.stamped.load(Ordering::Acquire));
    let trouble = taking.and_then(|taking| {
        taking
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    });
    let (attempt, state, reason) = match &handoff {
        None => (Attempt(0), HandoffState::Unknown, None),
        Some(handoff) => {
            let state = handoff.told(stamped);
            let reason = returned_for(handoff).filter(|_| state == HandoffState::Returned);
            (handoff.attempt(), state, reason)
        }
    };
    HandoffView {
        migration: id.clone(),
        attempt,
        state,
        phases: phases.unwrap_or_default(),
        reason: reason.or(trouble),
    }
}

fn returned_for(handoff: &DestinationHandoff) -> Option<String> {
    match &handoff.phase {
        Phase::Returned { reason, .. } => Some(reason.clone()),
        Phase::Reserved
        | Phase::Verified { .. }
        | Phase::Owned { .. }
        | Phase::Serving { .. }
        | Phase::Dropped => None,
    }
}

/// How a handoff stands as soon as that is not `seen`, or after `wait`.
///
/// # Errors
/// [`TakeError::Forbidden`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn view_after(
    host: &Host,
    peer: &PeerIdentity,
    id: &MigrationId,
    seen: Option<HandoffState>,
    wait: Duration,
) -> Result<HandoffView, TakeError> {
    match handoff(host, peer, id) {
        Ok(_) | Err(TakeError::Unknown(_)) => {}
        Err(error) => return Err(error),
    }
    let mut changes = host.ledger.changes();
    let mut told = host.takings.told.subscribe();
    let deadline = Instant::now() + wait;
    loop {
        changes.borrow_and_update();
        told.borrow_and_update();
        let now = view(host, id);
        if seen != Some(now.state) {
            return Ok(now);
        }
        // All arms wait on a level.
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return Ok(now),
            changed = changes.changed() => if changed.is_err() { return Ok(now) },
            changed = told.changed() => if changed.is_err() { return Ok(now) },
        }
    }
}

/// The final snapshots were sent: looks for them, and promises to wait.
///
/// # Errors
/// [`TakeError`]; no promise was made.
///
/// # Cancel safety
/// May have promised; ask again.
pub async fn verify(
    host: &Host,
    peer: &PeerIdentity,
    id: &MigrationId,
    request: VerifyRequest,
) -> Result<HandoffView, TakeError> {
    let known = handoff(host, peer, id)?;
    let announced = known.reservation.volumes.len();
    if request.finals.len() != announced {
        return Err(TakeError::Refused(format!(
            "{} final snapshots were named for {announced} volumes",
            request.finals.len()
        )));
    }
    for wanted in &request.finals {
        let info = host.storage.inspect(&wanted.dataset).await?;
        let here = info.is_some_and(|info| {
            info.snapshots
                .iter()
                .any(|s| s.name == wanted.name && s.guid == wanted.guid)
        });
        let offered = known
            .reservation
            .volumes
            .iter()
            .any(|v| v.identity.dataset == wanted.dataset);
        if !here || !offered {
            return Err(TakeError::Refused(format!(
                "snapshot {} of volume {} did not arrive here",
                wanted.name, wanted.dataset
            )));
        }
    }
    let VerifyRequest {
        attempt,
        epoch,
        finals,
        parked,
    } = request;
    *host
        .takings
        .get(id)
        .parked
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = parked;
    step(
        host,
        id,
        Event::Verified {
            attempt,
            epoch,
            finals,
        },
    )
    .await?;
    Ok(view(host, id))
}

/// Without volumes: starts the application beside the source's, and promises to wait.
///
/// # Errors
/// [`TakeError`]; nothing of it runs here then.
///
/// # Cancel safety
/// A dropped call goes on by itself; ask again.
pub async fn start(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
    message: HandoffRef,
) -> Result<HandoffView, TakeError> {
    let known = handoff(host, peer, id)?;
    if !known.reservation.volumes.is_empty() {
        return Err(TakeError::Refused(
            "an application with volumes starts only when this host owns it".to_owned(),
        ));
    }
    if known.state() == HandoffState::Reserved {
        let (answer, started) = tokio::sync::oneshot::channel();
        let work = serve::start_beside(Arc::clone(host), known, message.attempt);
        host.spawn("start beside", async move {
            // A source that hung up asks again and finds the state.
            drop(answer.send(work.await));
        });
        started
            .await
            .map_err(|_| TakeError::Refused("migrated is stopping".to_owned()))??;
    }
    Ok(view(host, id))
}

/// The source released: this host is the owner from the record on. The application is started
/// by a task of this host.
///
/// # Errors
/// [`TakeError`]; the state did not change.
///
/// # Cancel safety
/// May have taken effect; say it again.
pub async fn grant(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
    message: HandoffRef,
) -> Result<HandoffView, TakeError> {
    let known = handoff(host, peer, id)?;
    let HandoffRef { attempt, epoch } = message;
    let desired = host.desired.get();
    // What was granted already is no news, whoever granted it: the source waits for the answer.
    let waits = matches!(known.phase, Phase::Reserved | Phase::Verified { .. });
    if waits && is_void(&desired, &known.reservation.from) {
        return Err(TakeError::Refused(void(&known.reservation.from)));
    }
    // Whoever takes over in the place of the source makes sure first that every host follows a
    // deployment that says so: none can come in between.
    let stepped = host
        .desired
        .while_following(&desired, step(host, id, Event::Granted { attempt, epoch }))
        .await;
    let Some(stepped) = stepped else {
        // The source says it again.
        return Ok(view(host, id));
    };
    match stepped {
        Ok(()) => serve::spawn(host, id),
        // The answer is the state as it is.
        Err(TakeError::Stale(stale)) => {
            tracing::debug!(%stale, migration.id = %id, "a stale grant");
        }
        Err(error) => return Err(error),
    }
    Ok(view(host, id))
}

/// Whether a source may not give anything away: an operator called it fenced. That the deployment
/// has the application here is no exception: this host may have agreed before to another one's
/// claim, under a deployment that it does not follow any more.
fn is_void(desired: &Desired, from: &HostAddr) -> bool {
    desired.fenced.contains(from)
}

fn void(from: &HostAddr) -> String {
    format!(
        "{from} is called fenced and gives nothing away: the next `rehome deploy` lifts that, unless another host owns what {from} calls its own"
    )
}

/// Why an application that is this host's on an operator's word does not serve yet.
#[must_use]
pub(crate) fn entrusted_trouble(host: &Host, application: &AppName) -> Option<String> {
    let id = host.ledger.read(|registry| {
        let coming = registry.incoming(application);
        let entrusted = coming.filter(|handoff| handoff.entrusted);
        entrusted.map(|handoff| handoff.id.clone())
    })?;
    view(host, &id).reason
}

/// The version that the source of a verified handoff had parked its gate under, unless this
/// daemon was started since.
#[must_use]
pub(crate) fn parked(host: &Host, id: &MigrationId) -> Option<RouteVersion> {
    let taking = host.takings.known().get(id).cloned()?;
    *taking.parked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The source calls it off.
///
/// # Errors
/// [`TakeError::Forbidden`], or the journal's.
///
/// # Cancel safety
/// May have taken effect; say it again.
pub async fn abort(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
) -> Result<HandoffView, TakeError> {
    match handoff(host, peer, id) {
        Ok(_) => {}
        Err(TakeError::Unknown(_)) => return Ok(view(host, id)),
        Err(error) => return Err(error),
    }
    match step(host, id, Event::Aborted).await {
        Ok(()) => discard::spawn(host, id),
        Err(TakeError::Stale(_)) => {}
        Err(error) => return Err(error),
    }
    Ok(view(host, id))
}

/// The source needs nothing of it any more.
///
/// # Errors
/// [`TakeError::Forbidden`], or the journal's.
///
/// # Cancel safety
/// May have taken effect; say it again.
pub async fn close(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
) -> Result<HandoffView, TakeError> {
    let known = match handoff(host, peer, id) {
        Ok(known) => known,
        Err(TakeError::Unknown(_)) => return Ok(view(host, id)),
        Err(error) => return Err(error),
    };
    let (done, closed) = tokio::sync::oneshot::channel();
    let owner = Arc::clone(host);
    host.spawn("close", async move {
        discard::end(&owner, &known).await;
        // A source that hung up does not need the answer.
        let _unheard = done.send(());
    });
    // Without an answer the daemon is stopping; the handoff is asked after at the next start.
    drop(closed.await);
    Ok(view(host, id))
}

/// The epoch that it waits to be granted is another host's: it never will be.
pub(crate) async fn call_off(host: &Arc<Host>, id: &MigrationId) {
    match step(host, id, Event::Aborted).await {
        Ok(()) => discard::spawn(host, id),
        Err(error) => tracing::debug!(%error, "the handoff went on meanwhile"),
    }
}

/// An operator grants it in the place of a source that is fenced.
pub(crate) async fn grant_by_operator(
    host: &Arc<Host>,
    id: &MigrationId,
    attempt: Attempt,
    epoch: Epoch,
) -> Result<(), TakeError> {
    step(host, id, Event::Entrusted { attempt, epoch }).await?;
    serve::spawn(host, id);
    Ok(())
}

/// Takes up the handoffs that the journal knows: after a restart.
pub fn recover(host: &Arc<Host>) {
    let open: Vec<DestinationHandoff> = host
        .ledger
        .read(|registry| registry.destinations().values().cloned().collect());
    for handoff in open {
        match handoff.state() {
            HandoffState::Owned => serve::spawn(host, &handoff.id),
            HandoffState::Dropped => discard::spawn(host, &handoff.id),
            HandoffState::Returned => serve::spawn_give_back(host, handoff),
            // What runs and what is open follows from who owns it: the reconcile loop's.
            HandoffState::Serving
            | HandoffState::Reserved
            | HandoffState::Verified
            | HandoffState::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{deployment, host};

    #[test]
    fn a_fenced_host_gives_nothing_away_not_even_to_the_host_that_the_deployment_names() {
        let mut desired = deployment(3, &[("h1", &[]), ("h2", &["db"])]);
        assert!(!is_void(&desired, &host("h1")));
        desired.fenced.insert(host("h1"));
        assert!(is_void(&desired, &host("h1")));
        assert!(!is_void(&desired, &host("h3")));
    }
}
