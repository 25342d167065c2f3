//! Rounds while the drain lasts. Clients that are still served go on writing: what is not sent
//! before the stop is sent in the window.
//!
//! A round begins when at least half of one as long as the last fits into what is left of the
//! drain. Where the whole of it does not, the stop waits for its end. That costs those who wait at
//! the gate less than it saves: with `r` the seconds of the round, `left` those of the drain and `ρ`
//! the dirty rate over the bandwidth, drain and final difference are over after `r + ρ r`, and without
//! the round after `left + r + ρ left`, which is no less while `ρ ≤ 1` and `r ≤ 2 left`.

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
    elapsed.as_secs_f64() + last / 2.0 <= limit.as_secs_f64()
}

/// Seconds from the last snapshot to the end of the drain and its rounds, at most, when these take
/// so many seconds as the last.
pub(super) fn exposed(limit: Duration, last: f64) -> f64 {
    last + limit
        .as_secs_f64()
        .min(pace(limit).as_secs_f64() + last / 2.0)
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
    fn a_round_that_outlasts_the_drain_is_sent_if_half_of_it_fits() {
        assert!(has_room(2000 * MS, pace(2000 * MS), 3.0));
        assert!(close(exposed(2000 * MS, 3.0), 4.6));
    }

    #[test]
    fn short_rounds_leave_little_of_a_long_drain_exposed() {
        assert!(close(exposed(2000 * MS, 0.1), 0.25));
        assert!(has_room(2000 * MS, 1950 * MS, 0.1));
        assert!(!has_room(2000 * MS, 1951 * MS, 0.1));
    }

    proptest! {
        /// Played through: rounds that take as long as the last are so few, outlast the drain by
        /// half of one at most, and leave no more exposed than was said.
        #[test]
        fn what_is_exposed_is_never_more_than_foreseen(
            limit in 0_u32..100_000, last in 0_u32..20_000,
        ) {
            let (limit, last) = (limit * MS, last * MS);
            let seconds = last.as_secs_f64();
            // The last round before the drain ended when it began.
            let (mut snapped, mut began, mut rounds) = (-seconds, pace(limit), 0);
            let mut end = limit;
            while has_room(limit, began, seconds) {
                rounds += 1;
                snapped = began.as_secs_f64();
                end = limit.max(began + last);
                prop_assert!(end <= limit + last / 2 + MS);
                began += pace(limit).max(last);
            }
            prop_assert!(rounds <= MOST);
            let late = end.as_secs_f64() - snapped;
            prop_assert!(late <= exposed(limit, seconds) + 1e-6, "{late}");
        }
    }
}
