//! Moves that follow each other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::diary::Stop;
use super::schedule::{HOSTS, Move};
use super::stage::{Application, Stage};
use crate::program::Running;

/// An operator who waits longer than this goes home; the move goes on without.
const PATIENCE: Duration = Duration::from_secs(30);

/// From one look at the command to the next.
const LOOK: Duration = Duration::from_millis(20);

/// Moves an application until it is over; returns how often a move ended how.
pub(super) fn work(
    stage: &Stage<'_>,
    application: &Application,
    moves: &[Move],
    stop: &Stop,
) -> BTreeMap<&'static str, u32> {
    let mut tally = BTreeMap::new();
    for one in moves {
        if stop.rest(one.pause) {
            break;
        }
        let end = make(stage, application, one, stop).unwrap_or_else(|error| {
            stage
                .diary
                .note(&format!("a move of {}: {error:#}", application.name));
            "not asked for"
        });
        *tally.entry(end).or_default() += 1;
    }
    tally
}

fn make(
    stage: &Stage<'_>,
    application: &Application,
    one: &Move,
    stop: &Stop,
) -> anyhow::Result<&'static str> {
    let from = stage.owner(application)?;
    let to = (from - 1 + one.hop) % HOSTS + 1;
    application.goes_to(to);
    let address = stage.lab.host(to)?.address();
    let words = [
        "rehome",
        "move",
        application.name,
        "--to",
        address,
        "--json",
    ];
    let mut command = stage.lab.host(one.through)?.begin(&words)?;
    let begin = Instant::now();
    while !command.has_ended()? {
        if begin.elapsed() > PATIENCE || stop.is_over() {
            stage
                .diary
                .note(&format!("{} to h{to}: not waited for", application.name));
            return Ok("not waited for");
        }
        stop.rest(LOOK);
    }
    ended(stage, application, to, command)
}

fn ended(
    stage: &Stage<'_>,
    application: &Application,
    to: usize,
    command: Running,
) -> anyhow::Result<&'static str> {
    let outcome = command.wait()?;
    // There is none when the move was not taken on.
    let document = outcome.json().unwrap_or_default();
    let own = document["migrations"]
        .as_array()
        .into_iter()
        .flatten()
        .rfind(|migration| migration["application"] == application.name);
    let end = match (outcome.status, own.and_then(|own| own["state"].as_str())) {
        (0, _) => "done",
        (_, Some("aborted")) => "aborted",
        (_, Some("returned")) => "returned",
        // A newer deployment, that of the other application's move, ends the command and not
        // this move.
        _ if document["settled"] == false => "superseded",
        _ => "refused",
    };
    let error = own.and_then(|own| own["error"].as_str());
    let why = error
        .or_else(|| outcome.stderr.lines().last())
        .unwrap_or_default();
    let name = application.name;
    stage.diary.note(&format!("{name} to h{to}: {end} {why}"));
    Ok(end)
}
