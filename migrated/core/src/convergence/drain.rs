//! Rounds while the drain lasts. Clients that are still served go on writing: what is not sent
//! before the stop is sent in the window.
//!
//! A round begins when one as long as the last fits into what is left of the drain. So no round
//! makes clients wait longer than the drain alone would, and when it is over the last snapshot
//! is no older than two rounds and one [`pace`].

use std::time::Duration;

/// From the beginning of one round to that of the next, at least; and from the beginning of the
/// drain to that of the first, because most drains are over by then.
const PACE: Duration = Duration::from_millis(100);

/// So many rounds at most, however long the drain: each is written down.
const MOST: u32 = 32;

/// From the beginning of one round in a drain of at most `limit` to that of the next.
#[must_use]
pub fn pace(limit: Duration) -> Duration {
    PACE.max(limit / MOST)
}

/// Whether one more round begins in a drain that has lasted so long, when the last one took so
/// many seconds.
#[must_use]
pub fn has_room(limit: Duration, elapsed: Duration, last: f64) -> bool {
    elapsed.as_secs_f64() + last <= limit.as_secs_f64()
}

/// Seconds from the last snapshot to the end of the drain, at most, when rounds take so many
/// seconds as the last.
pub(super) fn exposed(limit: Duration, last: f64) -> f64 {
    last + limit.as_secs_f64().min(pace(limit).as_secs_f64() + last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_short_drain_is_exposed_as_a_whole() {
        assert!(close(exposed(Duration::ZERO, 0.5), 0.5));
        assert!(close(exposed(80 * MS, 0.5), 0.58));
    }

    #[test]
    fn a_drain_that_no_round_fits_into_is_exposed_as_a_whole() {
        assert!(!has_room(2000 * MS, pace(2000 * MS), 4.0));
        assert!(close(exposed(2000 * MS, 4.0), 6.0));
    }

    #[test]
    fn short_rounds_leave_little_of_a_long_drain_exposed() {
        assert!(close(exposed(2000 * MS, 0.05), 0.2));
        assert!(has_room(2000 * MS, 1900 * MS, 0.1));
        assert!(!has_room(2000 * MS, 1901 * MS, 0.1));
    }

    proptest! {
        /// Played through: rounds that take as long as the last are so few, all end within the
        /// drain, and leave no more exposed than was said.
        #[test]
        fn what_is_exposed_is_never_more_than_foreseen(
            limit in 0_u32..100_000, last in 0_u32..20_000,
        ) {
            let (limit, last) = (limit * MS, last * MS);
            let seconds = last.as_secs_f64();
            // The last round before the drain ended when it began.
            let (mut snapped, mut began, mut rounds) = (-seconds, pace(limit), 0);
            while has_room(limit, began, seconds) {
                rounds += 1;
                snapped = began.as_secs_f64();
                prop_assert!(began + last <= limit + MS);
                began += pace(limit).max(last);
            }
            prop_assert!(rounds <= MOST);
            let late = limit.as_secs_f64() - snapped;
            prop_assert!(late <= exposed(limit, seconds) + 1e-6, "{late}");
        }
    }
}
