//! The log on the disk, in two ways: written with `write` and made durable with `fsync`, or
//! written through memory and made durable with `msync`.
//!
//! A record that was torn by the end of the server is cut off when it was the last one. Behind
//! anything else that cannot be read the log is damaged, and is not opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use clap::ValueEnum;
use rehome_sys::mapping::Mapping;
use serde::{Deserialize, Serialize};

use super::{Digest, RECORD, Record, decode, encode};

/// A mapped log grows by so much at a time.
const CHUNK: u64 = 1 << 20;

const SIZE: u64 = 64;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `write` and `fsync` for each record.
    Fsync,
    /// Through memory, and `msync` for each record.
    Mmap,
}

impl Kind {
    /// The word for it on a command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Mmap => "mmap",
        }
    }
}

/// A log that is not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The kernel does not let it.
    #[error("the log cannot be opened")]
    Io(#[from] io::Error),
    /// There are records behind bytes that are none.
    #[error("the log is damaged: record {0} cannot be read, and there are records behind it")]
    Damaged(u64),
}

/// A record that was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// The log is as it was before.
    #[error("the record was not written")]
    Refused(#[source] io::Error),
    /// What is on the disk is not known any more: only opening it again tells.
    #[error("the log may be torn")]
    Torn(#[source] io::Error),
}

#[derive(Debug)]
enum Medium {
    Written(File),
    Mapped(Option<Mapping>),
}

/// The log.
#[derive(Debug)]
pub(super) struct Store {
    medium: Medium,
    records: Vec<Record>,
    digest: Digest,
    /// By client, the last sequence and its place.
    last: BTreeMap<u64, (u64, u64)>,
}

impl Store {
    /// Opens the log at a path, or makes an empty one.
    pub(super) fn open(kind: Kind, path: &Path) -> Result<Self, OpenError> {
        let medium = match kind {
            Kind::Fsync => Medium::Written(
                File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)?,
            ),
            Kind::Mmap => Medium::Mapped(Some(Mapping::open(path, CHUNK)?)),
        };
        let mut store = Self {
            medium,
            records: Vec::new(),
            digest: Digest::default(),
            last: BTreeMap::new(),
        };
        store.recover()?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(store)
    }

    /// Reads what is there, and makes it durable: what is read once is never unread again.
    fn recover(&mut self) -> Result<(), OpenError> {
        let bytes = self.medium.contents()?;
        let mut chunks = bytes.chunks(RECORD);
        for bytes in chunks.by_ref() {
            let index = self.length();
            let Some((record, after)) = decode(index, self.digest, bytes) else {
                break;
            };
            self.take(record, after);
        }
        let end = self.length();
        // The record that could not be read vouches for nobody; any later one for the next.
        let is_followed = bytes
            .chunks(RECORD)
            .enumerate()
            .skip(usize::try_from(end).unwrap_or(usize::MAX))
            .any(|(at, bytes)| follows_itself(at, bytes, &self.medium));
        if is_followed {
            return Err(OpenError::Damaged(end));
        }
        self.medium.cut(end * SIZE)?;
        Ok(())
    }

    fn take(&mut self, record: Record, after: Digest) {
        self.last
            .insert(record.client, (record.sequence, self.length()));
        self.records.push(record);
        self.digest = after;
    }

    /// How many records it has.
    pub(super) fn length(&self) -> u64 {
        u64::try_from(self.records.len()).unwrap_or(u64::MAX)
    }

    /// What it is.
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    /// Its records.
    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// The last record of a client, and its place.
    pub(super) fn last_of(&self, client: u64) -> Option<(u64, u64)> {
        self.last.get(&client).copied()
    }

    /// Appends a record and returns its place when it is on the disk.
    pub(super) fn append(&mut self, record: Record) -> Result<u64, AppendError> {
        let index = self.length();
        let after = self.digest.then(index, record);
        let bytes = encode(index, record, after);
        self.medium.append(index * SIZE, &bytes)?;
        self.take(record, after);
        Ok(index)
    }
}

/// Whether the bytes at a place are a record behind the digest that stands before them, whatever
/// that digest is worth.
fn follows_itself(at: usize, bytes: &[u8], medium: &Medium) -> bool {
    let Some(before) = at.checked_sub(1) else {
        return false;
    };
    let (Ok(index), Ok(before)) = (u64::try_from(at), u64::try_from(before)) else {
        return false;
    };
    let mut digest = Digest::default();
    let read = medium.read(before * SIZE + SIZE / 2, &mut digest.0);
    read.is_ok() && decode(index, digest, bytes).is_some()
}

