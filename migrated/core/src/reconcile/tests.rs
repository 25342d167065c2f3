use std::time::Duration;

use rehome_shared::api::cluster::MigrationState;
use rehome_shared::config::model::RestartPolicy;
use rehome_shared::ids::{AppName, Attempt, DeploymentGeneration, Epoch, HostAddr};

use super::{Action, InstancePhase, InstanceSeen, Seen, plan};
use crate::fixtures::{
    NOW, application, born, destination, host, id, plan as plan_of_move, report, reserved, source,
    verified,
};
use crate::record::{DestinationRecord, Record, SourceRecord};
use crate::registry::Registry;

struct Scene {
    application: AppName,
    here: HostAddr,
    registry: Registry,
}

impl Scene {
    fn new(records: &[Record]) -> Self {
        Self {
            application: application(),
            here: host("h1"),
            registry: Registry::replay(records),
        }
    }

    /// It should run here as it is, and does.
    fn seen(&self) -> Seen<'_> {
        Seen {
            application: &self.application,
            here: &self.here,
            registry: &self.registry,
            desired_host: Some(&self.here),
            birth: None,
            desired_hash: Some("hash"),
            instance: Some(instance(InstancePhase::Running)),
            restart_policy: RestartPolicy::Never,
            exits: 0,
            move_failed: false,
            host_restarted: false,
            cleared: true,
        }
    }
}

fn instance(state: InstancePhase) -> InstanceSeen<'static> {
    InstanceSeen {
        config_hash: "hash",
        state,
    }
}

fn exited(success: bool) -> InstanceSeen<'static> {
    instance(InstancePhase::Exited { success })
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    let scene = Scene::new(&born());
    assert_eq!(plan(&scene.seen()), Action::None);
}

#[test]
fn an_application_is_born_only_where_the_deployment_says_so() {
    let scene = Scene::new(&[]);
    let birth = Some(DeploymentGeneration(1));
    let nothing = Seen {
        instance: None,
        ..scene.seen()
    };
    assert_eq!(plan(&Seen { birth, ..nothing }), Action::Birth);
    assert_eq!(plan(&nothing), Action::None, "somebody else may hold it");
    let elsewhere = host("h2");
    let not_here = Seen {
        birth,
        desired_host: Some(&elsewhere),
        ..nothing
    };
    assert_eq!(plan(&not_here), Action::None);
}

fn released() -> Vec<Record> {
    let steps = [
        SourceRecord::Planned(plan_of_move()),
        SourceRecord::CutOver {
            attempt: Attempt(1),
            deadline: NOW,
        },
        SourceRecord::Released {
            attempt: Attempt(1),
        },
    ];
    born()
        .into_iter()
        .chain(steps.map(|step| source(1, step)))
        .collect()
}

#[test]
fn what_is_being_given_away_is_left_to_its_migration() {
    let scene = Scene::new(&released());
    let birth = Some(DeploymentGeneration(1));
    for instance in [
        None,
        Some(exited(false)),
        Some(instance(InstancePhase::Running)),
    ] {
        let restart_policy = RestartPolicy::Always;
        assert_eq!(
            plan(&Seen {
                birth,
                instance,
                restart_policy,
                ..scene.seen()
            }),
            Action::None
        );
    }
}

#[test]
fn an_exit_during_the_copy_is_answered_as_ever_and_during_the_cut_over_not_at_all() {
    let planned = born()
        .into_iter()
        .chain([source(1, SourceRecord::Planned(plan_of_move()))]);
    let copying = planned.collect::<Vec<_>>();
    let cut_over = SourceRecord::CutOver {
        attempt: Attempt(1),
        deadline: NOW,
    };
    let cutting = copying.iter().cloned().chain([source(1, cut_over)]);
    for (records, starts) in [(copying.clone(), true), (cutting.collect(), false)] {
        let scene = Scene::new(&records);
        let seen = Seen {
            instance: Some(exited(false)),
            restart_policy: RestartPolicy::Always,
            ..scene.seen()
        };
        assert_eq!(matches!(plan(&seen), Action::Start { .. }), starts);
    }
}

