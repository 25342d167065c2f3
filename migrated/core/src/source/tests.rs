use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{Attempt, Epoch};

use super::{
    AfterRelease, AfterRound, BeforeRelease, CutOverStep, Effect, Ending, Event, FIRST, Illegal,
    Phase, ROUND_TRIES, SourceMigration, Step,
};
use crate::UnixMillis;
use crate::fixtures::{NOW, id, plan, report, round};
use crate::record::{Plan, SourceRecord};

fn begun() -> SourceMigration {
    SourceMigration::begin(id(1), plan())
}

fn closed() -> Event {
    Event::Closed {
        report: report(id(1), MigrationState::Done),
    }
}

fn drained(rounds: usize) -> Event {
    Event::Drained {
        rounds: vec![round(); rounds],
    }
}

fn why() -> String {
    "because".to_owned()
}

/// Takes steps, and checks that the records lead a restarted daemon to the same phase.
fn run(mut migration: SourceMigration, events: &[Event]) -> SourceMigration {
    for event in events {
        let Step { records, next } = migration.step(NOW, event.clone()).unwrap();
        if !records.is_empty() {
            let replayed = records
                .iter()
                .fold(migration.clone(), |at, record| at.replay(record));
            assert_eq!(replayed, next, "after {event:?}");
        }
        migration = next;
    }
    migration
}

fn to_cut_over() -> Vec<Event> {
    vec![
        Event::Ready,
        Event::RoundSent {
            round: round(),
            next: AfterRound::Again,
        },
        Event::RoundSent {
            round: round(),
            next: AfterRound::CutOver,
        },
    ]
}

fn to_final() -> Vec<Event> {
    [
        to_cut_over(),
        vec![Event::Parked, drained(0), Event::Stopped],
    ]
    .concat()
}

fn to_release() -> Vec<Event> {
    [to_final(), vec![Event::Verified]].concat()
}

/// One migration in every phase there is.
fn every_phase() -> Vec<SourceMigration> {
    let at = |events: &[Event]| run(begun(), events);
    let cut_over = to_cut_over();
    let released = to_release();
    let stateless = SourceMigration::begin(
        id(1),
        Plan {
            volumes: Vec::new(),
            ..plan()
        },
    );
    vec![
        begun(),
        at(&[Event::Ready]),
        run(stateless, &[Event::Ready]),
        at(&cut_over),
        at(&[&cut_over[..], &[Event::Parked]].concat()),
        at(&[&cut_over[..], &[Event::Parked, drained(0)]].concat()),
        at(&to_final()),
        at(&[Event::Failed { reason: why() }]),
        at(&released),
        at(&[&released[..], &[Event::Adopted]].concat()),
        at(&[&released[..], &[Event::Served]].concat()),
        at(&[&released[..], &[Event::Returned { reason: why() }]].concat()),
        at(&[&released[..], &[Event::Served, closed()]].concat()),
    ]
}

fn every_event() -> Vec<Event> {
    vec![
        Event::Ready,
        Event::Refused { reason: why() },
        Event::RoundSent {
            round: round(),
            next: AfterRound::Again,
        },
        Event::RoundSent {
            round: round(),
            next: AfterRound::CutOver,
        },
        Event::RoundSent {
            round: round(),
            next: AfterRound::Abort { reason: why() },
        },
        Event::RoundFailed {
            reason: why(),
            again: true,
        },
        Event::RoundFailed {
            reason: why(),
            again: false,
        },
        Event::StartedThere,
        Event::Parked,
        drained(0),
        drained(2),
        Event::Stopped,
        Event::Verified,
        Event::Failed { reason: why() },
        Event::AbortRequested { reason: why() },
        Event::Adopted,
        Event::Served,
        Event::Returned { reason: why() },
        closed(),
    ]
}

#[test]
fn a_move_with_volumes_goes_through_all_effects_in_order() {
    let mut migration = begun();
    let mut effects = vec![migration.effect().unwrap()];
    for event in [to_release(), vec![Event::Adopted, Event::Served]].concat() {
        migration = run(migration, &[event]);
        effects.push(migration.effect().unwrap());
    }
    let attempt = FIRST;
    assert_eq!(
        effects,
        [
            Effect::Prepare,
            Effect::SendRound {
                round: 1,
                failures: 0
            },
            Effect::SendRound {
                round: 2,
                failures: 0
            },
            Effect::Park,
            Effect::Drain,
            Effect::Stop,
            Effect::SendFinal { attempt },
            Effect::Grant {
                attempt,
                epoch: Epoch(2)
            },
            Effect::AwaitOutcome { attempt },
            Effect::Finish { attempt },
        ]
    );
    let over = run(migration, &[closed()]);
    assert_eq!(
        (over.phase.clone(), over.effect()),
        (Phase::Ended(Ending::Done), None)
    );
}

