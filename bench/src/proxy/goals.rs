//! What Rehome wants to reach beside the others, and whether it did.

use crate::proxy::plan::{Contender, Scene};
use crate::proxy::record::{Figure, Record};

/// Something to reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// What.
    pub name: String,
    /// Ours, over what it is compared with.
    pub found: f64,
    /// What it should be.
    pub bound: Bound,
}

/// The side on which a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At least.
    Least(f64),
    /// At most.
    Most(f64),
}

impl Goal {
    /// Whether it is reached.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        match self.bound {
            Bound::Least(least) => self.found >= least,
            Bound::Most(most) => self.found <= most,
        }
    }
}

/// More of user space's memory for an idle connection is too much.
const USER: f64 = 2500.0;

/// The goals that a run says something about.
#[must_use]
pub fn of(record: &Record) -> Vec<Goal> {
    let scenes = record.scenes().into_iter();
    scenes.flat_map(|scene| goals(record, scene)).collect()
}

fn goals(record: &Record, scene: Scene) -> Vec<Goal> {
    let figures: &[Figure] = match scene {
        // Both sides of the same cost: what the relay adds to the way, and what it is charged.
        Scene::Bulk(_) => &[Figure::AllPerGigabit, Figure::OwnPerGigabit],
        Scene::Connections(_) => &[Figure::PerSecond],
        Scene::RoundTrips(_) => &[Figure::Slow],
        Scene::Idle(_) => &[Figure::User],
        Scene::Away | Scene::Told => &[Figure::Failed],
    };
    let goals = figures.iter();
    goals
        .filter_map(|figure| goal(record, scene, *figure))
        .collect()
}

fn goal(record: &Record, scene: Scene, figure: Figure) -> Option<Goal> {
    let median = |who| Some(record.spread(scene, who, figure)?.median);
    let ours = median(Contender::Rehome);
    // HAProxy is whichever of both does better.
    let haproxies = [Contender::HaproxySplice, Contender::Haproxy];
    let (found, bound) = match scene {
        Scene::Bulk(_) => {
            let best = least(haproxies.map(median));
            (ratio(ours, best), Bound::Most(0.9))
        }
        Scene::Connections(_) => {
            let best = most(haproxies.map(median));
            (ratio(ours, best), Bound::Least(1.3))
        }
        Scene::RoundTrips(_) => {
            let others = record.contenders(scene).into_iter();
            let others = others.filter(|who| ![Contender::Rehome, Contender::Routed].contains(who));
            let best = least(others.map(median));
            (ratio(ours, best), Bound::Most(1.0))
        }
        Scene::Idle(_) => (ours, Bound::Most(USER)),
        // Not one, in any round.
        Scene::Away | Scene::Told => {
            let ours = record.spread(scene, Contender::Rehome, figure);
            (ours.map(|spread| spread.most), Bound::Most(0.0))
        }
    };
    let beside = match scene {
        Scene::Bulk(_) | Scene::Connections(_) => ", of HAProxy's",
        Scene::RoundTrips(_) => ", of the best relay's",
        Scene::Idle(_) | Scene::Away | Scene::Told => "",
    };
    Some(Goal {
        name: format!("{}: {}{beside}", scene.title(), figure.title()),
        found: found?,
        bound,
    })
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    let theirs = theirs.filter(|theirs| *theirs > 0.0)?;
    Some(ours? / theirs)
}

fn least(all: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    all.into_iter().flatten().min_by(f64::total_cmp)
}

fn most(all: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    all.into_iter().flatten().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::record::{Figures, Trial};
    use crate::proxy::report::tests::record;

    fn trial(contender: Contender, scene: Scene, figure: Figure, value: f64) -> Trial {
        Trial {
            contender,
            scene,
            round: 1,
            figures: Figures::from([(figure, value)]),
            failure: None,
        }
    }

    fn goals(trials: Vec<Trial>) -> Vec<Goal> {
        of(&Record { trials, ..record() })
    }

    #[test]
    fn haproxy_is_whichever_of_its_ways_does_better() {
        let scene = Scene::Bulk(1);
        let cost = |who, value| trial(who, scene, Figure::OwnPerGigabit, value);
        let [goal] = goals(vec![
            cost(Contender::Rehome, 45.0),
            cost(Contender::HaproxySplice, 50.0),
            cost(Contender::Haproxy, 100.0),
        ])
        .try_into()
        .unwrap();
        assert!((goal.found - 0.9).abs() < 1e-9);
        assert!(goal.is_reached());
    }

    #[test]
    fn times_are_compared_with_the_best_relay_and_not_with_none() {
        let scene = Scene::RoundTrips(50);
        let time = |who, value| trial(who, scene, Figure::Slow, value);
        let [goal] = goals(vec![
            time(Contender::Rehome, 100.0),
            time(Contender::Nginx, 80.0),
            time(Contender::Envoy, 200.0),
            time(Contender::Routed, 20.0),
        ])
        .try_into()
        .unwrap();
        assert!((goal.found - 1.25).abs() < 1e-9);
        assert!(!goal.is_reached());
    }

    #[test]
    fn what_was_not_measured_is_no_goal() {
        let alone = trial(
            Contender::Rehome,
            Scene::Connections(16),
            Figure::PerSecond,
            9.0,
        );
        assert!(goals(vec![alone]).is_empty());
        let lost = |value| trial(Contender::Rehome, Scene::Away, Figure::Failed, value);
        assert!(!goals(vec![lost(0.0), lost(1.0), lost(0.0)])[0].is_reached());
        assert!(goals(vec![lost(0.0), lost(0.0)])[0].is_reached());
    }
}
