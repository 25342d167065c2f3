//! Opening a pool: a directory on btrfs as it is, or an image file that is made once and mounted
//! at every start.
//!
//! Nothing that exists is ever formatted: an image is made beside its place and renamed into it,
//! and only where there is no file, or one without a byte of data.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rehome_runtime::command::{CommandError, ExternalCommand};
use rehome_shared::units::Bytes;

use super::{program, tree};
use crate::storage::StorageError;

/// `BTRFS_SUPER_MAGIC` of `linux/magic.h`.
const BTRFS: u64 = 0x9123_683e;

/// Where a btrfs file system has its mark, and the mark.
const MARK_OFFSET: u64 = 0x1_0040;
const MARK: [u8; 8] = *b"_BHRfS_M";

/// How long a program may take to make or mount a file system.
const PATIENCE: Duration = Duration::from_mins(2);

/// What is kept free: a btrfs that is filled to the last block cannot even delete.
const LEAST_MARGIN: u64 = 16 << 20;
const MARGIN_PART: u64 = 50;

/// Where a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// A directory; made when it is absent.
    pub path: PathBuf,
    /// What is mounted there when the directory is not on btrfs.
    pub image: Option<PoolImage>,
}

/// A file that holds a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolImage {
    /// The file; made when it is absent.
    pub path: PathBuf,
    /// Its size when it is made. It is sparse: it takes what is in it.
    pub size: Bytes,
}

/// Why a pool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No btrfs, and no image to make one.
    #[error(
        "{path} is not on btrfs: mount one there, or name an image file under storage.image",
        path = .path.display()
    )]
    NotBtrfs {
        /// The directory.
        path: PathBuf,
    },
    /// The mount would hide files.
    #[error("{path} is not empty, and mounting the pool there would hide what is in it", path = .path.display())]
    Hides {
        /// The directory.
        path: PathBuf,
    },
    /// Something else is in the image file.
    #[error("{path} holds something that is not a btrfs pool; it was left as it is", path = .path.display())]
    Occupied {
        /// The file.
        path: PathBuf,
    },
    /// A program failed.
    #[error("cannot {attempt}")]
    Program {
        /// What was attempted.
        attempt: String,
        /// The cause.
        #[source]
        source: CommandError,
    },
    /// The file system failed.
    #[error("cannot {attempt}")]
    Io {
        /// What was attempted.
        attempt: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The pool is there but cannot be used.
    #[error("cannot prepare the pool")]
    Prepare(#[source] StorageError),
}

/// What is at the place of an image.
enum Found {
    Nothing,
    Pool,
}

/// Brings the pool to its path. Returns the image that it lies in, if any.
pub(super) async fn prepare(config: &PoolConfig) -> Result<Option<PathBuf>, OpenError> {
    let path = &config.path;
    fs::create_dir_all(path).map_err(io_error(format!("make {}", path.display())))?;
    let mut image = config.image.as_ref().map(|image| image.path.clone());
    if is_btrfs(path)? {
        image = image.filter(|image| image.exists());
    } else {
        let Some(image) = &config.image else {
            return Err(OpenError::NotBtrfs { path: path.clone() });
        };
        let listing = fs::read_dir(path).map_err(io_error(format!("list {}", path.display())));
        if listing?.next().is_some() {
            return Err(OpenError::Hides { path: path.clone() });
        }
        if let Found::Nothing = look_at(&image.path)? {
            make_image(image).await?;
            tracing::info!(image = %image.path.display(), size = %image.size, "made a storage pool");
        }
        mount(&image.path, path).await?;
    }
    program::enable_quotas(path)
        .await
        .map_err(|source| OpenError::Program {
            attempt: format!("switch quotas on at {}", path.display()),
            source,
        })?;
    Ok(image)
}

fn is_btrfs(path: &Path) -> Result<bool, OpenError> {
    let attempt = || format!("inspect the file system of {}", path.display());
    let info = rustix::fs::statfs(path).map_err(|error| io_error(attempt())(error.into()))?;
    Ok(u64::try_from(info.f_type).is_ok_and(|kind| kind == BTRFS))
}

fn look_at(image: &Path) -> Result<Found, OpenError> {
    let attempt = || format!("inspect {}", image.display());
    let metadata = match fs::metadata(image) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(io_error(attempt())(error)),
    };
    let occupied = || OpenError::Occupied {
        path: image.to_owned(),
    };
    if !metadata.is_file() {
        return Err(occupied());
    }
    if metadata.blocks() == 0 {
        return Ok(Found::Nothing);
    }
    let file = File::open(image).map_err(io_error(attempt()))?;
    let mut mark = [0; 8];
    match file.read_exact_at(&mut mark, MARK_OFFSET) {
        Ok(()) if mark == MARK => Ok(Found::Pool),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(io_error(attempt())(error))
        }
        Ok(()) | Err(_) => Err(occupied()),
    }
}

