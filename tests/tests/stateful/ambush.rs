//! Something happens as soon as the log of a daemon says something.

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

/// Waits until the log of `migrated` on a host says the words once more, and runs a line of shell
/// there then.
pub(crate) fn when_it_says(
    lab: &Lab,
    host: &Host,
    words: &str,
    action: &str,
) -> anyhow::Result<Running> {
    let log = format!(
        "/var/lib/rehome-lab/{}/{}/log/migrated.log",
        lab.name(),
        host.name()
    );
    let count = format!("grep -cF '{words}' {log}");
    let line = format!(
        "before=$({count} || true); echo ready; \
         while [ \"$({count} || true)\" = \"$before\" ]; do :; done; {action}"
    );
    let waits = host.begin(&["sh", "-ec", &line])?;
    wait_until("somebody lies in wait", PATIENCE, || {
        Ok(waits.said()?.contains("ready"))
    })?;
    Ok(waits)
}
