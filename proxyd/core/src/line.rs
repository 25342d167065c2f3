//! The line of connections that want to reach a route's application.
//!
//! First come, first served, at most [`Line::AT_ONCE`] tries under way. When a try fails, the
//! application is not there yet, or it accepts more slowly than they come: from then on a single
//! connection keeps trying, the first in the line, and the others wait behind it, so ten thousand
//! held connections cost one connect every 100 ms and not a storm. Each success then lets one more
//! try at a time, up to half of what was too much, and from there on only each round of them: a slow
//! application is not overrun again and again, which would serve those first who happen to come
//! through.
//!
//! Invariant: a ticket is either waiting or going, never both, and nobody waits while the line
//! may flow and has room (the caller passes on what [`Line::next`] returns until it is `None`).

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

/// A place in the line; smaller came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Whether the gate lets tries happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The gate is open.
    May,
    /// It is not.
    MustNot,
}

/// What a connection does on arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Try now.
    Go,
    /// Wait until called.
    Wait,
}

/// What a connection does after its try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Retry {
    /// Try again after the pause for so many failures in a row; the place stays taken.
    Again(u32),
    /// Somebody else is trying: wait until called.
    Wait,
}

/// One route's line.
#[derive(Debug, Clone)]
pub struct Line {
    waiting: BTreeSet<Ticket>,
    going: BTreeSet<Ticket>,
    failures: u32,
    /// Tries at once, now.
    room: usize,
    /// Up to here `room` grows with each success.
    safe: usize,
    /// Successes since `room` has grown, beyond that.
    round: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            waiting: BTreeSet::new(),
            going: BTreeSet::new(),
            failures: 0,
            room: Self::AT_ONCE,
            safe: Self::AT_ONCE,
            round: 0,
        }
    }
}

impl Line {
    /// Tries under way at the same time. More than this many SYNs at once overflow the accept
    /// queue of an application that listens with the usual backlog of 128.
    pub const AT_ONCE: usize = 128;

    /// A connection comes, or asks again. While tries fail, one that asks again lets those go
    /// first who came before it.
    pub fn arrive(&mut self, ticket: Ticket, flow: Flow) -> Turn {
        let first = self.waiting.first().is_none_or(|first| *first >= ticket);
        let its_turn = self.going.contains(&ticket) && (first || self.failures == 0);
        if flow == Flow::May && its_turn {
            return Turn::Go;
        }
        self.going.remove(&ticket);
        if flow == Flow::May && first && self.has_room() {
            self.waiting.remove(&ticket);
            self.going.insert(ticket);
            Turn::Go
        } else {
            self.waiting.insert(ticket);
            Turn::Wait
        }
    }

    /// A connection goes away, or its try ended without a verdict.
    pub fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.going.remove(&ticket);
    }

    /// Takes the next one that may try; it is going from now on.
    #[must_use]
    pub fn next(&mut self, flow: Flow) -> Option<Ticket> {
        if flow == Flow::MustNot || !self.has_room() {
            return None;
        }
        let ticket = self.waiting.pop_first()?;
        self.going.insert(ticket);
        Some(ticket)
    }

    /// A try reached the application; its connection is in the line no longer.
    pub fn succeeded(&mut self, ticket: Ticket) {
        self.failures = 0;
        self.round = self.round.saturating_add(1);
        if self.room < self.safe || self.round >= self.room {
            self.room = self.room.saturating_add(1).min(Self::AT_ONCE);
            self.round = 0;
        }
        self.leave(ticket);
    }

    /// A try failed. While nobody else is trying, the connection keeps at it.
    pub fn failed(&mut self, ticket: Ticket) -> Retry {
        self.failures = self.failures.saturating_add(1);
        if self.room > 1 {
            self.safe = self.room / 2;
            self.room = 1;
        }
        self.round = 0;
        self.leave(ticket);
        if self.going.is_empty() {
            self.going.insert(ticket);
            Retry::Again(self.failures)
        } else {
            self.waiting.insert(ticket);
            Retry::Wait
        }
    }

    /// The route changed: earlier failures say nothing about the new target.
    pub fn forgive(&mut self) {
        self.failures = 0;
        (self.room, self.safe) = (Self::AT_ONCE, Self::AT_ONCE);
    }

    /// Failed tries since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many are going.
    #[must_use]
    pub fn going(&self) -> usize {
        self.going.len()
    }

    fn has_room(&self) -> bool {
        self.going.len() < self.room
    }
}
