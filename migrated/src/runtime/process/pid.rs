//! Processes that are recognised for certain: numbers are used again, a number together with
//! its start time is not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rehome_sys::readiness::ReadyFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process of this host and boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    number: i32,
    /// Clock ticks since boot.
    start: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(super) fn of(number: u32) -> io::Result<Self> {
        let number = i32::try_from(number).map_err(io::Error::other)?;
        let (_state, start) = stat(number)?;
        Ok(Self { number, start })
    }

    pub(super) fn number(self) -> i32 {
        self.number
    }

    /// Whether it has not ended. One that waits only to be reaped has.
    pub(super) fn is_running(self) -> bool {
        stat(self.number).is_ok_and(|(state, start)| start == self.start && !"ZXx".contains(state))
    }

    /// A descriptor of the process, unless it has ended.
    pub(super) fn open_descriptor(self) -> Option<OwnedFd> {
        let descriptor = pidfd_open(Pid::from_raw(self.number)?, PidfdFlags::empty()).ok()?;
        // Looked at after the open: if the start time is right now, the descriptor is of it.
        self.is_running().then_some(descriptor)
    }

    /// A handle on the process, unless it has ended. Needs an async runtime.
    pub(super) fn open(self) -> Option<Process> {
        let descriptor = self.open_descriptor()?;
        ReadyFd::new(descriptor).ok().map(Process)
    }
}

/// A handle that stays with its process.
#[derive(Debug)]
pub(super) struct Process(ReadyFd);

impl Process {
    /// Sends a signal; a process that has ended is fine.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn end(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Waits for its end until a limit; tells whether it came.
    pub(super) async fn ended(&self, limit: Duration) -> io::Result<bool> {
        match tokio::time::timeout(limit, self.end()).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// State and start time of a process.
fn stat(number: i32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{number}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other("/proc has another form"))
}

/// The name is in brackets and may hold anything, brackets and spaces too.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let text = "12 (a) Z (b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 8192 1";
        assert_eq!(parse_stat(text), Some(('S', 777)));
        assert_eq!(parse_stat("12 (x"), None);
    }

    #[test]
    fn a_number_that_was_used_again_is_another_process() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_running());
        assert!(
            !ProcessId {
                start: own.start + 1,
                ..own
            }
            .is_running()
        );
    }
}
