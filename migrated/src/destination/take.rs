//! Reserving.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use migrated_core::admission::{self, Admission};
use migrated_core::destination::{DestinationHandoff, Event};
use migrated_core::record::{DestinationRecord, Record, Reservation};
use rehome_runtime::report::Report;
use rehome_runtime::tls::PeerIdentity;
use rehome_shared::api::peer::{HandoffState, Offer, OfferedVolume, Ready, StreamEncoding};
use rehome_shared::api::proxy::{CheckPorts, RouteKey};
use rehome_shared::ids::{AppName, DatasetId, HostAddr, MigrationId};
use rehome_shared::units::Bytes;
use tokio::time::Instant;

use super::{TakeError, discard, handoff, is_void, others_coming, step, view, void};
use crate::applications::{self, instance_spec};
use crate::fence;
use crate::host::Host;
use crate::proxy::{Patience, ask_again};
use crate::storage::StorageError;

/// Beside the volumes a pool needs room for what changes meanwhile and for its own metadata.
const SLACK_PERCENT: u64 = 5;

/// The least slack.
const SLACK: Bytes = Bytes(64 << 20);

/// So long an offer waits for the end of this host's own migration of the application.
const STILL_GIVING: Duration = Duration::from_secs(20);

/// So long an offer of a host that is called fenced waits for a deployment that says otherwise: for
/// longer than the spreading of one tries to reach this host.
const LIFTING: Duration = Duration::from_secs(20);

/// What this host understands in a stream.
const ENCODINGS: [StreamEncoding; 2] = [StreamEncoding::Plain, StreamEncoding::Zstd];

/// Earlier handoffs that may stand in the way of one.
const SUPERSEDED: usize = 8;

/// Can this host take an application? If so it reserves. Whatever can be known before a byte
/// moves is said here.
///
/// # Errors
/// [`TakeError::Refused`] with the reason; nothing was changed.
///
/// # Cancel safety
/// May have reserved; ask again.
pub async fn prepare(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
    offer: Offer,
) -> Result<Ready, TakeError> {
    if !peer.is(&offer.from) {
        return Err(TakeError::Forbidden);
    }
    match handoff(host, peer, id) {
        Ok(_) => {
            let snapshots = snapshots(host, &offer).await?;
            return Ok(Ready {
                view: view(host, id),
                snapshots,
                encodings: ENCODINGS.to_vec(),
            });
        }
        Err(TakeError::Unknown(_)) => {}
        Err(error) => return Err(error),
    }
    check_fence(host, &offer.from).await?;
    check_turn(host, &offer)?;
    check_space(host, &offer).await?;
    check_ports(host, &offer).await?;
    check_runtime(host, &offer).await?;
    wait_given(host, &offer.application).await;
    let wanted = reservation(&offer);
    // What will be refused sets nothing aside here.
    let may = host
        .ledger
        .read(|registry| admission::may_take(registry, &host.address, id, &wanted));
    if let Err(cannot) = may {
        return Err(TakeError::Refused(Report(&cannot).to_string()));
    }
    let identities = offer.volumes.iter().map(|volume| volume.identity.clone());
    let owner = (&offer.from, offer.epoch);
    fence::make_room(host, &offer.application, owner, identities).await?;
    {
        // One after the other, so that each sees what the ones before it have taken.
        let _admitting = host.takings.admitting.lock().await;
        check_turn(host, &offer)?;
        check_space(host, &offer).await?;
        reserve(host, id, wanted).await?;
    }
    host.takings.get(id).hear();
    // What was superseded took its snapshots with it.
    let snapshots = snapshots(host, &offer).await?;
    Ok(Ready {
        view: view(host, id),
        snapshots,
        encodings: ENCODINGS.to_vec(),
    })
}

async fn snapshots(
    host: &Host,
    offer: &Offer,
) -> Result<BTreeMap<DatasetId, Vec<String>>, StorageError> {
    let mut all = BTreeMap::new();
    for volume in &offer.volumes {
        let dataset = &volume.identity.dataset;
        if let Some(info) = host.storage.inspect(dataset).await? {
            let guids = info
                .snapshots
                .into_iter()
                .map(|snapshot| snapshot.guid)
                .collect();
            all.insert(dataset.clone(), guids);
        }
    }
    Ok(all)
}

/// What would not be taken in the end is not begun. The deployment that lifts the fence may reach
/// this host after the source.
async fn check_fence(host: &Host, from: &HostAddr) -> Result<(), TakeError> {
    let mut desired = host.desired.watch();
    let lifted = desired.wait_for(|desired| !is_void(desired, from));
    match tokio::time::timeout(LIFTING, lifted).await {
        Ok(_) => Ok(()),
        Err(_) => Err(TakeError::Refused(void(from))),
    }
}

/// Fewer come here than may at a time.
fn check_turn(host: &Host, offer: &Offer) -> Result<(), TakeError> {
    let coming = others_coming(host, &offer.application);
    let count = u32::try_from(coming.len()).unwrap_or(u32::MAX);
    if count >= host.config().limits.concurrent_migrations {
        return Err(TakeError::Busy(coming));
    }
    Ok(())
}

/// A move back may come while the move before it is still being cleaned up after here.
async fn wait_given(host: &Host, application: &AppName) {
    let mut changes = host.ledger.changes();
    let patience = Instant::now() + STILL_GIVING;
    while host
        .ledger
        .read(|registry| registry.source_of(application).is_some())
    {
        let changed = tokio::time::timeout_at(patience, changes.changed()).await;
        if !matches!(changed, Ok(Ok(()))) {
            return;
        }
    }
}

