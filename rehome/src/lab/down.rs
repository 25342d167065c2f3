//! `rehome lab down`: removes all there is of one lab and nothing else. It works from the lab's
//! name and looks at what the kernel says is there, so that a lab half made, half removed or
//! without a record goes too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::console::Console;
use crate::invocation::{Invocation, InvocationError};
use crate::lab::cgroups::{self, EndError};
use crate::lab::fabric::{self, FabricError};
use crate::lab::labs;
use crate::lab::lock::{Lock, LockError};
use crate::lab::mount_points;
use crate::lab::site::Site;
use crate::lab::state::LabState;
use crate::lab::tools::{self, ToolsError};
use crate::paths::{self, PathError};
use crate::stop::{Stop, Waited, wait_until};

/// How long the kernel may take to let go of disks.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a loop device may outlive its mount before it is detached by hand.
const AUTOCLEAR: Duration = Duration::from_secs(3);

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

/// A disk that is still in use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoopError {
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
    free_loop_devices(&site.disk_dir())?;
    fabric::remove(site, &Stop::never())?;
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

/// Waits until no loop device holds a file below `directory`. The kernel frees a device when the
/// last mount of it goes, which takes a moment after the last process of a host has ended.
pub(crate) fn free_loop_devices(directory: &Path) -> Result<(), LoopError> {
    let never = Stop::never();
    if wait_until(AUTOCLEAR, &never, || loop_devices(directory).is_empty()) == Waited::Met {
        return Ok(());
    }
    for device in loop_devices(directory) {
        let detached = Invocation::new("losetup")
            .args(["--detach", &device])
            .run(&never);
        if let Err(source) = detached
            && loop_devices(directory).contains(&device)
        {
            return Err(LoopError::Detach { device, source });
        }
    }
    match wait_until(PATIENCE, &never, || loop_devices(directory).is_empty()) {
        Waited::Met => Ok(()),
        Waited::TimedOut | Waited::Stopped => Err(LoopError::Busy(loop_devices(directory))),
    }
}

fn loop_devices(directory: &Path) -> Vec<String> {
    let Ok(devices) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let backed = |entry: fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let device = entry.file_name().into_string().ok()?;
        Path::new(file.trim_end())
            .starts_with(directory)
            .then(|| format!("/dev/{device}"))
    };
    devices.filter_map(|entry| backed(entry.ok()?)).collect()
}

fn mount_inside(directory: &Path) -> Result<Option<PathBuf>, PathError> {
    let mounts = paths::read(Path::new("/proc/self/mountinfo"))?;
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    Ok(points
        .into_iter()
        .find(|point| point.starts_with(directory)))
}
