use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{Attempt, Epoch};

use super::{HISTORY, Registry, Role};
use crate::fixtures::{
    NOW, application, born, destination, host, id, plan, report, reserved, round, source, verified,
    volume,
};
use crate::record::{DestinationRecord, Plan, Record, SourceRecord};

fn why() -> String {
    "because".to_owned()
}

/// A source's journal of one move that is done.
fn given_away() -> Vec<Record> {
    let mut records = born();
    records.extend([
        source(1, SourceRecord::Planned(plan())),
        source(1, SourceRecord::Round(round())),
        source(
            1,
            SourceRecord::CutOver {
                attempt: Attempt(1),
                deadline: NOW,
            },
        ),
        source(
            1,
            SourceRecord::Released {
                attempt: Attempt(1),
            },
        ),
        source(1, SourceRecord::Adopted),
        source(1, SourceRecord::Served),
        source(
            1,
            SourceRecord::Closed {
                report: report(id(1), MigrationState::Done),
            },
        ),
    ]);
    records
}

/// A destination's journal: it takes the application, gets a volume more, and gives it back.
fn taken_and_moved_on() -> Vec<Record> {
    let onwards = Plan {
        to: host("h1"),
        epoch: Epoch(2),
        volumes: vec![volume("data"), volume("logs")],
        ..plan()
    };
    vec![
        reserved(1),
        verified(1),
        destination(1, DestinationRecord::Adopted),
        destination(1, DestinationRecord::Serving),
        Record::VolumesAdded {
            application: application(),
            volumes: vec![volume("logs")],
        },
        Record::VolumesMade {
            application: application(),
        },
        source(2, SourceRecord::Planned(onwards)),
        source(
            2,
            SourceRecord::CutOver {
                attempt: Attempt(1),
                deadline: NOW,
            },
        ),
        source(
            2,
            SourceRecord::Released {
                attempt: Attempt(1),
            },
        ),
        destination(1, DestinationRecord::Closed),
        source(2, SourceRecord::Served),
        source(
            2,
            SourceRecord::Closed {
                report: report(id(2), MigrationState::Done),
            },
        ),
    ]
}

fn returned() -> Vec<Record> {
    vec![
        reserved(1),
        verified(1),
        destination(1, DestinationRecord::Adopted),
        destination(1, DestinationRecord::Returned { reason: why() }),
        destination(1, DestinationRecord::Closed),
    ]
}

fn reclaimed() -> Vec<Record> {
    let mut records = given_away();
    records.truncate(6);
    records.extend([
        source(1, SourceRecord::Reclaimed { reason: why() }),
        source(
            1,
            SourceRecord::Closed {
                report: report(id(1), MigrationState::Returned),
            },
        ),
    ]);
    records
}

fn aborted() -> Vec<Record> {
    let mut records = born();
    records.extend([
        source(1, SourceRecord::Planned(plan())),
        source(
            1,
            SourceRecord::CutOver {
                attempt: Attempt(1),
                deadline: NOW,
            },
        ),
        source(1, SourceRecord::Aborted { reason: why() }),
        source(
            1,
            SourceRecord::Closed {
                report: report(id(1), MigrationState::Aborted),
            },
        ),
    ]);
    records
}

fn known(registry: &Registry) -> Option<(Epoch, Role)> {
    registry
        .applications()
        .get(&application())
        .map(|known| (known.epoch, known.role.clone()))
}

/// Who owns it after each record.
fn owners(records: &[Record]) -> Vec<Option<(Epoch, Role)>> {
    (1..=records.len())
        .map(|end| known(&Registry::replay(&records[..end])))
        .collect()
}

#[test]
fn replaying_any_prefix_twice_is_replaying_it_once() {
    for records in [
        given_away(),
        taken_and_moved_on(),
        returned(),
        reclaimed(),
        aborted(),
    ] {
        for end in 0..=records.len() {
            let prefix = &records[..end];
            let once = Registry::replay(prefix);
            assert_eq!(
                Registry::replay(prefix.iter().chain(prefix)),
                once,
                "{end} records"
            );
            // A crash in the middle of the second replay does no harm either.
            for again in 0..=end {
                let restarted = prefix[..again].iter().chain(prefix);
                assert_eq!(
                    Registry::replay(restarted),
                    once,
                    "{again} of {end} records"
                );
            }
        }
    }
}

