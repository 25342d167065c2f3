//! The checker: what a history must be when no acknowledged record was lost, doubled or moved,
//! and no two instances ran. Pure: values in, violations out.
//!
//! The log in the end is the truth that every answer and every instance is held against:
//!
//! - behind every door is the same log;
//! - an acknowledged record is in it, at the place that the acknowledgement named;
//! - no record is in it twice, none that nobody sent, and a client's records are in their order;
//! - who asks after an answer was given sees a log that is at least as long as that answer said:
//!   an append gets a later place, a read a length that holds it, an instance opens one that does;
//! - what a read or an instance saw is what the log in the end begins with;
//! - no server met another one.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Event, History, What};
use crate::log::witness::Finding;
use crate::log::{Digest, Record};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The log was not read in the end.
    #[error("nobody could read the log in the end")]
    Unread,
    /// Two doors lead to different logs.
    #[error(
        "behind {first} and {second} are different logs: {lengths:?} records, equal up to {equal}"
    )]
    Differs {
        /// A door.
        first: String,
        /// Another one.
        second: String,
        /// Their lengths.
        lengths: (usize, usize),
        /// So many records are the same.
        equal: usize,
    },
    /// An acknowledged record is not there.
    #[error(
        "lost: record {record} was acknowledged at place {index} at {at} us, and is not in the log"
    )]
    Lost {
        /// The record.
        record: Record,
        /// The place that the client was told.
        index: u64,
        /// When.
        at: u64,
    },
    /// An acknowledged record is elsewhere.
    #[error("moved: record {record} was acknowledged at place {index} and is at {found}")]
    Moved {
        /// The record.
        record: Record,
        /// The place that the client was told.
        index: u64,
        /// Where it is.
        found: u64,
    },
    /// A record is there twice.
    #[error("doubled: record {record} is at {first} and at {second}")]
    Doubled {
        /// The record.
        record: Record,
        /// A place.
        first: u64,
        /// Another one.
        second: u64,
    },
    /// Nobody sent it.
    #[error("record {record} at {index} was never sent")]
    Strange {
        /// The record.
        record: Record,
        /// Where.
        index: u64,
    },
    /// A client's records are in another order than it sent them.
    #[error("out of order: record {record} at {index} comes after the client's record {before}")]
    Disordered {
        /// The record.
        record: Record,
        /// Where.
        index: u64,
        /// The client's record before it.
        before: u64,
    },
    /// A server does not know what it, or an earlier one, acknowledged.
    #[error("forgotten: client {client} was told at {at} us that its last record is {last}")]
    Forgotten {
        /// The client.
        client: u64,
        /// What it was told.
        last: u64,
        /// When.
        at: u64,
    },
    /// An answer is from a log that was shorter than one that was answered from before.
    #[error(
        "stale: client {client} got place or length {got} at {at} us, when the log had {known} records already"
    )]
    Stale {
        /// The client.
        client: u64,
        /// When it got the answer.
        at: u64,
        /// What it got.
        got: u64,
        /// What others had been told before it asked.
        known: u64,
    },
    /// A read saw something else than what the log became.
    #[error(
        "another log: client {client} read {length} records at {at} us that are not what the log begins with"
    )]
    Forked {
        /// The client.
        client: u64,
        /// When.
        at: u64,
        /// How many it read.
        length: u64,
    },
    /// An instance began with less than was acknowledged.
    #[error(
        "an instance on {host} began at {at} us with {length} records, when the log had {known} already"
    )]
    BeganShort {
        /// Where.
        host: String,
        /// When.
        at: u64,
        /// Its records.
        length: u64,
        /// What clients had been told before.
        known: u64,
    },
    /// An instance began with something else than what the log became.
    #[error(
        "an instance on {host} began at {at} us with {length} records that are not what the log begins with"
    )]
    BeganForked {
        /// Where.
        host: String,
        /// When.
        at: u64,
        /// Its records.
        length: u64,
    },
    /// Two instances ran.
    #[error("two instances: one began on {host} at {at} us while another one ran")]
    Two {
        /// Where the second one began.
        host: String,
        /// When.
        at: u64,
    },
    /// An instance found bytes in the middle of its log that are no records.
    #[error("an instance on {host} found its log damaged at {at} us: {reason}")]
    Damaged {
        /// Where.
        host: String,
        /// When.
        at: u64,
        /// What it found.
        reason: String,
    },
}

/// What is wrong with a history; nothing when it is as it must be.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let Some(log) = history.logs.first() else {
        return vec![Violation::Unread];
    };
    let mut found = doors(history);
    let truth = Truth::of(&log.records);
    found.extend(truth.doubled.iter().cloned());
    found.extend(strangers(history, &log.records));
    found.extend(orders(&log.records));
    let (known, answers) = answers(history, &truth);
    found.extend(answers);
    found.extend(instances(history, &truth, &known));
    found
}

/// The log in the end, for looking up.
struct Truth {
    places: BTreeMap<Record, u64>,
    /// The digest after so many records.
    digests: Vec<Digest>,
    doubled: Vec<Violation>,
}

impl Truth {
    fn of(records: &[Record]) -> Self {
        let mut this = Self {
            places: BTreeMap::new(),
            digests: vec![Digest::default()],
            doubled: Vec::new(),
        };
        let mut digest = Digest::default();
        for (index, record) in (0..).zip(records) {
            digest = digest.then(index, *record);
            this.digests.push(digest);
            if let Some(first) = this.places.get(record) {
                this.doubled.push(Violation::Doubled {
                    record: *record,
                    first: *first,
                    second: index,
                });
            } else {
                this.places.insert(*record, index);
            }
        }
        this
    }

