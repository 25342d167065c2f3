//! What stands on a volume: its stamp and its limit, in a file beside the data.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use migrated_core::stamp::Stamp;
use rehome_runtime::failpoint;
use rehome_runtime::report::Report;
use rehome_runtime::store::{self, LoadError, SaveError};
use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::tree::blocking;
use crate::storage::StorageError;

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// The stamp, once there is one.
    pub(super) stamp: Option<Stamp>,
    /// The limit in bytes.
    pub(super) limit: Option<Bytes>,
}

/// The files of a pool. Changes of one file come one after the other.
#[derive(Debug, Clone)]
pub(super) struct MetaStore {
    layout: Layout,
    /// The files whose last change failed: whether it is on the disk is not known.
    unsure: Arc<Mutex<BTreeSet<DatasetId>>>,
}

impl MetaStore {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            unsure: Arc::default(),
        }
    }

    /// Reads a volume's file, `None` when there is none.
    pub(super) async fn load(&self, dataset: &DatasetId) -> Result<Option<Meta>, StorageError> {
        let path = self.layout.meta(dataset);
        blocking(move || load(&path)).await
    }

    /// Changes a volume's file, or makes it. A damaged one is replaced; one that is not changed is
    /// not written.
    pub(super) async fn update(
        &self,
        dataset: &DatasetId,
        change: impl FnOnce(&mut Meta) + Send + 'static,
    ) -> Result<(), StorageError> {
        let (path, unsure) = (self.layout.meta(dataset), Arc::clone(&self.unsure));
        let dataset = dataset.clone();
        blocking(move || {
            // Who holds it is the only writer.
            let mut unsure = unsure.lock().unwrap_or_else(PoisonError::into_inner);
            let known = match load(&path) {
                Ok(known) => known,
                Err(StorageError::Corrupt(reason)) => {
                    tracing::warn!(volume.dataset = %dataset, %reason, "a damaged stamp is replaced");
                    None
                }
                Err(error) => return Err(error),
            };
            let mut meta = known.clone().unwrap_or_default();
            change(&mut meta);
            if known.as_ref() == Some(&meta) && !unsure.contains(&dataset) {
                return Ok(());
            }
            unsure.insert(dataset.clone());
            failpoint::hit(|| "stamp/before".to_owned());
            let saved = store::save_blocking(&path, &meta).map_err(|error| {
                let attempt = format!("write what stands on volume {dataset}");
                let source = match error {
                    SaveError::Io { source, .. } => source,
                    SaveError::Encode { .. } => io::Error::other(error),
                };
                StorageError::Io { attempt, source }
            });
            if saved.is_ok() {
                unsure.remove(&dataset);
                failpoint::hit(|| "stamp/after".to_owned());
            }
            saved
        })
        .await
    }

    /// Removes a volume's file; one that is gone is fine.
    pub(super) async fn remove(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        let path = self.layout.meta(dataset);
        let attempt = format!("remove {}", path.display());
        blocking(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::Io {
                attempt,
                source: error,
            }),
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }
}

fn load(path: &std::path::Path) -> Result<Option<Meta>, StorageError> {
    match store::load_blocking(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(LoadError::Absent { .. }) => Ok(None),
        Err(error @ LoadError::Corrupt { .. }) => {
            Err(StorageError::Corrupt(Report(&error).to_string()))
        }
        Err(LoadError::Io { path, source }) => Err(StorageError::Io {
            attempt: format!("read {}", path.display()),
            source,
        }),
    }
}
