//! The output of an application: two files of bounded size, `log` and before it `log.1`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// When `log` becomes `log.1`.
const LIMIT: u64 = 4 << 20;

/// How much of each file [`tail`] looks at.
const TAIL: u64 = 64 << 10;

/// The writing end.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Goes on behind what is there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
        })
    }

    /// Appends output. What cannot be written is dropped: an application does not stop because
    /// of its log.
    pub(super) fn append(&mut self, output: &[u8]) {
        if self.length >= LIMIT {
            let rotated = fs::rename(&self.path, previous(&self.path));
            if let Ok(fresh) = rotated.and_then(|()| Self::open(&self.path)) {
                *self = fresh;
            }
        }
        if self.length < LIMIT.saturating_mul(2) && self.file.write_all(output).is_ok() {
            self.length = self
                .length
                .saturating_add(u64::try_from(output.len()).unwrap_or(0));
        }
    }
}

/// The last lines of the output, as far as there are any.
pub(super) fn tail(path: &Path, lines: u32) -> String {
    let mut text = end_of(&previous(path));
    text.extend(end_of(path));
    let text = String::from_utf8_lossy(&text);
    let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
    let mut last: Vec<_> = text.lines().rev().take(wanted).collect();
    last.reverse();
    last.join("\n")
}

fn previous(path: &Path) -> PathBuf {
    path.with_extension("1")
}

fn end_of(path: &Path) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut end = Vec::new();
        file.take(TAIL).read_to_end(&mut end)?;
        Ok(end)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_its_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let chunk = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let mut log = Log::open(&path).unwrap();
        for _ in 0..10 * 1024 {
            log.append(&chunk);
        }
        log.append(b"last but one\nlast\n");
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= LIMIT + 2048, "{}", size(&path));
        assert_eq!(size(&previous(&path)), LIMIT);
        assert_eq!(tail(&path, 2), "last but one\nlast");
    }

    #[test]
    fn the_tail_reaches_across_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(previous(&path), "a\nb\n").unwrap();
        assert_eq!(tail(&path, 1), "b");
        Log::open(&path).unwrap().append(b"c\n");
        assert_eq!(tail(&path, 2), "b\nc");
    }
}
