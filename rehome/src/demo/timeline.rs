//! The requests around a move, tenth by tenth of a second, with its phases below: when those that
//! need the store began, when they were answered, and how many waited. Pure.

use std::time::{Duration, SystemTime};

use rehome_shared::api::cluster::{Migration, PHASES};
use serde::Serialize;

use super::load::{Kind, Record, Request};

/// The width of a bucket.
const BUCKET: Duration = Duration::from_millis(100);

/// What is shown before the park and after the opening.
const MARGIN: Duration = Duration::from_secs(2);

/// The most columns that a drawing has.
const COLUMNS: usize = 100;

/// From the emptiest to the fullest.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The requests around a move.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Timeline {
    /// The width of a bucket, in seconds.
    bucket_seconds: f64,
    /// How many requests that need the store began in each bucket.
    begun: Vec<usize>,
    /// How many of them were answered.
    served: Vec<usize>,
    /// How many of them waited at its end.
    waiting: Vec<usize>,
    /// How many log lines were accepted.
    log_lines: Vec<usize>,
    /// How many requests of any kind failed.
    failed: Vec<usize>,
    /// The phases of the move, in seconds from the beginning of the first bucket.
    phases: Vec<Phase>,
}

/// A phase of the move.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Phase {
    name: &'static str,
    from: f64,
    to: f64,
}

/// A phase, from the beginning of the load.
struct Span {
    name: &'static str,
    from: Duration,
    to: Duration,
}

impl Timeline {
    /// The requests around a move; `None` when it tells no times.
    pub(super) fn new(record: &Record, migration: &Migration) -> Option<Self> {
        let spans = spans(migration, record.began)?;
        let park = spans.iter().find(|span| span.name == "park")?.from;
        let end = spans.last()?.to + MARGIN;
        let origin = park.saturating_sub(MARGIN);
        let buckets = bucket(end, origin)? + 1;
        let count = |time: fn(&Request) -> Duration, which: fn(&Request) -> bool| {
            let mut counts = vec![0; buckets];
            for request in record.requests.iter().filter(|request| which(request)) {
                if let Some(count) = bucket(time(request), origin).and_then(|b| counts.get_mut(b)) {
                    *count += 1;
                }
            }
            counts
        };
        let begun: fn(&Request) -> Duration = |request| request.begun;
        let ended: fn(&Request) -> Duration = |request| request.ended;
        let since = |time: Duration| time.as_secs_f64() - origin.as_secs_f64();
        let phases = spans
            .iter()
            .filter(|span| span.to > origin)
            .map(|span| Phase {
                name: span.name,
                from: since(span.from),
                to: since(span.to),
            });
        Some(Self {
            bucket_seconds: BUCKET.as_secs_f64(),
            begun: count(begun, needs_store),
            served: count(ended, |request| {
                needs_store(request) && request.failure.is_none()
            }),
            waiting: waiting(record, origin, buckets),
            log_lines: count(ended, |request| {
                !needs_store(request) && request.failure.is_none()
            }),
            failed: count(ended, |request| request.failure.is_some()),
            phases: phases.collect(),
        })
    }

    /// Draws it: rows of bars, each with a scale of its own, and the phases.
    pub(super) fn draw(&self) -> String {
        let step = self.begun.len().div_ceil(COLUMNS).max(1);
        let width = self.bucket_seconds * f64::from(u32::try_from(step).unwrap_or(u32::MAX));
        let (marks, seen) = self.marks(self.begun.len().div_ceil(step), width);
        let rows = [
            ("begun", merge(&self.begun, step, sum)),
            ("served", merge(&self.served, step, sum)),
            ("waiting", merge(&self.waiting, step, highest)),
            ("log lines", merge(&self.log_lines, step, sum)),
            ("failed", merge(&self.failed, step, sum)),
        ];
        let mut lines: Vec<String> = rows
            .iter()
            .filter(|(name, row)| *name != "failed" || highest(row) > 0)
            .map(|(name, row)| format!("  {name:<10}{} ≤ {}", bars(row), highest(row)))
            .collect();
        lines.push(format!("  {:<10}{marks}", "phase"));
        let legend: Vec<_> = seen
            .iter()
            .map(|name| format!("{} {name}", letter(name)))
            .collect();
        lines.push(format!("  {:<10}{}", "", legend.join(", ")));
        lines.push(format!(
            "  A column is {:.0} ms. Begun, served and waiting are requests that need the store.\n",
            width * 1000.0
        ));
        lines.join("\n")
    }

