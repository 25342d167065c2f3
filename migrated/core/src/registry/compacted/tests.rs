//! A compacted journal says the same, whatever the journal said.

use proptest::prelude::*;
use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{AppName, Attempt, Epoch};

use super::Registry;
use crate::UnixMillis;
use crate::fixtures::{
    NOW, application, born, destination, finals, host, id, plan, report, reservation, reserved,
    round, source, verified, volume,
};
use crate::record::{DestinationRecord, Plan, Record, Reservation, SourceRecord};
use crate::registry::Role;

/// Few names and numbers, so that records meet.
fn an_application() -> impl Strategy<Value = AppName> {
    prop_oneof![Just(application()), Just(AppName::try_new("web").unwrap())]
}

fn a_role() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Owner),
        Just(Role::Gone { to: host("h2") }),
        Just(Role::Gone { to: host("h3") }),
    ]
}

fn a_source_step() -> impl Strategy<Value = SourceRecord> {
    let why = "[ab]".prop_map(|reason: String| reason);
    let planned = (an_application(), 1..4_u64, any::<bool>()).prop_map(|(name, epoch, volumes)| {
        SourceRecord::Planned(Plan {
            application: name,
            epoch: Epoch(epoch),
            volumes: if volumes {
                vec![volume("data")]
            } else {
                Vec::new()
            },
            ..plan()
        })
    });
    let attempt = || (1..3_u64).prop_map(Attempt);
    prop_oneof![
        3 => planned,
        2 => Just(SourceRecord::Round(round())),
        3 => (attempt(), 0..3_u64).prop_map(|(attempt, late)| SourceRecord::CutOver {
            attempt,
            deadline: UnixMillis(NOW.0 + late),
        }),
        1 => why.clone().prop_map(|reason| SourceRecord::Aborted { reason }),
        3 => attempt().prop_map(|attempt| SourceRecord::Released { attempt }),
        2 => Just(SourceRecord::Adopted),
        2 => Just(SourceRecord::Served),
        1 => why.prop_map(|reason| SourceRecord::Reclaimed { reason }),
        1 => (0..6_u8).prop_map(|number| SourceRecord::Closed {
            report: report(id(number), MigrationState::Done),
        }),
    ]
}

fn a_destination_step() -> impl Strategy<Value = DestinationRecord> {
    let reserved = (an_application(), 1..4_u64).prop_map(|(name, epoch)| {
        DestinationRecord::Reserved(Box::new(Reservation {
            application: name,
            epoch: Epoch(epoch),
            ..reservation()
        }))
    });
    prop_oneof![
        3 => reserved,
        3 => ((1..3_u64), any::<bool>()).prop_map(|(attempt, some)| DestinationRecord::Verified {
            attempt: Attempt(attempt),
            finals: if some { finals() } else { Vec::new() },
        }),
        3 => Just(DestinationRecord::Adopted),
        1 => Just(DestinationRecord::Entrusted),
        2 => Just(DestinationRecord::Serving),
        1 => "[ab]".prop_map(|reason| DestinationRecord::Returned { reason }),
        1 => Just(DestinationRecord::Dropped),
        1 => Just(DestinationRecord::Closed),
    ]
}

/// Any record, whether it fits what was before or not.
fn a_record() -> impl Strategy<Value = Record> {
    let volumes = || proptest::sample::subsequence(vec![volume("data"), volume("logs")], 0..=2);
    prop_oneof![
        2 => (an_application(), volumes())
            .prop_map(|(application, volumes)| Record::Born { application, volumes }),
        1 => (an_application(), volumes())
            .prop_map(|(application, volumes)| Record::VolumesAdded { application, volumes }),
        1 => an_application().prop_map(|application| Record::VolumesMade { application }),
        8 => (1..4_u8, a_source_step()).prop_map(|(number, step)| source(number, step)),
        8 => (1..4_u8, a_destination_step()).prop_map(|(number, step)| destination(number, step)),
        1 => (an_application(), 1..6_u64, a_role(), volumes(), volumes()).prop_map(
            |(application, epoch, role, volumes, unmade)| Record::Held {
                application,
                epoch: Epoch(epoch),
                role,
                volumes,
                unmade,
            }
        ),
        1 => (0..6_u8).prop_map(|number| Record::Past {
            report: report(id(number), MigrationState::Aborted),
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_compacted_journal_comes_to_the_same_registry(
        records in proptest::collection::vec(a_record(), 0..60)
    ) {
        let registry = Registry::replay(&records);
        let compacted = registry.compacted();
        let again = Registry::replay(&compacted);
        prop_assert_eq!(&again, &registry);
        prop_assert_eq!(again.compacted(), compacted);
    }

    #[test]
    fn a_compacted_journal_replayed_twice_is_replayed_once(
        records in proptest::collection::vec(a_record(), 0..60)
    ) {
        let compacted = Registry::replay(&records).compacted();
        for end in 0..=compacted.len() {
            let prefix = &compacted[..end];
            let once = Registry::replay(prefix);
            prop_assert_eq!(Registry::replay(prefix.iter().chain(prefix)), once, "{} records", end);
        }
    }
}

#[test]
fn what_is_over_leaves_its_report_and_nothing_else() {
    let mut records = born();
    for number in 1..=50 {
        let done = report(id(number), MigrationState::Aborted);
        records.push(source(number, SourceRecord::Planned(plan())));
        records.extend((0..8).map(|_| source(number, SourceRecord::Round(round()))));
        let reason = "because".to_owned();
        records.push(source(number, SourceRecord::Aborted { reason }));
        records.push(source(number, SourceRecord::Closed { report: done }));
    }
    let compacted = Registry::replay(&records).compacted();
    assert_eq!(compacted.len(), 51, "50 reports and how it stands");
}

#[test]
fn a_window_lasts_from_the_cut_over_until_it_serves() {
    let cut_over = SourceRecord::CutOver {
        attempt: Attempt(1),
        deadline: NOW,
    };
    let released = SourceRecord::Released {
        attempt: Attempt(1),
    };
    let giving = [
        (SourceRecord::Planned(plan()), false),
        (SourceRecord::Round(round()), false),
        (cut_over, true),
        (released, true),
        (SourceRecord::Adopted, true),
        (SourceRecord::Served, false),
    ];
    let mut registry = Registry::replay(&born());
    for (step, expected) in giving {
        registry.apply(&source(1, step.clone()));
        assert_eq!(registry.is_in_window(), expected, "{step:?}");
    }
    let taking = [
        (reserved(2), false),
        (verified(2), true),
        (destination(2, DestinationRecord::Adopted), true),
        (destination(2, DestinationRecord::Serving), false),
    ];
    let mut registry = Registry::default();
    for (record, expected) in taking {
        registry.apply(&record);
        assert_eq!(registry.is_in_window(), expected, "{record:?}");
    }
}
