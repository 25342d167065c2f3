//! What the demonstration has shown: for people, and as one document.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rehome_shared::api::cluster::{Migration, MigrationState};
use rehome_shared::units::Bytes;
use serde::Serialize;

use super::load::{Kind, Record};
use super::timeline::Timeline;
use super::verify::Verdict;
use crate::render::migration::window_seconds;
use crate::render::seconds;

/// How many requests that failed are told one by one.
const EXAMPLES: usize = 10;

/// Everything that is told at the end.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    lab: String,
    hosts: Vec<Ipv4Addr>,
    /// Whether no request failed and everything is there.
    passed: bool,
    problems: Vec<String>,
    requests: Requests,
    verified: Verdict,
    /// There and back.
    moves: Vec<Migration>,
    timeline: Option<Timeline>,
    seconds: Times,
}

/// How long each part took, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Times {
    pub(super) images: f64,
    pub(super) lab_up: f64,
    pub(super) image_load: f64,
    pub(super) deploy: f64,
    /// From the first client to the last.
    pub(super) moves: f64,
    pub(super) check: f64,
    pub(super) total: f64,
}

#[derive(Debug, Serialize)]
struct Requests {
    served: usize,
    failed: usize,
    longest_wait_seconds: f64,
    kinds: BTreeMap<Kind, Count>,
}

#[derive(Debug, Default, Serialize)]
struct Count {
    served: usize,
    failed: usize,
    longest_wait_seconds: f64,
}

impl Outcome {
    /// Judges what happened.
    pub(super) fn new(
        lab: String,
        hosts: Vec<Ipv4Addr>,
        record: &Record,
        verified: Verdict,
        moves: Vec<Migration>,
        seconds: Times,
    ) -> Self {
        let mut problems = failures(record);
        problems.extend(verified.problems());
        problems.extend(unfinished(&moves));
        let requests = count(record);
        for (kind, count) in &requests.kinds {
            if count.served == 0 {
                problems.push(format!("no {} were served", kind.name()));
            }
        }
        Self {
            lab,
            hosts,
            passed: problems.is_empty(),
            problems,
            requests,
            timeline: moves.first().and_then(|there| Timeline::new(record, there)),
            verified,
            moves,
            seconds,
        }
    }

    /// Whether no request failed and everything is there.
    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    /// The result for people.
    pub(super) fn text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(there) = self.moves.first() {
            lines.push(format!(
                "The {} moved from {} to {} and back while its clients went on.",
                there.application, there.from, there.to
            ));
            if let Some(timeline) = &self.timeline {
                lines.push(format!("\n{}", timeline.draw()));
            }
            lines.extend(self.move_lines(there));
        }
        lines.extend(self.request_lines());
        lines.push(row("time", &self.seconds.text()));
        lines.push(String::new());
        lines.extend(
            self.problems
                .iter()
                .map(|problem| format!("FAILED: {problem}")),
        );
        lines.push(if self.passed {
            "No request failed, and every acknowledged line is there exactly once.".to_owned()
        } else {
            "The demonstration failed.".to_owned()
        });
        lines.join("\n")
    }

    fn move_lines(&self, there: &Migration) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(window) = there.window_seconds {
            lines.push(row(
                "window",
                &format!(
                    "{} = platform {} + application {}",
                    window_seconds(there).map(seconds).unwrap_or_default(),
                    seconds(window.platform),
                    seconds(window.application),
                ),
            ));
        }
        let connections = there.connections;
        lines.push(row(
            "connections",
            &format!(
                "{} parked, {} drained, {} refused",
                connections.parked, connections.drained, connections.refused
            ),
        ));
        let back = self
            .moves
            .get(1)
            .map(|back| format!(", {} back: only what had changed", back.bytes));
        lines.push(row(
            "sent",
            &format!("{} there{}", there.bytes, back.unwrap_or_default()),
        ));
        lines
    }

    fn request_lines(&self) -> Vec<String> {
        let kinds: Vec<_> = self
            .requests
            .kinds
            .iter()
            .map(|(kind, count)| format!("{} {}", count.served, kind.name()))
            .collect();
        let verified = &self.verified;
        vec![
            row(
                "requests",
                &format!(
                    "{} served, {} failed; {}",
                    self.requests.served,
                    self.requests.failed,
                    kinds.join(", ")
                ),
            ),
            row("longest wait", &seconds(self.requests.longest_wait_seconds)),
            row(
                "acknowledged",
                &format!(
                    "{} lines, {} missing, {} more than once; the page of every host was asked",
                    verified.acknowledged,
                    verified.missing.len(),
                    verified.repeated.len()
                ),
            ),
        ]
    }
}