    /// One letter for each column: the phase that most of it belongs to. And those that are seen.
    fn marks(&self, columns: usize, width: f64) -> (String, Vec<&'static str>) {
        let mut seen = Vec::new();
        let mut left = 0.0;
        let mut text = String::new();
        for _ in 0..columns {
            let share = |phase: &Phase| phase.to.min(left + width) - phase.from.max(left);
            let longest = self
                .phases
                .iter()
                .filter(|phase| share(phase) > 0.0)
                .max_by(|one, other| share(one).total_cmp(&share(other)));
            match longest {
                Some(phase) => {
                    text.push(letter(phase.name));
                    if !seen.contains(&phase.name) {
                        seen.push(phase.name);
                    }
                }
                None => text.push('·'),
            }
            left += width;
        }
        (text, seen)
    }
}

/// The phases one after the other, as far as they are known.
fn spans(migration: &Migration, began: SystemTime) -> Option<Vec<Span>> {
    let started = humantime::parse_rfc3339(&migration.started_at).ok()?;
    let mut from = started.duration_since(began).ok()?;
    let mut spans = Vec::new();
    for name in PHASES {
        if let Some(seconds) = migration.phases.get(name) {
            let to = from + Duration::try_from_secs_f64(*seconds).ok()?;
            spans.push(Span { name, from, to });
            from = to;
        }
    }
    Some(spans)
}

fn bucket(time: Duration, origin: Duration) -> Option<usize> {
    let since = time.checked_sub(origin)?;
    usize::try_from(since.as_millis() / BUCKET.as_millis()).ok()
}

/// Whether the store has to answer before the client is served.
fn needs_store(request: &Request) -> bool {
    request.kind != Kind::Log
}

/// How many requests that need the store had begun and were not over at the end of each bucket.
fn waiting(record: &Record, origin: Duration, buckets: usize) -> Vec<usize> {
    let mut end = origin;
    let mut counts = Vec::with_capacity(buckets);
    for _ in 0..buckets {
        end += BUCKET;
        let waits = |request: &&Request| {
            needs_store(request) && request.begun <= end && request.ended > end
        };
        counts.push(record.requests.iter().filter(waits).count());
    }
    counts
}

fn merge(counts: &[usize], step: usize, of: fn(&[usize]) -> usize) -> Vec<usize> {
    counts.chunks(step).map(of).collect()
}

fn sum(counts: &[usize]) -> usize {
    counts.iter().sum()
}

fn highest(counts: &[usize]) -> usize {
    counts.iter().copied().max().unwrap_or_default()
}

/// One character for each number; anything above nothing is seen.
fn bars(counts: &[usize]) -> String {
    let top = BARS.len() - 1;
    let full = highest(counts).max(1);
    let bar = |count: &usize| {
        BARS.get((count * top).div_ceil(full))
            .copied()
            .unwrap_or(' ')
    };
    counts.iter().map(bar).collect()
}

