//! Files that are replaced whole and read with a checksum.
//!
//! After a crash at any moment a file holds either its old or its new content. A file that was
//! damaged otherwise is [`LoadError::Corrupt`], never an empty value; one that never was is
//! [`LoadError::Absent`], which the caller decides about.
//!
//! The form: one header line with the checksum of all that follows, then JSON.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failpoint;

/// Begins every file; the number is the version of the form.
const MAGIC: &str = "rehome-store 1 blake3=";

/// More than any state of ours; a larger file is not ours.
const MAX_BYTES: u64 = 256 << 20;

/// Why a file could not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The value cannot be written as JSON.
    #[error("cannot write {path} as JSON", path = .path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The file system refused.
    #[error("cannot replace {path}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("{path} does not exist", path = .path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {reason}", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot read {path}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Replaces a file's content, durably: a temporary file beside it, synced, renamed over it, and
/// the directory synced. The new file has mode 0600. Blocks.
///
/// # Errors
/// [`SaveError::Io`]; the old content is then still there.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), SaveError> {
    let attempt = || -> io::Result<()> {
        let directory = directory_of(path);
        let mut temporary = tempfile::Builder::new()
            .prefix(&leftover_prefix(path))
            .suffix(LEFTOVER_SUFFIX)
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        temporary.write_all(content)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|failed| failed.error)?;
        File::open(directory)?.sync_all()
    };
    failpoint::hit(|| point(path, "before"));
    attempt().map_err(|source| SaveError::Io {
        path: path.to_owned(),
        source,
    })?;
    failpoint::hit(|| point(path, "after"));
    Ok(())
}

/// The name of a fail point of a file.
fn point(path: &Path, when: &str) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    format!("store/{file}/{when}")
}

/// Replaces a file by a value with its checksum. Blocks.
///
/// # Errors
/// [`SaveError`]; the old content is then still there.
pub fn save_blocking<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), SaveError> {
    replace(path, &encode(path, value)?)
}

/// Reads a value that [`save`] wrote. Blocks.
///
/// # Errors
/// [`LoadError`], which tells absent from damaged.
pub fn load_blocking<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let content = read_all(path)?;
    decode(&content).map_err(|reason| LoadError::Corrupt {
        path: path.to_owned(),
        reason,
    })
}

/// [`save_blocking`] on a thread that may block.
///
/// # Errors
/// [`SaveError`]; the old content is then still there.
///
/// # Cancel safety
/// A dropped call still finishes: the file then has its old or its new content, whole.
pub async fn save<T: Serialize + Sync + ?Sized>(path: &Path, value: &T) -> Result<(), SaveError> {
    let content = encode(path, value)?;
    let target = path.to_owned();
    tokio::task::spawn_blocking(move || replace(&target, &content))
        .await
        .unwrap_or_else(|error| {
            Err(SaveError::Io {
                path: path.to_owned(),
                source: error.into(),
            })
        })
}

/// [`load_blocking`] on a thread that may block.
///
/// # Errors
/// [`LoadError`], which tells absent from damaged.
///
/// # Cancel safety
/// Cancel safe: it only reads.
pub async fn load<T: DeserializeOwned + Send + 'static>(path: &Path) -> Result<T, LoadError> {
    let source_path = path.to_owned();
    tokio::task::spawn_blocking(move || load_blocking(&source_path))
        .await
        .unwrap_or_else(|error| {
            Err(LoadError::Io {
                path: path.to_owned(),
                source: error.into(),
            })
        })
}

/// Removes what a crash in the middle of a [`replace`] left beside the file. Call it once at
/// start, before the first save. Blocks.
///
/// # Errors
/// When the directory cannot be read or a leftover cannot be removed.
pub fn remove_leftovers(path: &Path) -> io::Result<()> {
    let prefix = leftover_prefix(path);
    for entry in fs::read_dir(directory_of(path))? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix) && name.ends_with(LEFTOVER_SUFFIX));
        if ours {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

const LEFTOVER_SUFFIX: &str = ".new";

fn leftover_prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.")
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn encode<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<Vec<u8>, SaveError> {
    let json = serde_json::to_vec(value).map_err(|source| SaveError::Encode {
        path: path.to_owned(),
        source,
    })?;
    let mut content = format!("{MAGIC}{}\n", blake3::hash(&json).to_hex()).into_bytes();
    content.extend_from_slice(&json);
    content.push(b'\n');
    Ok(content)
}

fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, String> {
    let end = content
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("the header is missing")?;
    let (header, rest) = content.split_at(end);
    let checksum = std::str::from_utf8(header)
        .ok()
        .and_then(|header| header.strip_prefix(MAGIC))
        .ok_or("the header is not one of this version")?;
    let json = rest
        .strip_prefix(b"\n")
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .ok_or("the end is missing")?;
    if blake3::hash(json).to_hex().as_str() != checksum {
        return Err("the checksum does not match".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| format!("the content has another form: {error}"))
}

fn read_all(path: &Path) -> Result<Vec<u8>, LoadError> {
    let fail = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            LoadError::Absent {
                path: path.to_owned(),
            }
        } else {
            LoadError::Io {
                path: path.to_owned(),
                source,
            }
        }
    };
    let file = File::open(path).map_err(fail)?;
    let mut content = Vec::new();
    // One byte more than allowed, so that "too long" is seen.
    let length = file
        .take(MAX_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(fail)?;
    if u64::try_from(length).is_ok_and(|length| length <= MAX_BYTES) {
        return Ok(content);
    }
    Err(LoadError::Corrupt {
        path: path.to_owned(),
        reason: "it is far too long".to_owned(),
    })
}

#[cfg(test)]
mod tests;
