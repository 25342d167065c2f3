//! The journal and what it means, owned by one thread.
//!
//! Every decision that is written down goes through [`Ledger::transact`]: the thread shows the
//! registry as it is, takes the records that the decision makes of it, appends and syncs them,
//! applies them, and only then answers. So decisions are serial, a record is durable before
//! anybody acts on it, and a caller that goes away cannot leave a record half taken.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use migrated_core::journal::{self, Corrupt, EncodeError, MAGIC, Position};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};

/// Decisions that may wait for the disk; more callers than this wait to enqueue.
const QUEUE: usize = 64;

/// A daemon that holds the journal gets so long to end, with pauses of so long.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be read or written.
    #[error("cannot {attempt} the journal {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its bytes cannot be believed.
    #[error(
        "the journal {} is damaged: migrated does not guess who owns what. Keep the file, and restore it or ask for help",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and how.
        #[source]
        source: Corrupt,
    },
    /// A record cannot be written.
    #[error("cannot write a record")]
    Encode(#[source] EncodeError),
    /// An earlier write failed and could not be undone.
    #[error("the journal failed earlier; restart migrated when the disk is well again")]
    Failed,
    /// The journal's thread is gone.
    #[error("the journal is closed")]
    Closed,
}

type Decide = Box<dyn FnOnce(&Registry) -> Vec<Record> + Send>;

struct Request {
    decide: Decide,
    done: oneshot::Sender<Result<(), LedgerError>>,
}

/// A handle on the journal; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    requests: mpsc::Sender<Request>,
    registry: Arc<RwLock<Registry>>,
    changed: watch::Receiver<u64>,
}

impl Ledger {
    /// Opens or makes the journal in a directory and reads it. A torn tail is cut off.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be read, or not be believed.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        let path = dir.join("journal");
        let (writer, registry) = Writer::open(path)?;
        let registry = Arc::new(RwLock::new(registry));
        let (requests, queue) = mpsc::channel(QUEUE);
        let (announce, changed) = watch::channel(0);
        let shared = Arc::clone(&registry);
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run(writer, &shared, queue, &announce))
            .map_err(|source| LedgerError::Io {
                attempt: "start the thread of",
                path: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            requests,
            registry,
            changed,
        })
    }

    /// Looks at what the journal means now.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number that changes after every record, to wait on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Decides on the registry as it is, and makes the decision's records durable before it
    /// answers.
    ///
    /// # Errors
    /// [`LedgerError`] when the records are not durable: nothing may be done on their strength.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo the decision: it is taken or not, as if it had waited.
    pub async fn transact<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&Registry) -> (Vec<Record>, T) + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (answer, outcome) = oneshot::channel();
        let (done, durable) = oneshot::channel();
        let decide: Decide = Box::new(move |registry| {
            let (records, value) = decide(registry);
            // The caller may have gone; the decision stands all the same.
            drop(answer.send(value));
            records
        });
        self.requests
            .send(Request { decide, done })
            .await
            .map_err(|_| LedgerError::Closed)?;
        durable.await.map_err(|_| LedgerError::Closed)??;
        outcome.await.map_err(|_| LedgerError::Closed)
    }

    /// Makes records durable that need no decision.
    ///
    /// # Errors
    /// As [`transact`](Self::transact).
    ///
    /// # Cancel safety
    /// As [`transact`](Self::transact).
    pub async fn commit(&self, records: Vec<Record>) -> Result<(), LedgerError> {
        self.transact(move |_| (records, ())).await
    }
}

fn run(
    mut writer: Writer,
    registry: &RwLock<Registry>,
    mut queue: mpsc::Receiver<Request>,
    announce: &watch::Sender<u64>,
) {
    while let Some(Request { decide, done }) = queue.blocking_recv() {
        let records = decide(&registry.read().unwrap_or_else(PoisonError::into_inner));
        let result = writer.append(&records);
        if result.is_ok() && !records.is_empty() {
            let mut registry = registry.write().unwrap_or_else(PoisonError::into_inner);
            for record in &records {
                registry.apply(record);
            }
            drop(registry);
            announce.send_modify(|count| *count = count.wrapping_add(1));
        }
        // A caller that went away does not need the answer.
        drop(done.send(result));
    }
}

/// The open file.
struct Writer {
    path: PathBuf,
    file: File,
    position: Position,
    length: u64,
    failed: bool,
}

impl Writer {
    fn open(path: PathBuf) -> Result<(Self, Registry), LedgerError> {
        let io = |attempt| {
            let path = path.clone();
            move |source| LedgerError::Io {
                attempt,
                path,
                source,
            }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Applications' environments stand in it.
            .mode(0o600)
            .open(&path)
            .map_err(io("open"))?;
        lock(&file).map_err(io("lock"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        let scan = journal::scan(&bytes).map_err(|source| LedgerError::Corrupt {
            path: path.clone(),
            source,
        })?;
        if scan.torn {
            tracing::warn!(
                journal.path = %path.display(),
                journal.believed = scan.believed,
                journal.length = bytes.len(),
                "cut a torn record off the journal: a crash interrupted it, and it promised nothing yet"
            );
        }
        let mut length = u64::try_from(scan.believed).unwrap_or(u64::MAX);
        file.set_len(length).map_err(io("cut"))?;
        file.seek(SeekFrom::Start(length)).map_err(io("seek in"))?;
        if scan.believed == 0 {
            file.write_all(MAGIC).map_err(io("write"))?;
            length = u64::try_from(MAGIC.len()).unwrap_or_default();
        }
        file.sync_all().map_err(io("sync"))?;
        sync_parent(&path).map_err(io("sync the directory of"))?;
        let registry = Registry::replay(&scan.records);
        Ok((
            Self {
                path,
                file,
                position: scan.position,
                length,
                failed: false,
            },
            registry,
        ))
    }

    fn append(&mut self, records: &[Record]) -> Result<(), LedgerError> {
        if self.failed {
            return Err(LedgerError::Failed);
        }
        if records.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let mut position = self.position;
        for record in records {
            let (frame, next) = journal::encode(position, record).map_err(LedgerError::Encode)?;
            bytes.extend_from_slice(&frame);
            position = next;
        }
        if let Err(source) = self.file.write_all(&bytes) {
            self.undo();
            return Err(LedgerError::Io {
                attempt: "append to",
                path: self.path.clone(),
                source,
            });
        }
        if let Err(source) = self.file.sync_data() {
            // After a failed sync the kernel may call the pages clean: only a new start, which
            // reads the file again, knows what is on the disk.
            self.undo();
            self.failed = true;
            return Err(LedgerError::Io {
                attempt: "sync",
                path: self.path.clone(),
                source,
            });
        }
        self.position = position;
        self.length = self
            .length
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Takes a failed append back. Where that fails too, what the disk holds is unknown, and
    /// nothing is written any more.
    fn undo(&mut self) {
        let undone = self
            .file
            .set_len(self.length)
            .and_then(|()| self.file.seek(SeekFrom::Start(self.length)).map(drop))
            .and_then(|()| self.file.sync_data());
        if let Err(error) = undone {
            tracing::error!(%error, "cannot take a failed append to the journal back");
            self.failed = true;
        }
    }
}

/// A journal has one writer: another one would cut off what this one is just appending. A daemon
/// that is just ending is waited for.
fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::other("another migrated has it open"));
            }
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(LOCK_PAUSE),
        }
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
