//! How the next bytes of one direction of a relay are moved: copied through a small buffer, or
//! spliced through a pipe.
//!
//! Copying is cheaper for messages, splicing for bulk. Bulk shows as reads that fill their
//! buffer, again and again; messages show as fills that would have fitted one.

/// What a copied read takes at most until bulk shows.
pub const SMALL: usize = 16 << 10;

/// What a copied read takes at most when bulk flows and there is no pipe.
pub const LARGE: usize = 64 << 10;

/// What a copied read takes at most when there is no memory for more.
pub const TINY: usize = 4 << 10;

/// So many reads in a row that fill a small buffer are bulk.
const BULK: u8 = 4;

/// So many fills in a row that would have fitted a small buffer are messages. Many, because the
/// way back costs another [`BULK`] copies, and bulk on many connections comes in short pieces.
const MESSAGES: u8 = 32;

/// After there was no pipe, so many full large reads pass before the next is asked for.
const PATIENCE: u8 = 64;

/// What a direction remembers of its last reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gait {
    pace: Pace,
    /// Reads in a row that speak for another pace.
    run: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Pace {
    #[default]
    Messages,
    Bulk,
    /// Bulk without a pipe.
    NoPipe,
}

impl Gait {
    /// One that has seen bulk.
    #[must_use]
    pub fn bulk() -> Self {
        Self {
            pace: Pace::Bulk,
            run: 0,
        }
    }

    /// Whether the next bytes go through a pipe, when there is one.
    #[must_use]
    pub fn wants_pipe(self) -> bool {
        self.pace == Pace::Bulk
    }

    /// How large a buffer they go through otherwise.
    #[must_use]
    pub fn room(self) -> usize {
        match self.pace {
            Pace::Messages => SMALL,
            Pace::Bulk | Pace::NoPipe => LARGE,
        }
    }

    /// So many bytes came at once.
    pub fn took(&mut self, bytes: usize) {
        let (speaks, enough, other) = match self.pace {
            Pace::Messages => (bytes >= SMALL, BULK, Pace::Bulk),
            Pace::Bulk => (bytes < SMALL, MESSAGES, Pace::Messages),
            // Short reads need no large buffer.
            Pace::NoPipe if bytes < SMALL => (true, 1, Pace::Messages),
            Pace::NoPipe => (bytes >= LARGE, PATIENCE, Pace::Bulk),
        };
        self.run = if speaks {
            self.run.saturating_add(1)
        } else {
            0
        };
        if self.run >= enough {
            *self = Self {
                pace: other,
                run: 0,
            };
        }
    }

    /// There is no pipe.
    pub fn no_pipe(&mut self) {
        *self = Self {
            pace: Pace::NoPipe,
            run: 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gait: Gait, reads: impl IntoIterator<Item = usize>) -> Gait {
        reads.into_iter().fold(gait, |mut gait, bytes| {
            gait.took(bytes);
            gait
        })
    }

    fn is_small(gait: Gait) -> bool {
        !gait.wants_pipe() && gait.room() == SMALL
    }

    fn is_large(gait: Gait) -> bool {
        !gait.wants_pipe() && gait.room() == LARGE
    }

    fn bulk() -> Gait {
        let bulk = after(Gait::default(), [SMALL; 4]);
        assert_eq!(bulk, Gait::bulk());
        bulk
    }

    #[test]
    fn bulk_is_spliced_once_it_shows() {
        assert!(is_small(after(Gait::default(), [SMALL; 3])));
        assert!(bulk().wants_pipe());
        let broken = after(
            Gait::default(),
            [SMALL, SMALL, SMALL, 1, SMALL, SMALL, SMALL],
        );
        assert!(is_small(broken));
    }

    #[test]
    fn messages_are_copied_again_after_many_of_them() {
        assert!(after(bulk(), [100; 31]).wants_pipe());
        assert!(is_small(after(bulk(), [100; 32])));
        let mixed = after(
            bulk(),
            [[100; 31].as_slice(), &[SMALL], &[100; 31]].concat(),
        );
        assert!(mixed.wants_pipe());
    }

    #[test]
    fn without_a_pipe_bulk_is_copied_in_larger_pieces_and_a_pipe_asked_for_later() {
        let mut gait = bulk();
        gait.no_pipe();
        assert!(is_large(gait));
        assert!(is_large(after(gait, [LARGE; 63])));
        assert!(after(gait, [LARGE; 64]).wants_pipe());
        assert!(is_small(after(gait, [100])));
    }
}
