//! The file of a Unix socket: made for root alone, replaced when nobody answers on it, removed
//! with its server, and never somebody else's.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::BindError;

/// How long a connect to an existing socket may take. A full backlog makes it wait, and then
/// somebody holds the socket.
const PROBE_TIME: Duration = Duration::from_secs(1);

/// Removes the file when it is dropped, unless it has become another one meanwhile.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    stays: FileStays,
}

/// Says whether the file of a socket stays when its server ends, because another process has the
/// same socket and the file is its own. Clones share.
#[derive(Debug, Clone, Default)]
pub struct FileStays(Arc<AtomicBool>);

impl FileStays {
    /// The file is another process's from now on.
    pub fn stay(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// It is this server's, and goes with it.
    pub fn go(&self) {
        self.0.store(false, Ordering::Release);
    }
}

impl SocketFile {
    /// The file of a socket that another process made; it stays until that is said.
    pub(super) fn adopt(path: &Path) -> io::Result<Self> {
        let file = Self {
            path: path.to_owned(),
            identity: identity(path)?,
            stays: FileStays::default(),
        };
        file.stays.stay();
        Ok(file)
    }

    pub(super) fn stays(&self) -> FileStays {
        self.stays.clone()
    }
}

pub(super) async fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    check_free(path).await?;
    make(path).map_err(|source| BindError::Unix {
        path: path.to_owned(),
        source,
    })
}

async fn check_free(path: &Path) -> Result<(), BindError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Unix {
                path: path.to_owned(),
                source,
            });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket {
            path: path.to_owned(),
        });
    }
    match tokio::time::timeout(PROBE_TIME, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // It vanished between the two looks.
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(source)) => Err(BindError::Unix {
            path: path.to_owned(),
            source,
        }),
        Ok(Ok(_)) | Err(_) => Err(BindError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Makes the socket under a temporary name, closes it to others, and only then gives it its
/// name: nobody can connect to it before its mode is right.
fn make(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    fs::rename(&temporary, path)?;
    let identity = identity(path)?;
    Ok((
        listener,
        SocketFile {
            path: path.to_owned(),
            identity,
            stays: FileStays::default(),
        },
    ))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.stays.0.load(Ordering::Acquire) {
            return;
        }
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // A file that stays is replaced by the next start.
            let _removed = fs::remove_file(&self.path);
        }
    }
}
