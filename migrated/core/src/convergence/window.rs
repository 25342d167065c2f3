//! Whether a window that has begun still fits the hard cap. Before C1 a window that will pass it
//! is given up at once: to wait for the cap only makes the interruption longer.

use std::time::Duration;

use rehome_shared::units::Bytes;

use super::float;

/// A stream that has brought so many bytes tells how fast it is.
const TELLING: Bytes = Bytes(1 << 20);

/// One that runs for less time is still in its first burst.
const BURST: Duration = Duration::from_millis(200);

/// What is known of a window between the stop of the application and C1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underway {
    /// Since the application was told to stop.
    pub elapsed: Duration,
    /// What is left to send of the final difference.
    pub pending: Bytes,
    /// How many bytes go per second.
    pub rate: Bytes,
    /// What comes after the last byte, as last measured: the messages of the handoff, start and
    /// health there.
    pub ahead: Duration,
}

impl Underway {
    /// The whole window as predicted now.
    #[must_use]
    pub fn predicted(&self) -> Duration {
        let sending = float(self.pending) / float(self.rate).max(1.0);
        let sending = Duration::try_from_secs_f64(sending).unwrap_or(Duration::MAX);
        self.elapsed
            .saturating_add(sending)
            .saturating_add(self.ahead)
    }

    /// The whole window as predicted now, if it passes `hard_cap`.
    #[must_use]
    pub fn overrun(&self, hard_cap: Duration) -> Option<Duration> {
        Some(self.predicted()).filter(|predicted| *predicted > hard_cap)
    }
}

/// Bytes per second of a stream that has sent so much in so long; `None` until it has told.
#[must_use]
pub fn rate_of_stream(sent: Bytes, took: Duration) -> Option<Bytes> {
    let tells = sent >= TELLING && took >= BURST;
    tells.then(|| super::whole(float(sent) / took.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn underway(elapsed: u64, mebibytes: u64, rate: u64, ahead: u64) -> Underway {
        Underway {
            elapsed: Duration::from_millis(elapsed),
            pending: Bytes(mebibytes * MIB),
            rate: Bytes(rate * MIB),
            ahead: Duration::from_millis(ahead),
        }
    }

    #[test]
    fn a_window_that_will_pass_the_cap_is_known_before_it_does() {
        let cap = Duration::from_secs(10);
        // 1 s until now, 100 MiB at 20 MiB/s, 2 s to start: 8 s.
        assert_eq!(underway(1000, 100, 20, 2000).overrun(cap), None);
        // The stop took 3 s longer.
        let late = underway(4000, 100, 20, 2000);
        assert_eq!(late.overrun(cap), Some(Duration::from_secs(11)));
        // Three times as much to send.
        let large = underway(1000, 300, 20, 2000);
        assert_eq!(large.overrun(cap), Some(Duration::from_secs(18)));
        // The wire became slow.
        let slow = underway(1000, 100, 5, 2000);
        assert_eq!(slow.overrun(cap), Some(Duration::from_secs(23)));
    }

    #[test]
    fn a_window_that_fits_exactly_is_not_given_up() {
        let cap = Duration::from_secs(8);
        assert_eq!(underway(1000, 100, 20, 2000).overrun(cap), None);
    }

    #[test]
    fn nothing_left_to_send_takes_no_time_on_a_wire_that_stands_still() {
        assert_eq!(underway(500, 0, 0, 500).predicted(), Duration::from_secs(1));
        assert_eq!(underway(500, 1, 0, 500).overrun(Duration::from_secs(10)), {
            Some(underway(500, 1, 0, 500).predicted())
        });
    }

    #[test]
    fn a_stream_tells_its_rate_when_it_has_sent_enough_for_long_enough() {
        let rate = |sent, millis| rate_of_stream(Bytes(sent), Duration::from_millis(millis));
        assert_eq!(rate(MIB - 1, 1000), None);
        assert_eq!(rate(64 * MIB, 100), None);
        assert_eq!(rate(2 * MIB, 500), Some(Bytes(4 * MIB)));
    }

    proptest! {
        #[test]
        fn more_of_anything_never_makes_a_window_shorter(
            elapsed in 0_u64..100_000, pending in 0_u64..10_000, rate in 0_u64..10_000,
            ahead in 0_u64..100_000, more in 0_u64..10_000,
        ) {
            let now = underway(elapsed, pending, rate, ahead);
            let longer = [
                underway(elapsed + more, pending, rate, ahead),
                underway(elapsed, pending + more, rate, ahead),
                underway(elapsed, pending, rate.saturating_sub(more), ahead),
                underway(elapsed, pending, rate, ahead + more),
            ];
            for longer in longer {
                prop_assert!(longer.predicted() >= now.predicted(), "{longer:?} {now:?}");
            }
            prop_assert!(now.predicted() >= now.elapsed + now.ahead);
        }
    }
}
