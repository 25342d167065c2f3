//! A daemon dies as soon as its log says something.

use std::time::Duration;

use rehome_tests::lab::{Host, Lab};
use rehome_tests::program::Running;
use rehome_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_mins(2);

/// A side of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Waits until the log of `migrated` on a host says the words once more, and kills the process
/// then.
pub(crate) fn lie_in_wait(
    lab: &Lab,
    host: &Host,
    words: &str,
    pid: u32,
) -> anyhow::Result<Running> {
    let log = format!(
        "/var/lib/rehome-lab/{}/{}/log/migrated.log",
        lab.name(),
        host.name()
    );
    let count = format!("grep -cF '{words}' {log}");
    let line = format!(
        "before=$({count} || true); echo ready; \
         while [ \"$({count} || true)\" = \"$before\" ]; do :; done; kill -KILL {pid}"
    );
    let killer = host.begin(&["sh", "-ec", &line])?;
    wait_until("the killer lies in wait", PATIENCE, || {
        Ok(killer.said()?.contains("ready"))
    })?;
    Ok(killer)
}
