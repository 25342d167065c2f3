//! A rate that several streams share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rehome_shared::units::Bytes;
use tokio::time::Instant;

/// The most that is taken at a time, in time: a stream at a low rate still goes on steadily, and
/// streams that share a bucket take turns.
const TURN: Duration = Duration::from_millis(250);

/// The most that is taken at a time, in bytes.
const LARGEST: u64 = 256 << 10;

/// The least.
const SMALLEST: u64 = 512;

/// Bytes per second. Whoever takes bytes out waits until those before and its own are due.
#[derive(Debug, Default)]
pub struct Bucket {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rate: Option<Bytes>,
    /// When all that was taken will have gone by at the rate.
    due: Option<Instant>,
}

impl Bucket {
    /// A bucket of so many bytes per second; none is no limit.
    #[must_use]
    pub fn new(rate: Option<Bytes>) -> Self {
        let bucket = Self::default();
        bucket.set_rate(rate);
        bucket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this rate holds; what was taken before is forgotten.
    pub fn set_rate(&self, rate: Option<Bytes>) {
        let mut state = self.state();
        let rate = rate.filter(|rate| rate.0 > 0);
        if state.rate != rate {
            *state = State { rate, due: None };
        }
    }

    /// How many bytes to take at a time.
    #[must_use]
    pub fn allowance(&self) -> usize {
        let turn = match self.state().rate {
            None => LARGEST,
            Some(rate) => (rate.0 / per_second(TURN)).clamp(SMALLEST, LARGEST),
        };
        usize::try_from(turn).unwrap_or(usize::MAX)
    }

    /// Takes bytes out, and says when they are due.
    pub fn take(&self, bytes: u64) -> Option<Instant> {
        let mut state = self.state();
        let rate = state.rate?;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.0);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let now = Instant::now();
        let due = state.due.unwrap_or(now).max(now) + cost;
        state.due = Some(due);
        Some(due)
    }
}

/// How many of these make a second.
fn per_second(time: Duration) -> u64 {
    u64::try_from(1000 / time.as_millis().max(1))
        .unwrap_or(1)
        .max(1)
}
