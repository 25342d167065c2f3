//! A proxy that is short of something.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rehome_tests::proxy::{PATIENCE, Proxy};
use rehome_tests::wait::wait_until;

/// It is watched for so long.
const WATCHED: Duration = Duration::from_secs(3);

/// What can be seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peace {
    /// It cannot even answer for its metrics.
    Mute,
    /// It tries, and says again and again that it cannot.
    Speaks,
    /// It said so when it began, and waits.
    Once,
}

/// Watches a proxy that is short of something, by the word of its log, and insists that it says
/// so, not too often, and does not spin.
pub(crate) fn waits_in_peace(proxy: &Proxy, reason: &str, peace: Peace) -> anyhow::Result<()> {
    if peace != Peace::Mute {
        wait_until("the shortage is counted", PATIENCE, || {
            Ok(proxy.metric("rehome_proxy_shed_total", &[reason])? > 0)
        })?;
    }
    wait_until("the shortage is told", PATIENCE, || {
        Ok(told(proxy, reason)? > 0)
    })?;
    let (begin, before, lines) = (Instant::now(), proxy.processor()?, told(proxy, reason)?);
    wait_until("some seconds pass", PATIENCE, || {
        let speaks = peace != Peace::Speaks || told(proxy, reason)? > lines;
        Ok(begin.elapsed() >= WATCHED && speaks)
    })?;
    let lines = told(proxy, reason)?.saturating_sub(lines);
    let used = proxy.processor()?.saturating_sub(before);
    let passed = begin.elapsed();
    ensure!(
        used < passed.mul_f64(0.25),
        "{used:?} of processor time in {passed:?} without {reason}"
    );
    // One for each second that began meanwhile.
    let most = passed.as_secs() + 2;
    ensure!(
        u64::try_from(lines)? <= most,
        "{lines} lines about {reason} in {passed:?}"
    );
    Ok(())
}

/// The lines of the log about a shortage.
fn told(proxy: &Proxy, reason: &str) -> anyhow::Result<usize> {
    let log = proxy.log()?;
    let lines = log
        .lines()
        .filter(|line| line.contains("held back or turned away"));
    Ok(lines.filter(|line| line.contains(reason)).count())
}
