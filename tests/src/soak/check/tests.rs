//! Histories that are as they must be pass; each way to be wrong is seen, and named.

use super::*;
use crate::log::witness::Statement;
use crate::soak::history::Log;

fn record(client: u64, sequence: u64) -> Record {
    Record { client, sequence }
}

fn digest(records: &[Record]) -> Digest {
    (0..)
        .zip(records)
        .fold(Digest::default(), |digest, (index, record)| {
            digest.then(index, *record)
        })
}

/// Two clients: each appends two records, one read comes between, an instance begins before and
/// one in the middle. One record needed a second try.
fn good() -> History {
    let log = [record(1, 1), record(2, 1), record(1, 2), record(2, 2)];
    let failed = What::Failed {
        door: "h2".to_owned(),
        reason: "timed out".to_owned(),
    };
    let event = |at, client, what| Event { at, client, what };
    let began = |at, length: usize| Statement {
        at,
        host: "h1".to_owned(),
        what: Finding::Log {
            length: u64::try_from(length).unwrap(),
            digest: digest(&log[..length]),
        },
    };
    History {
        events: vec![
            event(10, 1, What::Append { sequence: 1 }),
            event(11, 2, What::Append { sequence: 1 }),
            event(20, 1, What::At { index: 0 }),
            event(25, 2, failed),
            event(30, 2, What::At { index: 1 }),
            event(40, 2, What::Read),
            event(
                50,
                2,
                What::Is {
                    length: 2,
                    digest: digest(&log[..2]),
                },
            ),
            event(60, 1, What::Append { sequence: 2 }),
            event(70, 1, What::At { index: 2 }),
            event(80, 2, What::Append { sequence: 2 }),
            event(90, 2, What::At { index: 3 }),
        ],
        statements: vec![began(5, 0), began(55, 2)],
        logs: ["h1", "h2"]
            .map(|door| Log {
                door: door.to_owned(),
                records: log.to_vec(),
            })
            .to_vec(),
    }
}

/// The good history with another log in the end.
fn ending(records: &[Record]) -> History {
    let mut history = good();
    for log in &mut history.logs {
        log.records = records.to_vec();
    }
    history
}

fn has(history: &History, seen: fn(&Violation) -> bool) {
    let found = check(history);
    assert!(found.iter().any(seen), "{found:#?}");
}

#[test]
fn a_good_history_passes() {
    assert_eq!(check(&good()), []);
}

#[test]
fn a_record_without_an_acknowledgement_may_be_there_or_not() {
    let mut history = good();
    history.events.pop();
    assert_eq!(check(&history), []);
    for log in &mut history.logs {
        log.records.pop();
    }
    assert_eq!(check(&history), []);
}

#[test]
fn a_lost_record_is_seen_at_the_end_and_in_the_middle() {
    let end = ending(&[record(1, 1), record(2, 1), record(1, 2)]);
    has(&end, |v| {
        matches!(
            v,
            Violation::Lost {
                record: Record {
                    client: 2,
                    sequence: 2
                },
                index: 3,
                ..
            }
        )
    });
    let middle = ending(&[record(1, 1), record(1, 2), record(2, 2)]);
    has(&middle, |v| {
        matches!(
            v,
            Violation::Lost {
                record: Record {
                    client: 2,
                    sequence: 1
                },
                ..
            }
        )
    });
    has(&middle, |v| matches!(v, Violation::Moved { .. }));
}

#[test]
fn an_empty_log_in_the_end_is_a_loss_of_everything() {
    let found = check(&ending(&[]));
    let lost = found.iter().filter(|v| matches!(v, Violation::Lost { .. }));
    assert_eq!(lost.count(), 4, "{found:#?}");
}

#[test]
fn a_doubled_record_is_seen() {
    let log = [
        record(1, 1),
        record(2, 1),
        record(1, 2),
        record(2, 2),
        record(1, 2),
    ];
    has(&ending(&log), |v| {
        matches!(
            v,
            Violation::Doubled {
                first: 2,
                second: 4,
                ..
            }
        )
    });
}

