//! Files and directories with errors that name them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

/// How many threads remove a tree.
const REMOVERS: usize = 16;

/// Something in a tree that is to be removed. A link counts as a file, wherever it leads.
struct Entry {
    path: PathBuf,
    is_dir: bool,
}

/// An operation on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub(crate) struct PathError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl PathError {
    /// For `map_err`: what was attempted, on which file.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the operation failed because the file is absent.
    pub(crate) fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Makes a directory and those above it; none of it may be there already or all of it may.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), PathError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(PathError::at("create directory", path))
}

/// Reads a text file.
pub(crate) fn read(path: &Path) -> Result<String, PathError> {
    fs::read_to_string(path).map_err(PathError::at("read", path))
}

/// Writes a file that must not be there yet.
pub(crate) fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), PathError> {
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(PathError::at("write", path))
}

/// Replaces a file: a reader sees the old text or the new one, never a part.
pub(crate) fn replace(path: &Path, mode: u32, text: &str) -> Result<(), PathError> {
    let write = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(PathError::at("replace", path))
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), PathError> {
    absent_is_fine(fs::remove_file(path)).map_err(PathError::at("remove", path))
}

/// Removes a directory with all it holds; one that is not there is fine.
///
/// A container engine's disk is many thousand small files. On file systems that discard freed
/// blocks at once each removal waits for the device, so they are removed in parallel, level by
/// level from the deepest.
pub(crate) fn remove_tree(path: &Path) -> Result<(), PathError> {
    for level in levels(path)?.into_iter().rev() {
        let share = level.len().div_ceil(REMOVERS).max(1);
        let removed: Result<(), PathError> = thread::scope(|scope| {
            let parts: Vec<_> = level
                .chunks(share)
                .map(|part| scope.spawn(|| remove_all(part)))
                .collect();
            // All are waited for before the first failure is told.
            let results: Vec<_> = parts.into_iter().map(ScopedJoinHandle::join).collect();
            results
                .into_iter()
                .try_for_each(|result| result.unwrap_or(Ok(())))
        });
        removed?;
    }
    Ok(())
}

/// What is in a directory, by its distance from there; the directory itself comes first.
fn levels(path: &Path) -> Result<Vec<Vec<Entry>>, PathError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PathError::at("inspect", path)(error)),
        Ok(_) => {}
    }
    let mut found = Vec::new();
    let mut level = vec![Entry {
        path: path.to_owned(),
        is_dir: true,
    }];
    while !level.is_empty() {
        let mut next = Vec::new();
        for directory in level.iter().filter(|entry| entry.is_dir) {
            list(&directory.path, &mut next).map_err(PathError::at("list", &directory.path))?;
        }
        found.push(std::mem::replace(&mut level, next));
    }
    Ok(found)
}

fn list(directory: &Path, into: &mut Vec<Entry>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        into.push(Entry {
            path: entry.path(),
            is_dir: entry.file_type()?.is_dir(),
        });
    }
    Ok(())
}

fn remove_all(entries: &[Entry]) -> Result<(), PathError> {
    entries.iter().try_for_each(|Entry { path, is_dir }| {
        let removed = if *is_dir {
            fs::remove_dir(path)
        } else {
            fs::remove_file(path)
        };
        absent_is_fine(removed).map_err(PathError::at("remove", path))
    })
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, other) = (
            directory.path().join("tree"),
            directory.path().join("other"),
        );
        make_dir(&tree.join("a/b/c"), 0o755).unwrap();
        make_dir(&other, 0o755).unwrap();
        write_new(&other.join("kept"), 0o644, "kept").unwrap();
        for number in 0..100 {
            write_new(&tree.join(format!("a/b/{number}")), 0o644, "").unwrap();
        }
        std::os::unix::fs::symlink(&other, tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(read(&other.join("kept")).unwrap(), "kept");
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_file_that_is_there_is_not_written_as_new() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        write_new(&file, 0o600, "first").unwrap();
        assert!(write_new(&file, 0o600, "second").is_err());
        assert_eq!(read(&file).unwrap(), "first");
        replace(&file, 0o600, "third").unwrap();
        assert_eq!(read(&file).unwrap(), "third");
    }
}
