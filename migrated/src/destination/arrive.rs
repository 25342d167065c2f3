//! Rounds that arrive: a stream is stored by a task of this host, fed by whatever connection
//! the source reaches it over. See [`crate::stream`].

use std::sync::Arc;

use migrated_core::destination::{DestinationHandoff, Stale};
use migrated_core::stamp::Stamp;
use rehome_runtime::tls::PeerIdentity;
use rehome_shared::api::peer::{
    HandoffState, Received, StreamProgress, StreamQuery, VolumeIdentity,
};
use rehome_shared::ids::{DatasetId, MigrationId, StreamId, VolumeName};
use rehome_shared::units::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::watch;

use super::{TakeError, Taking, discard, handoff};
use crate::host::Host;
use crate::storage::StorageError;
use crate::stream::{Arrivals, FeedError, Intake};

/// What became of a stream.
type Outcome = Result<Received, Arc<TakeError>>;

/// Whose turn it is to write a volume: the newest stream's. An older one, which the source has
/// given up already, ends before the newest begins.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    stream: StreamId,
    pub(super) intake: Arc<Intake>,
    outcome: watch::Sender<Option<Outcome>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Turn {
    /// The turn of a new stream after the one before, which is over.
    pub(super) fn after(before: Option<&Self>, stream: StreamId) -> (Self, Arrivals) {
        let writing = match before {
            Some(before) => {
                before.intake.give_up();
                Arc::clone(&before.writing)
            }
            None => Arc::default(),
        };
        let (intake, arrivals) = Intake::new();
        let turn = Self {
            stream,
            intake: Arc::new(intake),
            outcome: watch::Sender::new(None),
            writing,
        };
        (turn, arrivals)
    }

    pub(super) fn is_of(&self, stream: &StreamId) -> bool {
        self.stream == *stream
    }

    /// What became of the stream, as soon as that is known.
    async fn outcome(&self) -> Result<Received, TakeError> {
        let mut outcome = self.outcome.subscribe();
        let known = outcome.wait_for(Option::is_some).await;
        match known.ok().and_then(|known| known.clone()) {
            Some(outcome) => outcome.map_err(TakeError::Stream),
            // The task is gone with the daemon, which is stopping.
            None => Err(TakeError::Feed(FeedError::Cut(
                std::io::ErrorKind::Interrupted.into(),
            ))),
        }
    }
}

/// Receives a stream of a volume, or what is missing of it.
///
/// # Errors
/// [`TakeError`]. When only the connection was cut, the stream waits for another one;
/// otherwise nothing is left of it.
///
/// # Cancel safety
/// A dropped call is a connection that was cut.
pub async fn receive(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
    query: StreamQuery,
    body: impl AsyncRead + Send + Unpin,
) -> Result<Received, TakeError> {
    let turn = find_or_begin(host, peer, id, &query)?;
    let fed = turn.intake.feed(query.connection, query.offset, body).await;
    if let Err(error) = fed {
        if error.is_wrong() {
            turn.intake.give_up();
        }
        return Err(TakeError::Feed(error));
    }
    turn.outcome().await
}

/// How much of a stream arrived.
///
/// # Errors
/// [`TakeError::NoStream`] when nothing is known of it, or [`TakeError::Forbidden`].
pub fn progress(
    host: &Host,
    peer: &PeerIdentity,
    id: &MigrationId,
    stream: &StreamId,
) -> Result<StreamProgress, TakeError> {
    handoff(host, peer, id)?;
    let turn = host.takings.get(id).turn_of(stream);
    let turn = turn.ok_or(TakeError::NoStream)?;
    Ok(turn.intake.progress())
}

fn find_or_begin(
    host: &Arc<Host>,
    peer: &PeerIdentity,
    id: &MigrationId,
    query: &StreamQuery,
) -> Result<Turn, TakeError> {
    let known = receiving(host, peer, id)?;
    let volume = known
        .reservation
        .volumes
        .iter()
        .find(|volume| volume.identity.dataset == query.dataset)
        .ok_or_else(|| TakeError::Refused(format!("volume {} was not offered", query.dataset)))?;
    if !query.snapshot.starts_with(&prefix(id)) {
        return Err(TakeError::Refused(format!(
            "snapshot {} does not belong to migration {id}",
            query.snapshot
        )));
    }
    let taking = host.takings.get(id);
    if query.offset > 0 {
        return taking.turn_of(&query.stream).ok_or(TakeError::NoStream);
    }
    let (turn, arrivals) = taking.next_turn(&query.dataset, &query.stream);
    if let Some(arrivals) = arrivals {
        let arriving = Arriving {
            host: Arc::clone(host),
            taking,
            peer: peer.clone(),
            id: id.clone(),
            dataset: query.dataset.clone(),
            volume: volume.identity.name.clone(),
            snapshot: query.snapshot.clone(),
            guid: query.guid.clone(),
        };
        let turn = turn.clone();
        host.spawn("receive a stream", async move {
            let outcome = arriving.store(&turn, arrivals).await;
            turn.outcome.send_replace(Some(outcome.map_err(Arc::new)));
            turn.intake.set_answered();
        });
    }
    Ok(turn)
}

