//! What a proxy uses of the machine.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

use super::{Proxy, sum};

/// What a pipe of a relay holds.
const PIPE: u64 = 256 << 10;

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Descriptors, but for those of pipes that wait for the next bulk: these are kept on purpose.
    pub descriptors: u64,
    /// Those pipes, and pipes that are in use.
    pub pipes: u64,
    /// Memory, in KiB.
    pub memory: u64,
    /// Processor time since its start.
    pub processor: Duration,
}

impl Proxy {
    /// What it uses now.
    ///
    /// # Errors
    /// When it does not run.
    pub fn used(&self) -> anyhow::Result<Used> {
        let pipes = sum(&self.metrics()?, "rehome_proxy_pipe_bytes", &[])?.div_ceil(PIPE);
        let descriptors = u64::try_from(self.descriptors()?)?;
        Ok(Used {
            descriptors: descriptors.saturating_sub(2 * pipes),
            pipes,
            memory: self.memory()?,
            processor: self.processor()?,
        })
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// When it does not run.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }

    /// Its memory, in KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    }

    /// The processor time that it has used, to 10 ms.
    ///
    /// # Errors
    /// When it does not run.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let (user, system) = fields.next().zip(fields.next()).context("no times")?;
        let ticks = user.parse::<u64>()? + system.parse::<u64>()?;
        Ok(Duration::from_millis(10 * ticks))
    }
}
