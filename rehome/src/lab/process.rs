//! A process of this machine, told apart from a later one with the same number.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process: its number and when it began, in clock ticks since the machine started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    /// The process that has this number now, unless it has ended.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            started: started(pid)?,
        })
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended. A process that only waits to be reaped has.
    pub(crate) fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Whether it still has its namespaces: a PID 1 that was killed stays for as long as the
    /// kernel ends everything else in its host, and nothing can enter that host any more.
    pub(crate) fn can_be_entered(&self) -> bool {
        self.is_alive() && fs::read_link(format!("/proc/{}/ns/net", self.pid)).is_ok()
    }

    /// Kills it, if it is alive.
    pub(crate) fn kill(&self) {
        if self.is_alive() {
            kill(self.pid);
        }
    }
}

/// Kills the process with this number.
pub(crate) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It fails only when the process has ended, which is what was wanted.
        kill_process(pid, Signal::KILL).unwrap_or_default();
    }
}

/// The start time of a living process. `/proc/PID/stat` holds the command's name in brackets,
/// which may hold anything; the state is the first field behind it, the start time the 20th.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends_even_if_nobody_reaped_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::find(child.id()).unwrap();
        assert!(process.is_alive());
        process.kill();
        let limit = std::time::Duration::from_secs(10);
        let never = crate::stop::Stop::never();
        let ended = crate::stop::wait_until(limit, &never, || !process.is_alive());
        child.wait().unwrap();
        assert_eq!(ended, crate::stop::Waited::Met);
    }

    #[test]
    fn a_later_process_with_the_same_number_is_another_one() {
        let this = Process::find(std::process::id()).unwrap();
        let earlier = Process {
            started: this.started.saturating_sub(1),
            ..this
        };
        assert!(!earlier.is_alive());
    }
}