#[test]
fn records_that_fit_nothing_change_nothing() {
    let steps = [
        given_away(),
        taken_and_moved_on(),
        returned(),
        reclaimed(),
        aborted(),
    ]
    .concat();
    for record in &steps {
        let opens = matches!(
            record,
            Record::Born { .. }
                | Record::Source {
                    step: SourceRecord::Planned(_),
                    ..
                }
                | Record::Destination {
                    step: DestinationRecord::Reserved(_),
                    ..
                }
        );
        if !opens {
            assert_eq!(
                Registry::replay([record]),
                Registry::default(),
                "{record:?}"
            );
        }
    }
}

#[test]
fn the_source_owns_it_until_the_release() {
    let here = Some((Epoch(1), Role::Owner));
    let there = Some((Epoch(2), Role::Gone { to: host("h2") }));
    let expected = [vec![here; 5], vec![there; 4]].concat();
    assert_eq!(owners(&given_away()), expected);
}

#[test]
fn the_destination_owns_it_from_the_adoption_on() {
    let owners = owners(&returned());
    let back = Some((Epoch(3), Role::Gone { to: host("h1") }));
    assert_eq!(
        owners,
        [
            None,
            None,
            Some((Epoch(2), Role::Owner)),
            back.clone(),
            back
        ]
    );
}

#[test]
fn what_was_returned_is_owned_at_a_new_epoch() {
    let registry = Registry::replay(&reclaimed());
    assert_eq!(known(&registry), Some((Epoch(3), Role::Owner)));
    assert!(registry.sources().is_empty());
}

#[test]
fn what_was_called_off_was_never_given() {
    assert_eq!(
        known(&Registry::replay(&aborted())),
        Some((Epoch(1), Role::Owner))
    );
}

#[test]
fn an_abort_that_follows_a_release_is_not_believed() {
    let mut records = given_away();
    records.truncate(6);
    let released = Registry::replay(&records);
    records.push(source(1, SourceRecord::Aborted { reason: why() }));
    assert_eq!(Registry::replay(&records), released);
}

#[test]
fn a_late_close_of_an_older_handoff_touches_nothing_else() {
    let records = taken_and_moved_on();
    let before = Registry::replay(&records[..9]);
    let after = Registry::replay(&records[..10]);
    assert_eq!(before.destinations().len(), 1);
    assert!(after.destinations().is_empty());
    assert_eq!(known(&before), known(&after));
    assert_eq!(before.sources(), after.sources());
}

#[test]
fn a_handoff_is_incoming_until_it_is_settled() {
    let records = taken_and_moved_on();
    let incoming: Vec<bool> = (1..=5)
        .map(|end| {
            Registry::replay(&records[..end])
                .incoming(&application())
                .is_some()
        })
        .collect();
    assert_eq!(incoming, [true, true, true, false, false]);
}

#[test]
fn volumes_are_unmade_until_a_record_says_otherwise() {
    let unmade = |records: &[Record]| {
        let registry = Registry::replay(records);
        registry
            .owned(&application())
            .map(|owned| owned.unmade.len())
            .unwrap()
    };
    let mut records = born();
    assert_eq!((unmade(&records[..1]), unmade(&records)), (1, 0));
    let added = vec![volume("data"), volume("logs")];
    records.push(Record::VolumesAdded {
        application: application(),
        volumes: added,
    });
    assert_eq!(unmade(&records), 1, "what was there is not announced again");
    assert_eq!(
        Registry::replay(&records)
            .owned(&application())
            .unwrap()
            .volumes
            .len(),
        2
    );
}

#[test]
fn what_is_adopted_is_made() {
    let registry = Registry::replay(&taken_and_moved_on()[..3]);
    let owned = registry.owned(&application()).unwrap();
    assert_eq!(
        (owned.volumes.clone(), owned.unmade.len()),
        (vec![volume("data")], 0)
    );
}

#[test]
fn history_keeps_one_report_of_each_of_the_newest_migrations() {
    let mut registry = Registry::replay(&born());
    for number in 0..=250_u8 {
        for _ in 0..2 {
            registry.apply(&source(number, SourceRecord::Planned(plan())));
            registry.apply(&source(number, SourceRecord::Aborted { reason: why() }));
            let report = report(id(number), MigrationState::Aborted);
            registry.apply(&source(number, SourceRecord::Closed { report }));
        }
    }
    let ids: Vec<_> = registry
        .history()
        .iter()
        .map(|past| past.id.clone())
        .collect();
    assert_eq!(ids, (51..=250).map(id).collect::<Vec<_>>());
    assert_eq!(ids.len(), HISTORY);
}
