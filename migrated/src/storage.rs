//! Volumes: one trait for what a backend can do.
//!
//! What a backend cannot do is said by [`Capabilities`], never by special cases at the caller.
//! Every call may be repeated: a snapshot that exists is success, a snapshot to delete that is
//! gone is success. Errors are typed, so that the engine decides by kind and people read why.
//!
//! A volume's live tree stays at one path for ever, whoever owns it. Snapshots made for a
//! migration carry its id in their name.

pub mod btrfs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use migrated_core::stamp::Stamp;
use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncRead};

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The word in configuration files.
    pub backend: BackendKind,
    /// A size limit is enforced.
    pub size_limit: bool,
    /// A broken stream can be taken up again.
    pub resume: bool,
    /// The size of a send is known before it starts.
    pub estimate: bool,
}

/// Which backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// btrfs subvolumes.
    Btrfs,
}

/// Why a storage operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The volume or snapshot does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It exists already, and is another one.
    #[error("{0} exists already")]
    Exists(String),
    /// Somebody uses it.
    #[error("{what} is in use: {by}")]
    Busy {
        /// The volume.
        what: String,
        /// Who, as far as it is known.
        by: String,
    },
    /// No room.
    #[error("no space for {what}: {needed} needed, {available} available")]
    NoSpace {
        /// What was to be stored.
        what: String,
        /// How much it needs.
        needed: Bytes,
        /// How much there is.
        available: Bytes,
    },
    /// The snapshot that an incremental stream builds on is not here.
    #[error("the base snapshot {0} is missing")]
    BaseMissing(String),
    /// The stream is not what was announced.
    #[error("the received data is not what was announced: {0}")]
    Corrupt(String),
    /// The backend cannot do this.
    #[error("{0}")]
    Unsupported(String),
    /// A command failed.
    #[error("{command} failed: {stderr}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// What it said, the end of it.
        stderr: String,
    },
    /// The file system failed.
    #[error("cannot {attempt}")]
    Io {
        /// What was attempted, with the path.
        attempt: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name, unique within the volume.
    pub name: String,
    /// Its identity in a stream: the same on both sides of a send.
    pub guid: String,
}

/// A volume on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its identity.
    pub dataset: DatasetId,
    /// What stands on it, unless the stamp was lost.
    pub stamp: Option<Stamp>,
    /// Whether it has a live tree (a destination in pre-copy has snapshots only).
    pub live: bool,
    /// Bytes that it refers to.
    pub used: Bytes,
    /// Its limit.
    pub limit: Option<Bytes>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The names of former live trees that were set aside.
    pub diverged: Vec<String>,
}

/// Part of a snapshot that was being received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The volume.
    pub dataset: DatasetId,
    /// The snapshot.
    pub name: String,
    /// What it takes.
    pub bytes: Bytes,
}

/// A stream that a backend is sending. Reading to the end without an error means that the
/// sender finished well: an exit status that is not zero arrives as a read error.
pub type SendStream = Box<dyn AsyncRead + Send + Unpin>;

/// What a backend can do. Methods run off the async workers where they block.
///
/// # Cancel safety
/// No method is cancel-safe in the sense of "nothing happened": a dropped call may have taken
/// effect. Every method may be repeated.
#[async_trait]
pub trait Storage: std::fmt::Debug + Send + Sync {
    /// What this backend can do.
    fn capabilities(&self) -> Capabilities;

    /// The path of a volume's live tree; it never changes.
    fn live_path(&self, dataset: &DatasetId) -> PathBuf;

    /// The path of a live tree that was set aside under `name`.
    fn diverged_path(&self, dataset: &DatasetId, name: &str) -> PathBuf;

    /// Bytes that new data may take.
    async fn available(&self) -> Result<Bytes, StorageError>;

    /// Makes an empty live volume. [`StorageError::Exists`] when there is anything under that
    /// identity already: a volume is born once.
    async fn create(&self, dataset: &DatasetId, limit: Option<Bytes>) -> Result<(), StorageError>;

    /// One volume, or `None`.
    async fn inspect(&self, dataset: &DatasetId) -> Result<Option<VolumeInfo>, StorageError>;

    /// All volumes of this host.
    async fn list(&self) -> Result<Vec<VolumeInfo>, StorageError>;