/// Room for everything and some slack, beside what is still to come of other applications.
async fn check_space(host: &Host, offer: &Offer) -> Result<(), TakeError> {
    if offer.volumes.is_empty() {
        return Ok(());
    }
    let data = missing(host, &offer.volumes).await?;
    let slack = Bytes(SLACK.0.max(data.0 / 100 * SLACK_PERCENT));
    let mut needed = data.saturating_add(slack);
    let others: Vec<Vec<OfferedVolume>> = host.ledger.read(|registry| {
        admission::coming(registry, &offer.application)
            .map(|handoff| handoff.reservation.volumes.clone())
            .collect()
    });
    for volumes in others {
        needed = needed.saturating_add(missing(host, &volumes).await?);
    }
    let available = host.storage.available().await?;
    if available < needed {
        let what = format!("the volumes of {}", offer.application);
        return Err(StorageError::NoSpace {
            what,
            needed,
            available,
        }
        .into());
    }
    Ok(())
}

/// What of these volumes is not here at all. What is here of a volume shares its space with what
/// comes, as far as anybody can tell before it comes.
async fn missing(host: &Host, volumes: &[OfferedVolume]) -> Result<Bytes, StorageError> {
    let mut sum = Bytes(0);
    for volume in volumes {
        let info = host.storage.inspect(&volume.identity.dataset).await?;
        if info.is_none_or(|info| info.snapshots.is_empty()) {
            sum = sum.saturating_add(volume.used);
        }
    }
    Ok(sum)
}

/// The external ports are listened on here, or could be.
async fn check_ports(host: &Host, offer: &Offer) -> Result<(), TakeError> {
    let keys: Vec<RouteKey> = offer
        .spec
        .ports
        .iter()
        .map(|port| RouteKey::new(port.external, port.protocol))
        .collect();
    if keys.is_empty() {
        return Ok(());
    }
    let ports = CheckPorts { keys };
    let reply = ask_again(Patience::ORDINARY, || host.proxy.check_ports(&ports))
        .await
        .map_err(|error| {
            TakeError::Refused(format!("its proxyd cannot be asked: {}", Report(&error)))
        })?;
    match reply.problems.first() {
        None => Ok(()),
        Some(problem) => Err(TakeError::Refused(format!(
            "external port {} cannot be listened on: {}",
            problem.key, problem.reason
        ))),
    }
}

/// The runtime answers and has the image, or gets it.
async fn check_runtime(host: &Host, offer: &Offer) -> Result<(), TakeError> {
    let identities: Vec<_> = offer.volumes.iter().map(|v| v.identity.clone()).collect();
    let spec = instance_spec(
        host,
        &offer.application,
        offer.epoch.next(),
        &offer.spec,
        &identities,
    );
    applications::fetch_image(host, &spec)
        .await
        .map_err(|error| TakeError::Refused(Report(&error).to_string()))
}

fn reservation(offer: &Offer) -> Reservation {
    Reservation {
        from: offer.from.clone(),
        application: offer.application.clone(),
        epoch: offer.epoch,
        generation: offer.generation,
        spec: offer.spec.clone(),
        volumes: offer.volumes.clone(),
        limits: offer.limits,
    }
}

/// Writes the reservation down, after earlier handoffs that it supersedes came to their end.
async fn reserve(
    host: &Arc<Host>,
    id: &MigrationId,
    reservation: Reservation,
) -> Result<(), TakeError> {
    for _ in 0..SUPERSEDED {
        let decided = {
            let (id, here, reservation) = (id.clone(), host.address.clone(), reservation.clone());
            host.ledger
                .transact(move |registry| {
                    match admission::may_take(registry, &here, &id, &reservation) {
                        Ok(Admission::Known) => (Vec::new(), Ok(Vec::new())),
                        Ok(Admission::Reserve { supersedes }) if supersedes.is_empty() => {
                            let step = DestinationRecord::Reserved(Box::new(reservation));
                            (
                                vec![Record::Destination {
                                    migration: id,
                                    step,
                                }],
                                Ok(Vec::new()),
                            )
                        }
                        Ok(Admission::Reserve { supersedes }) => (Vec::new(), Ok(supersedes)),
                        Err(cannot) => (
                            Vec::new(),
                            Err(TakeError::Refused(Report(&cannot).to_string())),
                        ),
                    }
                })
                .await??
        };
        if decided.is_empty() {
            return Ok(());
        }
        for old in decided {
            supersede(host, &old).await?;
        }
    }
    Err(TakeError::Refused(
        "earlier handoffs of it stand in the way".to_owned(),
    ))
}

/// Brings an earlier handoff to its end: a newer offer of its source proves that it is over.
async fn supersede(host: &Arc<Host>, id: &MigrationId) -> Result<(), TakeError> {
    // By the journal: what its source may not hear of yet it knows, or it would not offer again.
    let state = host.ledger.read(|registry| {
        registry
            .destinations()
            .get(id)
            .map(DestinationHandoff::state)
    });
    match state.unwrap_or(HandoffState::Unknown) {
        HandoffState::Reserved | HandoffState::Verified => {
            step(host, id, Event::Aborted).await?;
            discard::run(host, id).await;
        }
        HandoffState::Dropped => discard::run(host, id).await,
        HandoffState::Returned => step(host, id, Event::Closed).await?,
        HandoffState::Owned | HandoffState::Serving | HandoffState::Unknown => {}
    }
    Ok(())
}
