//! The cases: where a move is when the blow falls, and what it hits.

use std::fmt;

/// How the move would end by itself, and so which writes it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// The destination serves.
    Forward,
    /// As well; a busy client makes the drain last, and rounds are sent in it.
    Busy,
    /// Somebody calls it off when the final difference is there.
    CalledOff,
    /// The application does not start on the destination.
    GivenBack,
}

/// A host of the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// What is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// `migrated`, with `kill -9`.
    Daemon(Side),
    /// The whole host, which comes back with its disk.
    Host(Side),
    /// `proxyd`, with `kill -9`.
    Proxy(Side),
    /// What is between source and destination, for some seconds.
    Link,
}

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) scenario: Scenario,
    /// The host whose write it is.
    pub(crate) side: Side,
    /// The write.
    pub(crate) write: &'static str,
    /// Whether the write is durable when the blow falls.
    pub(crate) when: &'static str,
    pub(crate) blow: Blow,
}

const WHEN: [&str; 2] = ["before", "after"];

/// The records of the journals that each scenario comes to.
const RECORDS: [(Scenario, Side, &[&str]); 6] = [
    (
        Scenario::Forward,
        Side::Source,
        &[
            "journal/source/planned",
            "journal/source/round",
            "journal/source/cut_over",
            "journal/source/released",
            "journal/source/adopted",
            "journal/source/served",
            "journal/source/closed",
        ],
    ),
    (
        Scenario::Forward,
        Side::Destination,
        &[
            "journal/destination/reserved",
            "journal/destination/verified",
            "journal/destination/adopted",
            "journal/destination/serving",
            "journal/destination/closed",
        ],
    ),
    (
        Scenario::CalledOff,
        Side::Source,
        &["journal/source/aborted", "journal/source/closed"],
    ),
    (
        Scenario::CalledOff,
        Side::Destination,
        &["journal/destination/dropped", "journal/destination/closed"],
    ),
    (
        Scenario::GivenBack,
        Side::Source,
        &["journal/source/reclaimed", "journal/source/closed"],
    ),
    (
        Scenario::GivenBack,
        Side::Destination,
        &["journal/destination/returned", "journal/destination/closed"],
    ),
];

/// Writes outside of the journals, which belong to one daemon.
const OTHERS: [(Side, &str); 5] = [
    (Side::Source, "store/desired.json"),
    (Side::Destination, "store/desired.json"),
    (Side::Source, "stamp"),
    (Side::Destination, "stamp"),
    (Side::Destination, "store/routes"),
];

/// The steps of a source between its writes.
const STEPS: [(Scenario, &str); 9] = [
    (Scenario::Forward, "phase/park"),
    (Scenario::Forward, "phase/drain"),
    (Scenario::Forward, "phase/stop"),
    (Scenario::Forward, "phase/final_delta"),
    (Scenario::Forward, "phase/adopt"),
    (Scenario::Forward, "phase/start"),
    (Scenario::Forward, "phase/clean_up"),
    (Scenario::CalledOff, "phase/abort"),
    (Scenario::GivenBack, "phase/return"),
];

/// A round in the drain, and the write of all of them when it is over.
const IN_DRAIN: [(&str, &str, &[Blow]); 4] = [
    (
        "phase/drain_round",
        "before",
        &[
            Blow::Host(Side::Source),
            Blow::Daemon(Side::Destination),
            Blow::Host(Side::Destination),
            Blow::Link,
        ],
    ),
    (
        "phase/drain_round",
        "after",
        &[Blow::Daemon(Side::Source), Blow::Daemon(Side::Destination)],
    ),
    (
        "journal/source/round",
        "before",
        &[Blow::Daemon(Side::Source), Blow::Link],
    ),
    (
        "journal/source/round",
        "after",
        &[Blow::Host(Side::Source), Blow::Host(Side::Destination)],
    ),
];

/// Where a `proxyd` dies: its migrated works on the gate then, or has just done so.
const GATES: [(Side, &str); 5] = [
    (Side::Source, "journal/source/cut_over"),
    (Side::Source, "journal/source/released"),
    (Side::Source, "journal/source/served"),
    (Side::Destination, "journal/destination/adopted"),
    (Side::Destination, "journal/destination/serving"),
];

/// Every blow, in the order of the table.
pub(crate) const BLOWS: [Blow; 7] = [
    Blow::Daemon(Side::Source),
    Blow::Host(Side::Source),
    Blow::Daemon(Side::Destination),
    Blow::Host(Side::Destination),
    Blow::Link,
    Blow::Proxy(Side::Source),
    Blow::Proxy(Side::Destination),
];

