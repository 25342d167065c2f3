//! How hard an application is held back that writes faster than the rounds shrink: as QEMU's
//! auto-converge does it, 20 % first, then 10 % more with each round that does not help.

use std::fmt;

/// The first step, in percent.
const FIRST: u8 = 20;

/// Each further step.
const STEP: u8 = 10;

/// The last one: an application is never stopped by it.
const MOST: u8 = 99;

/// How much less of the processor an application may use than it did by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Throttle(u8);

impl Throttle {
    /// It runs as it likes.
    pub const FREE: Self = Self(0);

    /// The next step; `None` when this is the last.
    #[must_use]
    pub fn harder(self) -> Option<Self> {
        match self.0 {
            0 => Some(Self(FIRST)),
            now if now < MOST => Some(Self(now.saturating_add(STEP).min(MOST))),
            _ => None,
        }
    }

    /// How much less, in percent.
    #[must_use]
    pub fn percent(self) -> u8 {
        self.0
    }

    /// The share that it is left with: above 0, at most 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(100 - self.0.min(MOST)) / 100.0
    }
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_those_of_auto_converge() {
        let steps: Vec<u8> = std::iter::successors(Some(Throttle::FREE), |now| now.harder())
            .map(Throttle::percent)
            .collect();
        assert_eq!(steps, [0, 20, 30, 40, 50, 60, 70, 80, 90, 99]);
    }

    #[test]
    fn something_is_always_left_and_less_with_each_step() {
        let mut now = Throttle::FREE;
        assert!((now.share() - 1.0).abs() < f64::EPSILON);
        while let Some(next) = now.harder() {
            assert!(next.share() < now.share() && next.share() > 0.0, "{next}");
            now = next;
        }
    }
}
