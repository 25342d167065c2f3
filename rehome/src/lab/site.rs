//! Where everything of one lab lies on this machine. Every name comes from the lab's name alone,
//! so that a lab can be removed without any record of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hash::fnv1a;

/// The directory of what lives until the machine restarts: state, sockets' parents, locks.
pub(crate) const RUN: &str = "/run/rehome-lab";

/// The directory of the hosts' disks.
pub(crate) const DISKS: &str = "/var/lib/rehome-lab";

/// A lab's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct LabName(String);

/// A text that cannot name a lab.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("use 1 to 32 lower-case letters, digits or '-', and begin with a letter or a digit")]
pub(crate) struct InvalidLabName;

impl FromStr for LabName {
    type Err = InvalidLabName;

    fn from_str(text: &str) -> Result<Self, InvalidLabName> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = text.len() <= 32
            && text.starts_with(plain)
            && text.chars().all(|c| plain(c) || c == '-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidLabName)
        }
    }
}

impl TryFrom<String> for LabName {
    type Error = InvalidLabName;

    fn try_from(text: String) -> Result<Self, InvalidLabName> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The places and kernel objects of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    name: LabName,
}

impl Site {
    /// The site of a lab.
    pub(crate) fn new(name: LabName) -> Self {
        Self { name }
    }

    /// The lab's name.
    pub(crate) fn name(&self) -> &LabName {
        &self.name
    }

    /// The directory of what lives until the machine restarts.
    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new(RUN).join(&self.name.0)
    }

    /// The file whose lock lets one command at a time work on the lab.
    pub(crate) fn lock_file(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.lock", self.name))
    }

    /// The lab's record of itself.
    pub(crate) fn state_file(&self) -> PathBuf {
        self.run_dir().join("state.json")
    }

    /// The file that keeps the network namespace of the bridge.
    pub(crate) fn fabric(&self) -> PathBuf {
        self.run_dir().join("fabric")
    }

    /// What a host's first process is to do.
    pub(crate) fn plan_file(&self, host: &str) -> PathBuf {
        self.run_dir().join(format!("{host}.json"))
    }

    /// The directory of the lab's disks.
    pub(crate) fn disk_dir(&self) -> PathBuf {
        Path::new(DISKS).join(&self.name.0)
    }

    /// The disk of a host.
    pub(crate) fn host_disk(&self, host: &str) -> PathBuf {
        self.disk_dir().join(host)
    }

    /// The lab's certificate authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.disk_dir().join("ca")
    }

    /// The lab's control group, below the root of each hierarchy.
    pub(crate) fn cgroup(&self) -> PathBuf {
        PathBuf::from(format!("rehome-lab-{}", self.name))
    }

    /// The control group of a host.
    pub(crate) fn cgroup_of(&self, host: &str) -> PathBuf {
        self.cgroup().join(host)
    }

    /// The network interface of this machine that leads into the lab. Linux allows it 15 bytes,
    /// so it carries 48 bits of a hash of the name.
    pub(crate) fn uplink(&self) -> String {
        format!("rh{:012x}", fnv1a(self.name.0.as_bytes()) >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_fit_and_differ() {
        let uplink = |name: &str| Site::new(name.parse().unwrap()).uplink();
        assert_eq!(uplink("rehome").len(), 14);
        assert_ne!(uplink("rehome"), uplink("rehome-2"));
        let long = "a".repeat(32);
        assert_ne!(uplink(&long), uplink(&long.replacen("aa", "ab", 1)));
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-a", "A", "a b", &"a".repeat(33)] {
            assert_eq!(bad.parse::<LabName>(), Err(InvalidLabName), "{bad:?}");
        }
    }
}
