//! Whether the next frame is compressed: as long as it is worth it, by measurement.
//!
//! Compressing is worth it when it makes frames smaller, and takes less time than the wire takes
//! for a frame as it is. It is switched off when
//!
//! - over the last frames it saved less than a twentieth: then it is tried again with every 64th
//!   frame;
//! - the wire is idle while much of the time goes into compressing: a few frames as they are
//!   then show what the wire can do, and whether compressing is faster than that. What was found
//!   is believed for a while.

use std::time::Duration;

/// Frames that a judgement looks back at.
const WINDOW: u32 = 8;

/// After so many frames as they are, one is tried.
const PAUSE: u32 = 64;

/// After so many windows in a row in which the wire was idle, it is found out what it can do. A
/// stream that is over by then loses little by being compressed.
const SLOW: u32 = 4;

/// For so many windows it is believed what the wire was found to take for a plain frame.
const BELIEF: u32 = 64;

/// What to do with the next frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Compress it, and send what is smaller.
    Compress,
    /// Send it as it is.
    Plain,
}

/// What a frame took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its bytes of the stream.
    pub raw: usize,
    /// What it was compressed to, and how long that took; `None` for one that was not tried.
    pub compressed: Option<(usize, Duration)>,
    /// How long it waited for the wire.
    pub waiting: Duration,
    /// From the frame before to this one, everything included.
    pub total: Duration,
}

/// The judgement so far.
#[derive(Debug, Clone)]
pub struct Compression {
    state: State,
    seen: Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The receiver does not understand it.
    Never,
    On {
        /// What the wire was found to take for a plain frame, and for how many windows more that
        /// is believed.
        plain: Option<(Duration, u32)>,
        /// For how many windows the wire was idle.
        slow: u32,
    },
    Off {
        /// Until one is tried.
        frames: u32,
    },
}

/// Sums over frames.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    frames: u32,
    raw: usize,
    compressed: usize,
    compressing: Duration,
    waiting: Duration,
    total: Duration,
}

impl Window {
    fn add(&mut self, sample: &Sample) {
        let (compressed, took) = sample.compressed.unwrap_or((sample.raw, Duration::ZERO));
        self.frames = self.frames.saturating_add(1);
        self.raw = self.raw.saturating_add(sample.raw);
        self.compressed = self.compressed.saturating_add(compressed);
        self.compressing = self.compressing.saturating_add(took);
        self.waiting = self.waiting.saturating_add(sample.waiting);
        self.total = self.total.saturating_add(sample.total);
    }

    /// Whether the wire is what the stream waits for: for a tenth of the time at least.
    fn waits_for_the_wire(&self) -> bool {
        self.waiting.saturating_mul(10) >= self.total
    }

    /// Whether the wire is idle while more than a quarter of the time goes into compressing.
    fn waits_for_the_compressor(&self) -> bool {
        !self.waits_for_the_wire() && self.compressing.saturating_mul(4) > self.total
    }

    fn mean(&self, sum: Duration) -> Duration {
        sum / self.frames.max(1)
    }
}

/// Whether a twentieth was saved.
fn smaller(raw: usize, compressed: usize) -> bool {
    compressed.saturating_mul(105) <= raw.saturating_mul(100)
}

impl Compression {
    /// Compresses as long as it is worth it, which it is taken to be at first.
    #[must_use]
    pub fn adaptive() -> Self {
        Self::in_state(State::On {
            plain: None,
            slow: 0,
        })
    }

    /// Never compresses.
    #[must_use]
    pub fn never() -> Self {
        Self::in_state(State::Never)
    }

    fn in_state(state: State) -> Self {
        Self {
            state,
            seen: Window::default(),
        }
    }

    /// What to do with the next frame.
    #[must_use]
    pub fn next(&self) -> Attempt {
        match self.state {
            State::On { .. } => Attempt::Compress,
            State::Off { frames } if self.seen.frames >= frames => Attempt::Compress,
            State::Off { .. } | State::Never => Attempt::Plain,
        }
    }

    /// A frame was sent.
    pub fn observe(&mut self, sample: &Sample) {
        let judged = match (self.state, sample.compressed) {
            (State::Never, _) => return,
            (State::Off { .. }, Some((compressed, took))) => self.tried(sample, compressed, took),
            (State::Off { .. }, None) => {
                self.seen.add(sample);
                return;
            }
            (State::On { plain, slow }, _) => {
                self.seen.add(sample);
                if self.seen.frames < WINDOW {
                    return;
                }
                self.looked_back(plain, slow)
            }
        };
        *self = Self::in_state(judged);
    }

    /// A window of compressed frames is full.
    fn looked_back(&self, plain: Option<(Duration, u32)>, slow: u32) -> State {
        if !smaller(self.seen.raw, self.seen.compressed) {
            return State::Off { frames: PAUSE };
        }
        let plain = plain.and_then(|(took, left)| Some((took, left.checked_sub(1)?)));
        let faster = plain.is_some_and(|(took, _)| self.seen.mean(self.seen.compressing) < took);
        let slow = if self.seen.waits_for_the_compressor() && !faster {
            slow.saturating_add(1)
        } else {
            0
        };
        if slow >= SLOW {
            return State::Off { frames: WINDOW };
        }
        State::On { plain, slow }
    }

    /// After plain frames one was compressed.
    fn tried(&self, sample: &Sample, compressed: usize, took: Duration) -> State {
        let plain = self.seen.mean(self.seen.total);
        let worth = smaller(sample.raw, compressed) && self.seen.waits_for_the_wire();
        if worth && took < plain {
            State::On {
                plain: Some((plain, BELIEF)),
                slow: 0,
            }
        } else {
            State::Off { frames: PAUSE }
        }
    }
}

#[cfg(test)]
mod tests;
