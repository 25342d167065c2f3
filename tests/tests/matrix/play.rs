//! A case from its beginning to its end: a move, the blow, and what must be true when all is
//! quiet again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rehome_tests::wait::wait_until;
use serde_json::Value;

use crate::busy::Busy;
use crate::case::{Blow, Case, Scenario, Side};
use crate::stage::{NAME, PATIENCE, Stage};

/// How long a link stays cut: longer than a request to another host may take to connect.
const CUT: Duration = Duration::from_secs(4);

/// What holds the move of a scenario that is called off: the destination has it all, the
/// application is stopped, and nothing is decided.
const BEFORE_THE_PROMISE: &str = "journal/destination/verified/before";

/// The hosts of a move, counted from 1.
#[derive(Debug, Clone, Copy)]
struct Way {
    from: usize,
    to: usize,
}

impl Way {
    fn host(self, side: Side) -> usize {
        match side {
            Side::Source => self.from,
            Side::Destination => self.to,
        }
    }
}

/// What was so before a move.
#[derive(Debug)]
struct Before {
    epoch: u64,
    migrations: BTreeSet<String>,
}

/// Plays a case and returns how its move ended.
pub(crate) fn play(stage: &mut Stage<'_>, case: Case) -> anyhow::Result<String> {
    let way = Way {
        from: stage.at,
        to: 3 - stage.at,
    };
    let before = before(stage)?;
    stage.refuse(way.to, case.scenario == Scenario::GivenBack)?;
    let (holder, point) = (way.host(case.side), case.point());
    let first = case.comes_after();
    stage.hold(holder, first.unwrap_or(&point))?;
    let busy = if case.scenario == Scenario::Busy {
        Some(Busy::start(stage.door())?)
    } else {
        None
    };
    if case.scenario == Scenario::CalledOff {
        stage.hold(way.to, BEFORE_THE_PROMISE)?;
    }
    let command = stage.lab.begin_move(NAME, way.to)?;
    if case.scenario == Scenario::CalledOff {
        call_off(stage, way, &before)?;
    }
    if let Some(first) = first {
        stage.wait_held(holder, first)?;
        stage.hold(holder, &point)?;
        stage.let_go(holder, first);
    }
    stage.wait_held(holder, &point)?;
    let failures = stage.load.failures();

    strike(stage, way, case.blow, (holder, &point))?;

    let ended = settle(stage, &before).context("after the blow")?;
    let unnoticed = matches!(case.blow, Blow::Daemon(_));
    ensure!(
        !unnoticed || stage.load.failures() == failures,
        "clients noticed that a migrated died: {:#?}",
        stage.load.newest_failures(failures)
    );
    if let Some(busy) = busy {
        busy.stop_and_verify(stage.door())?;
    }
    check(stage, &before, &ended)?;
    let outcome = command
        .wait()
        .context("the command that asked for the move")?;
    let state = ended.last().map_or("none", |(state, _)| state.as_str());
    // What a command says that was cut off from the cluster in the middle of submitting, or
    // whose move began a second time, is its own affair.
    if let [(state, _)] = ended.as_slice()
        && !case.write.starts_with("store/")
    {
        outcome.with_status(i32::from(state != "done"))?;
    }
    let state = state.to_owned();

    stage.refuse(way.to, false)?;
    move_on(stage).context("the next move")?;
    Ok(state)
}

fn before(stage: &Stage<'_>) -> anyhow::Result<Before> {
    let report = stage.report(stage.at)?;
    Ok(Before {
        epoch: epoch(&report).context("the store has no owner")?,
        migrations: stage.migrations()?,
    })
}

/// A move that nothing disturbs.
fn move_on(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let before = before(stage)?;
    let command = stage.lab.begin_move(NAME, 3 - stage.at)?;
    command.wait()?.ok()?;
    let ended = settle(stage, &before)?;
    ensure!(
        ended.len() == 1 && ended[0].0 == "done",
        "it ended otherwise: {ended:?}"
    );
    check(stage, &before, &ended)
}

/// Calls the move off while the application is stopped and the final difference is there.
fn call_off(stage: &Stage<'_>, way: Way, before: &Before) -> anyhow::Result<()> {
    stage.wait_held(way.to, BEFORE_THE_PROMISE)?;
    let all = stage.migrations()?;
    let id = all.difference(&before.migrations).next();
    let id = id.context("no migration is under way")?;
    stage.ask(way.from, "POST", &format!("/v1/migrations/{id}/abort"))?;
    stage.let_go(way.to, BEFORE_THE_PROMISE);
    Ok(())
}

/// The holder waits at the point; then the blow falls, and the holder goes on if it lives.
fn strike(
    stage: &mut Stage<'_>,
    way: Way,
    blow: Blow,
    (holder, point): (usize, &str),
) -> anyhow::Result<()> {
    match blow {
        Blow::Daemon(side) => stage.kill_daemon(way.host(side), "migrated")?,
        Blow::Proxy(side) => stage.kill_daemon(way.host(side), "proxyd")?,
        Blow::Host(side) => stage.crash(way.host(side))?,
        Blow::Link => stage.cut(true)?,
    }
    stage.let_go(holder, point);
    match blow {
        Blow::Daemon(_) | Blow::Proxy(_) => Ok(()),
        Blow::Host(side) => stage.start(way.host(side)),
        Blow::Link => {
            let until = Instant::now() + CUT;
            wait_until("the link was cut for long enough", PATIENCE, || {
                Ok(Instant::now() >= until)
            })?;
            stage.cut(false)
        }
    }
}

