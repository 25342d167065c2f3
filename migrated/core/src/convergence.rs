//! When to cut over.
//!
//! After each pre-copy round the window is predicted as
//!
//! ```text
//! P = fixed + least + d/B      d = dirty rate × (last + min(drain, pace + last/2))
//! ```
//!
//! `last` is what the last round took, and so the age of its snapshot now. Rounds go on while the
//! drain lasts (see [`drain`]): of a drain longer than `pace + last/2` only so much is exposed.
//! The dirty rate is an exponentially weighted mean of bytes per second between snapshots (the
//! first round is the whole volume and says nothing of it); the bandwidth is the 25th percentile
//! of the rounds, because a window that is too long hurts more than a round too many; `least` is
//! what a round takes however little it sends; `fixed` is what stopping, starting and the
//! handoff's messages took when they were last measured.
//!
//! [`throttle`] says how hard an application is held back that writes too fast, [`drain`] which
//! rounds are sent while connections finish, [`window`] whether a window that has begun still
//! fits, and [`forecast`] what a move would come to that has not.

pub mod drain;
pub mod forecast;
pub mod throttle;
pub mod window;

use std::time::Duration;

use rehome_shared::api::cluster::Round;
use rehome_shared::config::model::{MigrationLimits, OnStall};
use rehome_shared::units::Bytes;

use self::throttle::Throttle;

/// Rounds go on while the next one will be less than this share of the last.
const SHRINK: f64 = 0.85;

/// Weight of the newest sample in the dirty rate.
const NEWEST: f64 = 0.5;

/// A round of fewer bytes says nothing of the bandwidth.
const TELLING: Bytes = Bytes(1 << 20);

/// The bandwidth, per second, while no round has measured it: any wired network has more.
const ASSUMED: Bytes = Bytes(8 << 20);

/// So many rounds it takes until one shows what holding the application back has changed.
const TELLING_ROUNDS: usize = 2;

/// How many times `max_rounds` a move with `on_stall: wait` goes on for.
const WAIT_FACTOR: u32 = 8;

/// What is known of a migration when a round has arrived.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The rounds so far, this one included.
    pub rounds: &'a [Round],
    /// Seconds between the snapshots of this round and the one before, per round: as many as
    /// rounds; the first is not used.
    pub gaps: &'a [f64],
    /// Whether the application runs, and so writes.
    pub running: bool,
    /// Stop, start and messages, as last measured.
    pub fixed: Duration,
    /// How hard the application is held back now; `None` where that cannot be done.
    pub throttle: Option<Throttle>,
    /// Rounds that have arrived since it is held back so hard.
    pub held: usize,
}

/// What to do after a round.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Decision {
    /// Send another round.
    Again {
        /// The window as predicted now; `None` while there is no dirty rate.
        predicted: Option<Duration>,
    },
    /// Hold the application back this hard, then send another round.
    Throttle {
        /// The window as predicted now.
        predicted: Duration,
        /// How hard.
        throttle: Throttle,
    },
    /// Cut over.
    CutOver {
        /// The predicted window.
        predicted: Duration,
    },
    /// Give up.
    Abort {
        /// Why, for people.
        reason: String,
    },
}

/// Decides by the rule above and `limits`.
pub fn decide(observed: &Observed<'_>, limits: &MigrationLimits) -> Decision {
    if !observed.running {
        return Decision::CutOver {
            predicted: observed.fixed,
        };
    }
    let Some(predicted) = predict(observed, limits) else {
        return Decision::Again { predicted: None };
    };
    if predicted <= limits.downtime_budget {
        return Decision::CutOver { predicted };
    }
    let count = u32::try_from(observed.rounds.len()).unwrap_or(u32::MAX);
    if count < limits.max_rounds && shrinks(observed) {
        return Decision::Again {
            predicted: Some(predicted),
        };
    }
    stalled(predicted, observed, limits)
}

