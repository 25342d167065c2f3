//! What a run measured: the file that tables and plots are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::proxy::plan::{Contender, Scene};
use crate::stats::Spread;

/// Something that was measured, in the unit of its name for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Bytes that arrived at the server.
    Gigabits,
    /// Connections, or round trips.
    PerSecond,
    /// Processor time of the relay's processes, for a gigabit.
    OwnPerGigabit,
    /// Processor time of clients, relay and server, for a gigabit.
    AllPerGigabit,
    /// Processor time of the whole machine, for a gigabit.
    MachinePerGigabit,
    /// Processor time of the relay's processes, for a connection or a round trip.
    OwnEach,
    /// Processor time of clients, relay and server, for a connection or a round trip.
    AllEach,
    /// Processor time of the whole machine, for a connection or a round trip.
    MachineEach,
    /// The median of the times.
    Middle,
    /// What 99 of 100 do not exceed.
    Slow,
    /// What 999 of 1000 do not exceed.
    Slowest,
    /// Memory of the relay's processes, for a connection.
    User,
    /// Memory of the kernel's own structures, for a connection and both its ends.
    Kernel,
    /// Connections, or round trips, that came to nothing.
    Failed,
    /// How many there were.
    Attempts,
    /// The longest time until an answer.
    LongestWait,
    /// How busy the processors of clients and server were.
    GeneratorsBusy,
    /// How busy the relay's were.
    RelayBusy,
    /// How busy the machine was with what belongs to no trial.
    Elsewhere,
}

impl Figure {
    /// Its name for people, with the unit.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Gigabits => "Gbit/s",
            Self::PerSecond => "per second",
            Self::OwnPerGigabit => "relay's CPU, ms/Gbit",
            Self::AllPerGigabit => "CPU over routed, ms/Gbit",
            Self::MachinePerGigabit => "machine over routed, ms/Gbit",
            Self::OwnEach => "relay's CPU, µs each",
            Self::AllEach => "CPU over routed, µs each",
            Self::MachineEach => "machine over routed, µs each",
            Self::Middle => "p50, µs",
            Self::Slow => "p99, µs",
            Self::Slowest => "p999, µs",
            Self::User => "user space, bytes each",
            Self::Kernel => "kernel, bytes each",
            Self::Failed => "failed",
            Self::Attempts => "of",
            Self::LongestWait => "longest wait, ms",
            Self::GeneratorsBusy => "clients and server busy, %",
            Self::RelayBusy => "relay busy, %",
            Self::Elsewhere => "busy elsewhere, %",
        }
    }

    /// Whether what the machine does without a relay is taken off it.
    #[must_use]
    pub fn is_over_routed(self) -> bool {
        matches!(
            self,
            Self::AllPerGigabit
                | Self::MachinePerGigabit
                | Self::AllEach
                | Self::MachineEach
                | Self::Kernel
        )
    }
}

/// What one trial came to.
pub type Figures = BTreeMap<Figure, f64>;

/// One contender in one scene.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Who.
    pub contender: Contender,
    /// In what.
    pub scene: Scene,
    /// From 1.
    pub round: u32,
    /// What was measured.
    pub figures: Figures,
    /// The first failure of a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
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
    /// How the processors were shared out, and who was left out and why.
    pub notes: Vec<String>,
    /// In the order in which they were made.
    pub trials: Vec<Trial>,
}

impl Record {
    /// The scenes, in their order.
    #[must_use]
    pub fn scenes(&self) -> Vec<Scene> {
        unique(self.trials.iter().map(|trial| trial.scene))
    }

    /// The contenders that met a scene, in their order.
    #[must_use]
    pub fn contenders(&self, scene: Scene) -> Vec<Contender> {
        let met = self.trials.iter().filter(|trial| trial.scene == scene);
        unique(met.map(|trial| trial.contender))
    }

    /// All contenders, in their order.
    #[must_use]
    pub fn all_contenders(&self) -> Vec<Contender> {
        unique(self.trials.iter().map(|trial| trial.contender))
    }

    /// A figure of a contender in a scene. Of what is looked at without the plain path, that of
    /// the same round is taken off; without one there is no figure.
    #[must_use]
    pub fn spread(&self, scene: Scene, contender: Contender, figure: Figure) -> Option<Spread> {
        let own = self.of(scene, contender);
        Spread::of(own.filter_map(|trial| {
            let value = *trial.figures.get(&figure)?;
            if !figure.is_over_routed() || contender == Contender::Routed {
                return Some(value);
            }
            let mut plain = self.of(scene, Contender::Routed);
            let plain = plain.find(|routed| routed.round == trial.round)?;
            Some(value - plain.figures.get(&figure)?)
        }))
    }

    fn of(&self, scene: Scene, contender: Contender) -> impl Iterator<Item = &Trial> {
        self.trials
            .iter()
            .filter(move |trial| trial.scene == scene && trial.contender == contender)
    }
}

fn unique<T: Ord>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;
    use crate::proxy::report::tests::{SCENE, record};

    #[test]
    fn what_the_plain_path_costs_in_the_same_round_is_taken_off() {
        let record = record();
        let whole = |who| record.spread(SCENE, who, Figure::AllPerGigabit).unwrap();
        // 70, 80 and 90 without a relay; 100, 120 and 140 with ours.
        assert_eq!(whole(Contender::Routed).median, 80.0);
        let ours = whole(Contender::Rehome);
        assert_eq!((ours.least, ours.median, ours.most), (30.0, 40.0, 50.0));
        // Of anything else nothing is taken off.
        let gigabits = record.spread(SCENE, Contender::Rehome, Figure::Gigabits);
        assert_eq!(gigabits.unwrap().median, 5.0);
    }

    #[test]
    fn without_the_plain_path_nothing_can_be_taken_off() {
        let mut record = record();
        record
            .trials
            .retain(|trial| trial.contender != Contender::Routed);
        let whole = record.spread(SCENE, Contender::Rehome, Figure::AllPerGigabit);
        assert_eq!(whole, None);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
