//! What lies on the disk: subvolumes, directories, and how they are removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rehome_shared::ids::DatasetId;
use rehome_sys::btrfs::{SubvolumeInfo, subvolume_info};

use super::layout::{DATA, Layout, NEXT};
use super::program;
use crate::storage::{Partial, StorageError};

/// The inode number of the root of every btrfs subvolume.
const SUBVOLUME_ROOT: u64 = 256;

/// How deep subvolumes lie in what [`discard`] is asked to remove: `snap/DATASET` / name / data.
const MAX_DEPTH: u8 = 3;

/// Runs something that blocks on a thread where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io("finish a storage operation".to_owned())(error.into())),
    }
}

/// Names what was attempted when the file system fails.
pub(super) fn io(attempt: String) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::Io { attempt, source }
}

/// Makes the directories of a pool.
pub(super) async fn make_directories(layout: &Layout) -> Result<(), StorageError> {
    for path in layout.directories() {
        make_directory(&path).await?;
    }
    Ok(())
}

/// Makes a directory, and those above it.
pub(super) async fn make_directory(path: &Path) -> Result<(), StorageError> {
    let path = path.to_owned();
    blocking(move || make_directory_blocking(&path)).await
}

pub(super) fn make_directory_blocking(path: &Path) -> Result<(), StorageError> {
    fs::create_dir_all(path).map_err(io(format!("make {}", path.display())))
}

/// Brings everything written to the file system of `path` to disk, pages stored through mmap
/// included.
pub(super) fn sync_blocking(path: &Path) -> Result<(), StorageError> {
    let sync = || -> io::Result<()> { Ok(rustix::fs::syncfs(File::open(path)?)?) };
    sync().map_err(io(format!("flush the file system of {}", path.display())))
}

/// Whether there is a subvolume.
pub(super) async fn exists(path: &Path) -> Result<bool, StorageError> {
    info(path).await.map(|info| info.is_some())
}

/// What the kernel knows of a subvolume; `None` when there is none at this path.
pub(super) async fn info(path: &Path) -> Result<Option<SubvolumeInfo>, StorageError> {
    let path = path.to_owned();
    blocking(move || info_blocking(&path)).await
}

fn info_blocking(path: &Path) -> Result<Option<SubvolumeInfo>, StorageError> {
    if !is_subvolume(path)? {
        return Ok(None);
    }
    let ask = || subvolume_info(File::open(path)?);
    ask()
        .map(Some)
        .map_err(io(format!("inspect {}", path.display())))
}

fn is_subvolume(path: &Path) -> Result<bool, StorageError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir() && metadata.ino() == SUBVOLUME_ROOT),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(format!("inspect {}", path.display()))(error)),
    }
}

/// Every dataset that has something in the pool.
pub(super) async fn datasets(layout: &Layout) -> Result<BTreeSet<DatasetId>, StorageError> {
    let directories = layout.directories();
    blocking(move || {
        let mut found = BTreeSet::new();
        for directory in directories {
            found.extend(
                names(&directory)?
                    .iter()
                    .filter_map(|name| Layout::dataset_of(name)),
            );
        }
        Ok(found)
    })
    .await
}

/// The snapshots of a volume that are whole, oldest first.
pub(super) async fn snapshots(
    layout: &Layout,
    dataset: &DatasetId,
) -> Result<Vec<(String, SubvolumeInfo)>, StorageError> {
    let directory = layout.snapshots(dataset);
    blocking(move || {
        let mut found = Vec::new();
        for name in names(&directory)? {
            if let Some(info) = info_blocking(&directory.join(&name).join(DATA))? {
                found.push((name, info));
            }
        }
        found.sort_by_key(|(_, info)| info.id);
        Ok(found)
    })
    .await
}

/// What was received by halves. The tree that becomes live next is none of it.
pub(super) async fn partials(
    layout: &Layout,
    usage: &program::Usage,
) -> Result<Vec<Partial>, StorageError> {
    let mut found = Vec::new();
    for dataset in datasets(layout).await? {
        let work = layout.work(&dataset);
        let listed = work.clone();
        for name in blocking(move || names(&listed)).await? {
            if name == NEXT {
                continue;
            }
            let info = info(&work.join(&name).join(DATA)).await?;
            found.push(Partial {
                dataset: dataset.clone(),
                bytes: info
                    .map(|info| usage.exclusive(info.id))
                    .unwrap_or_default(),
                name,
            });
        }
    }
    Ok(found)
}

/// The names of what is kept of a volume's former live trees.
pub(super) async fn diverged(
    layout: &Layout,
    dataset: &DatasetId,
) -> Result<Vec<String>, StorageError> {
    let directory = layout.all_diverged(dataset);
    blocking(move || {
        let mut found = names(&directory)?;
        found.sort();
        Ok(found)
    })
    .await
}

/// The entries of a directory; none when there is no such directory.
fn names(directory: &Path) -> Result<Vec<String>, StorageError> {
    let attempt = || format!("list {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(attempt())(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io(attempt()))?.file_name();
        names.extend(name.into_string().ok());
    }
    Ok(names)
}

/// Removes a subvolume, or a directory with the subvolumes in it. What is gone is fine.
pub(super) async fn discard(path: &Path) -> Result<(), StorageError> {
    let root = path.to_owned();
    let subvolumes = blocking(move || {
        let mut found = Vec::new();
        find_subvolumes(&root, MAX_DEPTH, &mut found)?;
        Ok(found)
    })
    .await?;
    for subvolume in subvolumes {
        program::run(
            program::Btrfs::new()
                .args(["subvolume", "delete"])
                .arg(subvolume),
        )
        .await?;
    }
    let path = path.to_owned();
    blocking(move || match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io(format!("remove {}", path.display()))(error))
        }
        Ok(()) | Err(_) => Ok(()),
    })
    .await
}

/// Moves a directory to where nothing is. One that is not there is fine.
pub(super) async fn move_away(from: &Path, to: &Path) -> Result<(), StorageError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || {
        if let Some(parent) = to.parent() {
            make_directory_blocking(parent)?;
        }
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io(format!("move {} away", from.display()))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    })
    .await
}

/// Removes the entries of a directory whose names begin with `prefix`, and the directory when
/// nothing is left in it.
pub(super) async fn discard_within(directory: &Path, prefix: &str) -> Result<(), StorageError> {
    let (root, prefix) = (directory.to_owned(), prefix.to_owned());
    let entries = blocking(move || {
        let names = names(&root)?.into_iter();
        let meant = names.filter(|name| name.starts_with(&prefix));
        Ok(meant.map(|name| root.join(name)).collect::<Vec<_>>())
    })
    .await?;
    for entry in entries {
        discard(&entry).await?;
    }
    remove_if_empty(directory).await
}

/// Removes a directory when nothing is in it. What is gone is fine.
pub(super) async fn remove_if_empty(directory: &Path) -> Result<(), StorageError> {
    let directory = directory.to_owned();
    blocking(move || match fs::remove_dir(&directory) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(io(format!("remove {}", directory.display()))(error))
        }
        Ok(()) | Err(_) => Ok(()),
    })
    .await
}

fn find_subvolumes(path: &Path, depth: u8, found: &mut Vec<PathBuf>) -> Result<(), StorageError> {
    if is_subvolume(path)? {
        found.push(path.to_owned());
        return Ok(());
    }
    let directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if let (true, Some(depth)) = (directory, depth.checked_sub(1)) {
        for name in names(path)? {
            find_subvolumes(&path.join(name), depth, found)?;
        }
    }
    Ok(())
}
