//! The journal and what it means, owned by one thread.
//!
//! Every decision that is written down goes through [`Ledger::transact`]: the thread shows the
//! registry as it is, takes the records that the decision makes of it, appends and syncs them,
//! applies them, and only then answers. So decisions are serial, a record is durable before
//! anybody acts on it, and a caller that goes away cannot leave a record half taken.

mod file;
mod points;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use migrated_core::journal::{Corrupt, EncodeError};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use rehome_runtime::report::Report;
use tokio::sync::{mpsc, oneshot, watch};

use self::file::Writer;
pub use self::file::{Place, Present};

/// Decisions that may wait for the disk; more callers than this wait to enqueue.
const QUEUE: usize = 64;

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
        "the journal {} cannot be believed: migrated does not guess who owns what. Keep the file",
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
    #[error("the journal failed ({0}); restart migrated when the disk is well again")]
    Failed(String),
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
    problem: watch::Receiver<Option<String>>,
}

/// What the journal's thread tells everybody.
struct Announce {
    /// Counts up with every change of the registry.
    changed: watch::Sender<u64>,
    /// Why nothing can be written down, if so.
    problem: watch::Sender<Option<String>>,
}

impl Ledger {
    /// Opens the journal in its place, or begins one, and reads it. A torn tail is cut off.
    /// Whether one may be begun is the caller's to know: see [`Place::look`].
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be read, or not be believed.
    pub fn open(place: Place) -> Result<Self, LedgerError> {
        let (writer, registry) = Writer::open(place)?;
        Self::begin(writer, registry)
    }

    fn begin(mut writer: Writer, registry: Registry) -> Result<Self, LedgerError> {
        writer.compact(&registry);
        let path = writer.path();
        let registry = Arc::new(RwLock::new(registry));
        let (requests, queue) = mpsc::channel(QUEUE);
        let announce = Announce {
            changed: watch::Sender::new(0),
            problem: watch::Sender::new(writer.failure()),
        };
        let ledger = Self {
            requests,
            registry: Arc::clone(&registry),
            changed: announce.changed.subscribe(),
            problem: announce.problem.subscribe(),
        };
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run(writer, &registry, queue, &announce))
            .map_err(|source| LedgerError::Io {
                attempt: "start the thread of",
                path,
                source,
            })?;
        Ok(ledger)
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

    /// Why nothing can be written down, while that is so; to look at or to wait on.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.clone()
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
    announce: &Announce,
) {
    while let Some(Request { decide, done }) = queue.blocking_recv() {
        let records = decide(&registry.read().unwrap_or_else(PoisonError::into_inner));
        points::hit(&records, "before");
        let result = writer.append(&records);
        let appended = result.is_ok() && !records.is_empty();
        if appended {
            points::hit(&records, "after");
            let mut registry = registry.write().unwrap_or_else(PoisonError::into_inner);
            for record in &records {
                registry.apply(record);
            }
            drop(registry);
            announce
                .changed
                .send_modify(|count| *count = count.wrapping_add(1));
        }
        if let Err(error) = &result {
            announce.tell(Some(Report(error).to_string()));
        }
        // A caller that went away does not need the answer.
        drop(done.send(result));
        if appended {
            writer.compact(&registry.read().unwrap_or_else(PoisonError::into_inner));
            announce.tell(writer.failure());
        }
    }
}

impl Announce {
    fn tell(&self, problem: Option<String>) {
        self.problem.send_if_modified(|known| {
            let news = *known != problem;
            *known = problem;
            news
        });
    }
}

#[cfg(test)]
mod tests;