    fn begins_with(&self, length: u64, digest: Digest) -> bool {
        let at = usize::try_from(length).ok();
        at.and_then(|at| self.digests.get(at)) == Some(&digest)
    }
}

fn doors(history: &History) -> Vec<Violation> {
    let pairs = history.logs.iter().zip(history.logs.iter().skip(1));
    pairs
        .filter(|(first, second)| first.records != second.records)
        .map(|(first, second)| Violation::Differs {
            first: first.door.clone(),
            second: second.door.clone(),
            lengths: (first.records.len(), second.records.len()),
            equal: first
                .records
                .iter()
                .zip(&second.records)
                .take_while(|(one, other)| one == other)
                .count(),
        })
        .collect()
}

fn strangers(history: &History, records: &[Record]) -> Vec<Violation> {
    let sent: BTreeSet<Record> = history
        .events
        .iter()
        .filter_map(|event| match event.what {
            What::Append { sequence } => Some(Record {
                client: event.client,
                sequence,
            }),
            _ => None,
        })
        .collect();
    (0..)
        .zip(records)
        .filter(|(_, record)| !sent.contains(record))
        .map(|(index, record)| Violation::Strange {
            record: *record,
            index,
        })
        .collect()
}

fn orders(records: &[Record]) -> Vec<Violation> {
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut found = Vec::new();
    for (index, record) in (0..).zip(records) {
        let before = last.insert(record.client, record.sequence).unwrap_or(0);
        if record.sequence < before {
            let record = *record;
            found.push(Violation::Disordered {
                record,
                index,
                before,
            });
        }
    }
    found
}

/// How long the log was at least, by what clients had been told.
struct Known(BTreeMap<u64, u64>);

impl Known {
    /// What had been told before a time.
    fn before(&self, at: u64) -> u64 {
        let last = self.0.range(..at).next_back();
        last.map_or(0, |(_, length)| *length)
    }

    fn told(&mut self, at: u64, length: u64) {
        let known = self.before(at + 1);
        self.0.insert(at, known.max(length));
    }
}

/// What a client asked, and when.
#[derive(Clone, Copy)]
struct Asked {
    since: u64,
    /// The record; none for a read.
    record: Option<Record>,
}

fn answers(history: &History, truth: &Truth) -> (Known, Vec<Violation>) {
    let mut events: Vec<&Event> = history.events.iter().collect();
    events.sort_by_key(|event| event.at);
    let mut known = Known(BTreeMap::new());
    let mut open: BTreeMap<u64, Asked> = BTreeMap::new();
    let mut forgotten = BTreeSet::new();
    let mut found = Vec::new();
    for event in events {
        let (since, client) = (event.at, event.client);
        let record = match event.what {
            What::Append { sequence } => Some(Record { client, sequence }),
            What::Read => None,
            What::At { .. } | What::Is { .. } => {
                if let Some(asked) = open.remove(&client) {
                    found.extend(answer(event, asked, truth, &mut known));
                }
                continue;
            }
            What::Gap { last } => {
                // It asks again and again, and is told the same.
                if forgotten.insert(client) {
                    let at = since;
                    found.push(Violation::Forgotten { client, last, at });
                }
                continue;
            }
            What::Failed { .. } => continue,
        };
        open.insert(client, Asked { since, record });
    }
    (known, found)
}

/// Holds an answer against the log in the end, and against what was known when it was asked for.
fn answer(event: &Event, asked: Asked, truth: &Truth, known: &mut Known) -> Vec<Violation> {
    let (at, client) = (event.at, event.client);
    let (got, length, wrong) = match (&event.what, asked.record) {
        (What::At { index }, Some(record)) => {
            (*index, index + 1, acknowledged(truth, record, *index, at))
        }
        (What::Is { length, digest }, None) => {
            let length = *length;
            let forked = Violation::Forked { client, at, length };
            let same = truth.begins_with(length, *digest);
            (length, length, (!same).then_some(forked))
        }
        _ => return Vec::new(),
    };
    let before = known.before(asked.since);
    known.told(at, length);
    let stale = (got < before).then_some(Violation::Stale {
        client,
        at,
        got,
        known: before,
    });
    wrong.into_iter().chain(stale).collect()
}

fn acknowledged(truth: &Truth, record: Record, index: u64, at: u64) -> Option<Violation> {
    match truth.places.get(&record) {
        None => Some(Violation::Lost { record, index, at }),
        Some(place) if *place == index => None,
        Some(place) => Some(Violation::Moved {
            record,
            index,
            found: *place,
        }),
    }
}

fn instances(history: &History, truth: &Truth, known: &Known) -> Vec<Violation> {
    let mut found = Vec::new();
    for statement in &history.statements {
        let (host, at) = (statement.host.clone(), statement.at);
        match &statement.what {
            Finding::Other => found.push(Violation::Two { host, at }),
            Finding::Damage { reason } => found.push(Violation::Damaged {
                host,
                at,
                reason: reason.clone(),
            }),
            Finding::Log { length, digest } => {
                let (length, known) = (*length, known.before(at));
                if length < known {
                    found.push(Violation::BeganShort {
                        host,
                        at,
                        length,
                        known,
                    });
                } else if !truth.begins_with(length, *digest) {
                    found.push(Violation::BeganForked { host, at, length });
                }
            }
        }
    }
    found
}
