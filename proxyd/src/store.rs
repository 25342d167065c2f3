//! The routes on disk: a journal to which each change is appended before it takes effect, and
//! which is read at start.
//!
//! A change costs what it changes, however many routes there are. When the file has grown to many
//! times what the table needs, or after anything went wrong with it, it is written anew and
//! replaces the old one whole. A crash at any moment leaves all changes that took effect.

mod log;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use proxyd_core::saved::{KIND, Record, Saved};
use proxyd_core::table::{Changes, RouteTable};
use rehome_runtime::report::Report;
use rehome_runtime::store::{self, LoadError, SaveError};
use rehome_shared::journal::{self, EncodeError};

use log::Log;

const FILE: &str = "routes";

/// Why something is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error("cannot write down what changed of the routes")]
    Encode(#[source] EncodeError),
    #[error("cannot append to {path}", path = .path.display())]
    Append {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Replace(#[from] SaveError),
}

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
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// The file as this process left it. Without it the next change writes all anew.
    log: Option<Log>,
}

impl Store {
    /// Makes the directory where it does not exist. Blocks.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        store::remove_leftovers(&path)?;
        Ok(Self { path, log: None })
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Reads what is kept. A damaged file is moved aside, so that the next start does not
    /// stumble over it and a person can look at it. Blocks.
    pub(crate) fn load(&mut self) -> io::Result<Found> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        let found = if KIND.began(&bytes) {
            self.read(&bytes)
        } else {
            self.read_in_one_piece()?
        };
        match found {
            Ok(table) => Ok(Found::Routes(table)),
            Err(reason) => {
                let moved_to = self.move_aside()?;
                Ok(Found::Corrupt { reason, moved_to })
            }
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<RouteTable, String> {
        let mut table = RouteTable::default();
        let end = journal::read(KIND, bytes, |record: Record| table.replay(record))
            .map_err(|error| error.to_string())?;
        if end.torn {
            tracing::warn!(
                believed = end.believed,
                length = bytes.len(),
                "the last change of the kept routes was cut short by a crash and had not taken effect"
            );
        } else {
            self.log = Log::reopen(&self.path, end.position, bytes.len()).ok();
        }
        Ok(table)
    }

    /// The form of the file before it became a journal.
    fn read_in_one_piece(&self) -> io::Result<Result<RouteTable, String>> {
        match store::load_blocking::<Saved>(&self.path) {
            Ok(saved) => Ok(RouteTable::try_from(saved).map_err(|error| error.to_string())),
            Err(LoadError::Corrupt { reason, .. }) => Ok(Err(reason)),
            Err(LoadError::Io { source, .. }) => Err(source),
            Err(absent @ LoadError::Absent { .. }) => Err(io::Error::other(absent)),
        }
    }

    fn move_aside(&self) -> io::Result<PathBuf> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let moved_to = self.path.with_extension(format!("corrupt.{now}"));
        fs::rename(&self.path, &moved_to)?;
        Ok(moved_to)
    }

    /// Keeps what changed of a table. After a failure all of it is written the next time.
    ///
    /// # Cancel safety
    /// Not cancel safe: the change may be kept or not.
    pub(crate) async fn append(
        &mut self,
        table: &RouteTable,
        changes: &Changes,
    ) -> Result<(), KeepError> {
        let path = self.path.clone();
        let Some(mut log) = self.log.take().filter(Log::is_as_it_was_left) else {
            return self.rewrite(table).await;
        };
        let Some(record) = table.record_of(changes) else {
            self.log = Some(log);
            return Ok(());
        };
        let appended = blocking(&self.path, move || {
            log.append(&path, &record)?;
            Ok(log)
        });
        match appended.await {
            Ok(log) => self.log = Some(log),
            // More than a journal takes at once: then it is no more work to write all.
            Err(KeepError::Encode(EncodeError::TooLong(_))) => return self.rewrite(table).await,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Keeps a whole table, in place of whatever is there.
    ///
    /// # Cancel safety
    /// The file then has its old or its new content, whole.
    pub(crate) async fn rewrite(&mut self, table: &RouteTable) -> Result<(), KeepError> {
        // A clone shares the routes; what takes time is done where it holds nobody up.
        let (path, table) = (self.path.clone(), table.clone());
        self.log = Some(blocking(&self.path, move || Log::write(&path, &table)).await?);
        Ok(())
    }

    /// Writes the file anew when that makes it much shorter. Failing is no harm: the long one
    /// goes on.
    ///
    /// # Cancel safety
    /// The file then has its old or its new content, whole.
    pub(crate) async fn shorten(&mut self, table: &RouteTable) {
        let Some(before) = self.log.as_ref().and_then(Log::is_long) else {
            return;
        };
        match self.rewrite(table).await {
            Ok(()) => tracing::debug!(before, "the file of kept routes was written anew"),
            Err(error) => {
                let error = Report(&error).to_string();
                tracing::warn!(error, "the file of kept routes cannot be written anew");
                if let Some(log) = &mut self.log {
                    log.bear_with();
                }
            }
        }
    }
}

/// Does what takes time where it holds no connection up.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, KeepError> + Send + 'static,
) -> Result<T, KeepError> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            let source = error.into();
            Err(KeepError::Append { path, source })
        })
}

#[cfg(test)]
mod tests;
