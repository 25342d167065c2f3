//! What is measured, and in which order.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::turns;

/// A way from the clients to the server.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// `proxyd`, with a route in user space, told as `migrated` tells it.
    Rehome,
    /// HAProxy, which splices.
    HaproxySplice,
    /// HAProxy, which copies.
    Haproxy,
    /// HAProxy, whose frontend is told to take nobody in while the backend is away.
    HaproxyPaused,
    /// nginx, its stream module.
    Nginx,
    /// Envoy, its TCP proxy.
    Envoy,
    /// What systemd puts in front of a service that has no socket activation.
    Systemd,
    /// No relay: the relay's host forwards packets.
    Routed,
}

impl Contender {
    /// Its name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Rehome => "Rehome",
            Self::HaproxySplice => "HAProxy, splice",
            Self::Haproxy => "HAProxy",
            Self::HaproxyPaused => "HAProxy, frontend at 0",
            Self::Nginx => "nginx stream",
            Self::Envoy => "Envoy",
            Self::Systemd => "systemd-socket-proxyd",
            Self::Routed => "routed, no relay",
        }
    }

    /// Whether a scene says something about it that it does not say about another one. Who cannot
    /// be told to wait for a backend is not told.
    #[must_use]
    pub fn takes_part(self, scene: Scene) -> bool {
        match self {
            Self::Rehome | Self::Haproxy => true,
            Self::HaproxySplice => !matches!(scene, Scene::Away | Scene::Told),
            Self::HaproxyPaused => scene == Scene::Told,
            Self::Nginx | Self::Envoy | Self::Systemd | Self::Routed => scene != Scene::Told,
        }
    }
}

/// What the contenders meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scene {
    /// So many streams, each as fast as it goes.
    Bulk(u32),
    /// Connections of one byte each way, so many at a time.
    Connections(u32),
    /// So many connections, a message there and back on each at a time.
    RoundTrips(u32),
    /// So many connections that are silent.
    Idle(u32),
    /// The only backend is away for a second, while connections come. Nobody told the relay.
    Away,
    /// The same, and the relay is told before and after.
    Told,
}

impl Scene {
    /// Its name for people.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Bulk(1) => "Throughput, 1 stream".to_owned(),
            Self::Bulk(streams) => format!("Throughput, {streams} streams"),
            Self::Connections(at_once) => format!("New connections, {at_once} at a time"),
            Self::RoundTrips(1) => "Round trips on 1 connection".to_owned(),
            Self::RoundTrips(connections) => format!("Round trips on {connections} connections"),
            Self::Idle(connections) => format!("Memory of {connections} idle connections"),
            Self::Away => "The only backend is away for 1 s, unannounced".to_owned(),
            Self::Told => "The only backend is away for 1 s, the relay is told".to_owned(),
        }
    }
}

/// The choices of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Who is measured.
    pub contenders: Vec<Contender>,
    /// In what.
    pub scenes: Vec<Scene>,
    /// How often.
    pub rounds: u32,
    /// How long everything is measured.
    pub seconds: f64,
    /// No round begins that would probably end later than this; the first always does.
    pub limit: Duration,
}

/// The scenes of a run, with so many idle connections.
#[must_use]
pub fn scenes(idle: u32) -> Vec<Scene> {
    vec![
        Scene::Bulk(1),
        Scene::Bulk(8),
        Scene::Bulk(64),
        Scene::Connections(16),
        Scene::RoundTrips(1),
        Scene::RoundTrips(50),
        Scene::Idle(idle),
        Scene::Away,
        Scene::Told,
    ]
}

/// How many connections a relay can hold that has two descriptors for each and may have so many:
/// some are left for itself, and for pipes.
#[must_use]
pub fn idle_within(descriptors: u64, wanted: u32) -> u32 {
    let fitting = (descriptors / 2).saturating_sub(descriptors / 8);
    wanted.min(u32::try_from(fitting).unwrap_or(u32::MAX))
}

impl Plan {
    /// Whether one more round fits, after so many that took so long together.
    #[must_use]
    pub fn goes_on(&self, done: u32, elapsed: Duration) -> bool {
        turns::goes_on(done, self.rounds, elapsed, self.limit)
    }

    /// The trials of a round: scene after scene, in each the contenders by turns.
    #[must_use]
    pub fn trials(&self, round: usize) -> Vec<(Scene, Contender)> {
        let scenes = self.scenes.iter().enumerate();
        scenes
            .flat_map(|(index, scene)| {
                let mut present = self.contenders.clone();
                present.retain(|contender| contender.takes_part(*scene));
                let order = turns::rotated(&present, round.saturating_add(index));
                order.into_iter().map(|contender| (*scene, contender))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_every_round_every_contender_meets_every_scene_once_in_another_order() {
        let plan = Plan {
            contenders: vec![Contender::Rehome, Contender::Haproxy, Contender::Routed],
            scenes: scenes(5000),
            rounds: 3,
            seconds: 1.0,
            limit: Duration::from_mins(1),
        };
        let first = plan.trials(1);
        // Without a relay there is nobody to tell.
        assert_eq!(first.len(), 8 * 3 + 2);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), first.len());
        let begins = |round| plan.trials(round)[0];
        assert_eq!(begins(0), (Scene::Bulk(1), Contender::Rehome));
        assert_eq!(begins(1), (Scene::Bulk(1), Contender::Haproxy));
        // Within a round another one begins each scene.
        assert_eq!(first[3], (Scene::Bulk(8), Contender::Routed));
    }

    #[test]
    fn who_cannot_be_told_is_not_told() {
        let all = Contender::value_variants();
        let told: Vec<Contender> = all
            .iter()
            .copied()
            .filter(|contender| contender.takes_part(Scene::Told))
            .collect();
        let expected = [
            Contender::Rehome,
            Contender::Haproxy,
            Contender::HaproxyPaused,
        ];
        assert_eq!(told, expected);
        let bulk = |contender: &&Contender| contender.takes_part(Scene::Bulk(1));
        assert_eq!(all.iter().filter(bulk).count(), all.len() - 1);
    }

    #[test]
    fn idle_connections_leave_descriptors_for_the_relay_itself() {
        assert_eq!(idle_within(20_000, 5000), 5000);
        assert_eq!(idle_within(20_000, 50_000), 7500);
        assert_eq!(idle_within(1024, 5000), 384);
        assert_eq!(idle_within(0, 5000), 0);
    }
}
