//! The process of a proxy: a child of this one, or the successor that a child has handed over to,
//! which this one adopts.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};

use super::PATIENCE;
use crate::wait::wait_for;

/// A process that nobody else waits for, so that its number stays its own. It ends with the value.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(super) fn of(child: &Child) -> anyhow::Result<Self> {
        Self::numbered(child.id())
    }

    /// One that a child has started, after [`adopt`].
    pub(super) fn numbered(pid: u32) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no process")?;
        Ok(Self { pid, ended: None })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// How it has ended, once it has.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some((_, status)) = waitpid(Some(self.pid), WaitOptions::NOHANG)?
        {
            self.ended = Some(ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.ended)
    }

    pub(super) fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        wait_for("proxyd ends", PATIENCE, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        drop(self.signal(Signal::KILL));
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                // It is gone, or was not this process's.
                _ => return,
            }
        }
    }
}

/// Has this process be the parent of successors, whose own parents end at once.
pub(super) fn adopt() -> anyhow::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}
