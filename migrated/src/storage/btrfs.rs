//! Volumes on btrfs: one subvolume for each, read-only snapshots, `btrfs send` and `receive`.
//!
//! # What lies in the pool
//! | path under the pool | what |
//! |---|---|
//! | `live/DATASET` | the live tree: a writable subvolume, limited by its quota group |
//! | `snap/DATASET/NAME/data` | a snapshot: a read-only subvolume |
//! | `recv/DATASET/…` | work in progress: streams being received, trees being swapped; emptied at start |
//! | `diverged/DATASET/NAME` | a live tree of a time when another host was the owner already: read-only, kept for people |
//! | `meta/DATASET.json` | the stamp and the limit, below one line with a checksum |
//!
//! The stamp lies beside the data and not in an extended attribute of it, because attributes
//! travel with a stream and a stamp must not.
//!
//! # Identity
//! A snapshot's `guid` is the UUID that its stream carries: of a received snapshot its received
//! UUID, of any other its own. `btrfs send` names base and snapshot by exactly this UUID, so it
//! is the same on every host, and a snapshot that went from A to B serves as the base of the way
//! back. A received snapshot therefore is never made writable (that would erase its received
//! UUID): the live tree is a writable snapshot of it.
//!
//! A read-only subvolume cannot be moved to another directory, a directory around it can: hence
//! the level `NAME/data`. A received snapshot appears under `snap/` by one rename, after it was
//! received to its end and verified, so whatever lies there is whole.
//!
//! # Limits
//! A write beyond the limit fails with `EDQUOT` ("Disk quota exceeded"), also for root; that is
//! all that btrfs can do, `ENOSPC` ("No space left on device") is what a full pool gives. Programs
//! treat the two alike; a program that must see `ENOSPC` needs another backend. The limit counts
//! what the live tree refers to. Snapshots inherit a limit from their origin and would hand it
//! on to what is received on top of them, so theirs is taken off.

mod aside;
mod layout;
mod meta;
mod pool;
mod program;
mod stream;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use migrated_core::stamp::Stamp;
use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::io::{AsyncBufRead, AsyncWriteExt};

use self::layout::Layout;
use self::meta::MetaStore;
pub use self::pool::{OpenError, PoolConfig, PoolImage};
use self::program::{Btrfs as Program, RECEIVE_END, failure};
use super::{
    BackendKind, Capabilities, Partial, SendStream, Snapshot, Storage, StorageError, VolumeInfo,
};

/// The btrfs backend on one pool.
#[derive(Debug)]
pub struct Btrfs {
    layout: Layout,
    meta: MetaStore,
    image: Option<PathBuf>,
}

impl Btrfs {
    /// Opens a pool, making and mounting its image where the configuration asks for one.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing that exists is ever formatted.
    ///
    /// # Cancel safety
    /// A dropped call may be repeated.
    pub async fn open(config: PoolConfig) -> Result<Self, OpenError> {
        let mounted_image = pool::prepare(&config).await?;
        let layout = Layout::new(config.path);
        tree::make_directories(&layout)
            .await
            .map_err(OpenError::Prepare)?;
        let this = Self {
            meta: MetaStore::new(layout.clone()),
            layout,
            image: mounted_image,
        };
        this.recover().await.map_err(OpenError::Prepare)?;
        Ok(this)
    }

    /// Drops work that a crash interrupted, and brings the limits in force again, which is needed
    /// after a crash between a limit's record and its effect, or when quotas were switched off.
    async fn recover(&self) -> Result<(), StorageError> {
        for dataset in tree::datasets(&self.layout).await? {
            tree::discard(&self.layout.work(&dataset)).await?;
            aside::recover(&self.layout, &dataset).await?;
            let limit = self.meta.load(&dataset).await?.and_then(|meta| meta.limit);
            if limit.is_some() && tree::exists(&self.layout.live(&dataset)).await? {
                limit_tree(&self.layout.live(&dataset), limit).await?;
            }
        }
        Ok(())
    }

    /// Empties the dataset's work directory and returns a path in it.
    async fn fresh_work(&self, dataset: &DatasetId, name: &str) -> Result<PathBuf, StorageError> {
        let work = self.layout.work(dataset);
        tree::discard(&work.join(name)).await?;
        tree::make_directory(&work).await?;
        Ok(work.join(name))
    }

