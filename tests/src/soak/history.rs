//! What happened: what clients sent and heard, what servers found, and the log in the end.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::log::witness::Statement;
use crate::log::{Digest, Record};

/// Something that happened to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by [`crate::clock::now`].
    pub at: u64,
    /// To whom.
    pub client: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen to a client. It does one thing after the other: `Append` or `Read`, any number
/// of `Failed`, and the answer. A read that failed is given up, an append is sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "did")]
pub enum What {
    /// It sends a record for the first time.
    Append {
        /// Its number.
        sequence: u64,
    },
    /// It asks what the log is.
    Read,
    /// The record is acknowledged.
    At {
        /// Its place in the log.
        index: u64,
    },
    /// The log is this.
    Is {
        /// So many records.
        length: u64,
        /// What they are.
        digest: Digest,
    },
    /// The server does not know the client's last record.
    Gap {
        /// The last one that it knows.
        last: u64,
    },
    /// A try failed; whether the record was written is not known.
    Failed {
        /// Through which host.
        door: String,
        /// Why.
        reason: String,
    },
}

/// The whole log, as it is behind a door when all is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The door.
    pub door: String,
    /// Its records.
    pub records: Vec<Record>,
}

/// A run of the soak.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// In the order of their times.
    pub events: Vec<Event>,
    /// What the servers found.
    pub statements: Vec<Statement>,
    /// The log behind every door.
    pub logs: Vec<Log>,
}

impl History {
    /// Writes it to files of a directory, a line of JSON for each event.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        lines(&directory.join("history.jsonl"), &self.events)?;
        lines(&directory.join("statements.jsonl"), &self.statements)?;
        for log in &self.logs {
            let name = format!("log-{}.txt", log.door.replace([':', '/'], "-"));
            let mut file = BufWriter::new(File::create(directory.join(name))?);
            for record in &log.records {
                writeln!(file, "{record}")?;
            }
            file.flush()?;
        }
        Ok(())
    }
}

fn lines<T: Serialize>(path: &Path, values: &[T]) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for value in values {
        serde_json::to_writer(&mut file, value)?;
        writeln!(file)?;
    }
    Ok(file.flush()?)
}
