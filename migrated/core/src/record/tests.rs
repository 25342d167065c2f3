//! Golden lines: what was written once is read for ever, and is written the same.

use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{Attempt, Epoch};

use super::{DestinationRecord, Record, SourceRecord};
use crate::fixtures::{
    NOW, application, destination, host, id, plan, report, reserved, round, source, verified,
    volume,
};
use crate::registry::Role;

pub(crate) fn all() -> Vec<Record> {
    let mut records = steps();
    records.extend(made_anew());
    records
}

fn steps() -> Vec<Record> {
    let why = || "because".to_owned();
    let deadline = NOW;
    vec![
        Record::Born {
            application: application(),
            volumes: vec![volume("data")],
        },
        Record::VolumesAdded {
            application: application(),
            volumes: vec![volume("log")],
        },
        Record::VolumesMade {
            application: application(),
        },
        source(1, SourceRecord::Planned(plan())),
        source(1, SourceRecord::Round(round())),
        source(
            1,
            SourceRecord::CutOver {
                attempt: Attempt(1),
                deadline,
            },
        ),
        source(1, SourceRecord::Aborted { reason: why() }),
        source(
            1,
            SourceRecord::Released {
                attempt: Attempt(1),
            },
        ),
        source(1, SourceRecord::Adopted),
        source(1, SourceRecord::Served),
        source(1, SourceRecord::Reclaimed { reason: why() }),
        source(
            1,
            SourceRecord::Closed {
                report: report(id(1), MigrationState::Done),
            },
        ),
        reserved(1),
        verified(1),
        destination(1, DestinationRecord::Adopted),
        destination(1, DestinationRecord::Serving),
        destination(1, DestinationRecord::Returned { reason: why() }),
        destination(1, DestinationRecord::Dropped),
        destination(1, DestinationRecord::Closed),
    ]
}

/// What only compaction and rebuild write.
fn made_anew() -> Vec<Record> {
    vec![
        Record::Held {
            application: application(),
            epoch: Epoch(3),
            role: Role::Owner,
            volumes: vec![volume("data"), volume("log")],
            unmade: vec![volume("log")],
        },
        Record::Held {
            application: application(),
            epoch: Epoch(4),
            role: Role::Gone { to: host("h2") },
            volumes: vec![volume("data")],
            unmade: Vec::new(),
        },
        Record::Past {
            report: report(id(1), MigrationState::Returned),
        },
        Record::Fenced {
            application: application(),
            epoch: Epoch(2),
            owner: host("h2"),
            report: Some(report(id(1), MigrationState::Aborted)),
        },
        Record::Claimed {
            application: application(),
            epoch: Epoch(2),
            volumes: vec![volume("data")],
            fenced: host("h1"),
        },
        Record::Heard {
            application: application(),
            epoch: Epoch(3),
            owner: host("h3"),
        },
        destination(1, DestinationRecord::Entrusted),
        Record::Held {
            application: application(),
            epoch: Epoch(5),
            role: Role::Left {
                owner: host("h2"),
                why: "because".to_owned(),
            },
            volumes: vec![volume("data")],
            unmade: Vec::new(),
        },
    ]
}

/// Forces whoever adds a record to add its golden line too.
fn kind(record: &Record) -> usize {
    match record {
        Record::Born { .. } => 0,
        Record::VolumesAdded { .. } => 1,
        Record::VolumesMade { .. } => 2,
        Record::Source { step, .. } => match step {
            SourceRecord::Planned(_) => 3,
            SourceRecord::Round(_) => 4,
            SourceRecord::CutOver { .. } => 5,
            SourceRecord::Aborted { .. } => 6,
            SourceRecord::Released { .. } => 7,
            SourceRecord::Adopted => 8,
            SourceRecord::Served => 9,
            SourceRecord::Reclaimed { .. } => 10,
            SourceRecord::Closed { .. } => 11,
        },
        Record::Destination { step, .. } => match step {
            DestinationRecord::Reserved(_) => 12,
            DestinationRecord::Verified { .. } => 13,
            DestinationRecord::Adopted => 14,
            DestinationRecord::Serving => 15,
            DestinationRecord::Returned { .. } => 16,
            DestinationRecord::Dropped => 17,
            DestinationRecord::Closed => 18,
            DestinationRecord::Entrusted => 25,
        },
        Record::Held { role, .. } => match role {
            Role::Owner => 19,
            Role::Gone { .. } => 20,
            Role::Left { .. } => 26,
        },
        Record::Past { .. } => 21,
        Record::Fenced { .. } => 22,
        Record::Claimed { .. } => 23,
        Record::Heard { .. } => 24,
    }
}

/// One line for each; new records are added at the end.
const GOLDEN: &str = include_str!("golden.jsonl");

#[test]
fn every_record_is_written_as_it_always_was() {
    let records = all();
    let kinds: Vec<usize> = records.iter().map(kind).collect();
    assert_eq!(kinds, (0..27).collect::<Vec<_>>(), "one of each");
    let lines: Vec<&str> = GOLDEN.lines().collect();
    assert_eq!(lines.len(), records.len());
    for (record, line) in records.iter().zip(lines) {
        assert_eq!(serde_json::to_string(record).unwrap(), line);
    }
}

#[test]
fn every_record_that_was_ever_written_is_read() {
    let read: Vec<Record> = GOLDEN
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read, all());
}
