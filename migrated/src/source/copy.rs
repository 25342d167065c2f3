//! Prepare, the rounds, and the final difference.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};
use migrated_core::source::{Event, SourceMigration};
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Round;
use rehome_shared::api::peer::{
    FinalSnapshot, HandoffState, HandoffView, Offer, OfferedVolume, Ready, StreamEncoding,
    VerifyRequest, VolumeIdentity,
};
use rehome_shared::ids::{Attempt, DatasetId, HostAddr, MigrationId};
use rehome_shared::units::Bytes;
use tokio::time::Instant;

use super::Driver;
use crate::storage::{Snapshot, StorageError};
use crate::stream::SendError;

/// The destination may have to fetch the image first, which may take long.
const PREPARE_LIMIT: Duration = Duration::from_mins(30);

/// The pause before a destination that is busy is asked again.
const TURN: Duration = Duration::from_millis(500);

/// The pause before a round that failed is sent again; a daemon restarts in less.
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// What is known of the copy on the destination.
#[derive(Debug, Default)]
pub(super) struct Copying {
    /// By volume the newest snapshot that both sides have; `None` until the destination said so.
    pub(super) bases: Option<BTreeMap<DatasetId, Snapshot>>,
    /// What it understands in a stream, as it said with that.
    pub(super) encodings: Vec<StreamEncoding>,
    /// When the snapshots of the last round that arrived were taken.
    pub(super) snapped: Option<Instant>,
    /// The round that was begun last, and when its snapshots were.
    begun: Option<(u32, Instant)>,
    /// Seconds between the snapshots of each round and the one before.
    pub(super) gaps: Vec<f64>,
}

impl Copying {
    /// When the snapshots of a round are of: one that is sent again under its number is of its
    /// first try, as the snapshots are.
    fn begin(&mut self, round: u32, now: Instant) -> Instant {
        let before = self.begun.filter(|(begun, _)| *begun == round);
        let (_, of) = *self.begun.insert(before.unwrap_or((round, now)));
        of
    }
}

