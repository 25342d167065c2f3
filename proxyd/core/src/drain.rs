//! What a drain does about each connection, and when it is over.

use std::time::Duration;

/// What a drain does about one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing is under way: tell the client that it is over, politely.
    Close,
    /// Bytes flowed lately, or it was told already.
    Leave,
}

/// Whose word a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The client's: the application spoke last. So do connections rest in a pool.
    Client,
    /// Perhaps the application's: the client spoke last and may wait for an answer, or nobody has
    /// spoken and the application may be slow to greet.
    Application,
}

/// How much longer silence lasts before it means that an application owes no answer.
const SLOW: u32 = 5;

/// How much longer is left of a drain than silence has to last near its end.
const RAMP: u32 = 4;

/// What flows without a pause is never silent for so long: an application that still speaks is not
/// taken for one that has finished.
const LEAST: Duration = Duration::from_millis(1);

/// Decides about a connection by the time since its last byte. `left` is what remains of the
/// drain: near its end a client whose turn it is gets less and less time for its next question,
/// so that one that never pauses for long is told goodbye between two questions, and is not cut
/// in the middle of one.
#[must_use]
pub fn step(quiet: Duration, idle_after: Duration, left: Duration, turn: Turn, told: Told) -> Step {
    let patience = match turn {
        Turn::Client => idle_after.min((left / RAMP).max(LEAST)),
        Turn::Application => idle_after.saturating_mul(SLOW),
    };
    if told == Told::No && quiet >= patience {
        Step::Close
    } else {
        Step::Leave
    }
}

/// Whether a connection was closed politely already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was.
    Yes,
    /// It was not.
    No,
}

/// How a drain goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing flows any more.
    Drained,
    /// The time is up.
    Deadline,
    /// Look again after this.
    Again(Duration),
}

/// Decides whether a drain is over.
#[must_use]
pub fn verdict(active: u64, elapsed: Duration, deadline: Duration) -> Verdict {
    const LOOK: Duration = Duration::from_millis(50);
    const OFTEN: Duration = Duration::from_millis(2);
    let left = deadline.saturating_sub(elapsed);
    if active == 0 {
        Verdict::Drained
    } else if left.is_zero() {
        Verdict::Deadline
    } else {
        let look = LOOK.min(left / RAMP).max(OFTEN);
        Verdict::Again(look.min(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_idle_connections_are_closed_and_only_once() {
        let step = |quiet, told| step(quiet * MS, 200 * MS, 9000 * MS, Turn::Client, told);
        assert_eq!(step(199, Told::No), Step::Leave);
        assert_eq!(step(200, Told::No), Step::Close);
        assert_eq!(step(900, Told::Yes), Step::Leave);
    }

    #[test]
    fn a_question_gets_longer_for_its_answer() {
        let step = |quiet| step(quiet * MS, 200 * MS, 9000 * MS, Turn::Application, Told::No);
        assert_eq!(step(999), Step::Leave);
        assert_eq!(step(1000), Step::Close);
    }

    #[test]
    fn near_the_end_a_client_gets_less_time_for_its_next_question_and_an_answer_does_not() {
        let step = |quiet, left, turn| step(quiet * MS, 200 * MS, left * MS, turn, Told::No);
        for (left, patience) in [(2000, 200), (800, 200), (400, 100), (40, 10), (4, 1)] {
            assert_eq!(step(patience, left, Turn::Client), Step::Close, "{left}");
            assert_eq!(
                step(patience - 1, left, Turn::Client),
                Step::Leave,
                "{left}"
            );
            assert_eq!(step(patience, left, Turn::Application), Step::Leave);
        }
        assert_eq!(step(1, 0, Turn::Client), Step::Close);
        assert_eq!(step(0, 0, Turn::Client), Step::Leave);
    }

    #[test]
    fn a_drain_ends_when_empty_or_at_its_deadline() {
        assert_eq!(verdict(0, Duration::ZERO, 10 * MS), Verdict::Drained);
        assert_eq!(verdict(1, 10 * MS, 10 * MS), Verdict::Deadline);
        assert_eq!(verdict(1, 11 * MS, 10 * MS), Verdict::Deadline);
    }

    #[test]
    fn a_drain_looks_more_often_near_its_end_and_never_past_it() {
        for (left, look) in [
            (999, 50),
            (200, 50),
            (100, 25),
            (20, 5),
            (8, 2),
            (3, 2),
            (1, 1),
        ] {
            let seen = verdict(1, (1000 - left) * MS, 1000 * MS);
            assert_eq!(seen, Verdict::Again(look * MS), "{left}");
        }
    }
}
