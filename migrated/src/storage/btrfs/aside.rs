//! Live trees of volumes that are another host's: whether they hold anything that a snapshot does
//! not, and where they are kept for people if so.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::layout::{self, Layout};
use super::program::{self, Btrfs as Program, failure};
use super::tree;
use crate::storage::StorageError;

/// What a stream begins with, and the version behind it.
const MAGIC: &[u8; 13] = b"btrfs-stream\0";

/// The commands of a stream that change nothing: "as that snapshot", and the end.
const AS_SNAPSHOT: u16 = 2;
const END: u16 = 21;

/// No command that changes nothing is longer.
const LONGEST: u32 = 64 << 10;

/// How long the comparison of two trees may take: without data it reads only what differs.
const PATIENCE: Duration = Duration::from_mins(2);

/// The tree in a work directory that is compared.
const COMPARED: &str = ".compared";

/// Whether the live tree holds exactly what a snapshot does. It is compared by what a send of the
/// difference would say, so the costs are those of the difference.
pub(super) async fn is_unchanged(
    layout: &Layout,
    dataset: &DatasetId,
    snapshot: &str,
) -> Result<bool, StorageError> {
    let live = layout.live(dataset);
    let base = layout.snapshot(dataset, snapshot)?.join(layout::DATA);
    for (path, what) in [(&live, "the live tree"), (&base, snapshot)] {
        if !tree::exists(path).await? {
            return Err(StorageError::NotFound(format!(
                "{what} of volume {dataset}"
            )));
        }
    }
    let synced = live.clone();
    tree::blocking(move || tree::sync_blocking(&synced)).await?;
    let work = layout.work(dataset);
    let frozen = work.join(COMPARED);
    tree::discard(&frozen).await?;
    tree::make_directory(&work).await?;
    let freeze = Program::new()
        .args(["subvolume", "snapshot", "-r"])
        .arg(&live)
        .arg(&frozen);
    program::run(freeze).await?;
    let compared = tokio::time::timeout(PATIENCE, compare(&base, &frozen)).await;
    tree::discard(&frozen).await?;
    compared.unwrap_or_else(|_elapsed| {
        Err(StorageError::Command {
            command: format!("compare volume {dataset} with {snapshot}"),
            stderr: format!("it did not end within {PATIENCE:?}"),
        })
    })
}

async fn compare(base: &std::path::Path, frozen: &std::path::Path) -> Result<bool, StorageError> {
    let mut running = Program::new()
        .args(["send", "-q", "--no-data", "-p"])
        .arg(base)
        .arg(frozen)
        .start_reading()
        .map_err(|error| failure(error, Bytes(0)))?;
    let Some(mut stream) = running.take_stdout() else {
        let reason = "the comparing program has no output".to_owned();
        return Err(StorageError::Unsupported(reason));
    };
    let nothing = says_nothing(&mut stream).await;
    // A program that has more to say ends when nobody listens, and the tree that it reads cannot
    // be removed before.
    drop(stream);
    if !matches!(nothing, Ok(true)) {
        drop(running.finish(PATIENCE).await);
        return nothing;
    }
    match running.finish(PATIENCE).await {
        Ok(_said) => Ok(true),
        Err(error) => Err(failure(error, Bytes(0))),
    }
}

/// Whether a stream holds no command that changes anything.
async fn says_nothing(stream: &mut (impl AsyncRead + Unpin)) -> Result<bool, StorageError> {
    let io = || tree::io("compare two trees".to_owned());
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await.map_err(io())?;
    let _version = stream.read_u32_le().await.map_err(io())?;
    if magic != *MAGIC {
        return Err(StorageError::Corrupt("it is no btrfs stream".to_owned()));
    }
    loop {
        let length = stream.read_u32_le().await.map_err(io())?;
        let command = stream.read_u16_le().await.map_err(io())?;
        let _checksum = stream.read_u32_le().await.map_err(io())?;
        match command {
            END => break,
            AS_SNAPSHOT if length <= LONGEST => {}
            _ => return Ok(false),
        }
        let mut body = (&mut *stream).take(u64::from(length));
        tokio::io::copy(&mut body, &mut tokio::io::sink())
            .await
            .map_err(io())?;
    }
    // The end of the last command and of the stream: else the program would wait for a reader.
    tokio::io::copy(stream, &mut tokio::io::sink())
        .await
        .map_err(io())?;
    Ok(true)
}

