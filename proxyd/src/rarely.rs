//! Log lines of what may happen many times a second.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lets one of many equal events through each second and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Rarely {
    /// The second of the last one that was let through.
    last: AtomicU64,
    hidden: AtomicU64,
}

impl Rarely {
    /// Once a second: how often it happened since the last time that this was told, this time
    /// included.
    pub(crate) fn due(&self) -> Option<u64> {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        // From 1, so that the first call differs from the initial 0.
        self.due_at(START.elapsed().as_secs().saturating_add(1))
    }

    fn due_at(&self, second: u64) -> Option<u64> {
        if self.last.swap(second, Ordering::Relaxed) == second {
            self.hidden.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let hidden = self.hidden.swap(0, Ordering::Relaxed);
        Some(hidden.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_tells_of_all() {
        let rarely = Rarely::default();
        assert_eq!(rarely.due_at(1), Some(1));
        assert_eq!((rarely.due_at(1), rarely.due_at(1)), (None, None));
        assert_eq!(rarely.due_at(2), Some(3));
        assert_eq!(rarely.due_at(9), Some(1));
    }
}