async fn make_image(image: &PoolImage) -> Result<(), OpenError> {
    let mut new = image.path.clone().into_os_string();
    new.push(".new");
    let new = PathBuf::from(new);
    let attempt = || format!("make {}", new.display());
    if let Some(parent) = image.path.parent() {
        fs::create_dir_all(parent).map_err(io_error(format!("make {}", parent.display())))?;
    }
    // Whoever can read the image can read every volume.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new);
    let file = file.map_err(io_error(attempt()))?;
    file.set_len(image.size.0).map_err(io_error(attempt()))?;
    let format = ExternalCommand::new("mkfs.btrfs").arg("-q").arg(&new);
    if let Err(source) = format.run(PATIENCE).await {
        // The error counts; the leftover is overwritten by the next try.
        let _removed = fs::remove_file(&new);
        let attempt = format!(
            "make a file system of {} in {}",
            image.size,
            image.path.display()
        );
        return Err(OpenError::Program { attempt, source });
    }
    let place = || -> io::Result<()> {
        file.sync_all()?;
        fs::rename(&new, &image.path)?;
        File::open(image.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    place().map_err(io_error(format!("put {} in place", image.path.display())))
}

async fn mount(image: &Path, path: &Path) -> Result<(), OpenError> {
    let command = ExternalCommand::new("mount").args(["-t", "btrfs", "-o", "loop,noatime"]);
    command
        .arg(image)
        .arg(path)
        .run(PATIENCE)
        .await
        .map(drop)
        .map_err(|source| {
            let attempt = format!("mount {} at {}", image.display(), path.display());
            OpenError::Program { attempt, source }
        })
}

/// What new data may take: what the file system says, less a margin, and no more than the sparse
/// image below it can grow.
pub(super) fn available_blocking(pool: &Path, image: Option<&Path>) -> Result<Bytes, StorageError> {
    let stat = |path: &Path| {
        let attempt = format!("inspect the file system of {}", path.display());
        rustix::fs::statvfs(path).map_err(|error| tree::io(attempt)(error.into()))
    };
    let own = stat(pool)?;
    let bytes = |blocks: u64| blocks.saturating_mul(own.f_frsize);
    let mut free = bytes(own.f_bavail);
    if let Some(image) = image {
        let below = stat(image.parent().unwrap_or(Path::new("/")))?;
        let file = fs::metadata(image).map_err(tree::io(format!("inspect {}", image.display())))?;
        let used = bytes(own.f_blocks.saturating_sub(own.f_bfree));
        let spare = file.blocks().saturating_mul(512).saturating_sub(used);
        free = free.min(
            below
                .f_bavail
                .saturating_mul(below.f_frsize)
                .saturating_add(spare),
        );
    }
    let margin = (bytes(own.f_blocks) / MARGIN_PART).max(LEAST_MARGIN);
    Ok(Bytes(free.saturating_sub(margin)))
}

fn io_error(attempt: String) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { attempt, source }
}
