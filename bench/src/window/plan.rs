//! What is measured, and in which order.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::turns;

/// A store that moves.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// As a plain process.
    Redis,
    /// In a container.
    Postgres,
}

impl Kind {
    /// Its name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A way to move a store.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// `rehome move`, with the limits that an application has by itself.
    Rehome,
    /// The same, but clients are cut at once, as they are by hand.
    RehomeNoDrain,
    /// The same with its default drain, holding a store back that writes too fast.
    RehomeThrottle,
    /// By hand: a whole snapshot while the store runs; stop; the difference; start; repoint.
    TwoPhase,
    /// By hand: stop; `btrfs send | btrfs receive` of everything; start; repoint.
    Send,
    /// By hand: stop; `rsync -a` of everything; start; repoint.
    Rsync,
}

impl Contender {
    /// Its name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Rehome => "Rehome",
            Self::RehomeNoDrain => "Rehome, drain 0 s",
            Self::RehomeThrottle => "Rehome, on_stall: throttle",
            Self::TwoPhase => "two-phase push",
            Self::Send => "by hand, send/receive",
            Self::Rsync => "by hand, rsync",
        }
    }

    /// Whether it differs from every other one in a scene. No store is held back that writes as
    /// slowly as these.
    #[must_use]
    pub fn takes_part(self, scene: Scene) -> bool {
        self != Self::RehomeThrottle || scene.rate >= FAST
    }
}

/// MiB per second from which on a store may write faster than its copy gets on.
const FAST: u32 = 50;

/// Those of them that are Rehome.
pub const REHOME: [Contender; 3] = [
    Contender::Rehome,
    Contender::RehomeNoDrain,
    Contender::RehomeThrottle,
];

/// Where the disks of the hosts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Disks {
    /// In memory: hosts have disks of their own, and these do not wait for each other.
    Memory,
    /// In files on the disk of the machine, which all of them share.
    Files,
}

/// What the contenders meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scene {
    /// What moves.
    pub store: Kind,
    /// How much it holds at the beginning, in MiB.
    pub size: u32,
    /// How much a client overwrites per second, in MiB.
    pub rate: u32,
}

/// The choices of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The stores.
    pub stores: Vec<Kind>,
    /// The contenders.
    pub contenders: Vec<Contender>,
    /// MiB overwritten per second.
    pub rates: Vec<u32>,
    /// MiB in the volume.
    pub size: u32,
    /// MiB in the volume of one more scene, at the rate of [`LARGE_RATE`].
    pub large: Option<u32>,
    /// Where the disks are.
    pub disks: Disks,
    /// How often everything is done.
    pub repetitions: u32,
    /// No repetition begins that would probably end later than this; the first always does.
    pub limit: Duration,
}

/// The rate at which a second size is measured.
pub const LARGE_RATE: u32 = 10;

impl Plan {
    /// The scenes of a store.
    #[must_use]
    pub fn scenes(&self, store: Kind) -> Vec<Scene> {
        let size = self.size;
        let mut scenes: Vec<Scene> = self
            .rates
            .iter()
            .map(|rate| Scene {
                store,
                size,
                rate: *rate,
            })
            .collect();
        scenes.extend(self.large.map(|size| Scene {
            store,
            size,
            rate: LARGE_RATE,
        }));
        scenes
    }

    /// Whether one more repetition fits, after so many that took so long together.
    #[must_use]
    pub fn goes_on(&self, done: u32, elapsed: Duration) -> bool {
        turns::goes_on(done, self.repetitions, elapsed, self.limit)
    }

    /// The contenders in the order of one round of a scene.
    #[must_use]
    pub fn order(&self, scene: Scene, round: usize) -> Vec<Contender> {
        let mut present = self.contenders.clone();
        present.retain(|contender| contender.takes_part(scene));
        turns::rotated(&present, round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            stores: vec![Kind::Redis],
            contenders: vec![Contender::Rehome, Contender::Send, Contender::Rsync],
            rates: vec![0, 100],
            size: 64,
            large: Some(512),
            disks: Disks::Memory,
            repetitions: 3,
            limit: Duration::from_secs(100),
        }
    }

    #[test]
    fn nobody_is_held_back_who_writes_slowly() {
        let plan = Plan {
            contenders: vec![Contender::RehomeThrottle, Contender::Send],
            ..plan()
        };
        let scenes = plan.scenes(Kind::Redis);
        let there = |scene| plan.order(scene, 0).contains(&Contender::RehomeThrottle);
        let seen: Vec<_> = scenes.into_iter().map(|s| (s.rate, there(s))).collect();
        assert_eq!(seen, [(0, false), (100, true), (LARGE_RATE, false)]);
    }

    #[test]
    fn the_large_volume_is_one_more_scene() {
        let scenes = plan().scenes(Kind::Redis);
        let seen: Vec<_> = scenes.iter().map(|s| (s.size, s.rate)).collect();
        assert_eq!(seen, [(64, 0), (64, 100), (512, LARGE_RATE)]);
    }
}
