//! `rehome move`, as a user types it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context as _;
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::Lab;
use serde_json::Value;

use crate::window::contender::{DESTINATION, FRONT, Mover, SOURCE};
use crate::window::plan::{Contender, Kind};
use crate::window::record::{Moved, Part, Round};
use crate::window::store;

/// The external port of the store.
const DOOR: u16 = 7000;

/// What happens before the stop.
const BEFORE: [&str; 5] = ["queue", "prepare", "precopy", "park", "drain"];

/// The phases of the window, by part.
const PHASES: [(&str, Part); 8] = [
    ("stop", Part::Stop),
    ("flush", Part::Flush),
    ("final_delta", Part::Copy),
    ("release", Part::Own),
    ("adopt", Part::Own),
    ("start", Part::Start),
    ("health", Part::Start),
    ("open", Part::Route),
];

/// A store that Rehome moves.
#[derive(Debug)]
pub struct RehomeMove<'a> {
    lab: &'a Lab,
    way: Contender,
    kind: Kind,
    name: String,
}

impl<'a> RehomeMove<'a> {
    /// A trial; its name differs from that of every other one on the lab.
    #[must_use]
    pub fn new(lab: &'a Lab, way: Contender, kind: Kind, name: &str) -> Self {
        Self {
            lab,
            way,
            kind,
            name: name.to_owned(),
        }
    }
}

impl Mover for RehomeMove<'_> {
    fn open(&mut self) -> anyhow::Result<SocketAddr> {
        let body = store::body(self.kind, DOOR, self.way);
        let deployment = Deployment::new().with(&self.name, SOURCE, &body);
        self.lab.deploy(&deployment)?.ok()?;
        self.lab.wait_running(&self.name, SOURCE)?;
        self.lab.host(FRONT)?.door(DOOR)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let source = self.lab.host(SOURCE)?;
        source.shell("sync -f /var/lib/rehome/pool")?;
        Ok(())
    }

    fn go(&mut self) -> anyhow::Result<Moved> {
        let ended = self.lab.move_to(&self.name, DESTINATION)?;
        let report = self.lab.last_migration()?.0;
        let mut moved = read(&report)?;
        if report["application"] != self.name.as_str() {
            moved.failure = Some(format!("no migration began: {ended}"));
        }
        Ok(moved)
    }

    fn close(&mut self) -> anyhow::Result<()> {
        self.lab.deploy(&Deployment::new())?.ok()?;
        Ok(())
    }
}

/// What a migration says of itself in `rehome migrations --json`.
fn read(report: &Value) -> anyhow::Result<Moved> {
    let phase = |name: &str| report["phases"][name].as_f64();
    let mut parts = BTreeMap::new();
    for (name, part) in PHASES {
        if let Some(seconds) = phase(name) {
            *parts.entry(part).or_insert(0.0) += seconds;
        }
    }
    let window = &report["window_seconds"];
    let share = |name: &str| window[name].as_f64();
    let mut failure = None;
    match share("platform").zip(share("application")) {
        Some((platform, application)) => {
            let rest = platform + application - parts.values().sum::<f64>();
            parts.insert(Part::Rest, rest.max(0.0));
        }
        None => failure = Some(format!("{}: {}", report["state"], report["error"])),
    }
    let rounds = report["rounds"].as_array().context("no rounds")?;
    Ok(Moved {
        failure,
        before: BEFORE.iter().filter_map(|name| phase(name)).sum(),
        drain: phase("drain").unwrap_or_default(),
        parts,
        rounds: rounds.iter().filter_map(read_round).collect(),
        predicted: report["predicted_window"].as_f64(),
    })
}

fn read_round(round: &Value) -> Option<Round> {
    Some(Round {
        mebibytes: round["bytes"].as_f64()? / 1_048_576.0,
        seconds: round["seconds"].as_f64()?,
    })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_parts_of_a_window_add_up_to_it() {
        let report = json!({
            "state": "done",
            "phases": {"prepare": 0.5, "precopy": 2.0, "drain": 0.25, "stop": 0.125,
                "final_delta": 0.5, "release": 0.0625, "adopt": 0.0625, "start": 0.125,
                "health": 0.125, "open": 0.0},
            "window_seconds": {"platform": 0.875, "application": 0.25},
            "rounds": [{"bytes": 2_097_152, "seconds": 1.5}],
            "predicted_window": 0.75,
            "error": null,
        });
        let moved = read(&report).unwrap();
        assert_eq!(moved.failure, None);
        assert_eq!((moved.before, moved.drain), (2.75, 0.25));
        assert_eq!(moved.parts[&Part::Own], 0.125);
        assert_eq!(moved.parts[&Part::Start], 0.25);
        assert_eq!(moved.parts[&Part::Rest], 0.125);
        assert_eq!(moved.window(), 1.125);
        assert_eq!(moved.rounds[0].mebibytes, 2.0);
        assert_eq!(moved.predicted, Some(0.75));
    }

    #[test]
    fn a_move_without_a_window_says_why() {
        let report = json!({"state": "aborted", "phases": {}, "window_seconds": null,
            "rounds": [], "error": "the hard cap"});
        let failure = read(&report).unwrap().failure.unwrap();
        assert!(failure.contains("aborted") && failure.contains("the hard cap"));
    }
}
