//! The cgroup of an application: its limits, and a second proof that nothing of it is left.
//!
//! Works on cgroup v2, on v1, and on hosts that have both. A controller that the host does not
//! offer is named in a warning, and the application runs without that limit: its end does not
//! depend on cgroups.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rehome_shared::units::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::runtime::Cpus;
use crate::runtime::quota::{self, QuotaError};

/// All of ours lie below this one.
const PARENT: &str = "rehome";

/// Between two looks at a cgroup that is about to become empty.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What an application may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Memory.
    pub(super) memory: Option<Bytes>,
    /// Weight as Docker counts it: 1024 is the usual one.
    pub(super) cpu_shares: Option<u64>,
}

/// A mounted hierarchy that can hold our groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unified,
    V1 { memory: bool, cpu: bool },
}

/// The directories of a cgroup, one in each hierarchy.
#[derive(Debug)]
pub(super) struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes a cgroup with its limits. Also returns what could not be had.
    pub(super) fn create(name: &str, limits: Limits) -> (Self, Vec<String>) {
        let mut this = Self {
            directories: Vec::new(),
        };
        let mut missing = Vec::new();
        let (mut memory, mut cpu) = (limits.memory.is_none(), limits.cpu_shares.is_none());
        for Hierarchy { mount, kind } in hierarchies() {
            let directory = mount.join(PARENT).join(name);
            if kind == Kind::Unified {
                enable_controllers(&mount);
            }
            if let Err(error) = fs::create_dir_all(&directory) {
                missing.push(format!("cannot make {}: {error}", directory.display()));
                continue;
            }
            if kind == Kind::Unified {
                enable_controllers(&mount.join(PARENT));
                // Only what was enabled above has a file here.
                memory = memory || set(&directory, "memory.max", limits.memory.map(|m| m.0));
                let weight = limits.cpu_shares.map(weight_of);
                cpu = cpu || set(&directory, "cpu.weight", weight);
            }
            if let Kind::V1 {
                memory: has_memory,
                cpu: has_cpu,
            } = kind
            {
                let bytes = limits.memory.map(|memory| memory.0);
                memory = memory || has_memory && set(&directory, "memory.limit_in_bytes", bytes);
                cpu = cpu || has_cpu && set(&directory, "cpu.shares", limits.cpu_shares);
            }
            this.directories.push(directory);
        }
        // One that an earlier run left behind may still be held.
        if let Err(error) = this.throttle(None) {
            missing.push(format!("its processor time may be limited: {error}"));
        }
        if this.directories.is_empty() {
            missing.push("this host offers no cgroups".to_owned());
        }
        for (had, what) in [(memory, "mem_limit"), (cpu, "cpu_shares")] {
            if !had {
                missing.push(format!(
                    "{what} is not enforced: its controller is not available"
                ));
            }
        }
        (this, missing)
    }

    /// The directories of a cgroup that are there.
    pub(super) fn find(name: &str) -> Self {
        let place = |hierarchy: Hierarchy| hierarchy.mount.join(PARENT).join(name);
        let directories = hierarchies()
            .into_iter()
            .map(place)
            .filter(|path| path.is_dir());
        Self {
            directories: directories.collect(),
        }
    }

    /// Holds it to so much of the processors, or lets it run free.
    pub(super) fn throttle(&self, cpus: Option<Cpus>) -> Result<(), QuotaError> {
        quota::set(&self.directories, cpus)
    }

    /// What is in it, as this process numbers it.
    pub(super) fn members(&self) -> BTreeSet<u32> {
        let numbers = self.processes().into_iter();
        numbers
            .filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
            .collect()
    }

    /// Moves a process into it.
    pub(super) fn add(&self, process: u32) -> io::Result<()> {
        for directory in &self.directories {
            fs::write(directory.join("cgroup.procs"), process.to_string())?;
        }
        Ok(())
    }

    /// Kills what is in it.
    pub(super) fn kill(&self) {
        for process in self.processes() {
            // One that has just ended is what is wanted.
            let _gone = kill_process(process, Signal::KILL);
        }
    }

    /// Waits until nothing is left in it; tells whether that came to be.
    pub(super) async fn empty_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.processes().is_empty() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        true
    }

    /// Removes it when it is empty. One that stays takes nothing and is used again or seen.
    pub(super) fn remove(&self) {
        for directory in &self.directories {
            if let Err(error) = fs::remove_dir(directory)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %directory.display(), %error, "a cgroup is left behind");
            }
        }
    }

    fn processes(&self) -> Vec<Pid> {
        let members = |directory: &PathBuf| {
            fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default()
        };
        let texts: Vec<_> = self.directories.iter().map(members).collect();
        let numbers = texts.iter().flat_map(|text| text.lines());
        numbers
            .filter_map(|line| Pid::from_raw(line.parse().ok()?))
            .collect()
    }
}

/// Lets groups below have limits. What is not available or not allowed shows when a limit is set.
fn enable_controllers(group: &Path) {
    for controller in ["+memory", "+cpu"] {
        let _not_available = fs::write(group.join("cgroup.subtree_control"), controller);
    }
}

/// Whether a limit is in force.
fn set(directory: &Path, file: &str, value: Option<u64>) -> bool {
    let path = directory.join(file);
    // A file that is not there must not be made.
    value.is_some_and(|value| path.exists() && fs::write(&path, value.to_string()).is_ok())
}

/// The weight of v2 for shares of v1, as the container runtimes count it.
fn weight_of(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

fn hierarchies() -> Vec<Hierarchy> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Reads the hierarchies out of a mountinfo file: those of v2, memory and cpu, each once.
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut right = right.split(' ');
        let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
        let has = |name: &str| options.split(',').any(|option| option == name);
        let kind = match kind {
            Some("cgroup2") => Kind::Unified,
            Some("cgroup") if has("memory") || has("cpu") => Kind::V1 {
                memory: has("memory"),
                cpu: has("cpu"),
            },
            Some(_) | None => continue,
        };
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        if !found.iter().any(|known| known.kind == kind) {
            found.push(Hierarchy { mount, kind });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let hybrid = "\
            25 1 0:22 / / rw - ext4 /dev/vda rw\n\
            30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            35 30 0:30 / /mnt/again rw - cgroup2 cgroup2 rw\n";
        let at = |mount: &str, kind| Hierarchy {
            mount: mount.into(),
            kind,
        };
        assert_eq!(
            parse_mounts(hybrid),
            [
                at(
                    "/sys/fs/cgroup/cpu,cpuacct",
                    Kind::V1 {
                        memory: false,
                        cpu: true
                    }
                ),
                at(
                    "/sys/fs/cgroup/memory",
                    Kind::V1 {
                        memory: true,
                        cpu: false
                    }
                ),
                at("/sys/fs/cgroup/unified", Kind::Unified),
            ]
        );
    }

    #[test]
    fn weights_keep_their_ends() {
        assert_eq!(
            (weight_of(0), weight_of(2), weight_of(262_144)),
            (1, 1, 10_000)
        );
        assert_eq!(weight_of(1024), 39);
    }
}
