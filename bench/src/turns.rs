//! Who is measured when: by turns, and for as long as there is time.

use std::time::Duration;

/// The contenders in the order of one round: another one begins each time, so that none always
/// meets the machine as the same other one left it.
#[must_use]
pub fn rotated<T: Clone>(all: &[T], round: usize) -> Vec<T> {
    let mut order = all.to_vec();
    if let Some(shift) = round.checked_rem(order.len()) {
        order.rotate_left(shift);
    }
    order
}

/// Whether one more of so many repetitions fits before the limit, after some that took so long
/// together. The first one always does.
#[must_use]
pub fn goes_on(done: u32, wanted: u32, elapsed: Duration, limit: Duration) -> bool {
    let next = elapsed.checked_div(done).unwrap_or_default();
    done < wanted && (done == 0 || elapsed.saturating_add(next) <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_begins_once_in_as_many_rounds_as_there_are_contenders() {
        let all = ['a', 'b', 'c'];
        let first: Vec<_> = (0..3).map(|round| rotated(&all, round)[0]).collect();
        assert_eq!(first, all);
        assert_eq!(rotated(&all, 3), rotated(&all, 0));
        assert!(rotated::<char>(&[], 1).is_empty());
    }

    #[test]
    fn a_repetition_begins_only_when_it_probably_fits() {
        let limit = Duration::from_secs(100);
        let after = |done, seconds| goes_on(done, 3, Duration::from_secs(seconds), limit);
        assert!(after(0, 1000) && after(1, 50) && after(2, 66));
        assert!(!after(1, 51) && !after(2, 67) && !after(3, 0));
    }
}