/// Moves the live tree to where it is kept for people, read-only. One that is there already and
/// has no live tree beside it was moved before.
pub(super) async fn set_aside(
    layout: &Layout,
    dataset: &DatasetId,
    name: &str,
) -> Result<PathBuf, StorageError> {
    let live = layout.live(dataset);
    let place = layout.diverged(dataset, name)?;
    if tree::exists(&live).await? {
        let (from, to) = (live, place.clone());
        tree::blocking(move || {
            if let Some(parent) = to.parent() {
                tree::make_directory_blocking(parent)?;
            }
            let attempt = format!("set {} aside as {}", from.display(), to.display());
            renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)
                .map_err(|error| tree::io(attempt)(error.into()))?;
            tree::sync_blocking(&to)
        })
        .await?;
    } else if !tree::exists(&place).await? {
        return Err(StorageError::NotFound(format!(
            "the live tree of volume {dataset}"
        )));
    }
    close(&place).await?;
    Ok(place)
}

/// Makes a tree read-only.
async fn close(tree: &std::path::Path) -> Result<(), StorageError> {
    let command = Program::new()
        .args(["property", "set", "-ts"])
        .arg(tree)
        .args(["ro", "true"]);
    program::run(command).await
}

/// Closes what a crash left open between the two steps of [`set_aside`].
pub(super) async fn recover(layout: &Layout, dataset: &DatasetId) -> Result<(), StorageError> {
    for name in tree::diverged(layout, dataset).await? {
        let place = layout.diverged(dataset, &name)?;
        if tree::info(&place)
            .await?
            .is_some_and(|info| !info.read_only)
        {
            close(&place).await?;
        }
    }
    Ok(())
}

/// When a snapshot came to be on this host.
pub(super) async fn taken_at(
    layout: &Layout,
    dataset: &DatasetId,
    name: &str,
) -> Result<SystemTime, StorageError> {
    let place = layout.snapshot(dataset, name)?;
    let missing = StorageError::NotFound(format!("snapshot {name} of volume {dataset}"));
    if !tree::exists(&place.join(layout::DATA)).await? {
        return Err(missing);
    }
    // The directory around it is made with it and never changed.
    tree::blocking(move || {
        std::fs::metadata(&place)
            .and_then(|metadata| metadata.modified())
            .map_err(tree::io(format!("inspect {}", place.display())))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(commands: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1_u32.to_le_bytes());
        for (command, body) in commands {
            bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            bytes.extend(command.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(*body);
        }
        bytes
    }

    #[tokio::test]
    async fn only_a_stream_without_a_change_says_nothing() {
        let same = stream(&[(AS_SNAPSHOT, b"name and base"), (END, b"")]);
        assert!(says_nothing(&mut same.as_slice()).await.unwrap());
        for change in [3, 15, 20, 22] {
            let other = stream(&[(AS_SNAPSHOT, b"name"), (change, b"path"), (END, b"")]);
            assert!(!says_nothing(&mut other.as_slice()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_or_is_none_proves_nothing() {
        let cut = stream(&[(AS_SNAPSHOT, b"name")]);
        assert!(says_nothing(&mut cut.as_slice()).await.is_err());
        assert!(
            says_nothing(&mut &b"not a stream, but long enough"[..])
                .await
                .is_err()
        );
        assert!(says_nothing(&mut &b""[..]).await.is_err());
    }
}
