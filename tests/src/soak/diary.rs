//! What the soak does, as it does it: told to whoever watches, and kept in a file.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::clock;

/// The diary.
#[derive(Debug)]
pub(crate) struct Diary {
    begin: Instant,
    file: Mutex<File>,
}

impl Diary {
    /// Begins one.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        Ok(Self {
            begin: Instant::now(),
            file: Mutex::new(File::create(path)?),
        })
    }

    /// Writes something down: with the time of this machine, which logs have, and with that of
    /// the history.
    pub(crate) fn note(&self, text: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let since = self.begin.elapsed().as_secs_f64();
        // What cannot be told must not end the soak.
        drop(writeln!(io::stderr(), "{since:7.2} s  {text}"));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        drop(writeln!(file, "{now} {} {text}", clock::now()));
    }
}

/// The end of the faults, or of the clients, for all threads that wait.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    is_over: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// It is over.
    pub(crate) fn stop(&self) {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rests for a time, or until it is over; whether it is.
    pub(crate) fn rest(&self, time: Duration) -> bool {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(is_over, time, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
