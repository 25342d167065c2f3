//! Waiting for something to be so, never for a fixed time.

use std::time::{Duration, Instant};

use anyhow::bail;

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks again and again until there is something to see.
///
/// # Errors
/// When there is nothing within `limit`, or a look fails.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if begin.elapsed() > limit {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        pause();
    }
}

/// Looks again and again until it is so.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    wait_for(what, limit, || Ok(look()?.then_some(())))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pause between two looks at a condition that has a deadline"
)]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}