    async fn require_live(&self, dataset: &DatasetId) -> Result<PathBuf, StorageError> {
        let live = self.layout.live(dataset);
        if tree::exists(&live).await? {
            return Ok(live);
        }
        Err(StorageError::NotFound(format!(
            "the live tree of volume {dataset}"
        )))
    }

    /// Runs the receiving program over a stream. The caller cleans up after an error.
    async fn receive_into(
        &self,
        stage: &Path,
        stream: &mut (dyn AsyncBufRead + Send + Unpin),
    ) -> Result<(), (StorageError, Bytes)> {
        let start = Program::new()
            .args(["receive", "-q"])
            .arg(stage)
            .start_writing();
        let mut running = start.map_err(|error| (failure(error, Bytes::default()), Bytes(0)))?;
        let Some(mut input) = running.take_stdin() else {
            let reason = "the receiving program has no input".to_owned();
            return Err((StorageError::Unsupported(reason), Bytes(0)));
        };
        let (passed, torn) = stream::pass_on(stream, &mut input).await;
        if let Some(source) = torn {
            // Its input stays open until it is dead: at the end of its input it would finish the
            // subvolume as if it were whole.
            let _killed = running.finish(std::time::Duration::ZERO).await;
            drop(input);
            let attempt = "read the stream of a snapshot".to_owned();
            return Err((StorageError::Io { attempt, source }, passed));
        }
        // What cannot be written any more because the program has ended is told by its status.
        let _flushed = input.shutdown().await;
        drop(input);
        match running.finish(RECEIVE_END).await {
            Ok(_said) => Ok(()),
            Err(error) => Err((failure(error, passed), passed)),
        }
    }

    /// Checks what was received and puts it in its place.
    async fn accept(&self, stage: &Path, guid: &str, place: &Path) -> Result<(), StorageError> {
        let Some(info) = tree::info(&stage.join(layout::DATA)).await? else {
            return Err(StorageError::Corrupt(
                "the stream holds no snapshot".to_owned(),
            ));
        };
        if !info.read_only || info.received_uuid.as_deref() != Some(guid) {
            let got = info
                .received_uuid
                .unwrap_or_else(|| "an unfinished snapshot".to_owned());
            return Err(StorageError::Corrupt(format!(
                "{got} came instead of {guid}"
            )));
        }
        let (from, to) = (stage.to_owned(), place.to_owned());
        tree::blocking(move || {
            if let Some(parent) = to.parent() {
                tree::make_directory_blocking(parent)?;
            }
            std::fs::rename(&from, &to)
                .map_err(tree::io(format!("put {} in place", to.display())))?;
            tree::sync_blocking(&to)
        })
        .await
    }

    /// Removes what was received of a snapshot and waits until its room is free again, so that
    /// the next try does not fail for the space that this one took.
    async fn drop_partial(&self, stage: &Path) {
        let root = self.layout.root();
        let dropped = async {
            tree::discard(stage).await?;
            // Unlike syncfs(2), this also wakes the thread that frees what was deleted.
            program::run(Program::new().args(["filesystem", "sync"]).arg(root)).await?;
            let command = Program::new()
                .args(["subvolume", "sync", "-s", "1"])
                .arg(root);
            program::run(command).await
        };
        if let Err(error) = dropped.await {
            tracing::warn!(path = %stage.display(), %error, "part of a snapshot may be left behind");
        }
    }

    async fn describe(
        &self,
        dataset: &DatasetId,
        usage: &program::Usage,
    ) -> Result<Option<VolumeInfo>, StorageError> {
        let meta = self.meta.load(dataset).await;
        if let Err(error) = &meta {
            tracing::warn!(volume.dataset = %dataset, %error, "the stamp of a volume is lost");
        }
        let recorded = !matches!(meta, Ok(None));
        let live = tree::info(&self.layout.live(dataset)).await?;
        let snapshots = tree::snapshots(&self.layout, dataset).await?;
        let diverged = tree::diverged(&self.layout, dataset).await?;
        if live.is_none() && snapshots.is_empty() && diverged.is_empty() && !recorded {
            return Ok(None);
        }
        let meta = meta.ok().flatten().unwrap_or_default();
        let newest = live.as_ref().or(snapshots.last().map(|(_, info)| info));
        Ok(Some(VolumeInfo {
            dataset: dataset.clone(),
            stamp: meta.stamp,
            live: live.is_some(),
            used: newest.map(|info| usage.of(info.id)).unwrap_or_default(),
            limit: meta.limit,
            snapshots: snapshots
                .into_iter()
                .map(|(name, info)| snapshot(name, &info))
                .collect(),
            diverged,
        }))
    }
}