#[test]
fn a_move_without_volumes_starts_there_first_and_grants_the_try_that_it_started() {
    let stateless = SourceMigration::begin(
        id(1),
        Plan {
            volumes: Vec::new(),
            ..plan()
        },
    );
    let starting = run(stateless, &[Event::Ready]);
    let Some(Effect::StartThere { attempt: started }) = starting.effect() else {
        panic!("{:?}", starting.effect())
    };
    let released = run(starting, &[Event::StartedThere]);
    assert_eq!(
        released.effect(),
        Some(Effect::Grant {
            attempt: started,
            epoch: Epoch(2)
        })
    );
}

#[test]
fn every_state_before_the_release_can_be_called_off_and_none_after_it() {
    for migration in every_phase() {
        let asked = migration.step(NOW, Event::AbortRequested { reason: why() });
        match &migration.phase {
            Phase::Before(BeforeRelease::Aborting { .. }) => {
                assert_eq!(asked, Err(Illegal::OnItsWayBack));
            }
            Phase::Before(_) => {
                let step = asked.unwrap();
                assert_eq!(step.records, [SourceRecord::Aborted { reason: why() }]);
                assert_eq!(step.next.effect(), Some(Effect::Restore { reason: why() }));
            }
            Phase::After(_) => assert_eq!(asked, Err(Illegal::TooLate)),
            Phase::Ended(_) => assert_eq!(asked, Err(Illegal::Over)),
        }
    }
}

#[test]
fn no_event_and_no_record_leads_back_over_the_release() {
    let records: Vec<SourceRecord> = every_phase()
        .iter()
        .flat_map(|migration| {
            every_event()
                .into_iter()
                .filter_map(|event| migration.step(NOW, event).ok())
        })
        .flat_map(|step| step.records)
        .collect();
    for migration in every_phase() {
        if matches!(migration.phase, Phase::Before(_)) {
            continue;
        }
        for event in every_event() {
            if let Ok(step) = migration.step(NOW, event) {
                assert!(
                    !matches!(step.next.phase, Phase::Before(_)),
                    "{:?}",
                    migration.phase
                );
            }
        }
        for record in &records {
            let replayed = migration.replay(record);
            assert!(!matches!(replayed.phase, Phase::Before(_)), "{record:?}");
        }
    }
}

#[test]
fn what_a_step_makes_its_records_make_again() {
    for migration in every_phase() {
        for event in every_event() {
            let Ok(step) = migration.step(NOW, event.clone()) else {
                continue;
            };
            if step.records.is_empty() {
                continue;
            }
            let replayed = step
                .records
                .iter()
                .fold(migration.clone(), |at, r| at.replay(r));
            assert_eq!(replayed, step.next, "{:?} on {event:?}", migration.phase);
        }
    }
}

#[test]
fn an_event_that_answers_another_effect_changes_nothing() {
    let legal = every_phase()
        .iter()
        .map(|migration| {
            every_event()
                .into_iter()
                .filter(|e| migration.step(NOW, e.clone()).is_ok())
                .count()
        })
        .collect::<Vec<_>>();
    // Ready, refused, failed, abort | three rounds sent, two failed, failed, abort | started,
    // failed, abort | one answer, failed, abort in each step of the window, and a second one to
    // draining | closed | the outcomes | closed | closed | nothing.
    assert_eq!(legal, [4, 7, 3, 3, 4, 3, 3, 1, 3, 2, 1, 1, 0]);
    let granting = run(begun(), &to_release());
    assert_eq!(
        granting.step(NOW, Event::Verified),
        Err(Illegal::NotAnAnswer {
            event: "verified",
            phase: "adopt"
        })
    );
}

#[test]
fn nothing_is_released_after_the_deadline() {
    let at_final = run(begun(), &to_final());
    let deadline = at_final.deadline().unwrap();
    let limits = plan().limits;
    assert_eq!(NOW.until(deadline), limits.drain + limits.hard_cap);
    let in_time = at_final.step(deadline, Event::Verified).unwrap();
    assert_eq!(in_time.records, [SourceRecord::Released { attempt: FIRST }]);
    let late = at_final
        .step(UnixMillis(deadline.0 + 1), Event::Verified)
        .unwrap();
    assert!(matches!(late.records[..], [SourceRecord::Aborted { .. }]));
}

#[test]
fn each_step_of_the_window_looks_at_the_deadline() {
    for (events, event) in [
        (to_cut_over(), Event::Parked),
        ([to_cut_over(), vec![Event::Parked]].concat(), drained(1)),
        (
            [to_cut_over(), vec![Event::Parked, drained(0)]].concat(),
            Event::Stopped,
        ),
    ] {
        let migration = run(begun(), &events);
        let late = UnixMillis(migration.deadline().unwrap().0 + 1);
        let step = migration.step(late, event).unwrap();
        assert!(matches!(
            step.next.phase,
            Phase::Before(BeforeRelease::Aborting { .. })
        ));
    }
}