#[test]
fn what_was_given_away_is_neither_born_nor_started_again() {
    let report = report(id(1), MigrationState::Done);
    let mut records = released();
    records.push(source(1, SourceRecord::Served));
    records.push(source(1, SourceRecord::Closed { report }));
    let scene = Scene::new(&records);
    let birth = Some(DeploymentGeneration(1));
    assert_eq!(
        plan(&Seen {
            birth,
            instance: None,
            ..scene.seen()
        }),
        Action::None
    );
    assert_eq!(
        plan(&Seen {
            birth,
            ..scene.seen()
        }),
        Action::Evict
    );
}

#[test]
fn an_instance_of_something_unknown_is_evicted() {
    assert_eq!(plan(&Scene::new(&[]).seen()), Action::Evict);
}

#[test]
fn what_comes_is_left_to_its_handoff() {
    let mut records = vec![reserved(1)];
    let birth = Some(DeploymentGeneration(1));
    for record in [verified(1), destination(1, DestinationRecord::Adopted)] {
        let scene = Scene::new(&records);
        for instance in [None, Some(instance(InstancePhase::Created))] {
            assert_eq!(
                plan(&Seen {
                    birth,
                    instance,
                    ..scene.seen()
                }),
                Action::None
            );
        }
        records.push(record);
    }
    assert_eq!(
        plan(&Seen {
            instance: None,
            ..Scene::new(&records).seen()
        }),
        Action::None
    );
    records.push(destination(1, DestinationRecord::Serving));
    assert_eq!(
        plan(&Seen {
            instance: None,
            ..Scene::new(&records).seen()
        }),
        Action::Run
    );
}

#[test]
fn a_missing_or_different_instance_is_made_anew() {
    let scene = Scene::new(&born());
    assert_eq!(
        plan(&Seen {
            instance: None,
            ..scene.seen()
        }),
        Action::Run
    );
    assert_eq!(
        plan(&Seen {
            desired_hash: Some("new"),
            ..scene.seen()
        }),
        Action::Run
    );
}

#[test]
fn what_is_not_placed_stops_and_stays_stopped() {
    let scene = Scene::new(&born());
    let unplaced = Seen {
        desired_host: None,
        ..scene.seen()
    };
    assert_eq!(plan(&unplaced), Action::Stop);
    assert_eq!(
        plan(&Seen {
            instance: None,
            ..unplaced
        }),
        Action::None
    );
}

#[test]
fn what_is_placed_elsewhere_moves_and_after_a_failed_move_goes_on_here() {
    let scene = Scene::new(&born());
    let to = host("h2");
    let away = Seen {
        desired_host: Some(&to),
        desired_hash: Some("new"),
        ..scene.seen()
    };
    assert_eq!(plan(&away), Action::Migrate { to: to.clone() });
    let failed = Seen {
        move_failed: true,
        ..away
    };
    assert_eq!(
        plan(&failed),
        Action::None,
        "as it was, not as it should be there"
    );
    assert_eq!(
        plan(&Seen {
            instance: None,
            ..failed
        }),
        Action::Run
    );
    let created = Seen {
        instance: Some(instance(InstancePhase::Created)),
        ..failed
    };
    assert_eq!(
        plan(&created),
        Action::Start {
            after: Duration::ZERO
        }
    );
}

#[test]
fn what_was_announced_is_made_before_it_moves() {
    let scene = Scene::new(&born()[..1]);
    let elsewhere = host("h2");
    let away = Seen {
        desired_host: Some(&elsewhere),
        instance: None,
        ..scene.seen()
    };
    assert_eq!(plan(&away), Action::Run, "a move of it would be refused");
    let made = Scene::new(&born());
    let away = Seen {
        registry: &made.registry,
        ..away
    };
    assert_eq!(
        plan(&away),
        Action::Migrate {
            to: elsewhere.clone()
        }
    );
}