fn snapshot(name: String, info: &rehome_sys::btrfs::SubvolumeInfo) -> Snapshot {
    let guid = info.received_uuid.as_ref().unwrap_or(&info.uuid).clone();
    Snapshot { name, guid }
}

async fn limit_tree(path: &Path, limit: Option<Bytes>) -> Result<(), StorageError> {
    let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.0.to_string());
    program::run(
        Program::new()
            .args(["qgroup", "limit", limit.as_str()])
            .arg(path),
    )
    .await
}

#[async_trait]
impl Storage for Btrfs {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            backend: BackendKind::Btrfs,
            size_limit: true,
            resume: false,
            estimate: true,
        }
    }

    fn live_path(&self, dataset: &DatasetId) -> PathBuf {
        self.layout.live(dataset)
    }

    fn diverged_path(&self, dataset: &DatasetId, name: &str) -> PathBuf {
        self.layout.all_diverged(dataset).join(name)
    }

    async fn available(&self) -> Result<Bytes, StorageError> {
        let (pool, image) = (self.layout.root().to_owned(), self.image.clone());
        tree::blocking(move || pool::available_blocking(&pool, image.as_deref())).await
    }

    async fn create(&self, dataset: &DatasetId, limit: Option<Bytes>) -> Result<(), StorageError> {
        let known = self.inspect(dataset).await?;
        // A record without stamp or data is what a crash in the middle of this call leaves.
        if known.is_some_and(|v| v.live || v.stamp.is_some() || !v.snapshots.is_empty()) {
            return Err(StorageError::Exists(format!("volume {dataset}")));
        }
        self.meta
            .update(dataset, move |meta| meta.limit = limit)
            .await?;
        let new = self.fresh_work(dataset, layout::NEXT).await?;
        program::run(Program::new().args(["subvolume", "create"]).arg(&new)).await?;
        limit_tree(&new, limit).await?;
        swap_in(&new, &self.layout.live(dataset)).await?;
        tree::discard(&self.layout.work(dataset)).await
    }

    async fn inspect(&self, dataset: &DatasetId) -> Result<Option<VolumeInfo>, StorageError> {
        let usage = program::usage(self.layout.root()).await;
        self.describe(dataset, &usage).await
    }

    async fn list(&self) -> Result<Vec<VolumeInfo>, StorageError> {
        let usage = program::usage(self.layout.root()).await;
        let mut volumes = Vec::new();
        for dataset in tree::datasets(&self.layout).await? {
            volumes.extend(self.describe(&dataset, &usage).await?);
        }
        Ok(volumes)
    }

    async fn set_limit(
        &self,
        dataset: &DatasetId,
        limit: Option<Bytes>,
    ) -> Result<(), StorageError> {
        let live = self.require_live(dataset).await?;
        self.meta
            .update(dataset, move |meta| meta.limit = limit)
            .await?;
        limit_tree(&live, limit).await
    }

    async fn stamp(&self, dataset: &DatasetId, stamp: &Stamp) -> Result<(), StorageError> {
        let stamp = stamp.clone();
        self.meta
            .update(dataset, move |meta| meta.stamp = Some(stamp))
            .await
    }

    async fn flush(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        let live = self.require_live(dataset).await?;
        tree::blocking(move || tree::sync_blocking(&live)).await
    }

    async fn snapshot(&self, dataset: &DatasetId, name: &str) -> Result<Snapshot, StorageError> {
        let place = self.layout.snapshot(dataset, name)?;
        let data = place.join(layout::DATA);
        if let Some(info) = tree::info(&data).await? {
            return Ok(snapshot(name.to_owned(), &info));
        }
        let live = self.require_live(dataset).await?;
        self.flush(dataset).await?;
        // In the work directory first: a call that is dropped in the middle leaves nothing among the
        // snapshots, and what it leaves is part of one.
        let stage = self.fresh_work(dataset, name).await?;
        tree::make_directory(&stage).await?;
        let command = Program::new()
            .args(["subvolume", "snapshot", "-r"])
            .arg(&live)
            .arg(stage.join(layout::DATA));
        program::run(command).await?;
        limit_tree(&stage.join(layout::DATA), None).await?;
        tree::discard(&place).await?;
        tree::move_away(&stage, &place).await?;
        tree::remove_if_empty(&self.layout.work(dataset)).await?;
        let info = tree::info(&data).await?;
        info.map(|info| snapshot(name.to_owned(), &info))
            .ok_or_else(|| StorageError::NotFound(format!("the new snapshot {name} of {dataset}")))
    }

    async fn delete_snapshot(&self, dataset: &DatasetId, name: &str) -> Result<(), StorageError> {
        let place = self.layout.snapshot(dataset, name)?;
        // Out of the way in one step: a call that is dropped in the middle leaves nothing that
        // looks like a snapshot, and what it leaves goes with the next use of the work directory.
        let (work, gone) = (self.layout.work(dataset), format!("{}{name}", layout::GONE));
        tree::discard(&work.join(&gone)).await?;
        tree::move_away(&place, &work.join(&gone)).await?;
        tree::discard_within(&work, &gone).await
    }

    async fn changed_since(&self, dataset: &DatasetId, base: &str) -> Result<Bytes, StorageError> {
        let live = self.require_live(dataset).await?;
        let base = self.layout.snapshot(dataset, base)?.join(layout::DATA);
        let Some(info) = tree::info(&base).await? else {
            return Err(StorageError::BaseMissing(base.display().to_string()));
        };
        // Taking a snapshot ends a generation: what came after it has a larger one.
        program::written_since(&live, info.generation.saturating_add(1)).await
    }

    async fn send(
        &self,
        dataset: &DatasetId,
        name: &str,
        base: Option<&str>,
    ) -> Result<SendStream, StorageError> {
        let data = self.layout.snapshot(dataset, name)?.join(layout::DATA);
        if !tree::exists(&data).await? {
            return Err(StorageError::NotFound(format!(
                "snapshot {name} of volume {dataset}"
            )));
        }
        let mut command = Program::new().args(["send", "-q"]);
        if let Some(base) = base {
            let data = self.layout.snapshot(dataset, base)?.join(layout::DATA);
            if !tree::exists(&data).await? {
                return Err(StorageError::BaseMissing(base.to_owned()));
            }
            command = command.arg("-p").arg(data);
        }
        let running = command
            .arg(data)
            .start_reading()
            .map_err(|e| failure(e, Bytes(0)))?;
        stream::Sending::new(running).map(|sending| -> SendStream { Box::new(sending) })
    }

    async fn receive(
        &self,
        dataset: &DatasetId,
        name: &str,
        guid: &str,
        stream: &mut (dyn AsyncBufRead + Send + Unpin),
    ) -> Result<Snapshot, StorageError> {
        let place = self.layout.snapshot(dataset, name)?;
        if let Some(info) = tree::info(&place.join(layout::DATA)).await? {
            let existing = snapshot(name.to_owned(), &info);
            if existing.guid != guid {
                return Err(StorageError::Exists(format!(
                    "snapshot {name} of volume {dataset}"
                )));
            }
            // Read to its end, so that the sender of a repeated stream is not cut off.
            let (_bytes, torn) = stream::pass_on(stream, &mut tokio::io::sink()).await;
            return match torn {
                None => Ok(existing),
                Some(source) => Err(StorageError::Io {
                    attempt: "read the stream of a snapshot".to_owned(),
                    source,
                }),
            };
        }
        // An empty directory is what a crash in the middle of a snapshot leaves.
        tree::discard(&place).await?;
        let stage = self.fresh_work(dataset, name).await?;
        tree::make_directory(&stage).await?;
        let received = match self.receive_into(&stage, stream).await {
            Ok(()) => self.accept(&stage, guid, &place).await,
            Err((StorageError::NoSpace { what, needed, .. }, _)) => {
                let available = self.available().await.unwrap_or_default();
                Err(StorageError::NoSpace {
                    what,
                    needed,
                    available,
                })
            }
            Err((error, _)) => Err(error),
        };
        if let Err(error) = received {
            self.drop_partial(&stage).await;
            return Err(error);
        }
        Ok(Snapshot {
            name: name.to_owned(),
            guid: guid.to_owned(),
        })
    }

    async fn discard_partial(&self, dataset: &DatasetId, prefix: &str) -> Result<(), StorageError> {
        tree::discard_within(&self.layout.work(dataset), prefix).await
    }

    async fn promote(
        &self,
        dataset: &DatasetId,
        name: &str,
        limit: Option<Bytes>,
    ) -> Result<(), StorageError> {
        let data = self.layout.snapshot(dataset, name)?.join(layout::DATA);
        if !tree::exists(&data).await? {
            return Err(StorageError::NotFound(format!(
                "snapshot {name} of volume {dataset}"
            )));
        }
        self.meta
            .update(dataset, move |meta| meta.limit = limit)
            .await?;
        let next = self.fresh_work(dataset, layout::NEXT).await?;
        program::run(
            Program::new()
                .args(["subvolume", "snapshot"])
                .arg(&data)
                .arg(&next),
        )
        .await?;
        limit_tree(&next, limit).await?;
        swap_in(&next, &self.layout.live(dataset)).await?;
        // After the swap this is the old live tree.
        tree::discard(&self.layout.work(dataset)).await
    }

    async fn retire(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        let live = self.layout.live(dataset);
        tree::discard(&live).await?;
        let root = self.layout.root().to_owned();
        tree::blocking(move || tree::sync_blocking(&root)).await
    }

    async fn partials(&self) -> Result<Vec<Partial>, StorageError> {
        let usage = program::usage(self.layout.root()).await;
        tree::partials(&self.layout, &usage).await
    }

    async fn exclusive(
        &self,
        dataset: &DatasetId,
    ) -> Result<BTreeMap<String, Bytes>, StorageError> {
        let usage = program::usage(self.layout.root()).await;
        let snapshots = tree::snapshots(&self.layout, dataset).await?;
        let sized = snapshots
            .into_iter()
            .map(|(name, info)| (name, usage.exclusive(info.id)));
        let mut sized: BTreeMap<String, Bytes> = sized.collect();
        for name in tree::diverged(&self.layout, dataset).await? {
            let place = self.layout.diverged(dataset, &name)?;
            if let Some(info) = tree::info(&place).await? {
                sized.insert(name, usage.exclusive(info.id));
            }
        }
        Ok(sized)
    }

    async fn taken_at(&self, dataset: &DatasetId, name: &str) -> Result<SystemTime, StorageError> {
        aside::taken_at(&self.layout, dataset, name).await
    }

    async fn is_unchanged(
        &self,
        dataset: &DatasetId,
        snapshot: &str,
    ) -> Result<bool, StorageError> {
        aside::is_unchanged(&self.layout, dataset, snapshot).await
    }

    async fn set_aside(&self, dataset: &DatasetId, name: &str) -> Result<PathBuf, StorageError> {
        aside::set_aside(&self.layout, dataset, name).await
    }

    async fn discard_diverged(&self, dataset: &DatasetId, name: &str) -> Result<(), StorageError> {
        tree::discard(&self.layout.diverged(dataset, name)?).await?;
        tree::remove_if_empty(&self.layout.all_diverged(dataset)).await
    }

    async fn destroy(&self, dataset: &DatasetId) -> Result<(), StorageError> {
        self.retire(dataset).await?;
        tree::discard(&self.layout.work(dataset)).await?;
        tree::discard(&self.layout.snapshots(dataset)).await?;
        // The stamp goes last, so that an interrupted call is seen and repeated.
        self.meta.remove(dataset).await
    }
}

/// Puts a tree in the place of the live one in one step, durably. What was live is afterwards
/// where the new tree was.
async fn swap_in(new: &Path, live: &Path) -> Result<(), StorageError> {
    let (new, live) = (new.to_owned(), live.to_owned());
    tree::blocking(move || {
        let flags = if live.exists() {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::NOREPLACE
        };
        let attempt = format!("put a tree in place as {}", live.display());
        renameat_with(CWD, &new, CWD, &live, flags)
            .map_err(|error| tree::io(attempt)(error.into()))?;
        tree::sync_blocking(&live)
    })
    .await
}