#[test]
fn the_rounds_of_a_drain_are_written_down_with_its_end() {
    let draining = run(begun(), &[to_cut_over(), vec![Event::Parked]].concat());
    let step = draining.step(NOW, drained(2)).unwrap();
    let written = || SourceRecord::Round(round());
    assert_eq!(step.records, [written(), written()]);
    assert_eq!(step.next.rounds.len(), draining.rounds.len() + 2);
    assert_eq!(step.next.effect(), Some(Effect::Stop));
    let restarted = step
        .records
        .iter()
        .fold(run(begun(), &to_cut_over()), |migration, record| {
            migration.replay(record)
        });
    assert_eq!(restarted.rounds, step.next.rounds);
    assert!(matches!(
        restarted.resumed(),
        Some(Event::AbortRequested { .. })
    ));
}

#[test]
fn rounds_that_arrived_before_a_drain_passed_the_deadline_are_not_forgotten() {
    let draining = run(begun(), &[to_cut_over(), vec![Event::Parked]].concat());
    let late = UnixMillis(draining.deadline().unwrap().0 + 1);
    let step = draining.step(late, drained(1)).unwrap();
    assert!(matches!(
        step.records[..],
        [SourceRecord::Round(_), SourceRecord::Aborted { .. }]
    ));
    assert_eq!(step.next.rounds.len(), draining.rounds.len() + 1);
}

#[test]
fn a_round_is_tried_again_but_not_for_ever() {
    let mut migration = run(begun(), &[Event::Ready]);
    for failures in 1..ROUND_TRIES {
        migration = run(
            migration,
            &[Event::RoundFailed {
                reason: why(),
                again: true,
            }],
        );
        assert_eq!(
            migration.effect(),
            Some(Effect::SendRound { round: 1, failures })
        );
    }
    let given_up = run(
        migration,
        &[Event::RoundFailed {
            reason: why(),
            again: true,
        }],
    );
    assert_eq!(given_up.effect(), Some(Effect::Restore { reason: why() }));
}

#[test]
fn a_round_that_arrives_forgets_the_failures_before_it() {
    let failed = run(
        begun(),
        &[
            Event::Ready,
            Event::RoundFailed {
                reason: why(),
                again: true,
            },
        ],
    );
    let sent = Event::RoundSent {
        round: round(),
        next: AfterRound::Again,
    };
    assert_eq!(
        run(failed, &[sent]).effect(),
        Some(Effect::SendRound {
            round: 2,
            failures: 0
        })
    );
}

#[test]
fn a_round_that_cannot_help_calls_it_off() {
    let migration = run(begun(), &[Event::Ready]);
    let hopeless = run(
        migration,
        &[Event::RoundFailed {
            reason: why(),
            again: false,
        }],
    );
    assert_eq!(hopeless.effect(), Some(Effect::Restore { reason: why() }));
}

#[test]
fn a_return_is_reclaimed_at_the_epoch_after_the_next() {
    for known in [vec![], vec![Event::Adopted]] {
        let events = [to_release(), known, vec![Event::Returned { reason: why() }]].concat();
        let migration = run(begun(), &events);
        let reclaim = Effect::Reclaim {
            attempt: FIRST,
            epoch: Epoch(3),
            reason: why(),
        };
        assert_eq!(migration.effect(), Some(reclaim));
        assert_eq!(
            run(migration, &[closed()]).phase,
            Phase::Ended(Ending::Returned)
        );
    }
}

#[test]
fn an_outcome_that_comes_before_the_adoption_is_taken() {
    let served = run(begun(), &[to_release(), vec![Event::Served]].concat());
    assert_eq!(served.effect(), Some(Effect::Finish { attempt: FIRST }));
}

#[test]
fn a_restart_calls_off_only_a_cut_over() {
    for migration in every_phase() {
        let expected = matches!(
            &migration.phase,
            Phase::Before(BeforeRelease::CutOver { .. })
        );
        assert_eq!(
            migration.resumed().is_some(),
            expected,
            "{:?}",
            migration.phase
        );
        if let Some(event) = migration.resumed() {
            let step = migration.step(NOW, event).unwrap();
            assert!(matches!(step.next.effect(), Some(Effect::Restore { .. })));
        }
    }
}

#[test]
fn the_attempt_is_known_from_the_cut_over_on() {
    let attempts: Vec<Attempt> = every_phase().iter().map(SourceMigration::attempt).collect();
    let (no, yes) = (Attempt(0), FIRST);
    assert_eq!(
        attempts,
        [no, no, no, yes, yes, yes, yes, no, yes, yes, yes, yes, no]
    );
    let step = CutOverStep::Parking;
    assert!(matches!(
        run(begun(), &to_cut_over()).phase,
        Phase::Before(BeforeRelease::CutOver { step: at, .. }) if at == step
    ));
    assert!(matches!(
        run(begun(), &to_release()).phase,
        Phase::After(AfterRelease::Granting { .. })
    ));
}