impl Times {
    fn text(&self) -> String {
        format!(
            "{}: images {}, lab up {}, images to hosts {}, deploy {}, load and moves {}, check {}",
            seconds(self.total),
            seconds(self.images),
            seconds(self.lab_up),
            seconds(self.image_load),
            seconds(self.deploy),
            seconds(self.moves),
            seconds(self.check),
        )
    }
}

fn row(name: &str, text: &str) -> String {
    format!("  {name:<13} {text}")
}

fn count(record: &Record) -> Requests {
    let mut kinds: BTreeMap<Kind, Count> = BTreeMap::new();
    for kind in Kind::ALL {
        kinds.insert(kind, Count::default());
    }
    for request in &record.requests {
        let count = kinds.entry(request.kind).or_default();
        match request.failure {
            None => count.served += 1,
            Some(_) => count.failed += 1,
        }
        let took = request.took().as_secs_f64();
        count.longest_wait_seconds = count.longest_wait_seconds.max(took);
    }
    Requests {
        served: kinds.values().map(|count| count.served).sum(),
        failed: kinds.values().map(|count| count.failed).sum(),
        longest_wait_seconds: record.longest().as_secs_f64(),
        kinds,
    }
}

/// The requests that failed: the first ones, and how many more there were.
fn failures(record: &Record) -> Vec<String> {
    let mut problems: Vec<String> = record
        .failed()
        .take(EXAMPLES)
        .map(|request| {
            format!(
                "one of the {} through {}, begun {} and ended {} after the load began: {}",
                request.kind.name(),
                request.host,
                seconds(request.begun.as_secs_f64()),
                seconds(request.ended.as_secs_f64()),
                request.failure.as_deref().unwrap_or_default()
            )
        })
        .collect();
    let more = record.failed().count().saturating_sub(EXAMPLES);
    if more > 0 {
        problems.push(format!("{more} more requests"));
    }
    problems
}

/// Moves that did not end as they should, and those that are not there at all.
fn unfinished(moves: &[Migration]) -> Vec<String> {
    let mut problems: Vec<String> = moves
        .iter()
        .filter(|migration| migration.state != MigrationState::Done)
        .map(|migration| {
            format!(
                "the move to {} is {}",
                migration.to,
                migration.state.as_str()
            )
        })
        .collect();
    if moves.len() < 2 {
        problems.push(format!("there were {} moves instead of 2", moves.len()));
    }
    if let [there, back, ..] = moves
        && back.bytes >= there.bytes
        && there.bytes > Bytes(0)
    {
        problems.push(format!(
            "the way back sent {}, which is no delta of {}",
            back.bytes, there.bytes
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, SystemTime};

    use super::super::load::Request;
    use super::*;
    use crate::render::sample::migration;

    fn record(failure: Option<&str>) -> Record {
        let request = |kind| Request {
            kind,
            host: Ipv4Addr::LOCALHOST.into(),
            begun: Duration::from_secs(1),
            ended: Duration::from_secs(3),
            failure: failure.map(str::to_owned),
        };
        Record {
            began: SystemTime::UNIX_EPOCH,
            requests: Kind::ALL.map(request).into(),
            sent: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
        }
    }

    fn moves() -> Vec<Migration> {
        let there = migration(MigrationState::Done);
        let mut back = there.clone();
        back.bytes = Bytes(1 << 20);
        vec![there, back]
    }

    fn outcome(record: &Record, moves: Vec<Migration>) -> Outcome {
        let verdict = Verdict::default();
        Outcome::new(
            "demo".to_owned(),
            Vec::new(),
            record,
            verdict,
            moves,
            Times::default(),
        )
    }

    #[test]
    fn all_served_and_a_delta_back_pass() {
        let outcome = outcome(&record(None), moves());
        assert_eq!(outcome.problems, Vec::<String>::new());
        let text = outcome.text();
        for part in [
            "4 served, 0 failed",
            "2.00 s",
            "42.0 MiB there, 1.00 MiB back",
            "12 parked",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_single_failed_request_fails_it_with_its_reason() {
        let mut one = record(None);
        one.requests.extend(record(Some("reset")).requests.pop());
        let outcome = outcome(&one, moves());
        assert!(!outcome.passed());
        assert!(
            outcome
                .text()
                .contains("FAILED: one of the pages through 127.0.0.1")
        );
    }

    #[test]
    fn a_kind_that_was_never_served_and_a_move_that_is_missing_fail_it() {
        let mut one = record(None);
        drop(one.requests.pop());
        assert_eq!(outcome(&one, moves()).problems, ["no pages were served"]);
        let mut single = moves();
        drop(single.pop());
        assert!(!outcome(&record(None), single).passed());
    }

    #[test]
    fn a_way_back_that_sends_all_fails_it() {
        let mut same = moves();
        same[1].bytes = same[0].bytes;
        assert!(!outcome(&record(None), same).passed());
    }
}
