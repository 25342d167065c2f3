//! The routes on disk: written whole before they take effect, read at start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use proxyd_core::saved::Saved;
use proxyd_core::table::RouteTable;
use rehome_runtime::store::{self, LoadError, SaveError};

const FILE: &str = "routes";

/// What was found on disk.
#[derive(Debug)]
pub(crate) enum Found {
    /// The routes as they were.
    Routes(RouteTable),
    /// Nothing was ever kept.
    Nothing,
    /// Something that cannot be used; it was moved aside.
    Corrupt {
        /// What is wrong with it.
        reason: String,
        /// Where it is now.
        moved_to: PathBuf,
    },
}

/// The file of kept routes.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    /// Makes the directory where it does not exist. Blocks.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        store::remove_leftovers(&path)?;
        Ok(Self { path })
    }

    /// Reads what is kept. A damaged file is moved aside, so that the next start does not
    /// stumble over it and a person can look at it. Blocks.
    pub(crate) fn load(&self) -> io::Result<Found> {
        let reason = match store::load_blocking::<Saved>(&self.path) {
            Ok(saved) => match RouteTable::try_from(saved) {
                Ok(table) => return Ok(Found::Routes(table)),
                Err(error) => error.to_string(),
            },
            Err(LoadError::Absent { .. }) => return Ok(Found::Nothing),
            Err(LoadError::Corrupt { reason, .. }) => reason,
            Err(LoadError::Io { source, .. }) => return Err(source),
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let moved_to = self.path.with_extension(format!("corrupt.{now}"));
        fs::rename(&self.path, &moved_to)?;
        Ok(Found::Corrupt { reason, moved_to })
    }

    /// Keeps a table.
    ///
    /// # Cancel safety
    /// The file then has its old or its new content, whole.
    pub(crate) async fn save(&self, table: &RouteTable) -> Result<(), SaveError> {
        store::save(&self.path, &Saved::from(table)).await
    }
}