fn prefix(id: &MigrationId) -> String {
    format!("mig-{id}-")
}

/// What stores a stream.
struct Arriving {
    host: Arc<Host>,
    taking: Arc<Taking>,
    peer: PeerIdentity,
    id: MigrationId,
    dataset: DatasetId,
    volume: VolumeName,
    snapshot: String,
    guid: String,
}

impl Arriving {
    async fn store(&self, turn: &Turn, mut arrivals: Arrivals) -> Result<Received, TakeError> {
        let host = &self.host;
        // Who discards waits for this stream.
        let _streaming = self.taking.streams.read().await;
        receiving(host, &self.peer, &self.id)?;
        let _writing = turn.writing.lock().await;
        let storing =
            host.storage
                .receive(&self.dataset, &self.snapshot, &self.guid, &mut arrivals);
        let stored = turn.intake.store(host.supervisor.token(), storing).await;
        if let Err(error) = stored {
            tracing::warn!(
                volume.dataset = %self.dataset,
                bytes = turn.intake.taken(),
                given_up = turn.intake.is_given_up(),
                %error,
                "a stream was not stored"
            );
            return Err(error.into());
        }
        let known = receiving(host, &self.peer, &self.id)?;
        self.mark(&known).await?;
        discard::drop_rounds(host, &self.dataset, &prefix(&self.id), &self.snapshot).await?;
        self.taking.hear();
        Ok(Received {
            bytes: Bytes(turn.intake.taken()),
        })
    }

    /// Says on the volume what it is.
    async fn mark(&self, known: &DestinationHandoff) -> Result<(), StorageError> {
        let identity = VolumeIdentity {
            name: self.volume.clone(),
            dataset: self.dataset.clone(),
        };
        let stamp = Stamp::incoming(known, &identity);
        self.host.storage.stamp(&self.dataset, &stamp).await
    }
}

/// Rounds come only before the grant, and not after it was called off.
fn receiving(
    host: &Host,
    peer: &PeerIdentity,
    id: &MigrationId,
) -> Result<DestinationHandoff, TakeError> {
    let known = handoff(host, peer, id)?;
    match known.state() {
        HandoffState::Reserved | HandoffState::Verified => Ok(known),
        state @ (HandoffState::Unknown
        | HandoffState::Owned
        | HandoffState::Serving
        | HandoffState::Returned
        | HandoffState::Dropped) => Err(Stale {
            state,
            attempt: known.attempt(),
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_stream_of_a_volume_ends_the_older_and_waits_for_its_end() {
        let takings = super::super::Takings::default();
        let taking = takings.get(&MigrationId::generate());
        let (volume, other) = (DatasetId::generate(), DatasetId::generate());
        let stream = StreamId::generate();
        let (older, arrivals) = taking.next_turn(&volume, &stream);
        assert!(arrivals.is_some());
        let (again, arrivals) = taking.next_turn(&volume, &stream);
        assert!(arrivals.is_none() && Arc::ptr_eq(&older.intake, &again.intake));
        let writing = older.writing.lock().await;
        let (beside, _) = taking.next_turn(&other, &StreamId::generate());
        assert!(!older.intake.is_given_up() && beside.writing.try_lock().is_ok());
        let newest = StreamId::generate();
        let (newer, _) = taking.next_turn(&volume, &newest);
        assert!(older.intake.is_given_up() && !newer.intake.is_given_up());
        assert!(newer.writing.try_lock().is_err());
        drop(writing);
        assert!(newer.writing.try_lock().is_ok());
        assert!(taking.turn_of(&stream).is_none() && taking.turn_of(&newest).is_some());
        taking.end_streams();
        assert!(newer.intake.is_given_up() && beside.intake.is_given_up());
    }
}