/// The rounds do not shrink any more, or there were as many as there may be.
fn stalled(predicted: Duration, observed: &Observed<'_>, limits: &MigrationLimits) -> Decision {
    let rounds = observed.rounds.len();
    match limits.on_stall {
        OnStall::Abort => Decision::Abort {
            reason: format!(
                "after {rounds} rounds the window would still be {:.1} s, over the budget of {:.1} s, and on_stall is abort",
                predicted.as_secs_f64(),
                limits.downtime_budget.as_secs_f64()
            ),
        },
        OnStall::Cutover => within_cap(predicted, observed, limits),
        OnStall::Wait => wait(predicted, observed, limits),
        OnStall::Throttle => match observed.throttle {
            // What cannot be held back may calm down by itself.
            None => wait(predicted, observed, limits),
            Some(throttle) => hold_back(throttle, predicted, observed, limits),
        },
    }
}

/// Holds the application back, step by step, for as long as that can help. To write less does not
/// make it stop and start faster: where that alone is over the budget the hard cap is the goal.
fn hold_back(
    throttle: Throttle,
    predicted: Duration,
    observed: &Observed<'_>,
    limits: &MigrationLimits,
) -> Decision {
    // The first round sends what was written before: only the second shows whether it helps.
    if throttle > Throttle::FREE && observed.held < TELLING_ROUNDS {
        return Decision::Again {
            predicted: Some(predicted),
        };
    }
    let fits = observed.fixed > limits.downtime_budget && predicted <= limits.hard_cap;
    match throttle.harder() {
        Some(throttle) if !fits && observed.fixed <= limits.hard_cap => Decision::Throttle {
            predicted,
            throttle,
        },
        Some(_) | None => within_cap(predicted, observed, limits),
    }
}

/// Goes on until the application calms down, but not for ever.
fn wait(predicted: Duration, observed: &Observed<'_>, limits: &MigrationLimits) -> Decision {
    let rounds = u32::try_from(observed.rounds.len()).unwrap_or(u32::MAX);
    if rounds < limits.max_rounds.saturating_mul(WAIT_FACTOR) {
        return Decision::Again {
            predicted: Some(predicted),
        };
    }
    Decision::Abort {
        reason: format!(
            "after {rounds} rounds the window would still be {:.1} s, over the budget of {:.1} s: the application did not calm down",
            predicted.as_secs_f64(),
            limits.downtime_budget.as_secs_f64()
        ),
    }
}

/// The end of the rounds: cuts over if the window fits the hard cap.
fn within_cap(predicted: Duration, observed: &Observed<'_>, limits: &MigrationLimits) -> Decision {
    let cap = limits.hard_cap.as_secs_f64();
    if observed.fixed > limits.hard_cap {
        // More rounds cannot help: this is not what the application writes.
        return Decision::Abort {
            reason: format!(
                "stopping and starting it alone took {:.1} s the last time, over the hard cap of {cap:.1} s: raise migration.hard_cap",
                observed.fixed.as_secs_f64(),
            ),
        };
    }
    if predicted <= limits.hard_cap {
        return Decision::CutOver { predicted };
    }
    let held = observed
        .throttle
        .filter(|throttle| throttle.percent() > 0)
        .map(|throttle| format!(", though it was held back by {throttle}"))
        .unwrap_or_default();
    Decision::Abort {
        reason: format!(
            "after {} rounds the window would still be {:.1} s, over the hard cap of {cap:.1} s: the application writes faster than the rounds shrink{held}",
            observed.rounds.len(),
            predicted.as_secs_f64(),
        ),
    }
}

/// The predicted window; `None` before the second round.
#[must_use]
pub fn predict(observed: &Observed<'_>, limits: &MigrationLimits) -> Option<Duration> {
    let exposed = drain::exposed(limits.drain, observed.rounds.last()?.seconds);
    let seconds =
        least(observed.rounds) + dirty_rate(observed)? * exposed / rate(observed.rounds, limits);
    let delta = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Some(observed.fixed.saturating_add(delta))
}

