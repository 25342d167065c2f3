use rehome_shared::api::peer::{FinalSnapshot, HandoffState};
use rehome_shared::ids::{Attempt, Epoch};

use super::{DestinationHandoff, Event, Phase, Stale};
use crate::fixtures::{finals, id, reservation};
use crate::record::DestinationRecord;

fn reserved() -> DestinationHandoff {
    DestinationHandoff::begin(id(1), reservation())
}

fn verify() -> Event {
    Event::Verified {
        attempt: Attempt(1),
        epoch: Epoch(1),
        finals: finals(),
    }
}

fn grant() -> Event {
    Event::Granted {
        attempt: Attempt(1),
        epoch: Epoch(2),
    }
}

fn entrust(attempt: u64, epoch: u64) -> Event {
    Event::Entrusted {
        attempt: Attempt(attempt),
        epoch: Epoch(epoch),
    }
}

fn fail() -> Event {
    Event::Failed {
        reason: "because".to_owned(),
    }
}

/// Takes steps; each leaves a record.
fn run(handoff: DestinationHandoff, events: &[Event]) -> DestinationHandoff {
    events.iter().fold(handoff, |handoff, event| {
        let step = handoff.step(event.clone()).unwrap();
        assert_eq!(step.records.len(), 1, "{event:?}");
        step.next.unwrap()
    })
}

fn every_phase() -> [DestinationHandoff; 6] {
    let at = |events: &[Event]| run(reserved(), events);
    [
        reserved(),
        at(&[verify()]),
        at(&[verify(), grant()]),
        at(&[verify(), grant(), Event::Healthy]),
        at(&[verify(), grant(), fail()]),
        at(&[Event::Aborted]),
    ]
}

fn every_event() -> [Event; 9] {
    [
        verify(),
        grant(),
        Event::Healthy,
        fail(),
        Event::Aborted,
        Event::Expired,
        Event::Discarded,
        Event::Closed,
        entrust(1, 2),
    ]
}

fn every_record() -> Vec<DestinationRecord> {
    vec![
        DestinationRecord::Verified {
            attempt: Attempt(1),
            finals: finals(),
        },
        DestinationRecord::Adopted,
        DestinationRecord::Entrusted,
        DestinationRecord::Serving,
        DestinationRecord::Returned {
            reason: "because".to_owned(),
        },
        DestinationRecord::Dropped,
        DestinationRecord::Closed,
    ]
}

/// Moves, changes nothing, ends, or is stale.
fn outcome(handoff: &DestinationHandoff, event: Event) -> char {
    match handoff.step(event) {
        Err(stale) => {
            assert_eq!(
                stale,
                Stale {
                    state: handoff.state(),
                    attempt: handoff.attempt()
                }
            );
            '-'
        }
        Ok(step) if step.records.is_empty() => {
            assert_eq!(step.next.as_ref(), Some(handoff));
            '='
        }
        Ok(step) if step.next.is_none() => 'x',
        Ok(_) => '>',
    }
}

#[test]
fn each_state_takes_what_fits_and_nothing_else() {
    let table: Vec<String> = every_phase()
        .iter()
        .map(|handoff| {
            every_event()
                .into_iter()
                .map(|event| outcome(handoff, event))
                .collect()
        })
        .collect();
    // Verified, granted, healthy, failed, aborted, expired, discarded, closed, entrusted.
    let expected = [
        (HandoffState::Reserved, ">--->>---".to_owned()),
        (HandoffState::Verified, "=>-->--->".to_owned()),
        (HandoffState::Owned, "-=>>----=".to_owned()),
        (HandoffState::Serving, "-=-----x=".to_owned()),
        (HandoffState::Returned, "-=-----x=".to_owned()),
        (HandoffState::Dropped, "----=-x--".to_owned()),
    ];
    for ((handoff, row), (state, wanted)) in every_phase().iter().zip(table).zip(expected) {
        assert_eq!(handoff.state(), state);
        assert_eq!(row, wanted, "{state:?}");
    }
}

#[test]
fn what_an_operators_word_granted_is_not_given_back_to_the_fenced_source() {
    let verified = run(reserved(), &[verify()]);
    for (attempt, epoch) in [(2, 2), (1, 1), (1, 3)] {
        assert!(verified.step(entrust(attempt, epoch)).is_err());
    }
    let owned = run(verified, &[entrust(1, 2)]);
    assert_eq!(owned.state(), HandoffState::Owned);
    assert!(owned.step(fail()).is_err(), "its source would not take it");
    // Its source comes back and says what it had released before.
    assert_eq!(owned.step(grant()).unwrap().next, Some(owned.clone()));
    let serving = run(owned, &[Event::Healthy]);
    assert_eq!(serving.state(), HandoffState::Serving);
    // A grant of the source itself leaves the way back open, whatever an operator says later.
    let granted = run(reserved(), &[verify(), grant()]);
    assert_eq!(granted.step(entrust(1, 2)).unwrap().next, Some(granted));
}

