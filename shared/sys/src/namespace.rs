//! Namespaces of the calling thread.

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Mounts; also unshares the root and current directory from other threads.
    Mount,
    /// Network devices, addresses, ports.
    Network,
    /// Process ids: of the children from now on, the first of which is its process 1.
    Pid,
    /// Host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
}

impl Namespace {
    fn flag(self) -> UnshareFlags {
        match self {
            Self::Mount => UnshareFlags::NEWNS,
            Self::Network => UnshareFlags::NEWNET,
            Self::Pid => UnshareFlags::NEWPID,
            Self::Uts => UnshareFlags::NEWUTS,
            Self::Ipc => UnshareFlags::NEWIPC,
        }
    }
}

/// Moves the calling thread, and only this thread, into new namespaces. Call it while the
/// process has one thread, so that no part of it stays behind.
///
/// # Errors
/// The kernel's: `EPERM` without the capability.
pub fn unshare(namespaces: &[Namespace]) -> io::Result<()> {
    let flags = namespaces
        .iter()
        .fold(UnshareFlags::empty(), |all, one| all | one.flag());
    // SAFETY: the call is unsafe because of CLONE_FILES, after which descriptors of one thread
    // mean nothing in another. `Namespace` has no such variant, so the flag is never set.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(kind: &str) -> io::Result<std::path::PathBuf> {
        std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))
    }

    #[test]
    fn only_the_calling_thread_moves() {
        if !rustix::process::geteuid().is_root() {
            // Without root the refusal is what there is to see.
            assert_eq!(
                unshare(&[Namespace::Uts]).unwrap_err().raw_os_error(),
                Some(1)
            );
            return;
        }
        let before = (own("uts").unwrap(), own("net").unwrap());
        let inside = std::thread::spawn(|| {
            unshare(&[Namespace::Uts, Namespace::Network]).unwrap();
            (own("uts").unwrap(), own("net").unwrap())
        })
        .join()
        .unwrap();
        assert_ne!(inside.0, before.0);
        assert_ne!(inside.1, before.1);
        assert_eq!((own("uts").unwrap(), own("net").unwrap()), before);
    }
}