/// The letter that stands for a phase.
fn letter(phase: &str) -> char {
    match phase {
        "queue" => 'q',
        "prepare" => 'P',
        "precopy" => 'c',
        "park" => 'p',
        "drain" => 'd',
        "stop" => 's',
        "flush" => 'f',
        "final_delta" => 'x',
        "release" => 'r',
        "adopt" => 'a',
        "start" => 't',
        "health" => 'h',
        "open" => 'o',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use rehome_shared::api::cluster::MigrationState;

    use super::super::load::Kind;
    use super::*;
    use crate::render::sample;

    fn request(begun: u64, ended: u64) -> Request {
        Request {
            kind: Kind::Search,
            host: Ipv4Addr::LOCALHOST.into(),
            begun: Duration::from_millis(begun),
            ended: Duration::from_millis(ended),
            failure: None,
        }
    }

    /// A move that began 3 s after the load: 1 s of pre-copy, 200 ms of stop, 300 ms of start.
    fn timeline(requests: Vec<Request>) -> Timeline {
        let mut migration = sample::migration(MigrationState::Done);
        let started = humantime::parse_rfc3339(&migration.started_at).unwrap();
        migration.phases = [
            ("precopy", 1.0),
            ("park", 0.01),
            ("stop", 0.19),
            ("start", 0.3),
        ]
        .map(|(name, seconds)| (name.to_owned(), seconds))
        .into();
        let record = Record {
            began: started - Duration::from_secs(3),
            requests,
            sent: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
        };
        Timeline::new(&record, &migration).unwrap()
    }

    #[test]
    fn a_parked_request_begins_in_the_window_and_is_served_after_it() {
        let timeline = timeline(vec![
            request(2010, 2050),
            request(4050, 4520),
            request(1000, 1001),
        ]);
        assert_eq!(timeline.begun.len(), 46);
        let filled = |counts: &[usize]| -> Vec<usize> {
            (0..counts.len())
                .filter(|bucket| counts[*bucket] > 0)
                .collect()
        };
        assert_eq!(filled(&timeline.begun), [0, 20]);
        assert_eq!(filled(&timeline.served), [0, 25]);
        assert_eq!(filled(&timeline.waiting), [20, 21, 22, 23, 24]);
        assert_eq!(filled(&timeline.failed), Vec::<usize>::new());
    }

    #[test]
    fn a_log_line_waits_for_nobody_and_has_a_row_of_its_own() {
        let mut line = request(4050, 4060);
        line.kind = Kind::Log;
        let timeline = timeline(vec![line]);
        assert_eq!(timeline.log_lines.iter().sum::<usize>(), 1);
        assert_eq!(timeline.begun.iter().sum::<usize>(), 0);
    }

    #[test]
    fn the_phases_are_drawn_below_the_requests() {
        let text = timeline(vec![request(2010, 2050), request(4050, 4520)]).draw();
        let row = |name: &str| {
            let prefix = format!("  {name:<10}");
            let row = text.lines().find_map(|line| line.strip_prefix(&prefix));
            row.unwrap().to_owned()
        };
        let marks = format!(
            "{}{}ssttt{}",
            "·".repeat(10),
            "c".repeat(10),
            "·".repeat(21)
        );
        assert_eq!(row("phase"), marks);
        let waiting = format!("{}█████{} ≤ 1", " ".repeat(20), " ".repeat(21));
        assert_eq!(row("waiting"), waiting);
        assert!(text.contains("c precopy, s stop, t start\n"), "{text}");
        assert!(!text.contains("failed"), "{text}");
    }

    #[test]
    fn a_single_request_is_seen_beside_many() {
        assert_eq!(bars(&[0, 1, 50, 100]), " ▁▄█");
        assert_eq!(bars(&[]), "");
        assert_eq!(merge(&[1, 2, 3], 2, sum), [3, 3]);
        assert_eq!(merge(&[1, 2, 3], 2, highest), [2, 3]);
    }

    #[test]
    fn every_phase_has_a_letter_of_its_own() {
        let letters: BTreeSet<char> = PHASES.iter().map(|phase| letter(phase)).collect();
        assert_eq!(letters.len(), PHASES.len());
        assert!(!letters.contains(&'?'));
    }
}
