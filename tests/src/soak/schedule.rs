//! What is going to be done to the cluster, and when: a function of the seed. What a real system
//! makes of it differs from run to run; what is done to it, in which order, does not.
//!
//! Two lanes of faults run side by side, so that two things can be broken at once. In a lane one
//! fault follows the other, and each is healed after its time. Beside them, each of the two
//! applications is moved again and again.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

/// A program of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// The daemon that moves applications.
    Migrated,
    /// The daemon that forwards connections.
    Proxyd,
    /// The application.
    Application,
}

/// Something that is done to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// SIGKILL.
    Kill(Program),
    /// SIGSTOP, and SIGCONT later.
    Pause(Program),
    /// The whole host dies, and is started later.
    Crash,
    /// No packets between it and the other hosts.
    CutOff,
    /// No packets from the other hosts to it; its own arrive.
    Deafen,
    /// Its network takes a few hundred KiB in a second.
    Slow,
    /// Its pool has no room left.
    Fill,
    /// An operator there calls off whatever move is under way.
    Abort,
    /// The proxy there hands over to its successor.
    Upgrade,
}

/// Which host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Where the application was started last.
    Owner,
    /// Where the last move is going.
    Destination,
    /// This one, counted from 1.
    Host(usize),
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Moment {
    /// At once.
    Now,
    /// As soon as a `migrated` says this in its log; at once when none does for long.
    Said(&'static str),
}

/// A fault, its place and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Step {
    /// From the end of the last step.
    pub pause: Duration,
    /// What is waited for then.
    pub moment: Moment,
    /// What is done.
    pub fault: Fault,
    /// To whom.
    pub place: Place,
    /// Which application that is about, from 0.
    pub of: usize,
    /// How long it stays so, where it can be healed.
    pub hold: Duration,
}

/// A move of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Move {
    /// From the end of the last one.
    pub pause: Duration,
    /// To the first or the second host after its owner.
    pub hop: usize,
    /// The host that is asked for it.
    pub through: usize,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// Faults, side by side.
    pub lanes: [Vec<Step>; 2],
    /// The moves of each application.
    pub moves: [Vec<Move>; APPLICATIONS],
}

/// How many hosts there are.
pub const HOSTS: usize = 3;

/// How many applications there are.
pub const APPLICATIONS: usize = 2;

/// Every fault, as often as it comes in a deal.
const DEAL: [(Fault, usize); 13] = [
    (Fault::Kill(Program::Migrated), 4),
    (Fault::Kill(Program::Proxyd), 2),
    (Fault::Kill(Program::Application), 2),
    (Fault::Pause(Program::Migrated), 3),
    (Fault::Pause(Program::Proxyd), 1),
    (Fault::Pause(Program::Application), 2),
    (Fault::Crash, 3),
    (Fault::CutOff, 3),
    (Fault::Deafen, 1),
    (Fault::Slow, 2),
    (Fault::Fill, 2),
    (Fault::Abort, 2),
    (Fault::Upgrade, 4),
];

/// What a `migrated` says at the steps of a move, on the source and on the destination.
const SAYINGS: [&str; 11] = [
    "migration is under way",
    "phase=\"precopy\"",
    "phase=\"park\"",
    "phase=\"drain\"",
    "phase=\"stop\"",
    "phase=\"final_delta\"",
    "phase=\"adopt\"",
    "phase=\"clean_up\"",
    "this host is the owner now",
    "the application is healthy here",
    "clients are served here",
];

impl Schedule {
    /// The schedule of a seed, for a run of some length: it is never too short for it.
    #[must_use]
    pub fn new(seed: u64, length: Duration) -> Self {
        // No step and no move is shorter than half a second, with its pause.
        let count = usize::try_from(length.as_secs()).unwrap_or(usize::MAX) * 2 + 1;
        let mut rng = Rng::with_seed(seed);
        let mut lane = || {
            let mut deck = Deck {
                rng: rng.fork(),
                cards: Vec::new(),
            };
            (0..count).map(|_| deck.step()).collect()
        };
        let lanes = [lane(), lane()];
        let mut moves = || {
            let mut rng = rng.fork();
            (0..count).map(|_| a_move(&mut rng)).collect()
        };
        let moves = [moves(), moves()];
        Self { lanes, moves }
    }
}

