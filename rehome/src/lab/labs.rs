//! What the labs of this machine share: the choice of networks and of directories that their
//! hosts mount over. Whoever looks at it or changes it holds one lock for a moment.

use std::fs;
use std::path::Path;

use crate::lab::lock::{Lock, LockError};
use crate::lab::site::{LabName, RUN, Site};
use crate::lab::state::LabState;
use crate::stop::Stop;

/// Takes the lock.
pub(crate) fn lock(stop: &Stop) -> Result<Lock, LockError> {
    Lock::take(Path::new(RUN).join(".labs"), stop)
}

/// The names of all labs, also of those half made or half removed.
pub(crate) fn names() -> Vec<LabName> {
    let Ok(entries) = fs::read_dir(RUN) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The records of all labs. One that cannot be read is left out: its lab only can be removed.
pub(crate) fn records() -> Vec<LabState> {
    let load = |name| LabState::load(&Site::new(name)).ok().flatten();
    names().into_iter().filter_map(load).collect()
}
