//! `rehome lab down`: removes all there is of one lab and nothing else. It works from the lab's
//! name and looks at what the kernel says is there, so that a lab half made, half removed or
//! without a record goes too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::console::Console;
use crate::lab::cgroups::{self, EndError};
use crate::lab::fabric::{self, FabricError};
use crate::lab::labs;
use crate::lab::lock::{Lock, LockError};
use crate::lab::loop_devices::{self, LoopError};
use crate::lab::memory;
use crate::lab::mount_points;
use crate::lab::site::Site;
use crate::lab::state::LabState;
use crate::lab::tools::{self, ToolsError};
use crate::paths::{self, PathError};
use crate::stop::Stop;

/// A lab of which something is left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownError {
    /// The user is not root.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// Another command works on the lab.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Processes do not end.
    #[error(transparent)]
    Processes(#[from] EndError),
    /// A file or a directory cannot be removed.
    #[error(transparent)]
    File(#[from] PathError),
    /// A loop device cannot be freed.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The network cannot be removed.
    #[error("cannot remove the lab's network")]
    Fabric(#[from] FabricError),
    /// Something is mounted inside the lab's disks; removing them would remove what is mounted.
    #[error("{} is mounted inside the lab's disks: unmount it first", .0.display())]
    Mounted(PathBuf),
}

/// Removes the lab.
pub(crate) fn run(site: &Site, console: Console) -> Result<(), DownError> {
    tools::require_root()?;
    let lock = Lock::take(site.lock_file(), &Stop::never())?;
    let something = site.run_dir().exists() || site.disk_dir().exists();
    remove(site, lock)?;
    let name = site.name();
    let outcome = if something {
        "is removed"
    } else {
        "was not there"
    };
    console.progress(&format!("lab {name} {outcome}"));
    Ok(())
}

/// Removes all there is of the lab, and the lock last.
pub(crate) fn remove(site: &Site, lock: Lock) -> Result<(), DownError> {
    // A record that cannot be read only hides what the control groups show as well.
    if let Ok(Some(state)) = LabState::load(site) {
        for process in state.hosts.iter().filter_map(|host| host.process.as_ref()) {
            process.kill();
        }
    }
    cgroups::end(&site.cgroup())?;
    loop_devices::free(&disks(site)?)?;
    fabric::remove(site, &Stop::never())?;
    memory::remove(&site.disk_dir())?;
    if let Some(path) = mount_inside(&site.disk_dir())? {
        return Err(DownError::Mounted(path));
    }
    paths::remove_tree(&site.disk_dir())?;
    paths::remove_tree(&site.run_dir())?;
    let choice = labs::lock(&Stop::never())?;
    if labs::names().is_empty() {
        mount_points::remove()?;
    }
    choice.remove()?;
    lock.remove()?;
    Ok(())
}

/// The disks of the lab's hosts, as far as there are any.
fn disks(site: &Site) -> Result<Vec<PathBuf>, PathError> {
    let directory = site.disk_dir();
    match fs::read_dir(&directory) {
        Ok(entries) => Ok(entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(PathError::at("list", &directory)(error)),
    }
}

fn mount_inside(directory: &Path) -> Result<Option<PathBuf>, PathError> {
    let points = memory::mount_points()?;
    Ok(points
        .into_iter()
        .find(|point| point.starts_with(directory)))
}
