use rehome_shared::ids::{Attempt, Epoch};

use super::*;
use crate::fixtures::{
    application, born, destination, host, id, plan, report, reserved, source, verified, volume,
};
use crate::record::{DestinationRecord, Record, SourceRecord};
use crate::registry::Role;

fn final_of(number: u8) -> String {
    format!("mig-{}-final-1", id(number))
}

fn round_of(number: u8) -> String {
    format!("mig-{}-1", id(number))
}

fn pool(live: bool, snapshots: &[String]) -> VolumeSeen {
    VolumeSeen {
        dataset: volume("data").dataset,
        owner: Some(host("h1")),
        migration: None,
        live,
        snapshots: snapshots.to_vec(),
    }
}

/// What `here` finds with these records in its journal.
fn found(here: &str, records: &[Record], volume: &VolumeSeen, elsewhere: &Elsewhere) -> Findings {
    let here = host(here);
    find(&Seen {
        here: &here,
        registry: &Registry::replay(records),
        elsewhere,
        volumes: std::slice::from_ref(volume),
        partials: &[],
        instances: &[],
    })
}

fn names(findings: &Findings) -> Vec<String> {
    let name = |(garbage, _): &(Garbage, String)| match garbage {
        Garbage::Snapshot { name, .. } | Garbage::Partial { name, .. } => Some(name.clone()),
        Garbage::Volume { .. } | Garbage::Instance { .. } => None,
    };
    findings.garbage.iter().filter_map(name).collect()
}

fn closed(number: u8, state: MigrationState) -> Vec<Record> {
    vec![
        source(number, SourceRecord::Planned(plan())),
        source(
            number,
            SourceRecord::Closed {
                report: report(id(number), state),
            },
        ),
    ]
}

/// The journal of a host that owns the application and called migration 2 off.
fn called_off() -> Vec<Record> {
    let aborted = SourceRecord::Aborted {
        reason: String::new(),
    };
    let mut records = born();
    let mut migration = closed(2, MigrationState::Aborted);
    migration.insert(1, source(2, aborted));
    records.extend(migration);
    records
}

fn silent() -> Elsewhere {
    Elsewhere {
        silent: BTreeSet::from([host("h3")]),
        ..Elsewhere::default()
    }
}

#[test]
fn the_newest_common_base_stays_and_what_is_older_goes() {
    let volume = pool(true, &[final_of(1), final_of(2), final_of(3)]);
    let findings = found("h1", &called_off(), &volume, &Elsewhere::default());
    assert_eq!(names(&findings), [final_of(1), final_of(2)]);
}

#[test]
fn what_was_called_off_is_no_base_however_new_it_is() {
    let volume = pool(true, &[final_of(1), round_of(2), final_of(2)]);
    let findings = found("h1", &called_off(), &volume, &Elsewhere::default());
    assert_eq!(names(&findings), [round_of(2), final_of(2)]);
}

#[test]
fn nothing_of_a_volume_goes_while_it_moves() {
    let volume = pool(true, &[final_of(1), round_of(2), round_of(3)]);
    let mut giving = born();
    giving.push(source(3, SourceRecord::Planned(plan())));
    assert_eq!(
        found("h1", &giving, &volume, &Elsewhere::default()),
        Findings::default()
    );
    let taking = [reserved(3), verified(3)];
    assert_eq!(
        found(
            "h2",
            &taking,
            &pool(false, &[round_of(3)]),
            &Elsewhere::default()
        ),
        Findings::default()
    );
}

#[test]
fn snapshots_of_other_makers_and_live_trees_are_never_garbage() {
    let volume = pool(true, &["daily-1".to_owned(), "mig-of-mine".to_owned()]);
    assert_eq!(
        found("h2", &[], &volume, &Elsewhere::default()),
        Findings::default()
    );
}

#[test]
fn a_volume_that_was_given_away_keeps_its_base() {
    let mut records = born();
    records.extend([
        source(1, SourceRecord::Planned(plan())),
        source(
            1,
            SourceRecord::CutOver {
                attempt: Attempt(1),
                deadline: crate::fixtures::NOW,
            },
        ),
        source(
            1,
            SourceRecord::Released {
                attempt: Attempt(1),
            },
        ),
        source(1, SourceRecord::Served),
        source(
            1,
            SourceRecord::Closed {
                report: report(id(1), MigrationState::Done),
            },
        ),
    ]);
    let volume = pool(false, &[round_of(1), final_of(1)]);
    let findings = found("h1", &records, &volume, &Elsewhere::default());
    assert_eq!(names(&findings), [round_of(1)]);
}

#[test]
fn a_received_volume_that_nobody_knows_goes_whole() {
    let volume = pool(false, &[round_of(1), final_of(1)]);
    let findings = found("h2", &[], &volume, &Elsewhere::default());
    let whole = Garbage::Volume {
        dataset: volume.dataset.clone(),
    };
    assert_eq!(findings.garbage.len(), 1, "{findings:?}");
    assert_eq!(findings.garbage[0].0, whole);
}

