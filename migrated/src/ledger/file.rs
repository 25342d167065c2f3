//! The journal's file: one writer, appended to and synced, and replaced whole when it has grown
//! long. After a crash at any moment the old file or the new one is in its place, whole.
//!
//! Who has locked the file `lock` beside it is the only one to touch it. The journal's own lock
//! would go with a file that is replaced, or that somebody has unlinked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migrated_core::journal::{self, Corrupt, MAGIC, Position, Scan};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use rehome_runtime::report::Report;

use super::LedgerError;

/// A daemon that holds the journal gets so long to end, with pauses of so long.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A journal up to so many bytes is left as it is.
const SMALL: u64 = 1 << 20;

/// A longer one is compacted when it is so many times as long as it need be.
const WORTH: u64 = 4;

/// The directory of the journal, this process's alone until it is dropped.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    _lock: File,
}

/// What is in the journal's place.
#[derive(Debug)]
pub enum Present {
    /// Nothing: no file, or one that was never begun.
    Nothing,
    /// A journal, perhaps with a torn tail, and what it means.
    Journal(Box<Registry>),
    /// Something that cannot be believed.
    Damaged(Corrupt),
}

impl Place {
    /// Waits a little for the directory, and takes it.
    ///
    /// # Errors
    /// [`LedgerError::Io`] when it cannot be opened, or another process keeps it.
    pub fn take(directory: &Path) -> Result<Self, LedgerError> {
        let path = directory.join("journal");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("lock"))
            .map_err(io_at("make the lock of", &path))?;
        lock(&file).map_err(io_at("lock", &path))?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: file,
        })
    }

    fn path(&self) -> PathBuf {
        self.directory.join("journal")
    }

    fn draft_path(&self) -> PathBuf {
        self.directory.join("journal.new")
    }

    /// What is there now. Changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::Io`] when it cannot be read.
    pub fn look(&self) -> Result<Present, LedgerError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing),
            Err(error) => return Err(io_at("read", &path)(error)),
        };
        Ok(match journal::scan(&bytes) {
            Ok(Scan { believed: 0, .. }) => Present::Nothing,
            Ok(scan) => Present::Journal(Box::new(Registry::replay(&scan.records))),
            Err(corrupt) => Present::Damaged(corrupt),
        })
    }

    /// Moves what is there out of the way, under a name that people find.
    ///
    /// # Errors
    /// [`LedgerError::Io`]; it is where it was, or under the new name.
    pub fn set_aside(&self, name: &str) -> Result<PathBuf, LedgerError> {
        let (path, aside) = (self.path(), self.directory.join(name));
        if aside.exists() {
            let taken = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(io_at("set aside", &aside)(taken));
        }
        fs::rename(&path, &aside).map_err(io_at("set aside", &path))?;
        self.sync().map_err(io_at("sync the directory of", &path))?;
        Ok(aside)
    }

    /// Puts a journal of these records in place, in one step.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn begin_with(&self, records: &[Record]) -> Result<(), LedgerError> {
        self.remove_draft()?;
        let draft = Draft::write(self, &Framed::new(records)?)?;
        draft.put_in_place(self)?;
        let path = self.path();
        self.sync().map_err(io_at("sync the directory of", &path))
    }

    /// A crash may have left a draft. It promised nothing.
    fn remove_draft(&self) -> Result<(), LedgerError> {
        let path = self.draft_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_at("remove the draft of", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

/// The bytes of a whole journal.
struct Framed {
    bytes: Vec<u8>,
    position: Position,
}

impl Framed {
    fn new(records: &[Record]) -> Result<Self, LedgerError> {
        let mut framed = Self {
            bytes: MAGIC.to_vec(),
            position: journal::start(),
        };
        for record in records {
            let (frame, next) =
                journal::encode(framed.position, record).map_err(LedgerError::Encode)?;
            framed.bytes.extend_from_slice(&frame);
            framed.position = next;
        }
        Ok(framed)
    }

    fn length(&self) -> u64 {
        length(&self.bytes)
    }
}

/// A whole journal, durable, beside the place where it belongs.
struct Draft {
    file: File,
}

impl Draft {
    fn write(place: &Place, framed: &Framed) -> Result<Self, LedgerError> {
        let path = place.draft_path();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            // Applications' environments stand in it.
            .mode(0o600)
            .open(&path)
            .map_err(io_at("make the draft of", &path))?;
        file.write_all(&framed.bytes)
            .and_then(|()| file.sync_all())
            .map_err(io_at("write the draft of", &path))?;
        Ok(Self { file })
    }

    /// From now on it is the journal; durably so when the directory was synced.
    fn put_in_place(self, place: &Place) -> Result<File, LedgerError> {
        let path = place.path();
        fs::rename(place.draft_path(), &path).map_err(io_at("replace", &path))?;
        Ok(self.file)
    }
}

/// The open file.
pub(super) struct Writer {
    place: Place,
    file: File,
    position: Position,
    length: u64,
    /// Up to this length it is not looked at whether compaction is worth it.
    enough: u64,
    /// Why nothing is written any more.
    failed: Option<String>,
}

impl Writer {
    pub(super) fn open(place: Place) -> Result<(Self, Registry), LedgerError> {
        let path = place.path();
        let io = |attempt| io_at(attempt, &path);
        place.remove_draft()?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open"))?;
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
        let mut believed = length(bytes.get(..scan.believed).unwrap_or_default());
        file.set_len(believed).map_err(io("cut"))?;
        file.seek(SeekFrom::Start(believed))
            .map_err(io("seek in"))?;
        if scan.believed == 0 {
            file.write_all(MAGIC).map_err(io("write"))?;
            believed = length(MAGIC);
        }
        file.sync_all().map_err(io("sync"))?;
        place.sync().map_err(io("sync the directory of"))?;
        let writer = Self {
            place,
            file,
            position: scan.position,
            length: believed,
            enough: SMALL,
            failed: None,
        };
        Ok((writer, Registry::replay(&scan.records)))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.place.path()
    }

    /// Why nothing can be written any more, if so.
    pub(super) fn failure(&self) -> Option<String> {
        self.failed
            .clone()
            .map(|reason| Report(&LedgerError::Failed(reason)).to_string())
    }

    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), LedgerError> {
        if let Some(reason) = &self.failed {
            return Err(LedgerError::Failed(reason.clone()));
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
        let path = self.path();
        if let Err(source) = self.file.write_all(&bytes) {
            self.undo();
            return Err(io_at("append to", &path)(source));
        }
        if let Err(source) = self.file.sync_data() {
            // After a failed sync the kernel may call the pages clean: only a new start, which
            // reads the file again, knows what is on the disk.
            self.undo();
            self.failed = Some(format!("it could not be synced: {source}"));
            return Err(io_at("sync", &path)(source));
        }
        self.position = position;
        self.length = self.length.saturating_add(length(&bytes));
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
            self.failed = Some(format!("a failed append could not be taken back: {error}"));
        }
    }

    /// Replaces the file by a shorter one that says the same, where that is worth it and nobody
    /// waits for a change of owner. Failing is no harm: the long one goes on.
    pub(super) fn compact(&mut self, registry: &Registry) {
        if self.failed.is_some() || self.length <= self.enough || registry.is_in_window() {
            return;
        }
        let before = self.length;
        match self.shorten(registry) {
            Ok(true) => tracing::info!(before, after = self.length, "the journal was compacted"),
            Ok(false) => {}
            Err(error) => {
                self.enough = self.length.saturating_mul(2);
                let error = Report(&error).to_string();
                tracing::warn!(error, "the journal cannot be compacted now");
            }
        }
    }

    fn shorten(&mut self, registry: &Registry) -> Result<bool, LedgerError> {
        let framed = Framed::new(&registry.compacted())?;
        self.enough = framed.length().saturating_mul(WORTH).max(SMALL);
        if self.length <= self.enough {
            return Ok(false);
        }
        self.place.remove_draft()?;
        let file = Draft::write(&self.place, &framed)?.put_in_place(&self.place)?;
        self.file = file;
        self.position = framed.position;
        self.length = framed.length();
        if let Err(source) = self.place.sync() {
            // After a power loss the old file might be back, without what would be appended now.
            self.failed = Some(format!("its directory could not be synced: {source}"));
            return Err(io_at("sync the directory of", &self.path())(source));
        }
        Ok(true)
    }
}

#[cfg(test)]
impl Writer {
    /// As after a compaction whose directory could not be synced.
    pub(super) fn fail(&mut self, reason: &str) {
        self.failed = Some(reason.to_owned());
    }

    /// From now on the file takes nothing, as on a disk that has failed.
    pub(super) fn close_for_writing(&mut self) {
        self.file = File::open(self.path()).unwrap();
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn io_at(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError + use<> {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        attempt,
        path,
        source,
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

#[cfg(test)]
mod tests;
