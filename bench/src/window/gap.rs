//! How long nothing was acknowledged.

use std::time::Duration;

/// A time without any acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The acknowledgement before it.
    pub begin: Duration,
    /// How long it was.
    pub length: Duration,
}

/// The longest gap that ends within a period. `times` are those of acknowledgements, in any
/// order; `None` when fewer than two are left to lie between.
#[must_use]
pub fn longest(times: &[Duration], period: std::ops::Range<Duration>) -> Option<Gap> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let gaps = sorted.iter().zip(sorted.iter().skip(1));
    gaps.filter(|(_, end)| period.contains(*end))
        .map(|(begin, end)| Gap {
            begin: *begin,
            length: end.saturating_sub(*begin),
        })
        .max_by_key(|gap| gap.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(all: &[u64]) -> Vec<Duration> {
        all.iter().copied().map(Duration::from_millis).collect()
    }

    fn found(times: &[u64], from: u64, to: u64) -> Option<(u64, u64)> {
        let period = Duration::from_millis(from)..Duration::from_millis(to);
        let gap = longest(&ms(times), period)?;
        let whole = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        Some((whole(gap.begin), whole(gap.length)))
    }

    #[test]
    fn the_longest_gap_is_found_in_whatever_order_acknowledgements_were_noted() {
        assert_eq!(found(&[500, 10, 0, 20, 510], 0, 1000), Some((20, 480)));
    }

    #[test]
    fn a_gap_that_began_before_the_period_counts_and_one_that_ended_before_does_not() {
        let times = [0, 400, 410, 700, 720];
        assert_eq!(found(&times, 0, 1000), Some((0, 400)));
        assert_eq!(found(&times, 500, 1000), Some((410, 290)));
        assert_eq!(found(&times, 0, 500), Some((0, 400)));
    }

    #[test]
    fn fewer_than_two_acknowledgements_have_no_gap() {
        assert_eq!(found(&[], 0, 10), None);
        assert_eq!(found(&[5], 0, 10), None);
    }
}
