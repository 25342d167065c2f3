//! How long to wait between tries, and how long one try may take.
//!
//! A SYN that an overflowing accept queue dropped comes again only after a second, so the
//! first tries are short and use a fresh socket each: ten tries of 100 ms release a crowd ten
//! times as fast as one of a second. Later tries are longer, for targets that are far away.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
const SHORT_TRY: Duration = Duration::from_millis(100);
const SHORT_TRIES: u32 = 4;

/// The pause after so many failures in a row: 5, 10, 20, 40, 80, then 100 ms.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    FIRST_PAUSE
        .saturating_mul(1 << doublings)
        .min(LONGEST_PAUSE)
}

/// How long a try may take after so many failures in a row, at most `longest`.
#[must_use]
pub fn patience(failures: u32, longest: Duration) -> Duration {
    let doublings = failures.saturating_sub(SHORT_TRIES - 1).min(8);
    SHORT_TRY.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_5_to_100_ms() {
        let ms: Vec<u128> = (1..=7).map(|n| pause(n).as_millis()).collect();
        assert_eq!(ms, [5, 10, 20, 40, 80, 100, 100]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn first_tries_are_short_and_later_ones_reach_the_limit() {
        let longest = Duration::from_secs(2);
        let ms: Vec<u128> = (0..9).map(|n| patience(n, longest).as_millis()).collect();
        assert_eq!(ms, [100, 100, 100, 100, 200, 400, 800, 1600, 2000]);
        assert_eq!(patience(0, Duration::from_millis(20)).as_millis(), 20);
    }
}