/// Waits until nothing is under way any more, and returns how the migrations since `before`
/// ended, with their reasons. The hosts are asked one by one, each about itself.
fn settle(stage: &mut Stage<'_>, before: &Before) -> anyhow::Result<Vec<(String, String)>> {
    let mut last = Vec::new();
    let quiet = wait_until("all is quiet again", PATIENCE, || {
        last.clear();
        for number in 1..=stage.lab.hosts().len() {
            match stage.report(number) {
                Ok(report) => last.push(report),
                Err(error) => {
                    last.push(Value::from(format!("{error:#}")));
                    return Ok(false);
                }
            }
        }
        Ok(is_quiet(&last))
    });
    quiet.with_context(|| {
        let says: Vec<String> = last.iter().map(summary).collect();
        format!("what the hosts said at last:\n{}", says.join("\n"))
    })?;
    let owners: Vec<usize> = (1..)
        .zip(&last)
        .filter(|(_, r)| epoch(r).is_some())
        .map(|(n, _)| n)
        .collect();
    let [owner] = owners.as_slice() else {
        bail!("not one owner: {owners:?}");
    };
    stage.at = *owner;
    let mut ended: Vec<(String, String, String)> = Vec::new();
    for report in &last {
        let migrations = report["migrations"].as_array().into_iter().flatten();
        for entry in migrations {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            if !before.migrations.contains(&text("id")) {
                ended.push((text("id"), text("state"), text("error")));
            }
        }
    }
    ended.sort();
    Ok(ended
        .into_iter()
        .map(|(_, state, error)| (state, error))
        .collect())
}

/// Every host has done all that there is to do, follows the same deployment, and one runs the
/// store.
fn is_quiet(reports: &[Value]) -> bool {
    let same = |key: &str| reports.windows(2).all(|two| two[0][key] == two[1][key]);
    let done = |report: &Value| {
        let mut migrations = report["migrations"].as_array().into_iter().flatten();
        report["settled"] == true
            && report["incoming"].as_array().is_some_and(Vec::is_empty)
            && migrations.all(|entry| entry["state"] != "running" && entry["state"] != "blocked")
    };
    let runs = |report: &Value| {
        let mut all = report["applications"].as_array().into_iter().flatten();
        all.any(|entry| entry["name"] == NAME && entry["state"] == "running")
    };
    same("generation")
        && same("desired_hash")
        && reports.iter().all(done)
        && reports.iter().filter(|report| runs(report)).count() == 1
}

fn summary(report: &Value) -> String {
    let Some(object) = report.as_object() else {
        return report.to_string();
    };
    let mut short = object.clone();
    if let Some(all) = short.get_mut("migrations").and_then(Value::as_array_mut) {
        let surplus = all.len().saturating_sub(2);
        all.drain(..surplus);
    }
    Value::Object(short).to_string()
}

/// The epoch of the store in a report of its owner.
fn epoch(report: &Value) -> Option<u64> {
    let mut owned = report["owned"].as_array()?.iter();
    owned.find(|entry| entry["application"] == NAME)?["epoch"].as_u64()
}

/// What must be true whenever nothing is under way.
fn check(stage: &Stage<'_>, before: &Before, ended: &[(String, String)]) -> anyhow::Result<()> {
    stage.watch.saw_one_at_a_time()?;
    let at = stage.at;
    let grown: u64 = ended
        .iter()
        .map(|(state, _)| match state.as_str() {
            "done" => 1,
            "returned" => 2,
            _ => 0,
        })
        .sum();
    let now = epoch(&stage.report(at)?).context("the owner has no epoch")?;
    ensure!(
        now == before.epoch + grown,
        "epoch {} became {now} with {ended:?}",
        before.epoch
    );
    let running = stage.groups.running();
    let alone = (1..)
        .zip(&running)
        .all(|(number, count)| *count == usize::from(number == at));
    ensure!(
        alone,
        "the owner is h{at}, and instances by host are {running:?}"
    );
    stage.serves()?;
    // A destination that did not hear that the move is over asks after it.
    let mut left = Vec::new();
    wait_until("nothing is left over", PATIENCE, || {
        left = leftovers(stage);
        Ok(left.is_empty())
    })
    .with_context(|| left.join("\n"))?;
    let mut found = Value::Null;
    wait_until("no garbage is found", PATIENCE, || {
        found = stage.ask(3, "GET", "/v1/gc")?;
        is_clean(&found)
    })
    .with_context(|| found.to_string())
}

/// Whether every host answered, and none has anything that nobody needs.
fn is_clean(found: &Value) -> anyhow::Result<bool> {
    let mut hosts = found["hosts"].as_array().context("no hosts")?.iter();
    Ok(hosts.all(|host| {
        host["problem"].is_null()
            && ["garbage", "doubts"]
                .iter()
                .all(|key| host[key].as_array().is_some_and(Vec::is_empty))
    }))
}

/// What lies in the pools and should not.
fn leftovers(stage: &Stage<'_>) -> Vec<String> {
    let at = stage.at;
    let mut left = Vec::new();
    let mut note = |wrong: bool, text: String| left.extend(wrong.then_some(text));
    for number in [1, 2] {
        let live = stage.pool(number, "live").len();
        note(
            live != usize::from(number == at),
            format!("{live} live trees on h{number}, the owner is h{at}"),
        );
        let received = stage.pool(number, "recv");
        note(
            !received.is_empty(),
            format!("half received on h{number}: {received:?}"),
        );
        let kept = stage.pool(number, "snap");
        note(
            kept.len() > 1,
            format!("more than the common base on h{number}: {kept:?}"),
        );
    }
    let (ours, theirs) = (stage.pool(1, "snap"), stage.pool(2, "snap"));
    note(
        !ours.is_empty() && !theirs.is_empty() && ours != theirs,
        format!("no common base: {ours:?} and {theirs:?}"),
    );
    left
}
