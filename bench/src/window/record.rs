//! What a run measured: the file that tables and plots are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats::Spread;
use crate::window::plan::{Contender, Kind, Scene};

/// A part of the window, in the order in which they follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Until the last process of the store has ended.
    Stop,
    /// Writing back what is dirty. By hand the snapshot counts here too.
    Flush,
    /// Everything, or the difference, to the other host.
    Copy,
    /// Rehome: RELEASE and ADOPT, each synced. By hand: a writable snapshot of what arrived.
    Own,
    /// Until the store is healthy.
    Start,
    /// Leading the traffic there.
    Route,
    /// The rest of the window, between the parts.
    Rest,
}

impl Part {
    /// All parts, in their order.
    pub const ALL: [Self; 7] = [
        Self::Stop,
        Self::Flush,
        Self::Copy,
        Self::Own,
        Self::Start,
        Self::Route,
        Self::Rest,
    ];

    /// Its name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Flush => "flush",
            Self::Copy => "copy",
            Self::Own => "own",
            Self::Start => "start",
            Self::Route => "route",
            Self::Rest => "rest",
        }
    }
}

/// A pre-copy round of Rehome.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// MiB on the wire.
    pub mebibytes: f64,
    /// How long it took.
    pub seconds: f64,
}

/// What a contender says of its move.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Moved {
    /// Why it did not end well.
    pub failure: Option<String>,
    /// Seconds from the command to the stop: copying while the store runs, draining.
    pub before: f64,
    /// Seconds of draining among these; new connections wait already.
    pub drain: f64,
    /// Seconds by part of the window.
    pub parts: BTreeMap<Part, f64>,
    /// What was copied while the store ran.
    pub rounds: Vec<Round>,
    /// The window in seconds, as it was predicted before the stop.
    pub predicted: Option<f64>,
}

impl Moved {
    /// The window in seconds: the sum of its parts.
    #[must_use]
    pub fn window(&self) -> f64 {
        self.parts.values().sum()
    }
}

/// What the clients saw of a move.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The longest time in seconds without any acknowledgement.
    pub gap: f64,
    /// The same, of requests on connections of their own.
    pub gap_fresh: f64,
    /// The same, of requests on connections that are kept.
    pub gap_kept: f64,
    /// The longest gap before the move: what the machine does without one.
    pub gap_before: f64,
    /// Requests that were acknowledged.
    pub acknowledged: u64,
    /// Requests on connections of their own that were refused or failed.
    pub failed_fresh: u64,
    /// Requests on kept connections that failed, connecting again included.
    pub failed_kept: u64,
    /// Some of the failures.
    pub failures: Vec<String>,
    /// MiB per second that were overwritten until the gap.
    pub achieved: f64,
    /// Acknowledged writes that are not there after the move.
    pub lost: u64,
}

/// One move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Who moved.
    pub contender: Contender,
    /// What it met.
    pub scene: Scene,
    /// From 1.
    pub repetition: u32,
    /// What it says.
    pub moved: Moved,
    /// What clients saw.
    pub seen: Seen,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Where.
    pub machine: Machine,
    /// What was asked for.
    pub command: String,
    /// How long it took.
    pub seconds: f64,
    /// The moves, in the order in which they were made.
    pub trials: Vec<Trial>,
}

impl Record {
    /// The scenes of a store, in the order of size and rate.
    #[must_use]
    pub fn scenes(&self, store: Kind) -> Vec<Scene> {
        let mut scenes: Vec<Scene> = self.trials.iter().map(|trial| trial.scene).collect();
        scenes.retain(|scene| scene.store == store);
        scenes.sort_unstable();
        scenes.dedup();
        scenes
    }

    /// The stores that were moved.
    #[must_use]
    pub fn stores(&self) -> Vec<Kind> {
        let mut stores: Vec<Kind> = self.trials.iter().map(|trial| trial.scene.store).collect();
        stores.sort_unstable();
        stores.dedup();
        stores
    }

    /// The contenders that met a scene, in their order.
    #[must_use]
    pub fn contenders(&self, scene: Scene) -> Vec<Contender> {
        let met = self.trials.iter().filter(|trial| trial.scene == scene);
        let mut contenders: Vec<Contender> = met.map(|trial| trial.contender).collect();
        contenders.sort_unstable();
        contenders.dedup();
        contenders
    }

    /// The moves of a contender in a scene.
    pub fn trials_of(&self, scene: Scene, contender: Contender) -> impl Iterator<Item = &Trial> {
        self.trials
            .iter()
            .filter(move |trial| trial.scene == scene && trial.contender == contender)
    }

    /// A figure of those that ended well.
    pub fn spread(
        &self,
        scene: Scene,
        contender: Contender,
        figure: impl Fn(&Trial) -> f64,
    ) -> Option<Spread> {
        let well = self
            .trials_of(scene, contender)
            .filter(|trial| trial.moved.failure.is_none());
        Spread::of(well.map(figure))
    }
}