#[test]
fn a_reordered_record_is_seen() {
    let log = [record(1, 1), record(2, 1), record(2, 2), record(1, 2)];
    has(&ending(&log), |v| {
        matches!(
            v,
            Violation::Moved {
                index: 2,
                found: 3,
                ..
            }
        )
    });
    let log = [record(1, 2), record(2, 1), record(1, 1), record(2, 2)];
    has(&ending(&log), |v| matches!(v, Violation::Disordered { .. }));
}

#[test]
fn a_record_that_nobody_sent_is_seen() {
    let log = [
        record(1, 1),
        record(2, 1),
        record(1, 2),
        record(2, 2),
        record(9, 1),
    ];
    has(&ending(&log), |v| {
        matches!(v, Violation::Strange { index: 4, .. })
    });
}

#[test]
fn different_logs_behind_two_doors_are_seen() {
    let mut history = good();
    history.logs[1].records.pop();
    has(&history, |v| {
        matches!(v, Violation::Differs { equal: 3, .. })
    });
    history.logs.clear();
    assert_eq!(check(&history), [Violation::Unread]);
}

#[test]
fn an_answer_out_of_the_past_is_seen() {
    // A read that began after two records were acknowledged sees one: an old instance answers.
    let mut history = good();
    history.events[6].what = What::Is {
        length: 1,
        digest: digest(&[record(1, 1)]),
    };
    assert_eq!(
        check(&history),
        [Violation::Stale {
            client: 2,
            at: 50,
            got: 1,
            known: 2
        }]
    );
    // The same read is right when it was asked before the second acknowledgement.
    history.events[5].at = 29;
    history.events.swap(4, 5);
    assert_eq!(check(&history), []);
}

#[test]
fn an_append_that_lands_before_what_was_acknowledged_earlier_is_seen() {
    let mut history = good();
    history.events[8].what = What::At { index: 0 };
    has(&history, |v| {
        matches!(
            v,
            Violation::Stale {
                got: 0,
                known: 2,
                ..
            }
        )
    });
}

#[test]
fn a_read_of_another_log_is_seen() {
    let mut history = good();
    history.events[6].what = What::Is {
        length: 2,
        digest: digest(&[record(1, 1), record(3, 1)]),
    };
    has(&history, |v| {
        matches!(v, Violation::Forked { length: 2, .. })
    });
    // Longer than the log ever became.
    history.events[6].what = What::Is {
        length: 9,
        digest: Digest::default(),
    };
    has(&history, |v| {
        matches!(v, Violation::Forked { length: 9, .. })
    });
}

#[test]
fn a_server_that_forgot_is_seen() {
    let mut history = good();
    history.events[8].what = What::Gap { last: 0 };
    has(&history, |v| {
        matches!(v, Violation::Forgotten { client: 1, .. })
    });
}

#[test]
fn an_instance_that_begins_on_old_or_other_data_is_seen() {
    let mut history = good();
    history.statements[1].what = Finding::Log {
        length: 1,
        digest: digest(&[record(1, 1)]),
    };
    has(&history, |v| {
        matches!(
            v,
            Violation::BeganShort {
                length: 1,
                known: 2,
                ..
            }
        )
    });
    history.statements[1].what = Finding::Log {
        length: 2,
        digest: digest(&[record(2, 1), record(1, 1)]),
    };
    has(&history, |v| matches!(v, Violation::BeganForked { .. }));
}

#[test]
fn a_second_instance_and_a_damaged_log_are_seen() {
    let mut history = good();
    history.statements[1].what = Finding::Other;
    has(&history, |v| matches!(v, Violation::Two { at: 55, .. }));
    history.statements[1].what = Finding::Damage {
        reason: "damaged".to_owned(),
    };
    has(&history, |v| matches!(v, Violation::Damaged { .. }));
}
