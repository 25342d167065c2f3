//! A volume's stream to the destination.

use std::sync::Arc;

use migrated_core::source::SourceMigration;
use migrated_core::stream::Compression;
use rehome_shared::api::peer::{StreamEncoding, StreamQuery};
use rehome_shared::ids::{DatasetId, StreamId};

use super::Driver;
use super::copy::CopyError;
use crate::storage::Snapshot;
use crate::stream::{Bucket, Lane, Outgoing, Wire};

impl Driver {
    /// Sends a snapshot of a volume, whole or as the difference from `base`.
    pub(super) async fn send_volume(
        &self,
        migration: &SourceMigration,
        dataset: &DatasetId,
        snapshot: &Snapshot,
        base: Option<&str>,
    ) -> Result<(), CopyError> {
        let compression = self.compression(migration)?;
        let stream = self
            .host
            .storage
            .send(dataset, &snapshot.name, base)
            .await?;
        let outgoing = Outgoing::new(stream, self.run.raw.clone(), compression);
        let own = Bucket::new(migration.plan.limits.bandwidth_limit);
        let wire = Wire::default()
            .counted_on(&self.run.meter)
            .held_to(&Arc::new(own))
            .held_to(&self.host.bandwidth);
        let lane = Lane {
            client: self.host.peers.client(&migration.plan.to),
            path: format!("/peer/v1/handoffs/{}/stream", migration.id),
            query: StreamQuery {
                dataset: dataset.clone(),
                snapshot: snapshot.name.clone(),
                guid: snapshot.guid.clone(),
                stream: StreamId::generate(),
                offset: 0,
                connection: 0,
            },
            wire,
        };
        let resumed = || self.host.metrics.stream_resumed();
        let received = Box::pin(lane.send(outgoing, resumed)).await?;
        tracing::debug!(volume.dataset = %dataset, bytes = received.bytes.0, "a stream has arrived");
        Ok(())
    }

    /// How the destination can be sent a stream.
    fn compression(&self, migration: &SourceMigration) -> Result<Compression, CopyError> {
        let understood = &self.track.copy.encodings;
        if !understood.contains(&StreamEncoding::Plain) {
            return Err(CopyError::TooOld(migration.plan.to.clone()));
        }
        Ok(if understood.contains(&StreamEncoding::Zstd) {
            Compression::adaptive()
        } else {
            Compression::never()
        })
    }
}
