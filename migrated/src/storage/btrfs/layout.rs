//! Where things lie under a pool. Every path that the backend touches is made here, out of
//! checked names, so that no name leads outside.

use std::path::{Path, PathBuf};

use rehome_shared::ids::DatasetId;

use crate::storage::StorageError;

/// The subvolume in the directory of a snapshot.
pub(super) const DATA: &str = "data";

/// The tree in a work directory that becomes live next.
pub(super) const NEXT: &str = ".next";

/// Before the name of a snapshot in a work directory that is being deleted.
pub(super) const GONE: &str = ".gone-";

/// The longest snapshot name.
const MAX_NAME: usize = 200;

/// The paths of one pool.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The directories that exist in every pool.
    pub(super) fn directories(&self) -> [PathBuf; 5] {
        ["live", "snap", "recv", "meta", "diverged"].map(|name| self.root.join(name))
    }

    pub(super) fn live(&self, dataset: &DatasetId) -> PathBuf {
        self.root.join("live").join(dataset.as_str())
    }

    pub(super) fn snapshots(&self, dataset: &DatasetId) -> PathBuf {
        self.root.join("snap").join(dataset.as_str())
    }

    pub(super) fn work(&self, dataset: &DatasetId) -> PathBuf {
        self.root.join("recv").join(dataset.as_str())
    }

    pub(super) fn meta(&self, dataset: &DatasetId) -> PathBuf {
        self.root.join("meta").join(format!("{dataset}.json"))
    }

    /// The directory of a snapshot; its subvolume is [`DATA`] in it.
    ///
    /// # Errors
    /// [`StorageError::Unsupported`] for a name that could lead elsewhere.
    pub(super) fn snapshot(
        &self,
        dataset: &DatasetId,
        name: &str,
    ) -> Result<PathBuf, StorageError> {
        check_name(name)?;
        Ok(self.snapshots(dataset).join(name))
    }

    /// All that is kept of a volume's former live trees.
    pub(super) fn all_diverged(&self, dataset: &DatasetId) -> PathBuf {
        self.root.join("diverged").join(dataset.as_str())
    }

    /// A live tree that is kept for people.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub(super) fn diverged(
        &self,
        dataset: &DatasetId,
        name: &str,
    ) -> Result<PathBuf, StorageError> {
        check_name(name)?;
        Ok(self.all_diverged(dataset).join(name))
    }

    /// The dataset that an entry of `live`, `snap`, `recv`, `meta` or `diverged` belongs to.
    pub(super) fn dataset_of(entry: &str) -> Option<DatasetId> {
        DatasetId::try_new(entry.strip_suffix(".json").unwrap_or(entry)).ok()
    }
}

fn check_name(name: &str) -> Result<(), StorageError> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if fits {
        return Ok(());
    }
    Err(StorageError::Unsupported(format!(
        "{name:?} cannot name a snapshot: use 1 to {MAX_NAME} ASCII letters, digits, '-', '_' \
         or '.', and do not begin with '.'"
    )))
}
