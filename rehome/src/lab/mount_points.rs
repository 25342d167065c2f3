//! The directories of this machine that hosts mount over. A mount needs a directory; those that a
//! lab had to make are noted and go with the last lab, unless something was put there meanwhile.

use std::fs;
use std::io;
use std::path::Path;

use crate::lab::files::BINDS;
use crate::lab::site::RUN;
use crate::paths::{self, PathError};

const NOTE: &str = ".made";

/// Makes what is missing. The caller holds the lock of all labs.
pub(crate) fn make() -> Result<(), PathError> {
    let note = Path::new(RUN).join(NOTE);
    let mut made = fs::read_to_string(&note).unwrap_or_default();
    for (_, target) in BINDS {
        if !Path::new(target).exists() {
            made.push_str(target);
            made.push('\n');
            // Noted first: a directory that was noted and not made is removed without harm.
            paths::replace(&note, 0o600, &made)?;
            paths::make_dir(Path::new(target), 0o755)?;
        }
    }
    Ok(())
}

/// Removes what was made and is empty. The caller holds the lock of all labs, and there is none.
pub(crate) fn remove() -> Result<(), PathError> {
    let note = Path::new(RUN).join(NOTE);
    let made = fs::read_to_string(&note).unwrap_or_default();
    for target in made.lines().map(Path::new) {
        match fs::remove_dir(target) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) => {}
            Err(error) => return Err(PathError::at("remove", target)(error)),
        }
    }
    paths::remove_file(&note)
}