/// Why a round or the final difference did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("volume {0} is not on this host")]
    Missing(String),
    #[error("{0} runs an older version that understands no streams of this one: upgrade it first")]
    TooOld(HostAddr),
    #[error("the volume cannot be read")]
    Storage(#[from] StorageError),
    #[error("it cannot be sent")]
    Send(#[from] ClientError),
    #[error("the stream did not arrive")]
    Stream(#[from] SendError),
}

impl CopyError {
    /// Whether the same again may succeed: it may when the way or the other side failed for a
    /// moment, not when the destination refuses.
    pub(super) fn again(&self) -> bool {
        match self {
            Self::Send(error) | Self::Stream(SendError::Client(error)) => error
                .status()
                .is_none_or(|s| s.is_server_error() && s != StatusCode::INSUFFICIENT_STORAGE),
            Self::Storage(StorageError::NoSpace { .. }) | Self::Missing(_) | Self::TooOld(_) => {
                false
            }
            Self::Storage(_) | Self::Stream(SendError::Source(_) | SendError::Lost) => true,
        }
    }
}

/// The name of a snapshot that belongs to a migration.
pub(super) fn snapshot_name(id: &MigrationId, what: &str) -> String {
    format!("mig-{id}-{what}")
}

impl Driver {
    /// Asks the destination to reserve. One that takes as many as it may already is asked again
    /// for as long as the move is wanted.
    pub(super) async fn prepare(&mut self, migration: &SourceMigration) -> Event {
        let to = &migration.plan.to;
        let began = Instant::now();
        loop {
            match self.offer(migration).await {
                Ok(()) => return Event::Ready,
                Err(CopyError::Send(ClientError::Status { status, reply, .. }))
                    if status == StatusCode::TOO_MANY_REQUESTS =>
                {
                    if self.track.queued.is_none() {
                        tracing::info!(reason = reply.error, "waits for its turn");
                    }
                    self.run.wait(format!("{to} is {}", reply.error));
                    tokio::time::sleep(TURN).await;
                    self.track.queued = Some(began.elapsed());
                }
                Err(CopyError::Send(ClientError::Status { reply, .. })) => {
                    return Event::Refused {
                        reason: format!("{to}: {}", reply.error),
                    };
                }
                Err(error) => {
                    return Event::Refused {
                        reason: format!("{to} cannot take it: {}", Report(&error)),
                    };
                }
            }
        }
    }

    pub(super) async fn offer(&mut self, migration: &SourceMigration) -> Result<(), CopyError> {
        let plan = &migration.plan;
        let desired = self.host.desired.get();
        let spec = crate::host::spec_of(&desired, &plan.application)
            .ok_or_else(|| CopyError::Missing(plan.application.to_string()))?;
        let mut volumes = Vec::new();
        for identity in &plan.volumes {
            // The storage counts what has reached it: the destination makes room by that.
            match self.host.storage.flush(&identity.dataset).await {
                Err(StorageError::NotFound(_)) => {
                    return Err(CopyError::Missing(identity.name.to_string()));
                }
                flushed => flushed?,
            }
            let info = self.host.storage.inspect(&identity.dataset).await?;
            let info = info
                .filter(|info| info.live)
                .ok_or_else(|| CopyError::Missing(identity.name.to_string()))?;
            let limit = spec
                .volumes
                .iter()
                .find(|volume| volume.name == identity.name)
                .map_or(info.limit, |volume| volume.maximum_size);
            volumes.push(OfferedVolume {
                identity: identity.clone(),
                used: info.used,
                limit,
            });
        }
        let offer = Offer {
            application: plan.application.clone(),
            generation: plan.generation,
            from: self.host.address.clone(),
            epoch: plan.epoch,
            spec,
            volumes,
            limits: plan.limits,
        };
        let path = format!("/peer/v1/handoffs/{}/prepare", migration.id);
        let client = self.host.peers.client(&plan.to);
        let ready: Ready = client
            .request_json(Method::POST, &path, Some(&offer), PREPARE_LIMIT)
            .await?;
        self.track.copy.bases = Some(self.common_bases(&plan.volumes, &ready).await?);
        self.track.copy.encodings = ready.encodings;
        Ok(())
    }

    /// Of each volume the newest snapshot that the destination has too.
    async fn common_bases(
        &self,
        volumes: &[VolumeIdentity],
        ready: &Ready,
    ) -> Result<BTreeMap<DatasetId, Snapshot>, CopyError> {
        let mut bases = BTreeMap::new();
        for VolumeIdentity { dataset, .. } in volumes {
            let theirs = ready
                .snapshots
                .get(dataset)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let info = self.host.storage.inspect(dataset).await?;
            let ours = info.map(|info| info.snapshots).unwrap_or_default();
            if let Some(base) = ours.into_iter().rev().find(|s| theirs.contains(&s.guid)) {
                bases.insert(dataset.clone(), base);
            }
        }
        Ok(bases)
    }

    /// Sends a round while the application serves.
    pub(super) async fn send_round(
        &mut self,
        migration: &SourceMigration,
        round: u32,
        failures: u32,
    ) -> Event {
        if failures > 0 {
            let pause = ROUND_PAUSE.saturating_mul(1 << failures.min(4));
            tokio::time::sleep(pause).await;
            // How far the destination came is not known any more.
            self.track.copy.bases = None;
        }
        match self.round(migration, round).await {
            Ok(sent) => {
                let next = self.after_round(migration, sent).await;
                self.note_round(sent);
                Event::RoundSent { round: sent, next }
            }
            Err(error) => {
                let again = error.again();
                let reason = format!(
                    "round {round} to {} failed: {}",
                    migration.plan.to,
                    Report(&error)
                );
                tracing::warn!(reason, again, "a round did not arrive");
                Event::RoundFailed { reason, again }
            }
        }
    }

    /// A round that arrived, for the report.
    pub(super) fn note_round(&self, sent: Round) {
        let mut report = self.run.report();
        report.rounds.push(sent);
        report.bytes = report.bytes.saturating_add(sent.bytes);
    }

    /// Snapshots the volumes and sends what has changed; `migration` has all earlier rounds.
    pub(super) async fn round(
        &mut self,
        migration: &SourceMigration,
        round: u32,
    ) -> Result<Round, CopyError> {
        if self.track.copy.bases.is_none() {
            self.offer(migration).await?;
        }
        let name = snapshot_name(&migration.id, &round.to_string());
        let snapped = self.track.copy.begin(round, Instant::now());
        self.measure_use(migration).await;
        self.run.stream_begins();
        let began = Instant::now();
        for volume in &migration.plan.volumes {
            self.host.storage.flush(&volume.dataset).await?;
            self.copy(migration, volume, &name).await?;
        }
        let seconds = began.elapsed().as_secs_f64();
        // One that did not arrive is no base: what it would have sent is still to go.
        let before = self.track.copy.snapped.replace(snapped);
        let gap = before.map(|before| (snapped - before).as_secs_f64());
        self.track.copy.gaps.resize(migration.rounds.len(), seconds);
        self.track.copy.gaps.push(gap.unwrap_or(seconds));
        Ok(Round {
            bytes: self.run.meter.bytes(),
            seconds,
        })
    }

    /// Snapshots a volume under `name` and sends the difference from the common base, unless
    /// the destination has it already. Afterwards it is the common base.
    async fn copy(
        &mut self,
        migration: &SourceMigration,
        volume: &VolumeIdentity,
        name: &str,
    ) -> Result<Snapshot, CopyError> {
        let dataset = &volume.dataset;
        let snapshot = self.host.storage.snapshot(dataset, name).await?;
        let base = self
            .track
            .copy
            .bases
            .as_ref()
            .and_then(|bases| bases.get(dataset))
            .cloned();
        if base.as_ref().is_some_and(|base| base.guid == snapshot.guid) {
            return Ok(snapshot);
        }
        let base_name = base.as_ref().map(|base| base.name.as_str());
        self.send_volume(migration, dataset, &snapshot, base_name)
            .await?;
        if let Some(bases) = self.track.copy.bases.as_mut() {
            bases.insert(dataset.clone(), snapshot.clone());
        }
        // The one before is no base any more, unless it is an earlier migration's: that one is
        // still needed if this migration does not come to its end.
        if let Some(base) =
            base.filter(|base| base.name.starts_with(&snapshot_name(&migration.id, "")))
        {
            self.host
                .storage
                .delete_snapshot(dataset, &base.name)
                .await?;
        }
        Ok(snapshot)
    }

    /// Takes the final snapshots, sends them, and has the destination promise to wait.
    pub(super) async fn send_final(
        &mut self,
        migration: &SourceMigration,
        attempt: Attempt,
    ) -> Event {
        match self.final_delta(migration, attempt).await {
            Ok(view) if view.state == HandoffState::Verified => Event::Verified,
            Ok(view) => Event::Failed {
                reason: format!("{} says the handoff is {:?}", migration.plan.to, view.state),
            },
            Err(error) => Event::Failed {
                reason: format!(
                    "the final difference to {} failed: {}",
                    migration.plan.to,
                    Report(&error)
                ),
            },
        }
    }

    async fn final_delta(
        &mut self,
        migration: &SourceMigration,
        attempt: Attempt,
    ) -> Result<HandoffView, CopyError> {
        let began = Instant::now();
        for volume in &migration.plan.volumes {
            self.host.storage.flush(&volume.dataset).await?;
        }
        self.run.spent("flush", began.elapsed().as_secs_f64());
        let began = Instant::now();
        let name = snapshot_name(&migration.id, &format!("final-{attempt}"));
        self.run.stream_begins();
        let mut finals = Vec::new();
        for volume in &migration.plan.volumes {
            let snapshot = self.copy(migration, volume, &name).await?;
            finals.push(FinalSnapshot {
                dataset: volume.dataset.clone(),
                name: name.clone(),
                guid: snapshot.guid,
            });
        }
        let request = VerifyRequest {
            parked: self.track.gate.version,
            attempt,
            epoch: migration.plan.epoch,
            finals,
        };
        let path = format!("/peer/v1/handoffs/{}/verify", migration.id);
        let view = self
            .host
            .peers
            .request(&migration.plan.to, Method::POST, &path, Some(&request))
            .await?;
        let sent: Bytes = self.run.meter.bytes();
        let mut report = self.run.report();
        report.bytes = report.bytes.saturating_add(sent);
        drop(report);
        self.run.spent("final_delta", began.elapsed().as_secs_f64());
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_is_sent_again_is_as_old_as_its_first_try() {
        let mut copy = Copying::default();
        let first = Instant::now();
        let later = first + Duration::from_secs(5);
        assert_eq!(copy.begin(2, first), first);
        assert_eq!(copy.begin(2, later), first, "its snapshots are");
        assert_eq!(copy.begin(3, later), later);
    }
}
