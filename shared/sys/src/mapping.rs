//! A file that is written through memory and made durable with `msync`, as LMDB and other
//! databases do.
//!
//! The daemons write no file this way: this module is behind a feature that only the tests ask
//! for, whose log server shows that a move keeps what an application of this kind acknowledged.
//! `memmap2` does the system calls, because neither the standard library nor `rustix` offers a
//! mapping without unsafe code.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use memmap2::MmapMut;

/// A file of a fixed length, in memory. Bytes are copied in and out: nobody gets a reference into
/// the mapping.
#[derive(Debug)]
pub struct Mapping {
    map: MmapMut,
    /// Keeps the lock.
    file: File,
}

impl Mapping {
    /// Opens or makes the file, locks it for this process, and makes it at least `length` bytes
    /// long; new bytes are zero.
    ///
    /// # Errors
    /// Those of the kernel, and [`io::ErrorKind::WouldBlock`] when another process has the lock.
    pub fn open(path: &Path, length: u64) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        Self::map(file, length)
    }

    /// Makes the file longer. On an error the file is closed.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn grown(self, length: u64) -> io::Result<Self> {
        let Self { map, file } = self;
        drop(map);
        Self::map(file, length)
    }

    fn map(file: File, length: u64) -> io::Result<Self> {
        if file.metadata()?.len() < length {
            file.set_len(length)?;
            // The length is no part of what msync writes.
            file.sync_all()?;
        }
        // SAFETY: the file must not change or shrink behind the mapping's back. It is locked for
        // this process as long as this value lives, nothing in this process shrinks it, and all
        // access is by copies in the methods below. Whoever ignores the lock and shrinks the file
        // ends this process with SIGBUS, as a full disk does.
        let map = unsafe { MmapMut::map_mut(&file) }?;
        Ok(Self { map, file })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        u64::try_from(self.map.len()).unwrap_or(u64::MAX)
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] beyond its end.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let begin = usize::try_from(at).map_err(|_| end())?;
        let from = begin
            .checked_add(bytes.len())
            .and_then(|stop| self.map.get(begin..stop))
            .ok_or_else(end)?;
        bytes.copy_from_slice(from);
        Ok(())
    }

    /// Copies bytes in; they are durable after the next [`Mapping::sync`].
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] beyond its end.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let begin = usize::try_from(at).map_err(|_| end())?;
        let to = begin
            .checked_add(bytes.len())
            .and_then(|stop| self.map.get_mut(begin..stop))
            .ok_or_else(end)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    /// Waits until a range is on the disk (`msync` with `MS_SYNC`).
    ///
    /// # Errors
    /// Those of the kernel; what is on the disk is not known then.
    pub fn sync(&self, at: u64, length: usize) -> io::Result<()> {
        let begin = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.map.flush_range(begin, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_in_the_file_and_survives_a_growth() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mapped");
        let mut mapping = Mapping::open(&path, 4096).unwrap();
        mapping.write(4090, b"abcdef").unwrap();
        mapping.sync(4090, 6).unwrap();
        let mut mapping = mapping.grown(8192).unwrap();
        assert_eq!(mapping.length(), 8192);
        mapping.write(4096, b"gh").unwrap();
        let mut read = [0; 8];
        mapping.read(4090, &mut read).unwrap();
        assert_eq!(&read, b"abcdefgh");
        drop(mapping);
        let file = std::fs::read(&path).unwrap();
        assert_eq!((file.len(), &file[4090..4098]), (8192, &b"abcdefgh"[..]));
    }

    #[test]
    fn beyond_the_end_is_an_error_and_a_second_mapping_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mapped");
        let mut mapping = Mapping::open(&path, 4096).unwrap();
        assert!(mapping.write(4095, b"ab").is_err());
        assert!(mapping.write(u64::MAX, b"ab").is_err());
        assert!(mapping.read(4096, &mut [0]).is_err());
        let second = Mapping::open(&path, 4096).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    }
}
