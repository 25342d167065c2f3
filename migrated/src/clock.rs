//! The one place that reads the clock for the cores.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migrated_core::UnixMillis;

/// Now. A clock before 1970 counts as 1970.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The time as a part of a file's name: RFC 3339 in its compact form, to the second.
#[must_use]
pub fn compact(at: UnixMillis) -> String {
    let whole = UnixMillis(at.0 / 1000 * 1000);
    let plain = rfc3339(whole);
    let digits = plain.split('.').next().unwrap_or_default();
    let compact: String = digits.chars().filter(|c| !"-:".contains(*c)).collect();
    format!("{compact}Z")
}

/// RFC 3339 with milliseconds.
#[must_use]
pub fn rfc3339(at: UnixMillis) -> String {
    let time = UNIX_EPOCH
        .checked_add(Duration::from_millis(at.0))
        .unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_millis(time).to_string()
}