#[test]
fn a_volume_that_is_stamped_as_this_hosts_own_or_not_at_all_is_for_people() {
    let own = pool(false, &[final_of(1)]);
    let bare = VolumeSeen {
        owner: None,
        ..own.clone()
    };
    for (here, volume) in [("h1", own), ("h2", bare)] {
        let findings = found(here, &[], &volume, &Elsewhere::default());
        assert_eq!(findings, Findings::default(), "{here}");
    }
}

#[test]
fn what_the_source_calls_open_stays_where_this_host_has_forgotten_it() {
    let stamped = VolumeSeen {
        migration: Some(id(1)),
        ..pool(false, &[final_of(1)])
    };
    for state in [MigrationState::Running, MigrationState::Blocked] {
        let elsewhere = Elsewhere {
            migrations: BTreeMap::from([(id(1), state)]),
            ..Elsewhere::default()
        };
        assert_eq!(found("h2", &[], &stamped, &elsewhere), Findings::default());
    }
    let over = Elsewhere {
        migrations: BTreeMap::from([(id(1), MigrationState::Aborted)]),
        ..silent()
    };
    assert_eq!(found("h2", &[], &stamped, &over).garbage.len(), 1);
}

#[test]
fn while_a_host_is_silent_what_nobody_else_knows_is_only_a_doubt() {
    let received = found("h2", &[], &pool(false, &[final_of(1)]), &silent());
    assert!(received.garbage.is_empty(), "{received:?}");
    assert_eq!(received.doubts.len(), 1);
    assert!(received.doubts[0].contains("h3, which cannot be asked"));
    let owned = found(
        "h1",
        &born(),
        &pool(true, &[round_of(1), final_of(2)]),
        &silent(),
    );
    assert!(owned.garbage.is_empty(), "{owned:?}");
    assert_eq!(owned.doubts.len(), 1);
}

#[test]
fn halves_that_nobody_feeds_and_instances_that_nobody_expects_go() {
    let here = host("h2");
    let partials = [(volume("data").dataset, round_of(1))];
    let instances = [application()];
    let look = |records: &[Record]| {
        let seen = find(&Seen {
            here: &here,
            registry: &Registry::replay(records),
            elsewhere: &Elsewhere::default(),
            volumes: &[],
            partials: &partials,
            instances: &instances,
        });
        seen.garbage.len()
    };
    assert_eq!(look(&[]), 2);
    assert_eq!(look(&[reserved(1)]), 0);
    let dropped = destination(1, DestinationRecord::Dropped);
    let over = destination(1, DestinationRecord::Closed);
    assert_eq!(look(&[reserved(1), dropped, over]), 2);
    assert_eq!(look(&born()), 1, "its own instance is none, the half is");
}

/// Volumes `data` and `log` of the application, and what is garbage of each.
fn of_two(snapshots: [&[String]; 2], role: Option<Role>) -> [Vec<String>; 2] {
    let volumes = [volume("data"), volume("log")];
    let held = Record::Held {
        application: application(),
        epoch: Epoch(1),
        role: role.unwrap_or(Role::Owner),
        volumes: volumes.to_vec(),
        unmade: Vec::new(),
    };
    let seen: Vec<VolumeSeen> = volumes
        .iter()
        .zip(snapshots)
        .map(|(volume, snapshots)| VolumeSeen {
            dataset: volume.dataset.clone(),
            ..pool(true, snapshots)
        })
        .collect();
    let findings = find(&Seen {
        here: &host("h1"),
        registry: &Registry::replay([&held]),
        elsewhere: &Elsewhere::default(),
        volumes: &seen,
        partials: &[],
        instances: &[],
    });
    volumes.each_ref().map(|volume| {
        let of = findings.garbage.iter().filter_map(|(what, _)| match what {
            Garbage::Snapshot { dataset, name } => {
                (*dataset == volume.dataset).then(|| name.clone())
            }
            _ => None,
        });
        of.collect::<Vec<_>>()
    })
}

#[test]
fn the_newest_that_all_volumes_have_stays_too() {
    let both = [final_of(1), final_of(2), final_of(3)];
    let garbage = of_two([&both, &both[..2]], None);
    assert_eq!(
        garbage,
        [vec![final_of(1)], vec![final_of(1)]],
        "the third came of one volume only: nobody can go on from it"
    );
    let garbage = of_two([&both, &both], None);
    assert_eq!(garbage, [both[..2].to_vec(), both[..2].to_vec()]);
}

#[test]
fn of_what_was_left_undecided_everything_stays() {
    let left = Role::Left {
        owner: host("h1"),
        why: String::new(),
    };
    let both = [final_of(1), final_of(2)];
    let garbage = of_two([&both, &both], Some(left));
    assert!(garbage.iter().all(Vec::is_empty), "{garbage:?}");
}
