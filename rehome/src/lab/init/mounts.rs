//! The file systems of a host: this machine's, with the host's disk over some directories and
//! with its own `/proc`, `/sys`, control groups, `/run` and `/dev/shm`.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind};

use super::Plan;
use crate::lab::cgroups::{self, Hierarchy, Kind};
use crate::lab::files::BINDS;
use crate::paths::{self, PathError};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Mounts all of it. The mount namespace is private: nothing of it reaches this machine.
pub(super) fn enter(plan: &Plan) -> Result<(), PathError> {
    for (directory, target) in BINDS {
        let source = plan.disk.join(directory);
        mount_bind(&source, *target).map_err(|e| failed(Path::new(target), e))?;
    }
    // Read before `/sys` and `/proc` of this machine disappear.
    let hierarchies = cgroups::hierarchies()?;
    pseudo("sysfs", "/sys", "")?;
    mount_cgroups(&hierarchies)?;
    pseudo("proc", "/proc", "")?;
    pseudo("tmpfs", "/run", "mode=0755")?;
    pseudo("tmpfs", "/dev/shm", "mode=1777")?;
    for directory in ["/run/lock", "/run/rehome", "/run/rehome/hold"] {
        paths::make_dir(Path::new(directory), 0o755)?;
    }
    Ok(())
}

/// Mounts the hierarchies again from inside the cgroup namespace, so that the host's own group
/// is the root of each.
fn mount_cgroups(hierarchies: &[Hierarchy]) -> Result<(), PathError> {
    let base = Path::new(CGROUPS);
    if !hierarchies
        .iter()
        .any(|hierarchy| hierarchy.mount_point == base)
    {
        pseudo("tmpfs", CGROUPS, "mode=0755")?;
    }
    for hierarchy in hierarchies
        .iter()
        .filter(|h| h.mount_point.starts_with(base))
    {
        let target = &hierarchy.mount_point;
        if target != base {
            paths::make_dir(target, 0o755)?;
        }
        let (file_system, options) = match &hierarchy.kind {
            Kind::V1(controllers) => ("cgroup", controllers.as_str()),
            Kind::V2 => ("cgroup2", ""),
        };
        mount_at(file_system, target, options)?;
        if hierarchy.kind == Kind::V2 {
            let leaf = target.join(cgroups::LEAF);
            paths::make_dir(&leaf, 0o755)?;
            cgroups::enter(&leaf)?;
            cgroups::delegate(target);
        }
    }
    Ok(())
}

fn pseudo(file_system: &str, target: &str, options: &str) -> Result<(), PathError> {
    mount_at(file_system, Path::new(target), options)
}

fn mount_at(file_system: &str, target: &Path, options: &str) -> Result<(), PathError> {
    // `/dev/shm` and `/run` of a machine may hold programs; the others hold none.
    let flags = match file_system {
        "tmpfs" => MountFlags::NOSUID | MountFlags::NODEV,
        _ => MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
    };
    let options = CString::new(options).map_err(|e| {
        PathError::at("mount", target)(io::Error::new(io::ErrorKind::InvalidInput, e))
    })?;
    mount(
        file_system,
        target,
        file_system,
        flags,
        Some(options.as_c_str()),
    )
    .map_err(|e| failed(target, e))
}

fn failed(target: &Path, error: rustix::io::Errno) -> PathError {
    PathError::at("mount", target)(error.into())
}