#[test]
fn nobody_hears_that_it_was_given_back_before_the_volumes_say_so() {
    for handoff in every_phase() {
        assert_eq!(handoff.told(true), handoff.state());
        let unstamped = match handoff.state() {
            HandoffState::Returned => HandoffState::Owned,
            state => state,
        };
        assert_eq!(handoff.told(false), unstamped);
    }
}

#[test]
fn what_a_step_makes_its_records_make_again() {
    for handoff in every_phase() {
        for event in every_event() {
            let Ok(step) = handoff.step(event) else {
                continue;
            };
            let replayed = step
                .records
                .iter()
                .try_fold(handoff.clone(), |handoff, record| handoff.replay(record));
            assert_eq!(replayed, step.next);
        }
    }
}

#[test]
fn a_record_that_does_not_fit_changes_nothing() {
    for handoff in every_phase() {
        let fitting: Vec<DestinationRecord> = every_event()
            .into_iter()
            .filter_map(|event| handoff.step(event).ok())
            .flat_map(|step| step.records)
            .collect();
        for record in every_record() {
            let again = matches!(
                (&handoff.phase, &record),
                (Phase::Verified { .. }, DestinationRecord::Verified { .. })
            );
            if !fitting.contains(&record) && !again {
                assert_eq!(
                    handoff.replay(&record).as_ref(),
                    Some(&handoff),
                    "{record:?}"
                );
            }
        }
    }
}

#[test]
fn only_the_grant_of_the_verified_try_at_the_next_epoch_is_taken() {
    let verified = run(reserved(), &[verify()]);
    for (attempt, epoch) in [(0, 2), (2, 2), (1, 1), (1, 3)] {
        let event = Event::Granted {
            attempt: Attempt(attempt),
            epoch: Epoch(epoch),
        };
        assert!(
            verified.step(event).is_err(),
            "attempt {attempt} epoch {epoch}"
        );
    }
    let owned = run(verified, &[grant()]);
    assert_eq!(owned.epoch_here(), Epoch(2));
    assert!(
        owned
            .step(Event::Granted {
                attempt: Attempt(2),
                epoch: Epoch(2)
            })
            .is_err()
    );
}

#[test]
fn final_snapshots_of_one_try_never_change() {
    let verified = run(reserved(), &[verify()]);
    let others = vec![FinalSnapshot {
        guid: "18".to_owned(),
        ..finals().remove(0)
    }];
    let changed = Event::Verified {
        attempt: Attempt(1),
        epoch: Epoch(1),
        finals: others.clone(),
    };
    assert!(verified.step(changed).is_err());
    let newer = Event::Verified {
        attempt: Attempt(2),
        epoch: Epoch(1),
        finals: others,
    };
    let newer = run(verified, &[newer]);
    assert_eq!(newer.attempt(), Attempt(2));
    assert!(
        newer.step(verify()).is_err(),
        "the older try does not come back"
    );
    assert!(newer.step(grant()).is_err(), "nor does its grant");
}

#[test]
fn final_snapshots_of_another_epoch_are_stale() {
    let event = Event::Verified {
        attempt: Attempt(1),
        epoch: Epoch(2),
        finals: finals(),
    };
    assert!(reserved().step(event).is_err());
}

#[test]
fn a_promise_does_not_expire_and_is_kept_until_the_source_speaks() {
    let verified = run(reserved(), &[verify()]);
    for event in [
        Event::Expired,
        Event::Closed,
        Event::Discarded,
        Event::Healthy,
        fail(),
    ] {
        assert!(verified.step(event).is_err());
    }
    assert_eq!(
        run(reserved(), &[Event::Expired]).state(),
        HandoffState::Dropped
    );
}

#[test]
fn nothing_is_returned_once_clients_were_served() {
    let serving = run(reserved(), &[verify(), grant(), Event::Healthy]);
    assert!(serving.step(fail()).is_err());
    assert!(serving.step(Event::Aborted).is_err());
}

#[test]
fn what_was_verified_is_what_is_owned() {
    let owned = run(reserved(), &[verify(), grant()]);
    assert_eq!(
        owned.phase,
        Phase::Owned {
            attempt: Attempt(1),
            finals: finals()
        }
    );
}

#[test]
fn without_volumes_the_promise_has_no_snapshots() {
    let event = Event::Verified {
        attempt: Attempt(1),
        epoch: Epoch(1),
        finals: Vec::new(),
    };
    let owned = run(reserved(), &[event, grant()]);
    assert_eq!(
        owned.phase,
        Phase::Owned {
            attempt: Attempt(1),
            finals: Vec::new()
        }
    );
}
