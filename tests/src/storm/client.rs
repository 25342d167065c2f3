//! The clients, in several processes: one process has too few descriptors for all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::program::{self, Running};
use crate::wait::wait_until;

/// Clients of a process.
const AT_ONCE: usize = 5000;
/// What all of them together take to begin.
const BEGIN: Duration = Duration::from_mins(1);

/// How a client fared.
#[derive(Debug)]
pub(super) struct Visit {
    /// The number that the application gave it.
    pub(super) answer: Result<u64, String>,
    /// Since it began.
    pub(super) ended: Duration,
}

/// Clients that have begun.
#[derive(Debug)]
pub(super) struct Clients(Vec<(IpAddr, Running)>);

impl Clients {
    pub(super) fn begin(to: SocketAddr, count: usize, patience: Duration) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        let mut left = count;
        for number in 1.. {
            let part = left.min(AT_ONCE);
            if part == 0 {
                break;
            }
            left -= part;
            let from = IpAddr::V4(Ipv4Addr::new(127, 0, 100, number));
            let mut command = Command::new(program::built("proxy-clients")?);
            command
                .args(["--from", &from.to_string()])
                .args(["--to", &to.to_string()])
                .args(["--count", &part.to_string()])
                .args(["--patience", &patience.as_secs().to_string()]);
            let running = program::start(&mut command, BEGIN + patience)?;
            wait_until("clients begin", BEGIN, || {
                Ok(running.said()?.contains("begun"))
            })?;
            processes.push((from, running));
        }
        Ok(Self(processes))
    }

    /// Waits for all of them.
    pub(super) fn finish(self) -> anyhow::Result<BTreeMap<SocketAddr, Visit>> {
        let mut visits = BTreeMap::new();
        for (from, running) in self.0 {
            let outcome = running.wait()?.ok()?;
            for line in outcome.stdout.lines().skip(1) {
                let (port, rest) = line.split_once(' ').context("a line without a port")?;
                let (_connected, rest) = rest.split_once(' ').context("a short line")?;
                let (ended, answer) = rest.split_once(' ').context("a short line")?;
                let visit = Visit {
                    answer: answer.parse().map_err(|_| answer.to_owned()),
                    ended: Duration::from_millis(ended.parse()?),
                };
                visits.insert(SocketAddr::new(from, port.parse()?), visit);
            }
        }
        Ok(visits)
    }
}