impl Medium {
    fn contents(&self) -> io::Result<Vec<u8>> {
        let length = match self {
            Self::Written(file) => file.metadata()?.len(),
            Self::Mapped(mapping) => open(mapping.as_ref())?.length(),
        };
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Written(file) => file.read_exact_at(bytes, at),
            Self::Mapped(mapping) => open(mapping.as_ref())?.read(at, bytes),
        }
    }

    /// Leaves nothing behind `length`, durably.
    fn cut(&mut self, length: u64) -> io::Result<()> {
        match self {
            Self::Written(file) => {
                file.set_len(length)?;
                file.sync_all()
            }
            Self::Mapped(mapping) => {
                let mapping = mapping.as_mut().ok_or(io::ErrorKind::NotConnected)?;
                let mut rest = [0; RECORD];
                if mapping.read(length, &mut rest).is_ok() && rest != [0; RECORD] {
                    mapping.write(length, &[0; RECORD])?;
                }
                mapping.sync(0, usize::try_from(mapping.length()).unwrap_or_default())
            }
        }
    }

    fn append(&mut self, at: u64, bytes: &[u8]) -> Result<(), AppendError> {
        match self {
            Self::Written(file) => {
                if let Err(error) = file.write_all_at(bytes, at) {
                    file.set_len(at).map_err(AppendError::Torn)?;
                    return Err(AppendError::Refused(error));
                }
                // After a failed fsync nobody knows which pages are on the disk.
                file.sync_data().map_err(AppendError::Torn)
            }
            Self::Mapped(slot) => {
                let mut mapping = slot
                    .take()
                    .ok_or(io::ErrorKind::NotConnected)
                    .map_err(|kind| AppendError::Torn(kind.into()))?;
                if mapping.length() < at + SIZE {
                    let length = mapping.length() + CHUNK;
                    mapping = mapping.grown(length).map_err(AppendError::Torn)?;
                }
                let mapping = slot.insert(mapping);
                mapping.write(at, bytes).map_err(AppendError::Torn)?;
                mapping.sync(at, bytes.len()).map_err(AppendError::Torn)
            }
        }
    }
}

fn open(mapping: Option<&Mapping>) -> io::Result<&Mapping> {
    mapping.ok_or_else(|| io::ErrorKind::NotConnected.into())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    fn record(sequence: u64) -> Record {
        Record {
            client: 1,
            sequence,
        }
    }

    /// A log of `count` records and where it is.
    fn log(kind: Kind, count: u64) -> (TempDir, PathBuf, Digest) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut store = Store::open(kind, &path).unwrap();
        for sequence in 1..=count {
            assert_eq!(store.append(record(sequence)).unwrap(), sequence - 1);
        }
        (directory, path, store.digest())
    }

    fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    const KINDS: [Kind; 2] = [Kind::Fsync, Kind::Mmap];

    #[test]
    fn what_was_appended_is_there_when_it_is_opened_again() {
        for kind in KINDS {
            let (_kept, path, digest) = log(kind, 3);
            let store = Store::open(kind, &path).unwrap();
            assert_eq!(store.records(), [record(1), record(2), record(3)]);
            assert_eq!((store.digest(), store.last_of(1)), (digest, Some((3, 2))));
        }
    }

    #[test]
    fn a_torn_end_is_cut_off_and_written_again() {
        for kind in KINDS {
            let (_kept, path, _digest) = log(kind, 2);
            overwrite(&path, 2 * SIZE, &[7; 20]);
            let mut store = Store::open(kind, &path).unwrap();
            assert_eq!(store.length(), 2, "{kind:?}");
            store.append(record(3)).unwrap();
            drop(store);
            assert_eq!(Store::open(kind, &path).unwrap().length(), 3, "{kind:?}");
        }
    }

    #[test]
    fn a_torn_last_record_is_cut_off() {
        for kind in KINDS {
            let (_kept, path, _digest) = log(kind, 3);
            overwrite(&path, 2 * SIZE + 40, &[7; 20]);
            assert_eq!(Store::open(kind, &path).unwrap().length(), 2, "{kind:?}");
        }
    }

    #[test]
    fn damage_before_the_last_record_is_not_cut_off() {
        for kind in KINDS {
            let (_kept, path, _digest) = log(kind, 4);
            overwrite(&path, SIZE + 8, &[7; 8]);
            let error = Store::open(kind, &path).unwrap_err();
            assert!(matches!(error, OpenError::Damaged(1)), "{error}");
        }
    }

    #[test]
    fn a_mapped_log_grows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut medium = Medium::Mapped(Some(Mapping::open(&path, CHUNK).unwrap()));
        medium.append(CHUNK - SIZE, &[1; RECORD]).unwrap();
        medium.append(CHUNK, &[2; RECORD]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * CHUNK);
    }
}
