//! The open journal: where its next record goes, and how long it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use proxyd_core::saved::{KIND, Record};
use proxyd_core::table::RouteTable;
use rehome_runtime::failpoint;
use rehome_runtime::store;
use rehome_shared::journal::{self, Position};

use super::KeepError;

/// A file up to so many bytes is left as it is.
const SMALL: u64 = 1 << 20;

/// A longer one is written anew when it is so many times as long as it was when it was.
const WORTH: u64 = 4;

#[derive(Debug)]
pub(super) struct Log {
    file: File,
    position: Position,
    length: u64,
    /// Up to this length it is not worth writing it anew.
    enough: u64,
}

impl Log {
    /// Goes on with a journal that was read whole. Blocks.
    pub(super) fn reopen(path: &Path, position: Position, length: usize) -> io::Result<Self> {
        let length = u64::try_from(length).map_err(io::Error::other)?;
        Ok(Self {
            file: OpenOptions::new().append(true).open(path)?,
            position,
            length,
            // Nobody knows how much of it still counts: a guess that is soon mended.
            enough: length.saturating_mul(2).max(SMALL),
        })
    }

    /// Replaces what is there by the journal of a table. Blocks.
    pub(super) fn write(path: &Path, table: &RouteTable) -> Result<Self, KeepError> {
        let start = (KIND.magic().to_vec(), Position::start(KIND));
        let (bytes, position) = encode(start, table.records())?;
        store::replace(path, &bytes)?;
        let append = |source| KeepError::Append {
            path: path.to_owned(),
            source,
        };
        let mut log = Self::reopen(path, position, bytes.len()).map_err(append)?;
        log.enough = log.length.saturating_mul(WORTH).max(SMALL);
        Ok(log)
    }

    /// Appends a record, durably. One at a time: a frame that others follow is believed to be
    /// durable, so no two may be on their way to the disk at once. After an error nothing may
    /// follow. Blocks.
    pub(super) fn append(&mut self, path: &Path, record: &Record) -> Result<(), KeepError> {
        let encoded = journal::encode(self.position, record);
        let (bytes, position) = encoded.map_err(KeepError::Encode)?;
        failpoint::hit(|| "store/routes/before".to_owned());
        let written = self.file.write_all(&bytes);
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|source| KeepError::Append {
                path: path.to_owned(),
                source,
            })?;
        failpoint::hit(|| "store/routes/after".to_owned());
        self.position = position;
        self.length = self.length.saturating_add(length(&bytes));
        Ok(())
    }

    /// Whether nobody else wrote to the file or replaced it, as another `proxyd` on the same
    /// directory would.
    pub(super) fn is_as_it_was_left(&self) -> bool {
        let found = self.file.metadata();
        found.is_ok_and(|found| found.len() == self.length && found.nlink() > 0)
    }

    /// Its length, when that is too much.
    pub(super) fn is_long(&self) -> Option<u64> {
        (self.length > self.enough).then_some(self.length)
    }

    /// Writing it anew failed: it may grow further before that is tried again.
    pub(super) fn bear_with(&mut self) {
        self.enough = self.length.saturating_mul(2);
    }
}

#[cfg(test)]
impl Log {
    /// Appends without waiting for the disk.
    pub(super) fn note_for_tests(&mut self, record: &Record) {
        let (bytes, position) = journal::encode(self.position, record).unwrap();
        self.file.write_all(&bytes).unwrap();
        self.position = position;
        self.length += length(&bytes);
    }

    /// From now on the file takes nothing, as on a disk that has failed.
    pub(super) fn close_for_writing(&mut self, path: &Path) {
        self.file = File::open(path).unwrap();
    }
}

fn encode(
    (mut bytes, mut position): (Vec<u8>, Position),
    records: impl IntoIterator<Item = Record>,
) -> Result<(Vec<u8>, Position), KeepError> {
    for record in records {
        let encoded = journal::encode(position, &record);
        let (frame, next) = encoded.map_err(KeepError::Encode)?;
        bytes.extend_from_slice(&frame);
        position = next;
    }
    Ok((bytes, position))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