/// Those that are dealt at every record.
const AT_RECORDS: &[Blow] = BLOWS.split_at(5).0;

const SIDES: [Side; 2] = [Side::Source, Side::Destination];

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (scenario, side, writes) in RECORDS {
        for write in writes {
            add(&mut cases, (scenario, side, write), AT_RECORDS);
        }
    }
    for (scenario, step) in STEPS {
        let both = [Blow::Daemon(Side::Source), Blow::Host(Side::Source)];
        let step = (scenario, Side::Source, step);
        add_when(&mut cases, step, "before", &both);
    }
    for (write, when, blows) in IN_DRAIN {
        let write = (Scenario::Busy, Side::Source, write);
        add_when(&mut cases, write, when, blows);
    }
    for step in ["phase/drain", "phase/stop"] {
        let step = (Scenario::Forward, Side::Source, step);
        add_when(&mut cases, step, "before", &SIDES.map(Blow::Proxy));
    }
    for (side, write) in OTHERS {
        let own = if write == "store/routes" {
            Blow::Proxy(side)
        } else {
            Blow::Daemon(side)
        };
        add(
            &mut cases,
            (Scenario::Forward, side, write),
            &[own, Blow::Host(side)],
        );
    }
    for (side, write) in GATES {
        let blows = SIDES.map(Blow::Proxy);
        add(&mut cases, (Scenario::Forward, side, write), &blows);
    }
    cases
}

/// The write of a case: on which way, whose, and its name.
type Write = (Scenario, Side, &'static str);

fn add(cases: &mut Vec<Case>, write: Write, blows: &[Blow]) {
    for when in WHEN {
        add_when(cases, write, when, blows);
    }
}

fn add_when(
    cases: &mut Vec<Case>,
    (scenario, side, write): Write,
    when: &'static str,
    blows: &[Blow],
) {
    cases.extend(blows.iter().map(|blow| Case {
        scenario,
        side,
        write,
        when,
        blow: *blow,
    }));
}

/// The cases that stand for the others in `make test`: one for each way to recover.
const DOZEN: [&str; 13] = [
    "forward: source/round after, source host",
    "forward: source/cut_over after, source migrated",
    "forward: source/released before, source migrated",
    "forward: source/released after, source host",
    "forward: source/released after, link",
    "forward: destination/verified after, destination migrated",
    "forward: destination/adopted before, destination host",
    "forward: destination/adopted after, destination migrated",
    "forward: source/served before, destination host",
    "forward: destination/serving after, source proxyd",
    "called off: source/aborted after, source migrated",
    "given back: destination/returned after, destination host",
    "given back: source/reclaimed before, source host",
];

/// The cases that `wanted` names: `dozen`, `all`, or a part of their names.
pub(crate) fn chosen(wanted: &str) -> Vec<Case> {
    let cases = all().into_iter();
    match wanted {
        "all" => cases.collect(),
        "dozen" => cases
            .filter(|case| DOZEN.contains(&case.to_string().as_str()))
            .collect(),
        part => cases
            .filter(|case| case.to_string().contains(part))
            .collect(),
    }
}

impl Case {
    /// The name of its fail point.
    pub(crate) fn point(&self) -> String {
        format!("{}/{}", self.write, self.when)
    }

    /// The fail point that comes first, where the write happens earlier in a move as well.
    pub(crate) fn comes_after(&self) -> Option<&'static str> {
        (self.scenario == Scenario::Busy).then_some("phase/drain/before")
    }

    /// The row of the table that it stands in.
    pub(crate) fn row(&self) -> String {
        let write = self.write.strip_prefix("journal/").map_or_else(
            || format!("{} {}", self.side, self.write),
            ToOwned::to_owned,
        );
        format!("{}: {write} {}", self.scenario, self.when)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.row(), self.blow)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Busy => "busy",
            Self::CalledOff => "called off",
            Self::GivenBack => "given back",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon(side) => write!(f, "{side} migrated"),
            Self::Host(side) => write!(f, "{side} host"),
            Self::Proxy(side) => write!(f, "{side} proxyd"),
            Self::Link => f.write_str("link"),
        }
    }
}

#[test]
fn there_are_more_than_a_hundred_cases_and_the_dozen_are_among_them() {
    let cases = all();
    assert!(cases.len() > 100, "{}", cases.len());
    let mut names: Vec<String> = cases.iter().map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "a name stands for two cases");
    assert_eq!(chosen("dozen").len(), DOZEN.len());
}
