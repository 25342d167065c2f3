//! Control groups of a lab: one per host below one per lab, in every hierarchy of this machine,
//! be it version 1, version 2 or both. The host's cgroup namespace begins there, so that what
//! runs inside sees a tree of its own and nothing of it outlives the lab.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::process;
use crate::paths::{self, PathError};
use crate::stop::{Stop, Waited, wait_until};

/// Where the processes of a host are in a hierarchy of version 2: there a group whose children
/// have controllers may not hold processes itself.
pub(crate) const LEAF: &str = "init";

/// How long the kernel may take to end processes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A group that could not be ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndError {
    /// A hierarchy could not be read.
    #[error(transparent)]
    File(#[from] PathError),
    /// Processes stay.
    #[error("processes {0:?} do not end")]
    Processes(BTreeSet<u32>),
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) mount_point: PathBuf,
    /// What it controls.
    pub(crate) kind: Kind,
}

/// What a hierarchy controls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Version 1, with the options that mount it again: its controllers or its name.
    V1(String),
    /// Version 2.
    V2,
}

/// The hierarchies that this process sees, each once.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>, PathError> {
    let text = paths::read(Path::new("/proc/self/mountinfo"))?;
    let mut kinds = BTreeSet::new();
    Ok(text
        .lines()
        .filter_map(parse)
        .filter(|found| kinds.insert(found.kind.clone()))
        .collect())
}

/// Reads a line of mountinfo: mount point in field 5; behind the dash type, source, options.
fn parse(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount_point = PathBuf::from(mount.split(' ').nth(4)?);
    let mut fields = file_system.split(' ');
    let kind = match fields.next()? {
        "cgroup2" => Kind::V2,
        "cgroup" => Kind::V1(controllers(fields.nth(1)?)),
        _ => return None,
    };
    Some(Hierarchy { mount_point, kind })
}

fn controllers(options: &str) -> String {
    let plain = [
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
    ];
    let named = |option: &&str| !plain.contains(option) && !option.starts_with("release_agent=");
    let words: Vec<&str> = options.split(',').filter(named).collect();
    match words.as_slice() {
        [only] if only.starts_with("name=") => format!("none,{only}"),
        _ => words.join(","),
    }
}

/// Makes a group in every hierarchy, with the ones above it. `group` is relative to the root.
pub(crate) fn make(group: &Path) -> Result<(), PathError> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy.mount_point.clone();
        for part in group {
            if hierarchy.kind == Kind::V2 {
                delegate(&path);
            }
            path.push(part);
            paths::make_dir(&path, 0o755)?;
            inherit_cpuset(&path)?;
        }
    }
    Ok(())
}

/// Puts this process into a host's group of every hierarchy. Once the host runs, its processes
/// are in [`LEAF`] where the hierarchy has one.
pub(crate) fn join(group: &Path) -> Result<(), PathError> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.mount_point.join(group);
        let leaf = group.join(LEAF);
        enter(if leaf.is_dir() { &leaf } else { &group })?;
    }
    Ok(())
}

/// Puts this process into one group.
pub(crate) fn enter(group: &Path) -> Result<(), PathError> {
    let file = group.join("cgroup.procs");
    fs::write(&file, "0\n").map_err(PathError::at("join control group by", &file))
}

/// Lets the groups below use every controller. Some cannot be passed on (a group with processes,
/// real-time threads): those below do without.
pub(crate) fn delegate(group: &Path) {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        drop(fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        ));
    }
}

/// Kills every process in a group and below it, and removes the groups. They hold the truth about
/// what runs: a process cannot leave them without being root, nor fork out of them.
pub(crate) fn end(group: &Path) -> Result<(), EndError> {
    let mut left = BTreeSet::new();
    let mut failure = None;
    let waited = wait_until(PATIENCE, &Stop::never(), || {
        let look = processes(group).and_then(|found| {
            for pid in &found {
                process::kill(*pid);
            }
            left = found;
            try_remove(group)
        });
        look.unwrap_or_else(|error| {
            failure = Some(error);
            true
        })
    });
    match (failure, waited) {
        (Some(error), _) => Err(error.into()),
        (None, Waited::Met) => Ok(()),
        (None, Waited::TimedOut | Waited::Stopped) => Err(EndError::Processes(left)),
    }
}

/// The processes of a group and of those below it, over all hierarchies.
fn processes(group: &Path) -> Result<BTreeSet<u32>, PathError> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        for path in tree(&hierarchy.mount_point.join(group)) {
            let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
    }
    // A process of a PID namespace that this one cannot see is shown as 0.
    found.remove(&0);
    Ok(found)
}

/// Tries to remove a group and those below it from every hierarchy. False when some are in use.
fn try_remove(group: &Path) -> Result<bool, PathError> {
    let mut gone = true;
    for hierarchy in hierarchies()? {
        for path in tree(&hierarchy.mount_point.join(group)).into_iter().rev() {
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => gone = false,
            }
        }
    }
    Ok(gone)
}

/// A group and all below it, each before those inside it; nothing when it is not there.
fn tree(group: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut open = if group.is_dir() {
        vec![group.to_owned()]
    } else {
        vec![]
    };
    while let Some(path) = open.pop() {
        if let Ok(entries) = fs::read_dir(&path) {
            open.extend(
                entries
                    .filter_map(Result::ok)
                    .map(|e| e.path())
                    .filter(|p| p.is_dir()),
            );
        }
        found.push(path);
    }
    found
}

/// A new group of version 1 has no processors and no memory until it is given some, and takes no
/// process before.
fn inherit_cpuset(group: &Path) -> Result<(), PathError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(name);
        let Some(parent) = group.parent().map(|parent| parent.join(name)) else {
            continue;
        };
        let unset = fs::read_to_string(&file).is_ok_and(|value| value.trim().is_empty());
        if unset && parent.exists() && !group.join("cgroup.controllers").exists() {
            let value = paths::read(&parent)?;
            fs::write(&file, value).map_err(PathError::at("set", &file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_of_both_versions_are_understood() {
        let v1 = "34 28 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let named = "29 28 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd";
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let kind = |line| parse(line).map(|hierarchy| hierarchy.kind);
        assert_eq!(kind(v1), Some(Kind::V1("cpu,cpuacct".to_owned())));
        assert_eq!(kind(named), Some(Kind::V1("none,name=systemd".to_owned())));
        assert_eq!(kind(v2), Some(Kind::V2));
        assert_eq!(kind("23 1 8:1 / / rw - ext4 /dev/vda rw"), None);
    }
}
