//! The newest frames of a stream, kept to be sent again.
//!
//! Offsets count bytes of the stream itself, not of the wire. A receiver takes a frame whole or
//! not at all, so what it says has arrived is where a frame begins.

use std::collections::VecDeque;

use bytes::Bytes;

/// A ring of frames.
#[derive(Debug)]
pub struct Replay {
    kept: VecDeque<Kept>,
    /// Bytes on the wire of what is kept.
    held: usize,
    limit: usize,
    /// Where the next frame begins.
    end: u64,
    complete: bool,
}

/// A frame that can be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    start: u64,
    raw: u64,
    /// The frame on the wire.
    pub wire: Bytes,
    /// Whether it is the one that says that the stream is whole.
    pub last: bool,
}

impl Kept {
    /// Where the frame after it begins.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.start.saturating_add(self.raw)
    }
}

/// What there is at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// This frame.
    Frame(Kept),
    /// Nothing yet: the next frame that is made begins here.
    Next,
    /// No frame that is kept begins here.
    Gone,
}

impl Replay {
    /// An empty ring that holds so many bytes on the wire; the newest frame is kept in any case.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            held: 0,
            limit,
            end: 0,
            complete: false,
        }
    }

    /// Bytes of the stream so far.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The next frame was made, of so many bytes of the stream.
    pub fn push(&mut self, raw: usize, wire: Bytes) {
        self.keep(u64::try_from(raw).unwrap_or(u64::MAX), wire, false);
    }

    /// The last frame was made: nothing follows.
    pub fn finish(&mut self, wire: Bytes) {
        self.keep(0, wire, true);
        self.complete = true;
    }

    fn keep(&mut self, raw: u64, wire: Bytes, last: bool) {
        self.held = self.held.saturating_add(wire.len());
        let start = self.end;
        self.end = self.end.saturating_add(raw);
        self.kept.push_back(Kept {
            start,
            raw,
            wire,
            last,
        });
        while self.held > self.limit && self.kept.len() > 1 {
            if let Some(oldest) = self.kept.pop_front() {
                self.held = self.held.saturating_sub(oldest.wire.len());
            }
        }
    }

    /// What there is at an offset.
    #[must_use]
    pub fn at(&self, offset: u64) -> At {
        let first = self.kept.partition_point(|kept| kept.start < offset);
        match self.kept.get(first) {
            Some(kept) if kept.start == offset => At::Frame(kept.clone()),
            None if offset == self.end && !self.complete => At::Next,
            Some(_) | None => At::Gone,
        }
    }

    /// Bytes on the wire of what is kept.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests;