struct Deck {
    rng: Rng,
    cards: Vec<Fault>,
}

impl Deck {
    /// The next fault: each has come as often as it should before the cards are dealt again.
    fn fault(&mut self) -> Fault {
        loop {
            if let Some(fault) = self.cards.pop() {
                return fault;
            }
            self.cards = DEAL
                .iter()
                .flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count))
                .collect();
            self.rng.shuffle(&mut self.cards);
        }
    }

    fn step(&mut self) -> Step {
        let fault = self.fault();
        let rng = &mut self.rng;
        let (shortest, longest) = match fault {
            Fault::Kill(_) | Fault::Abort | Fault::Upgrade => (0, 0),
            Fault::Pause(Program::Application) => (300, 4_000),
            Fault::Pause(Program::Migrated | Program::Proxyd) => (500, 8_000),
            Fault::Crash => (0, 3_000),
            Fault::CutOff | Fault::Deafen => (500, 10_000),
            Fault::Slow | Fault::Fill => (2_000, 10_000),
        };
        let hold = millis(rng, shortest, longest);
        // The application runs nowhere else.
        let elsewhere = !matches!(
            fault,
            Fault::Kill(Program::Application) | Fault::Pause(Program::Application)
        );
        let place = match rng.usize(0..5) {
            0 | 1 if elsewhere => Place::Destination,
            2 if elsewhere => Place::Host(rng.usize(1..=HOSTS)),
            _ => Place::Owner,
        };
        let moment = match rng.choice(SAYINGS) {
            Some(saying) if rng.usize(0..3) > 0 => Moment::Said(saying),
            _ => Moment::Now,
        };
        Step {
            pause: millis(rng, 500, 3_000),
            moment,
            fault,
            place,
            of: rng.usize(0..APPLICATIONS),
            hold,
        }
    }
}

fn a_move(rng: &mut Rng) -> Move {
    Move {
        pause: millis(rng, 500, 2_500),
        hop: rng.usize(1..HOSTS),
        through: rng.usize(1..=HOSTS),
    }
}

fn millis(rng: &mut Rng, shortest: u64, longest: u64) -> Duration {
    Duration::from_millis(rng.u64(shortest..=longest))
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migrated => "migrated",
            Self::Proxyd => "proxyd",
            Self::Application => "the application",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(program) => write!(f, "kill {program}"),
            Self::Pause(program) => write!(f, "pause {program}"),
            Self::Crash => f.write_str("crash"),
            Self::CutOff => f.write_str("cut off"),
            Self::Deafen => f.write_str("deafen"),
            Self::Slow => f.write_str("slow"),
            Self::Fill => f.write_str("fill the pool"),
            Self::Abort => f.write_str("abort the move"),
            Self::Upgrade => f.write_str("upgrade the proxy"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another_one() {
        let schedule = |seed| Schedule::new(seed, Duration::from_mins(1));
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
        // A longer run begins as a shorter one does.
        let longer = Schedule::new(7, Duration::from_mins(2));
        assert!(longer.lanes[0].starts_with(&schedule(7).lanes[0]));
    }

    #[test]
    fn every_fault_comes_in_a_deal_of_a_lane() {
        let schedule = Schedule::new(3, Duration::from_mins(1));
        let deal: usize = DEAL.iter().map(|(_, count)| count).sum();
        for lane in &schedule.lanes {
            let dealt: BTreeSet<Fault> =
                lane.iter().take(2 * deal).map(|step| step.fault).collect();
            for (fault, _) in DEAL {
                assert!(dealt.contains(&fault), "{fault}");
            }
        }
    }

    #[test]
    fn no_fault_lasts_longer_than_ten_seconds() {
        let schedule = Schedule::new(1, Duration::from_mins(10));
        for step in schedule.lanes.iter().flatten() {
            assert!(step.hold <= Duration::from_secs(10), "{step:?}");
        }
    }
}
