//! What several measurements of one thing come to.

/// The middle of some values, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median; of an even number of values, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of some values; `None` of none. What is not a number is left out.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            least: *sorted.first()?,
            most: *sorted.last()?,
        })
    }

    /// How many times as large its median is as another one's; `None` when that is nothing.
    #[must_use]
    pub fn times(&self, other: &Self) -> Option<f64> {
        (other.median > 0.0).then(|| self.median / other.median)
    }
}

/// What so many of a thousand sorted values do not exceed; `None` of no values.
#[must_use]
pub fn quantile(sorted: &[u32], per_mille: usize) -> Option<u32> {
    let rank = sorted.len().saturating_mul(per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A count as a figure. Beyond 2^53, which no count here reaches, the last digits are lost.
#[must_use]
pub fn figure(count: u64) -> f64 {
    let (high, low) = (count >> 32, count & u64::from(u32::MAX));
    let half = |half: u64| f64::from(u32::try_from(half).unwrap_or(u32::MAX));
    half(high).mul_add(4_294_967_296.0, half(low))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.least, odd.median, odd.most), (1.0, 2.0, 3.0));
        let even = Spread::of([4.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!(even.median, 3.0);
        let one = Spread::of([7.0]).unwrap();
        assert_eq!((one.least, one.median, one.most), (7.0, 7.0, 7.0));
    }

    #[test]
    fn of_nothing_there_is_no_median_and_what_is_no_number_is_left_out() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
        assert_eq!(Spread::of([f64::NAN, 2.0]).unwrap().median, 2.0);
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        let spread = |value| Spread::of([value]).unwrap();
        assert_eq!(spread(6.0).times(&spread(2.0)), Some(3.0));
        assert_eq!(spread(6.0).times(&spread(0.0)), None);
    }

    #[test]
    fn a_quantile_is_a_value_that_was_there() {
        let thousand: Vec<u32> = (1..=1000).collect();
        assert_eq!(quantile(&thousand, 500), Some(500));
        assert_eq!(quantile(&thousand, 990), Some(990));
        assert_eq!(quantile(&thousand, 999), Some(999));
        assert_eq!(quantile(&[7, 9], 999), Some(9));
        assert_eq!(quantile(&[7], 1), Some(7));
        assert_eq!(quantile(&[], 500), None);
    }

    #[test]
    fn a_count_is_the_same_figure() {
        assert_eq!(figure(0), 0.0);
        assert_eq!(figure(u64::from(u32::MAX)), 4_294_967_295.0);
        assert_eq!(figure(5_000_000_000), 5e9);
    }
}
