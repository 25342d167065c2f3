//! The clock of histories: one for all processes of this machine, also inside of lab hosts.

use rustix::time::{ClockId, clock_gettime};

/// Microseconds since this machine was started.
#[must_use]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000_000 + nanoseconds / 1000
}
