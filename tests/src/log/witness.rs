//! Who runs. Every server takes a lock in a directory of this machine for as long as its process
//! lives, on whatever lab host that is, and writes down what it found when it opened its log. A
//! server that does not get the lock has met another one that runs at that moment: the kernel
//! drops the lock with the process. So no second instance, however short, stays unseen.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::clock;

const LOCK: &str = "lock";
const STATEMENTS: &str = "statements";

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// When, by [`clock::now`].
    pub at: u64,
    /// The name of its host.
    pub host: String,
    /// What.
    #[serde(flatten)]
    pub what: Finding,
}

/// What a server found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "found")]
pub enum Finding {
    /// The log, which it had not begun to open at the time of the statement.
    Log {
        /// So many records.
        length: u64,
        /// What they are.
        digest: Digest,
    },
    /// Another server.
    Other,
    /// A log with bytes in its middle that are no records.
    Damage {
        /// What.
        reason: String,
    },
}

/// A server that runs.
#[derive(Debug)]
pub struct Presence {
    directory: PathBuf,
    host: String,
    /// Held until the end of the process.
    _lock: Option<File>,
}

impl Presence {
    /// Takes the lock, or states that another server has it.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn begin(directory: &Path) -> io::Result<Self> {
        let file = File::create(directory.join(LOCK))?;
        let (lock, other) = match file.try_lock() {
            Ok(()) => (Some(file), false),
            Err(TryLockError::WouldBlock) => (None, true),
            Err(TryLockError::Error(error)) => return Err(error),
        };
        let host = rustix::system::uname();
        let this = Self {
            directory: directory.to_owned(),
            host: host.nodename().to_string_lossy().into_owned(),
            _lock: lock,
        };
        if other {
            this.state(clock::now(), Finding::Other)?;
        }
        Ok(this)
    }

    /// Writes a statement down.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn state(&self, at: u64, what: Finding) -> io::Result<()> {
        let host = self.host.clone();
        let mut line = serde_json::to_string(&Statement { at, host, what })?;
        line.push('\n');
        // One write of a short line: statements of two servers do not mix.
        File::options()
            .create(true)
            .append(true)
            .open(self.directory.join(STATEMENTS))?
            .write_all(line.as_bytes())
    }
}

/// All statements so far.
///
/// # Errors
/// When they cannot be read.
pub fn statements(directory: &Path) -> anyhow::Result<Vec<Statement>> {
    let text = match std::fs::read_to_string(directory.join(STATEMENTS)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    // A line that is being written has no end yet.
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_states_that_there_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let found = || -> Vec<Finding> {
            let all = statements(directory.path()).unwrap();
            all.into_iter().map(|statement| statement.what).collect()
        };
        let first = Presence::begin(directory.path()).unwrap();
        assert_eq!(found(), []);
        let second = Presence::begin(directory.path()).unwrap();
        assert_eq!(found(), [Finding::Other]);
        drop((first, second));
        let third = Presence::begin(directory.path()).unwrap();
        let log = Finding::Log {
            length: 0,
            digest: Digest::default(),
        };
        third.state(1, log.clone()).unwrap();
        assert_eq!(found(), [Finding::Other, log]);
    }
}
