//! The kept seeds: a file for each, in a directory for each target.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The directory of a target's seeds.
#[must_use]
pub fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The seeds of a target, by their names.
///
/// # Errors
/// When there are none.
pub fn seeds(target: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let directory = directory(target);
    let read = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut files = Vec::new();
    for entry in read {
        files.push(entry?.path());
    }
    files.sort();
    ensure!(!files.is_empty(), "{} has no seeds", directory.display());
    Ok(files.iter().map(fs::read).collect::<Result<_, _>>()?)
}
