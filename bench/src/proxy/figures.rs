//! What was measured, made of what was read before and after, and of what the clients saw.

use crate::proxy::load::Seen;
use crate::proxy::meter::{Reading, Spent};
use crate::proxy::plan::Scene;
use crate::proxy::processors::Processors;
use crate::proxy::record::{Figure, Figures};
use crate::stats::figure;

/// All that a trial has to go by.
#[derive(Debug, Clone)]
pub struct Measured<'a> {
    /// Before.
    pub first: Reading,
    /// After.
    pub last: Reading,
    /// What the clients saw.
    pub seen: Seen,
    /// Bytes that arrived at the server between the two.
    pub bytes: f64,
    /// Whether there was a relay; what it cost is asked only then.
    pub relay: bool,
    /// Which processors were whose.
    pub processors: &'a Processors,
}

impl Measured<'_> {
    /// The figures of a scene.
    #[must_use]
    pub fn figures(&self, scene: Scene) -> Figures {
        let mut all = match scene {
            Scene::Bulk(_) => self.bulk(),
            Scene::Connections(_) => self.counted(),
            Scene::RoundTrips(_) => self.round_trips(),
            Scene::Idle(_) => self.idle(),
            Scene::Away | Scene::Told => {
                Figures::from([(Figure::LongestWait, self.seen.longest * 1e3)])
            }
        };
        if let Scene::Bulk(_) = scene {
            return self.with_busy(all);
        }
        all.insert(Figure::Failed, figure(self.seen.failed));
        match scene {
            Scene::Connections(_) | Scene::RoundTrips(_) => self.with_busy(all),
            Scene::Bulk(_) | Scene::Idle(_) | Scene::Away | Scene::Told => {
                let attempts = self.seen.done.saturating_add(self.seen.failed);
                all.insert(Figure::Attempts, figure(attempts));
                all
            }
        }
    }

    fn bulk(&self) -> Figures {
        let gigabits = self.bytes * 8.0 / 1e9;
        let mut all = Figures::from([(Figure::Gigabits, gigabits / self.seconds())]);
        if gigabits > 0.0 {
            all.insert(Figure::AllPerGigabit, self.all() * 1e3 / gigabits);
            all.insert(Figure::MachinePerGigabit, self.machine() * 1e3 / gigabits);
            if self.relay {
                all.insert(Figure::OwnPerGigabit, self.own() * 1e3 / gigabits);
            }
        }
        all
    }

    /// Of what is counted: the rate, and what each cost.
    fn counted(&self) -> Figures {
        let done = figure(self.seen.done);
        let mut all = Figures::from([(Figure::PerSecond, 0.0)]);
        if self.seen.seconds > 0.0 {
            all.insert(Figure::PerSecond, done / self.seen.seconds);
        }
        if done > 0.0 {
            all.insert(Figure::AllEach, self.all() * 1e6 / done);
            all.insert(Figure::MachineEach, self.machine() * 1e6 / done);
            if self.relay {
                all.insert(Figure::OwnEach, self.own() * 1e6 / done);
            }
        }
        all
    }

    fn round_trips(&self) -> Figures {
        let mut all = self.counted();
        if let Some(waits) = self.seen.waits {
            let names = [Figure::Middle, Figure::Slow, Figure::Slowest];
            let micros = waits.map(|nanos| f64::from(nanos) / 1e3);
            all.extend(names.into_iter().zip(micros));
        }
        all
    }

    fn idle(&self) -> Figures {
        // Those that were held to the end.
        let held = figure(self.seen.done.max(1));
        let each = |now: f64, then: f64| (now - then) / held;
        let kernel = each(self.last.slab, self.first.slab);
        let mut all = Figures::from([(Figure::Kernel, kernel)]);
        if self.relay {
            let user = each(self.last.resident, self.first.resident);
            all.insert(Figure::User, user);
        }
        all
    }

    fn with_busy(&self, mut all: Figures) -> Figures {
        let generators = self.busy(&self.processors.generators);
        all.insert(Figure::GeneratorsBusy, generators * 100.0);
        let relay = self.busy(&self.processors.relay);
        all.insert(Figure::RelayBusy, relay * 100.0);
        let everybody: Vec<usize> = (0..self.last.processors.len()).collect();
        let machine = self.busy(&everybody);
        if machine > 0.0 {
            // The kernel looks at its processors now and then, and measures its processes.
            let elsewhere = (1.0 - self.all() / self.machine()).max(0.0) * machine;
            all.insert(Figure::Elsewhere, elsewhere * 100.0);
        }
        all
    }

    fn seconds(&self) -> f64 {
        let time = self.last.at.saturating_duration_since(self.first.at);
        time.as_secs_f64().max(f64::EPSILON)
    }

    fn own(&self) -> f64 {
        self.last.own - self.first.own
    }

    fn all(&self) -> f64 {
        self.last.all - self.first.all
    }

    /// What all processors did.
    fn machine(&self) -> f64 {
        let all = 0..self.last.processors.len();
        all.map(|number| self.spent(number).busy).sum()
    }

    /// How busy some processors were.
    fn busy(&self, numbers: &[usize]) -> f64 {
        let spent = numbers.iter().map(|number| self.spent(*number));
        let (busy, all) = spent.fold((0.0, 0.0), |(busy, all), spent| {
            (busy + spent.busy, all + spent.all)
        });
        if all > 0.0 { busy / all } else { 0.0 }
    }

    fn spent(&self, number: usize) -> Spent {
        let of = |reading: &Reading| reading.processors.get(number).copied().unwrap_or_default();
        let (now, then) = (of(&self.last), of(&self.first));
        Spent {
            busy: now.busy - then.busy,
            all: now.all - then.all,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn measured(processors: &Processors) -> Measured<'_> {
        let at = Instant::now();
        let spent = |busy, all| Spent { busy, all };
        Measured {
            first: Reading {
                at,
                own: 1.0,
                all: 5.0,
                processors: vec![spent(10.0, 100.0), spent(20.0, 100.0)],
                resident: 1e6,
                slab: 2e6,
            },
            last: Reading {
                at: at + Duration::from_secs(2),
                own: 2.5,
                all: 7.4,
                processors: vec![spent(11.0, 102.0), spent(22.0, 102.0)],
                resident: 3e6,
                slab: 7e6,
            },
            seen: Seen {
                seconds: 2.0,
                done: 10_000,
                failed: 3,
                waits: Some([40_000, 90_000, 400_000]),
                longest: 1.5,
                ..Seen::default()
            },
            bytes: 1.25e9,
            relay: true,
            processors,
        }
    }

    fn split() -> Processors {
        Processors {
            generators: vec![0],
            relay: vec![1],
        }
    }

    fn assert_figures(found: &Figures, expected: &[(Figure, f64)]) {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (name, value) in expected {
            let figure = found[name];
            assert!(
                (figure - value).abs() < 1e-6,
                "{name:?}: {figure}, not {value}"
            );
        }
    }

    #[test]
    fn processor_time_is_divided_by_what_arrived() {
        let split = split();
        assert_figures(
            &measured(&split).figures(Scene::Bulk(8)),
            &[
                (Figure::Gigabits, 5.0),
                (Figure::OwnPerGigabit, 150.0),
                (Figure::AllPerGigabit, 240.0),
                (Figure::MachinePerGigabit, 300.0),
                (Figure::GeneratorsBusy, 50.0),
                (Figure::RelayBusy, 100.0),
                (Figure::Elsewhere, 15.0),
            ],
        );
        assert_figures(
            &measured(&split).figures(Scene::Connections(16)),
            &[
                (Figure::PerSecond, 5000.0),
                (Figure::OwnEach, 150.0),
                (Figure::AllEach, 240.0),
                (Figure::MachineEach, 300.0),
                (Figure::Failed, 3.0),
                (Figure::GeneratorsBusy, 50.0),
                (Figure::RelayBusy, 100.0),
                (Figure::Elsewhere, 15.0),
            ],
        );
    }

    #[test]
    fn where_there_is_no_relay_nothing_is_said_of_its_cost() {
        let split = split();
        let mut measured = measured(&split);
        measured.relay = false;
        for scene in [Scene::Bulk(1), Scene::Connections(16), Scene::Idle(1000)] {
            let found = measured.figures(scene);
            let own = [Figure::OwnPerGigabit, Figure::OwnEach, Figure::User];
            assert!(
                own.iter().all(|name| !found.contains_key(name)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn times_and_memory_come_in_their_units() {
        let split = split();
        let found = measured(&split).figures(Scene::RoundTrips(50));
        let times = [Figure::Middle, Figure::Slow, Figure::Slowest].map(|name| found[&name]);
        assert!((times[0] - 40.0).abs() < 1e-9 && (times[2] - 400.0).abs() < 1e-9);
        assert_figures(
            &measured(&split).figures(Scene::Idle(1000)),
            &[
                (Figure::User, 200.0),
                (Figure::Kernel, 500.0),
                (Figure::Failed, 3.0),
                (Figure::Attempts, 10_003.0),
            ],
        );
        assert_figures(
            &measured(&split).figures(Scene::Away),
            &[
                (Figure::LongestWait, 1500.0),
                (Figure::Failed, 3.0),
                (Figure::Attempts, 10_003.0),
            ],
        );
    }

    #[test]
    fn a_stream_that_carried_nothing_has_no_cost_for_a_gigabit() {
        let split = split();
        let mut measured = measured(&split);
        measured.bytes = 0.0;
        let found = measured.figures(Scene::Bulk(1));
        assert!(!found.contains_key(&Figure::AllPerGigabit), "{found:?}");
        assert!(found.values().all(|value| value.is_finite()));
    }
}
