//! A daemon or a host dies at each step of a move, on either side: whatever step it was, the
//! application runs in one place with all that was acknowledged. Clients
//! notice nothing of a migrated that dies.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::lab::{Host, Lab};
use rehome_tests::load::Load;
use rehome_tests::program::{self, Running};
use rehome_tests::store::{Redis, Store};
use rehome_tests::wait::{wait_for, wait_until};

use crate::scene::{NAME, Scene, on_stage};

const PATIENCE: Duration = Duration::from_mins(2);

/// Who dies, and what its log says then.
const MOMENTS: [(Side, &str); 11] = [
    (Side::Source, "migration is under way"),
    (Side::Source, "phase=\"precopy\""),
    (Side::Source, "phase=\"park\""),
    (Side::Source, "phase=\"drain\""),
    (Side::Source, "phase=\"stop\""),
    (Side::Source, "phase=\"final_delta\""),
    (Side::Source, "phase=\"adopt\""),
    (Side::Source, "phase=\"clean_up\""),
    (Side::Destination, "this host is the owner now"),
    (Side::Destination, "the application is healthy here"),
    (Side::Destination, "clients are served here"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// A daemon; its host and the applications live on.
    Daemon(&'static str),
    /// The whole host, which comes back with its disk.
    Host,
}

#[test]
fn migrated_dies_at_every_step_of_a_move() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        let load = sweep(scene, Victim::Daemon("migrated"))?;
        let tally = load.stop_and_verify(&scene.doors)?;
        tally.all_served()
    })
}

#[test]
fn proxyd_dies_at_every_step_of_a_move() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        let load = sweep(scene, Victim::Daemon("proxyd"))?;
        // Its connections end with it, and new ones are refused until it is back.
        let tally = load.stop_and_verify(&scene.doors)?;
        ensure!(tally.unanswered == 0, "{} had no answer", tally.unanswered);
        Ok(())
    })
}

#[test]
fn a_host_dies_at_every_step_of_a_move() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        let load = sweep(scene, Victim::Host)?;
        // Requests in flight fail with their host. What was acknowledged is there.
        let tally = load.stop_and_verify(&scene.doors)?;
        ensure!(tally.unanswered == 0, "{} had no answer", tally.unanswered);
        Ok(())
    })
}

/// Moves the store back and forth, once for each moment.
fn sweep<S: Store>(scene: &Scene<'_, S>, victim: Victim) -> anyhow::Result<Load<S>> {
    scene.open(&scene.alone(1))?;
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;
    let mut at = 1;
    for (side, words) in MOMENTS {
        let to = 3 - at;
        let moment = format!("the {side:?} said {words:?} on the way from h{at} to h{to}");
        let blow = Blow {
            victim,
            side,
            words,
        };
        at = move_and_kill(scene, blow, (at, to)).with_context(|| moment.clone())?;
        load.wait_served(20).with_context(|| moment)?;
    }
    scene
        .lab
        .move_to(NAME, 3)?
        .ok()
        .context("and a move without trouble")?;
    load.wait_served(20)?;
    for number in [1, 2, 3] {
        // One common base per host that had it, and nothing received by halves.
        let script = "cd /var/lib/rehome/pool; find snap -mindepth 2 -maxdepth 2; \
                      find recv -mindepth 2 -maxdepth 2";
        let left = scene.lab.host(number)?.shell(script)?;
        ensure!(left.lines().count() <= 1, "left on h{number}:\n{left}");
    }
    Ok(load)
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Blow {
    pub(crate) victim: Victim,
    pub(crate) side: Side,
    pub(crate) words: &'static str,
}

/// Moves the store while one side dies, and returns where it is then.
fn move_and_kill<S: Store>(
    scene: &Scene<'_, S>,
    blow: Blow,
    (from, to): (usize, usize),
) -> anyhow::Result<usize> {
    let host = scene
        .lab
        .host(if blow.side == Side::Source { from } else { to })?;
    let old = match blow.victim {
        Victim::Daemon(name) => host.daemon(name)?,
        Victim::Host => scene.lab.first_process(host)?,
    };
    let killer = lie_in_wait(scene.lab, host, blow, old)?;
    let count = scene.lab.migrations()?.len();

    let command = scene.lab.begin_move(NAME, to)?;
    killer.wait()?.ok()?;
    match blow.victim {
        Victim::Daemon(name) => host.wait_daemon(name, old)?,
        Victim::Host => {
            // Returns when the last of its processes is gone.
            host.crash()?;
            host.start()?;
        }
    }
    let outcome = command.wait()?;

    let migration = wait_for("the move has ended", PATIENCE, || {
        let all = scene.lab.migrations()?;
        ensure!(all.len() <= count + 1, "moved by itself: {all:?}");
        let last = all.into_iter().nth(count);
        Ok(last.filter(|m| !matches!(m.state(), "running" | "blocked")))
    })?;
    let (at, status) = match migration.state() {
        "done" => (to, 0),
        "aborted" | "returned" => (from, 1),
        other => anyhow::bail!("{other}: {migration:?}"),
    };
    outcome.with_status(status)?;
    scene.lab.wait_running(NAME, at)?;
    for number in [1, 2] {
        let host = scene.lab.host(number)?;
        let runs = host.processes()?.contains(scene.store.process());
        ensure!(
            runs == (number == at),
            "on h{number} it runs: {runs}; {migration:?}"
        );
        if number != at {
            host.has_no_live_volume()?;
        }
    }
    Ok(at)
}

/// Waits until the log of `migrated` on a host says the words once more, and kills then.
pub(crate) fn lie_in_wait(lab: &Lab, host: &Host, blow: Blow, pid: u32) -> anyhow::Result<Running> {
    let log = format!(
        "/var/lib/rehome-lab/{}/{}/log/migrated.log",
        lab.name(),
        host.name()
    );
    let count = format!("grep -cF '{}' {log}", blow.words);
    let line = format!(
        "before=$({count} || true); echo ready; \
         while [ \"$({count} || true)\" = \"$before\" ]; do :; done; kill -KILL {pid}"
    );
    let killer = match blow.victim {
        Victim::Daemon(_) => host.begin(&["sh", "-ec", &line])?,
        // A host cannot kill its own first process.
        Victim::Host => program::start(Command::new("sh").args(["-ec", &line]), PATIENCE)?,
    };
    wait_until("the killer lies in wait", PATIENCE, || {
        Ok(killer.said()?.contains("ready"))
    })?;
    Ok(killer)
}
