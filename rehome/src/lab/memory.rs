//! Disks in memory: a file system of its own over the directory of a lab's disks, for hosts whose
//! disks are as fast as if each had its own. It goes with the lab, and with a restart of the machine.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::paths::{self, PathError};

/// Mounts it, unless it is there.
pub(crate) fn make(directory: &Path) -> Result<(), PathError> {
    if mount_points()?.iter().any(|point| point == directory) {
        return Ok(());
    }
    paths::make_dir(directory, 0o700)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("rehome-lab", directory, "tmpfs", flags, Some(c"mode=0700"))
        .map_err(|errno| failed("mount", directory, errno))
}

/// Unmounts it, if it is there.
pub(crate) fn remove(directory: &Path) -> Result<(), PathError> {
    if mount_points()?.iter().all(|point| point != directory) {
        return Ok(());
    }
    unmount(directory, UnmountFlags::empty()).map_err(|errno| failed("unmount", directory, errno))
}

/// Where something is mounted.
pub(crate) fn mount_points() -> Result<Vec<PathBuf>, PathError> {
    let mounts = paths::read(Path::new("/proc/self/mountinfo"))?;
    Ok(mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect())
}

fn failed(what: &'static str, directory: &Path, errno: rustix::io::Errno) -> PathError {
    PathError::at(what, directory)(io::Error::from(errno))
}
