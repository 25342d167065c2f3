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

/// Decides about a connection by the time since its last byte.
#[must_use]
pub fn step(quiet: Duration, idle_after: Duration, turn: Turn, told: Told) -> Step {
    let patience = match turn {
        Turn::Client => idle_after,
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
    if active == 0 {
        Verdict::Drained
    } else if elapsed >= deadline {
        Verdict::Deadline
    } else {
        Verdict::Again(LOOK.min(deadline.saturating_sub(elapsed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_idle_connections_are_closed_and_only_once() {
        let step = |quiet, told| step(quiet * MS, 200 * MS, Turn::Client, told);
        assert_eq!(step(199, Told::No), Step::Leave);
        assert_eq!(step(200, Told::No), Step::Close);
        assert_eq!(step(900, Told::Yes), Step::Leave);
    }

    #[test]
    fn a_question_gets_longer_for_its_answer() {
        let step = |quiet| step(quiet * MS, 200 * MS, Turn::Application, Told::No);
        assert_eq!(step(999), Step::Leave);
        assert_eq!(step(1000), Step::Close);
    }

    #[test]
    fn a_drain_ends_when_empty_or_at_its_deadline() {
        assert_eq!(verdict(0, Duration::ZERO, 10 * MS), Verdict::Drained);
        assert_eq!(verdict(1, 10 * MS, 10 * MS), Verdict::Deadline);
        assert_eq!(verdict(1, Duration::ZERO, 10 * MS), Verdict::Again(10 * MS));
        assert_eq!(
            verdict(1, Duration::ZERO, 999 * MS),
            Verdict::Again(50 * MS)
        );
    }
}
