//! Loop devices that hold a file of a host's disk: the pool of its volumes.
//!
//! They are found by the file, not by its name: the kernel tells the name that the file had inside
//! the host, which is the same in every host of every lab.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::invocation::{Invocation, InvocationError};
use crate::stop::{Stop, Waited, wait_until};

/// How long the kernel may take to let go of disks.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a loop device may outlive its mount before it is detached by hand.
const AUTOCLEAR: Duration = Duration::from_secs(3);

/// A disk that is still in use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoopError {
    /// The devices could not be listed.
    #[error("cannot list the loop devices")]
    List(#[from] InvocationError),
    /// `losetup` answered something else than devices.
    #[error("cannot understand the list of loop devices")]
    Format(#[from] serde_json::Error),
    /// The device could not be detached.
    #[error("cannot free {device}")]
    Detach {
        /// The loop device.
        device: String,
        /// Why.
        #[source]
        source: InvocationError,
    },
    /// The devices stay although they were detached.
    #[error("loop devices {0:?} stay in use")]
    Busy(Vec<String>),
}

/// A file, whatever its name: its device and inode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FileId {
    device: String,
    inode: u64,
}

#[derive(Debug, Default, Deserialize)]
struct List {
    loopdevices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    #[serde(rename = "back-ino")]
    inode: u64,
    /// With blanks around it.
    #[serde(rename = "back-maj:min")]
    file_system: String,
}

/// Waits until no loop device holds a file of these disks. The kernel frees a device when its
/// last mount goes, which takes a moment after the last process of a host has ended; what no
/// mount ever held is detached here.
pub(crate) fn free(disks: &[PathBuf]) -> Result<(), LoopError> {
    let files: BTreeSet<FileId> = disks.iter().flat_map(|disk| files_of(disk)).collect();
    if files.is_empty() || wait_free(&files, AUTOCLEAR)?.is_empty() {
        return Ok(());
    }
    for device in holders(&files)? {
        let detach = Invocation::new("losetup").args(["--detach", &device]);
        if let Err(source) = detach.run(&Stop::never())
            && holders(&files)?.contains(&device)
        {
            return Err(LoopError::Detach { device, source });
        }
    }
    let left = wait_free(&files, PATIENCE)?;
    if left.is_empty() {
        Ok(())
    } else {
        Err(LoopError::Busy(left))
    }
}

/// The devices that still hold one of the files when none does or the time is up.
fn wait_free(files: &BTreeSet<FileId>, limit: Duration) -> Result<Vec<String>, LoopError> {
    let mut look = Ok(Vec::new());
    let waited = wait_until(limit, &Stop::never(), || {
        look = holders(files);
        !matches!(&look, Ok(left) if !left.is_empty())
    });
    match waited {
        Waited::Met | Waited::TimedOut | Waited::Stopped => look,
    }
}

fn holders(files: &BTreeSet<FileId>) -> Result<Vec<String>, LoopError> {
    let words = ["--list", "--json", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"];
    let text = Invocation::new("losetup").args(words).run(&Stop::never())?;
    // Without any device it prints nothing at all.
    let list: List = if text.trim().is_empty() {
        List::default()
    } else {
        serde_json::from_str(&text)?
    };
    let holds = |device: &Device| {
        files.contains(&FileId {
            device: device.file_system.trim().to_owned(),
            inode: device.inode,
        })
    };
    Ok(list
        .loopdevices
        .into_iter()
        .filter(holds)
        .map(|device| device.name)
        .collect())
}

/// The files that a host keeps in `/var/lib/rehome` itself: there lies its pool.
fn files_of(disk: &Path) -> Vec<FileId> {
    let Ok(entries) = fs::read_dir(disk.join("rehome")) else {
        return Vec::new();
    };
    let identify = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let (major, minor) = (
            rustix::fs::major(metadata.dev()),
            rustix::fs::minor(metadata.dev()),
        );
        Some(FileId {
            device: format!("{major}:{minor}"),
            inode: metadata.ino(),
        })
    };
    entries.filter_map(|entry| identify(entry.ok()?)).collect()
}
