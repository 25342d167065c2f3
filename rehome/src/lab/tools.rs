//! What a lab needs of this machine before it begins: root, and programs of other packages.

use crate::invocation::find_program;
use crate::lab::state::Settings;
use crate::lab::{Backend, Runtime};

/// Why no lab can be made here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolsError {
    /// The user is not root.
    #[error("a lab needs root: it makes namespaces and networks (try `sudo rehome lab …`)")]
    NotRoot,
    /// Programs are missing.
    #[error(
        "a lab needs programs that are not installed: {names}. On Debian: apt install {packages}"
    )]
    Missing {
        /// The programs.
        names: String,
        /// The Debian packages that hold them.
        packages: String,
    },
}

/// A program and the Debian package that holds it.
type Tool = (&'static str, &'static str);

const ALWAYS: &[Tool] = &[
    ("ip", "iproute2"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("losetup", "mount"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
];
const DOCKER: &[Tool] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("containerd", "containerd"),
    ("iptables", "iptables"),
];
const BTRFS: &[Tool] = &[("mkfs.btrfs", "btrfs-progs"), ("btrfs", "btrfs-progs")];
const ZFS: &[Tool] = &[("zfs", "zfsutils-linux"), ("zpool", "zfsutils-linux")];

/// Every command of the lab but `status` needs root.
pub(crate) fn require_root() -> Result<(), ToolsError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(ToolsError::NotRoot)
    }
}

/// Names all missing programs at once.
pub(crate) fn require(settings: &Settings) -> Result<(), ToolsError> {
    let runtime = match settings.runtime {
        Runtime::Docker => DOCKER,
        Runtime::Process => &[],
    };
    let backend = match settings.backend {
        Backend::Btrfs => BTRFS,
        Backend::Zfs => ZFS,
        Backend::Directory => &[],
    };
    let needed = [ALWAYS, runtime, backend].concat();
    let missing: Vec<Tool> = needed
        .into_iter()
        .filter(|(name, _)| find_program(name).is_none())
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(report(&missing))
    }
}

fn report(missing: &[Tool]) -> ToolsError {
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    ToolsError::Missing {
        names: missing
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(", "),
        packages: packages.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_missing_programs_are_named_with_each_package_once() {
        let error = report(BTRFS).to_string();
        assert!(error.contains("mkfs.btrfs, btrfs"), "{error}");
        assert!(error.ends_with("apt install btrfs-progs"), "{error}");
    }
}