#[test]
fn an_exit_is_answered_by_the_restart_policy() {
    let scene = Scene::new(&born());
    let again = Action::Start {
        after: Duration::from_millis(100),
    };
    let limited = RestartPolicy::OnFailure {
        maximum_retry_count: Some(2),
    };
    let unlimited = RestartPolicy::OnFailure {
        maximum_retry_count: None,
    };
    for (restart_policy, success, exits, expected) in [
        (RestartPolicy::Never, false, 1, Action::None),
        (RestartPolicy::Always, true, 1, again.clone()),
        (RestartPolicy::Always, false, 1, again.clone()),
        (unlimited, true, 1, Action::None),
        (unlimited, false, 1, again.clone()),
        (limited, false, 1, again),
        (
            limited,
            false,
            2,
            Action::Start {
                after: Duration::from_millis(200),
            },
        ),
        (limited, false, 3, Action::None),
    ] {
        let seen = Seen {
            instance: Some(exited(success)),
            restart_policy,
            exits,
            ..scene.seen()
        };
        assert_eq!(
            plan(&seen),
            expected,
            "{restart_policy:?} {success} {exits}"
        );
    }
}

#[test]
fn the_pause_doubles_up_to_a_minute() {
    let scene = Scene::new(&born());
    let after = |exits| {
        let restart_policy = RestartPolicy::Always;
        match plan(&Seen {
            instance: Some(exited(false)),
            restart_policy,
            exits,
            ..scene.seen()
        }) {
            Action::Start { after } => after,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(after(4), Duration::from_millis(800));
    assert_eq!(after(11), Duration::from_mins(1));
    assert_eq!(after(u32::MAX), Duration::from_mins(1));
}

#[test]
fn after_a_reboot_everything_that_should_run_is_started() {
    let scene = Scene::new(&born());
    let seen = Seen {
        instance: Some(exited(false)),
        host_restarted: true,
        ..scene.seen()
    };
    assert_eq!(
        plan(&seen),
        Action::Start {
            after: Duration::ZERO
        }
    );
}

#[test]
fn what_was_not_cleared_is_neither_started_nor_moved_and_may_be_stopped() {
    let scene = Scene::new(&born());
    let elsewhere = host("h2");
    let unclear = Seen {
        cleared: false,
        host_restarted: true,
        ..scene.seen()
    };
    let starts = [
        Seen {
            instance: None,
            ..unclear
        },
        Seen {
            instance: Some(exited(false)),
            ..unclear
        },
        Seen {
            desired_hash: Some("another"),
            ..unclear
        },
        Seen {
            desired_host: Some(&elsewhere),
            instance: None,
            ..unclear
        },
    ];
    for seen in starts {
        assert_eq!(plan(&seen), Action::None, "{seen:?}");
        let cleared = Seen {
            cleared: true,
            ..seen
        };
        assert_ne!(plan(&cleared), Action::None, "{cleared:?}");
    }
    let unplaced = Seen {
        desired_host: None,
        ..unclear
    };
    assert_eq!(plan(&unplaced), Action::Stop);
}

#[test]
fn what_was_left_undecided_does_not_run() {
    let left = Record::Held {
        application: application(),
        epoch: Epoch(3),
        role: crate::registry::Role::Left {
            owner: host("h1"),
            why: "because".to_owned(),
        },
        volumes: Vec::new(),
        unmade: Vec::new(),
    };
    let scene = Scene::new(&[left]);
    assert_eq!(plan(&scene.seen()), Action::Evict);
    let nothing = Seen {
        instance: None,
        birth: Some(DeploymentGeneration(1)),
        ..scene.seen()
    };
    assert_eq!(plan(&nothing), Action::None, "nor is it born anew");
}
