//! What a move would come to that has not begun: the rounds are played through with what is known
//! of the volume, the application and the wire, and [`decide`] is asked after each, as it is in a
//! move.

use std::time::Duration;

use rehome_shared::api::cluster::Round;
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::units::Bytes;

use super::throttle::Throttle;
use super::{Decision, Observed, decide, float, predict, whole};

/// So many rounds are played through; a move that needs more is not foreseen to its end.
const HORIZON: usize = 512;

/// What is known before a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Bytes of the first round.
    pub first: Bytes,
    /// Bytes of the volumes in all: no round sends more.
    pub whole: Bytes,
    /// Bytes per second that the application writes.
    pub dirty: Bytes,
    /// Bytes per second that the wire takes.
    pub bandwidth: Bytes,
    /// Stop, start and messages.
    pub fixed: Duration,
    /// Whether the application runs, and so writes.
    pub running: bool,
    /// Whether it can be held back.
    pub throttles: bool,
}

/// What a move would come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The rounds before the window.
    pub rounds: Vec<Round>,
    /// The window, as predicted after the last of them.
    pub window: Duration,
    /// How hard the application is held back in the end.
    pub throttle: Throttle,
    /// Why the move would be given up; `None` when it cuts over.
    pub gives_up: Option<String>,
}

impl Forecast {
    /// Seconds until the window.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.rounds.iter().map(|round| round.seconds).sum()
    }
}

/// Plays a move through.
#[must_use]
pub fn forecast(outlook: &Outlook, limits: &MigrationLimits) -> Forecast {
    let mut throttle = Throttle::FREE;
    let mut rounds: Vec<Round> = Vec::new();
    let mut gaps: Vec<f64> = Vec::new();
    let mut next = outlook.first;
    let mut gap = 0.0;
    let mut held = 0;
    let (gives_up, predicted) = loop {
        let seconds = float(next) / float(outlook.bandwidth).max(1.0);
        rounds.push(Round {
            bytes: next,
            seconds,
        });
        gaps.push(gap);
        gap = seconds;
        held += 1;
        let written = float(outlook.dirty) * throttle.share() * seconds;
        let observed = Observed {
            rounds: &rounds,
            gaps: &gaps,
            running: outlook.running,
            fixed: outlook.fixed,
            throttle: outlook.throttles.then_some(throttle),
            held,
        };
        match decide(&observed, limits) {
            Decision::CutOver { predicted } => break (None, Some(predicted)),
            Decision::Abort { reason } => break (Some(reason), predict(&observed, limits)),
            Decision::Again { .. } | Decision::Throttle { .. } if rounds.len() >= HORIZON => {
                let reason = format!("after {HORIZON} rounds it would still go on");
                break (Some(reason), predict(&observed, limits));
            }
            Decision::Throttle {
                throttle: harder, ..
            } => (throttle, held) = (harder, 0),
            Decision::Again { .. } => {}
        }
        next = whole(written).min(outlook.whole);
    };
    Forecast {
        rounds,
        window: predicted.unwrap_or(outlook.fixed),
        throttle,
        gives_up,
    }
}

#[cfg(test)]
mod tests;
