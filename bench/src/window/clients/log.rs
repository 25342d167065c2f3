//! What clients note.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::window::gap;
use crate::window::record::Seen;

/// Failures whose text is kept.
const TEXTS: usize = 8;

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// On a connection of its own.
    Fresh,
    /// On a kept connection.
    Kept,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Fresh, Self::Kept];
}

/// Notes of all clients of a trial.
#[derive(Debug)]
pub struct Log {
    begin: Instant,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    words: BTreeSet<String>,
    fresh: WayNotes,
    kept: WayNotes,
    /// Large values: when each was acknowledged, and its MiB.
    written: Vec<(Duration, f64)>,
    texts: Vec<String>,
}

#[derive(Debug, Default)]
struct WayNotes {
    acknowledged: Vec<Duration>,
    failed: u64,
}

impl Notes {
    fn of(&mut self, way: Way) -> &mut WayNotes {
        match way {
            Way::Fresh => &mut self.fresh,
            Way::Kept => &mut self.kept,
        }
    }

    fn keep(&mut self, text: String) {
        if self.texts.len() < TEXTS {
            self.texts.push(text);
        }
    }
}

impl Log {
    pub(super) fn new(begin: Instant) -> Self {
        Self {
            begin,
            notes: Mutex::default(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was acknowledged, or failed.
    pub(super) fn answered(&self, way: Way, word: String, answer: anyhow::Result<()>) {
        let now = self.begin.elapsed();
        let mut notes = self.notes();
        match answer {
            Ok(()) => {
                notes.of(way).acknowledged.push(now);
                notes.words.insert(word);
            }
            Err(error) => {
                notes.of(way).failed += 1;
                notes.keep(format!("{:.3} s, {way:?}: {error:#}", now.as_secs_f64()));
            }
        }
    }

    /// A large value was acknowledged.
    pub(super) fn wrote(&self, mebibytes: f64) {
        let now = self.begin.elapsed();
        self.notes().written.push((now, mebibytes));
    }

    /// How many requests were acknowledged.
    pub(super) fn served(&self, way: Way) -> usize {
        self.notes().of(way).acknowledged.len()
    }

    /// The first failures.
    pub(super) fn failures(&self) -> Vec<String> {
        self.notes().texts.clone()
    }

    /// The acknowledged words that are not among `words`.
    #[must_use]
    pub fn lost(&self, words: &BTreeSet<String>) -> u64 {
        u64::try_from(self.notes().words.difference(words).count()).unwrap_or(u64::MAX)
    }

    /// What it comes to, of a move that began at `moved`. What is lost is for others to say.
    #[must_use]
    pub fn seen(&self, moved: Duration) -> Seen {
        let notes = self.notes();
        let (fresh, kept) = (&notes.fresh.acknowledged, &notes.kept.acknowledged);
        let all: Vec<Duration> = fresh.iter().chain(kept).copied().collect();
        let found = |times| gap::longest(times, moved..Duration::MAX);
        let seconds = |gap: Option<gap::Gap>| gap.map_or(f64::NAN, |gap| gap.length.as_secs_f64());
        let whole = found(&all);
        let until = whole.map_or(moved, |gap| gap.begin);
        Seen {
            gap: seconds(whole),
            gap_fresh: seconds(found(fresh)),
            gap_kept: seconds(found(kept)),
            gap_before: seconds(gap::longest(&all, Duration::ZERO..moved)),
            acknowledged: u64::try_from(all.len()).unwrap_or(u64::MAX),
            failed_fresh: notes.fresh.failed,
            failed_kept: notes.kept.failed,
            failures: notes.texts.clone(),
            achieved: rate(&notes.written, until),
            lost: 0,
        }
    }
}

/// MiB per second until a time.
fn rate(written: &[(Duration, f64)], until: Duration) -> f64 {
    let before = written.iter().filter(|(time, _)| *time <= until);
    // The sum of nothing is minus nothing otherwise.
    let sum = before.fold(0.0, |sum, (_, mebibytes)| sum + mebibytes);
    if until.is_zero() {
        0.0
    } else {
        sum / until.as_secs_f64()
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_rate_counts_what_was_acknowledged_until_the_gap() {
        let at = Duration::from_secs;
        let written = [(at(1), 1.0), (at(2), 1.0), (at(9), 1.0)];
        assert_eq!(rate(&written, at(4)), 0.5);
        assert_eq!(rate(&[], at(4)), 0.0);
        assert_eq!(rate(&written, at(0)), 0.0);
    }

    #[test]
    fn a_word_that_was_refused_is_not_lost_and_one_that_was_acknowledged_is() {
        let log = Log::new(Instant::now());
        let refused = || Err(anyhow::anyhow!("refused"));
        log.answered(Way::Fresh, "a".to_owned(), Ok(()));
        log.answered(Way::Kept, "b".to_owned(), Ok(()));
        log.answered(Way::Kept, "c".to_owned(), refused());
        let there = BTreeSet::from(["a".to_owned()]);
        assert_eq!(log.lost(&there), 1);
        let seen = log.seen(Duration::ZERO);
        assert_eq!((seen.failed_fresh, seen.failed_kept), (0, 1));
        assert_eq!(seen.acknowledged, 2);
        assert!(seen.failures[0].ends_with("Kept: refused"), "{seen:?}");
    }
}
