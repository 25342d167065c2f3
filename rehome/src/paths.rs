//! Files and directories with errors that name them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

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
pub(crate) fn remove_tree(path: &Path) -> Result<(), PathError> {
    absent_is_fine(fs::remove_dir_all(path)).map_err(PathError::at("remove", path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