/// The bytes that the final difference holds when the last snapshot is so long ago.
#[must_use]
pub fn pending(rounds: &[Round], gaps: &[f64], exposed: Duration) -> Bytes {
    let rate = rate_of(rounds, gaps).unwrap_or_default();
    whole(rate * exposed.as_secs_f64())
}

/// Bytes per second that the way to the destination takes: a quarter of all bytes went no faster.
/// The many small rounds of a drain, in which latency weighs most, hardly count.
#[must_use]
pub fn bandwidth(rounds: &[Round], limits: &MigrationLimits) -> Bytes {
    let mut telling: Vec<(f64, u64)> = telling(rounds).collect();
    telling.sort_by(|a, b| f64::total_cmp(&a.0, &b.0));
    let mut left = telling.iter().map(|(_, bytes)| bytes).sum::<u64>() / 4;
    let slow = telling.into_iter().find(|(_, bytes)| {
        let reached = *bytes >= left;
        left = left.saturating_sub(*bytes);
        reached
    });
    whole(slow.map_or_else(|| assumed(limits), |(rate, _)| rate))
}

/// Whether the next round will be smaller than the last: it sends what is written while the last
/// one was on its way. To compare the last with the one before would look a round further back, and
/// at the second round that is the whole volume, which says nothing.
fn shrinks(observed: &Observed<'_>) -> bool {
    let (Some(last), Some(rate)) = (observed.rounds.last(), dirty_rate(observed)) else {
        return true;
    };
    rate * last.seconds < SHRINK * float(last.bytes)
}

fn dirty_rate(observed: &Observed<'_>) -> Option<f64> {
    rate_of(observed.rounds, observed.gaps)
}

fn rate_of(rounds: &[Round], gaps: &[f64]) -> Option<f64> {
    rounds
        .iter()
        .zip(gaps)
        .skip(1)
        .map(|(round, gap)| float(round.bytes) / gap.max(0.001))
        .reduce(|mean, sample| mean + NEWEST * (sample - mean))
}

/// Bytes per second, pessimistic.
fn rate(rounds: &[Round], limits: &MigrationLimits) -> f64 {
    let mut rates: Vec<f64> = telling(rounds).map(|(rate, _)| rate).collect();
    rates.sort_by(f64::total_cmp);
    let measured = rates.get(rates.len() / 4).copied();
    measured.unwrap_or_else(|| assumed(limits))
}

/// Bytes per second and bytes of the rounds that measured the wire: those of a few bytes measure
/// latency.
fn telling(rounds: &[Round]) -> impl Iterator<Item = (f64, u64)> {
    let telling = rounds.iter().filter(|r| r.bytes >= TELLING);
    telling.map(|r| {
        let rate = (float(r.bytes) / r.seconds.max(0.001)).max(1.0);
        (rate, r.bytes.0)
    })
}

/// A slow wire, while none was measured.
fn assumed(limits: &MigrationLimits) -> f64 {
    float(ASSUMED.min(limits.bandwidth_limit.unwrap_or(ASSUMED))).max(1.0)
}

/// What a round of nothing would take: no more than the shortest small one did.
fn least(rounds: &[Round]) -> f64 {
    let small = rounds.iter().filter(|r| r.bytes < TELLING);
    small
        .map(|r| r.seconds)
        .reduce(f64::min)
        .unwrap_or_default()
}

/// Sizes are far below 2^52, so nothing is lost.
fn float(bytes: Bytes) -> f64 {
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "std has no lossless conversion and 52 bits are plenty for an estimate"
    )]
    let value = bytes.0 as f64;
    value
}

/// The other way round; what makes no sense is nothing.
fn whole(bytes: f64) -> Bytes {
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "std has no other conversion; it saturates and makes 0 of what is not a number"
    )]
    let value = bytes as u64;
    Bytes(value)
}

#[cfg(test)]
mod tests;
