//! One command at a time works on a lab. The lock is the kernel's, so that it goes with the
//! process that held it, and its file goes with the lab.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::lab::site::RUN;
use crate::paths::{self, PathError};
use crate::stop::{Stop, Waited, wait_until};

/// How long a command waits for another one.
const PATIENCE: Duration = Duration::from_mins(2);

/// A lock that could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Its file could not be used.
    #[error(transparent)]
    File(#[from] PathError),
    /// Another command holds it.
    #[error("another `rehome lab` command has worked on this lab for {} s", PATIENCE.as_secs())]
    Busy,
    /// The user asked to stop while waiting for it.
    #[error("interrupted while another `rehome lab` command worked on this lab")]
    Stopped,
}

/// The lock, held until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock and takes it.
    pub(crate) fn take(path: PathBuf, stop: &Stop) -> Result<Self, LockError> {
        paths::make_dir(Path::new(RUN), 0o755)?;
        let mut held = Ok(None);
        let waited = wait_until(PATIENCE, stop, || {
            held = try_lock(&path);
            !matches!(held, Ok(None))
        });
        match (held?, waited) {
            (Some(file), _) => Ok(Self { _file: file, path }),
            (None, Waited::Stopped) => Err(LockError::Stopped),
            (None, Waited::TimedOut | Waited::Met) => Err(LockError::Busy),
        }
    }

    /// Gives the lock back and removes its file. Whoever waits for it sees that the file is not
    /// the one at the path any more, and begins again.
    pub(crate) fn remove(self) -> Result<(), LockError> {
        Ok(paths::remove_file(&self.path)?)
    }
}

/// The locked file, or nothing when another process holds the lock.
fn try_lock(path: &Path) -> Result<Option<File>, LockError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(PathError::at("open lock", path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let locked = file
        .metadata()
        .map_err(PathError::at("inspect lock", path))?;
    let current =
        fs::metadata(path).is_ok_and(|m| m.ino() == locked.ino() && m.dev() == locked.dev());
    Ok(current.then_some(file))
}
