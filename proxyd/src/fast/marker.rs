//! What the kernel may have of this proxy, as a file in the state directory says: written before
//! there is anything, removed when it is known to be gone. So a process that starts knows whether
//! it has to look, also after a crash, and one that has no fast path asks the kernel nothing.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use rehome_runtime::store::{self, SaveError};

/// The file's name.
pub(crate) const FILE: &str = "fast_path";

/// What is left of us in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// Flows, and tables without elements.
    Flows,
    /// There may be elements.
    Elements,
}

impl Left {
    const FLOWS: &str = "flows";
    const ELEMENTS: &str = "elements";
}

/// The file.
#[derive(Debug, Clone)]
pub(super) struct Marker(PathBuf);

impl Marker {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// What it says. The tables of a kernel go with it, so one of another boot says nothing. Blocks.
    pub(super) fn read(&self) -> Left {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Left::Nothing,
            // What cannot be read may say anything.
            Err(_) => return Left::Elements,
        };
        let mut words = text.split_whitespace();
        let (what, when) = (words.next(), words.next());
        let now = boot();
        if let Some(when) = when
            && !now.is_empty()
            && when != now
        {
            return Left::Nothing;
        }
        if what == Some(Left::FLOWS) {
            Left::Flows
        } else {
            Left::Elements
        }
    }

    /// Has it say this. Blocks.
    ///
    /// # Errors
    /// The file system's; what it says is not certain then.
    pub(super) fn write(&self, left: Left) -> io::Result<()> {
        let what = match left {
            Left::Nothing => {
                return match fs::remove_file(&self.0) {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                    // That it may come back after a crash costs a look and nothing else.
                    Ok(()) | Err(_) => Ok(()),
                };
            }
            Left::Flows => Left::FLOWS,
            Left::Elements => Left::ELEMENTS,
        };
        store::remove_leftovers(&self.0)?;
        let content = format!("{what} {}\n", boot());
        store::replace(&self.0, content.as_bytes()).map_err(|error| match error {
            SaveError::Io { source, .. } => source,
            other @ SaveError::Encode { .. } => io::Error::other(other),
        })
    }
}

/// Tells one run of the kernel from another; empty where it does not say.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let marker = Marker::new(directory.path().join(FILE));
        assert_eq!(marker.read(), Left::Nothing);
        for left in [Left::Elements, Left::Flows, Left::Nothing, Left::Nothing] {
            marker.write(left).unwrap();
            assert_eq!(marker.read(), left);
        }
        fs::write(&marker.0, "elements another-boot\n").unwrap();
        assert_eq!(marker.read(), Left::Nothing);
        // What cannot be understood, or read, hides nothing.
        for text in ["", "what"] {
            fs::write(&marker.0, text).unwrap();
            assert_eq!(marker.read(), Left::Elements);
        }
        fs::remove_file(&marker.0).unwrap();
        fs::create_dir(&marker.0).unwrap();
        assert_eq!(marker.read(), Left::Elements);
    }
}