    /// Changes the limit of a live volume.
    async fn set_limit(
        &self,
        dataset: &DatasetId,
        limit: Option<Bytes>,
    ) -> Result<(), StorageError>;

    /// Writes the stamp, durably. One that is there already costs nothing.
    async fn stamp(&self, dataset: &DatasetId, stamp: &Stamp) -> Result<(), StorageError>;

    /// Brings everything that was written (also through mmap) to disk.
    async fn flush(&self, dataset: &DatasetId) -> Result<(), StorageError>;

    /// Takes a read-only snapshot of the live tree under `name`; one that exists is returned.
    async fn snapshot(&self, dataset: &DatasetId, name: &str) -> Result<Snapshot, StorageError>;

    /// Deletes a snapshot; one that is gone is fine.
    async fn delete_snapshot(&self, dataset: &DatasetId, name: &str) -> Result<(), StorageError>;

    /// Bytes of the live tree that were written since `base` was taken: about what a difference
    /// from it has to send. What was not flushed yet is not seen.
    async fn changed_since(&self, dataset: &DatasetId, base: &str) -> Result<Bytes, StorageError>;

    /// Starts sending a snapshot, whole or as the difference from `base`.
    async fn send(
        &self,
        dataset: &DatasetId,
        name: &str,
        base: Option<&str>,
    ) -> Result<SendStream, StorageError>;

    /// Receives a stream until its end as snapshot `name`. After an error nothing of it is left;
    /// what a dropped call leaves is [`Storage::discard_partial`]'s. The snapshot's guid must be
    /// `guid`, else [`StorageError::Corrupt`].
    async fn receive(
        &self,
        dataset: &DatasetId,
        name: &str,
        guid: &str,
        stream: &mut (dyn AsyncBufRead + Send + Unpin),
    ) -> Result<Snapshot, StorageError>;

    /// Drops what was received by halves of snapshots whose names begin with `prefix`. Nobody may
    /// be receiving one of them.
    async fn discard_partial(&self, dataset: &DatasetId, prefix: &str) -> Result<(), StorageError>;

    /// Makes the live tree a writable copy of a snapshot, in one step: an old live tree is
    /// replaced and its data dropped. The caller holds the proof that the snapshot's lineage
    /// contains it. Afterwards the limit is in force.
    async fn promote(
        &self,
        dataset: &DatasetId,
        name: &str,
        limit: Option<Bytes>,
    ) -> Result<(), StorageError>;

    /// Drops the live tree but keeps the snapshots: what a source does after it gave a volume
    /// away, so that stale data can never be mounted.
    async fn retire(&self, dataset: &DatasetId) -> Result<(), StorageError>;

    /// What was received by halves and is there: being received now, or left by an accident.
    async fn partials(&self) -> Result<Vec<Partial>, StorageError>;

    /// Of each snapshot of a volume, and of each live tree of it that was set aside, the bytes that
    /// nothing else refers to: what deleting it frees.
    async fn exclusive(&self, dataset: &DatasetId)
    -> Result<BTreeMap<String, Bytes>, StorageError>;

    /// When a snapshot came to be on this host: when it was taken, or when it began to arrive.
    async fn taken_at(&self, dataset: &DatasetId, name: &str) -> Result<SystemTime, StorageError>;

    /// Whether the live tree holds exactly what a snapshot does; nothing may be writing to it.
    /// When in doubt it does not.
    async fn is_unchanged(&self, dataset: &DatasetId, snapshot: &str)
    -> Result<bool, StorageError>;

    /// Keeps the live tree for people, read-only, and returns where: what was written to it is
    /// not in the owner's lineage. Nothing but an explicit command deletes it.
    async fn set_aside(&self, dataset: &DatasetId, name: &str) -> Result<PathBuf, StorageError>;

    /// Deletes a live tree that was set aside under `name`; one that is gone is fine. Only on an
    /// explicit command.
    async fn discard_diverged(&self, dataset: &DatasetId, name: &str) -> Result<(), StorageError>;

    /// Destroys a volume with its snapshots and stamp, but for what was set aside. Only on an
    /// explicit command, or for what an aborted migration left on a destination.
    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError>;
}
