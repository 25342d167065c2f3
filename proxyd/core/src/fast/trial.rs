//! Whether what the kernel carries arrives.
//!
//! Between here and an application there are other people's rules, and the application itself may
//! have ended. User space notices, waits and tries again; the kernel does not. So it notes which
//! ports were asked for, which gave a sign of life, and which refused; and a route that gives none is
//! carried in user space again. Time is counted in looks.

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::proxy::RouteKey;

/// Looks in which a port was asked for and gave no sign in between, after which it is given up.
const PATIENCE: u32 = 3;
/// Looks for which a port that refused is left alone. Somebody has to reach it first, anyway.
const REFUSED: u64 = 5;
/// Looks for which one that gave no sign is left alone, the first time.
const SILENT: u64 = 60;
/// The most of them, after more such times.
const AT_MOST: u64 = 3600;

/// What the kernel noted lately, for somewhat longer than from one look to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noted {
    /// Ports with new flows.
    pub asked: BTreeSet<RouteKey>,
    /// Ports of which something got through: an answer, or for datagrams the way out.
    pub answered: BTreeSet<RouteKey>,
    /// Ports at which nobody listens.
    pub refused: BTreeSet<RouteKey>,
}

impl Noted {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.answered.is_empty() && self.refused.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    until: u64,
    length: u64,
}

/// How the routes that the kernel carries do.
#[derive(Debug, Clone, Default)]
pub struct Trials {
    looks: u64,
    answered_before: BTreeSet<RouteKey>,
    silent: BTreeMap<RouteKey, u32>,
    resting: BTreeMap<RouteKey, Rest>,
}

impl Trials {
    /// Another look: answers which routes are to be given up.
    pub fn look(&mut self, noted: Noted) -> BTreeSet<RouteKey> {
        self.looks = self.looks.saturating_add(1);
        let Noted {
            asked,
            answered,
            refused,
        } = noted;
        for key in &answered {
            self.silent.remove(key);
            self.resting.remove(key);
        }
        let mut given_up = BTreeSet::new();
        for key in asked {
            // The last answer may have come just before this look and its question after it.
            if answered.contains(&key) || self.answered_before.contains(&key) {
                continue;
            }
            let looks = self.silent.entry(key).or_default();
            *looks = looks.saturating_add(1);
            if *looks >= PATIENCE {
                self.silent.remove(&key);
                self.give_up(key, SILENT);
                given_up.insert(key);
            }
        }
        for key in refused {
            self.silent.remove(&key);
            self.give_up(key, REFUSED);
            given_up.insert(key);
        }
        self.answered_before = answered;
        given_up
    }

    /// Whether a route may be carried by the kernel by now.
    #[must_use]
    pub fn may(&self, key: RouteKey) -> bool {
        let rest = self.resting.get(&key);
        rest.is_none_or(|rest| rest.until <= self.looks)
    }

    /// A route leads somewhere else: what it did before says nothing.
    pub fn forget(&mut self, key: RouteKey) {
        self.silent.remove(&key);
        self.resting.remove(&key);
    }

    fn give_up(&mut self, key: RouteKey, first: u64) {
        if !self.may(key) {
            // The same notes are seen in several looks.
            return;
        }
        let before = self.resting.get(&key);
        let length = before.map_or(first, |rest| rest.length.saturating_mul(2).min(AT_MOST));
        let until = self.looks.saturating_add(length);
        self.resting.insert(key, Rest { until, length });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RouteKey {
        "80/tcp".parse().unwrap()
    }

    fn noted(asked: bool, answered: bool) -> Noted {
        let of = |is: bool| is.then(key).into_iter().collect();
        Noted {
            asked: of(asked),
            answered: of(answered),
            refused: BTreeSet::new(),
        }
    }

    #[test]
    fn who_asks_and_asks_without_an_answer_is_carried_in_user_space_for_a_while() {
        let mut trials = Trials::default();
        for _ in 1..PATIENCE {
            assert!(trials.look(noted(true, false)).is_empty());
            assert!(trials.look(noted(false, false)).is_empty());
        }
        assert_eq!(trials.look(noted(true, false)), [key()].into());
        assert!(!trials.may(key()));
        for _ in 0..SILENT {
            assert!(trials.look(Noted::default()).is_empty());
        }
        assert!(trials.may(key()));
        // It is no better: longer this time.
        for _ in 0..PATIENCE {
            trials.look(noted(true, false));
        }
        for _ in 0..SILENT {
            trials.look(Noted::default());
        }
        assert!(!trials.may(key()));
        trials.forget(key());
        assert!(trials.may(key()));
    }

    #[test]
    fn a_note_that_is_seen_again_is_no_other_one() {
        let mut trials = Trials::default();
        let refused = || Noted {
            refused: [key()].into(),
            ..Noted::default()
        };
        for _ in 0..3 {
            let _again = trials.look(refused());
        }
        for _ in 2..REFUSED {
            assert!(!trials.may(key()));
            trials.look(Noted::default());
        }
        assert!(trials.may(key()));
    }

    #[test]
    fn an_answer_on_either_side_of_a_look_is_one() {
        let mut trials = Trials::default();
        for _ in 0..10 {
            assert!(trials.look(noted(false, true)).is_empty());
            assert!(trials.look(noted(true, false)).is_empty());
            assert!(trials.look(noted(true, true)).is_empty());
        }
        assert!(trials.may(key()));
    }

    #[test]
    fn who_refuses_is_given_up_at_once() {
        let mut trials = Trials::default();
        let refused = Noted {
            refused: [key()].into(),
            ..noted(true, true)
        };
        assert_eq!(trials.look(refused), [key()].into());
        assert!(!trials.may(key()));
    }
}
