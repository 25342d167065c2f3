//! A host loses its journal: it starts nothing and gives nothing away until a new one is made of
//! the stamps in its pool and of what the other hosts say. Then one host runs the application,
//! with all that was acknowledged.

mod left;
mod replaced;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::lab::{Host, Lab};
use rehome_tests::load::Load;
use rehome_tests::program::Outcome;
use rehome_tests::store::{Redis, Store};
use rehome_tests::wait::{wait_for, wait_until};

use crate::ambush::Side;
use crate::hold::Hold;
use crate::scene::{NAME, Scene, on_stage};

const PATIENCE: Duration = Duration::from_mins(3);

/// Whose journal is lost, the fail point that its daemon waits at then, and what may be decided. C1
/// lies between `final_delta` and `adopt` on the source.
const MOMENTS: [(Side, &str, &[&str]); 7] = [
    (Side::Source, "phase/precopy/before", &[OWNER]),
    (Side::Source, "phase/park/before", &[OWNER]),
    (Side::Source, "phase/final_delta/before", &[OWNER]),
    (Side::Source, "phase/adopt/before", &[RELEASED]),
    (
        Side::Source,
        "phase/clean_up/before",
        &[RELEASED, "owns it, at epoch"],
    ),
    (
        Side::Destination,
        "journal/destination/adopted/after",
        &[OWNER, "given back to"],
    ),
    (
        Side::Destination,
        "journal/destination/serving/after",
        &[OWNER],
    ),
];
const OWNER: &str = "store: owner at epoch";
const RELEASED: &str = "store: released to";

/// The journal, and how it is lost.
const JOURNAL: &str = "/var/lib/rehome/migrated/journal";

#[test]
fn a_host_that_lost_its_journal_starts_nothing_until_there_is_a_new_one() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let load = Load::start(scene.store, &scene.doors, 6)?;
        load.wait_served(30)?;
        let (host, before) = (scene.lab.host(1)?, scene.lab.application(NAME)?);

        let rebuild = lose(host, &format!("rm {JOURNAL}"))?;
        refuses(scene.lab, host, "--rebuild-journal")?;
        host.hold("migrated")?;
        let other = scene.lab.host(3)?;
        let held = other.daemon("migrated")?;
        other.hold("migrated")?;
        other.kill_daemon("migrated")?;
        run(host, &rebuild)?
            .with_status(1)?
            .saying(other.address())?;
        other.let_go("migrated")?;
        other.wait_daemon("migrated", held)?;
        run(host, &rebuild)?.ok()?;
        // What can be read is not made anew.
        run(host, &rebuild)?
            .with_status(1)?
            .saying("nothing was changed")?;
        back(host)?;

        let after = scene.lab.wait_running(NAME, 1)?;
        ensure!(
            after.run() == before.run(),
            "restarted for nothing: {after:?}"
        );
        ensure!(after.epoch == before.epoch, "{after:?}");
        load.wait_served(20)?;
        // And damaged in its middle, and with the deployment lost too.
        let damage = format!("printf X | dd of={JOURNAL} bs=1 seek=30 conv=notrunc 2>/dev/null");
        let rebuild = lose(host, &damage)?;
        refuses(scene.lab, host, "cannot be believed")?;
        host.hold("migrated")?;
        run(host, &rebuild)?.ok()?.saying("journal.damaged-")?;
        back(host)?;
        let rebuild = lose(
            host,
            "rm /var/lib/rehome/migrated/journal /var/lib/rehome/migrated/desired.json",
        )?;
        refuses(scene.lab, host, "the pool holds volumes of store")?;
        host.hold("migrated")?;
        run(host, &rebuild)?.with_status(1)?.saying("--ask")?;
        let ask = format!("{rebuild} --ask {}", other.address());
        run(host, &ask)?.ok()?;
        back(host)?;
        let after = scene.lab.wait_running(NAME, 1)?;
        ensure!(
            after.run() == before.run(),
            "restarted for nothing: {after:?}"
        );
        scene.lab.move_to(NAME, 2)?.ok().context("and it moves")?;
        load.wait_served(20)?;
        let tally = load.stop_and_verify(&scene.doors)?;
        tally.all_served()
    })
}

#[test]
fn a_journal_is_lost_in_the_middle_of_a_move() -> anyhow::Result<()> {
    on_stage(Redis, &["--faulty"], |scene| {
        scene.open(&scene.alone(1))?;
        let load = Load::start(scene.store, &scene.doors, 6)?;
        load.wait_served(30)?;
        let mut at = 1;
        for (side, point, verdicts) in MOMENTS {
            let to = 3 - at;
            let moment = format!("the {side:?} is at {point} on the way from h{at} to h{to}");
            let (now, said) =
                move_and_lose(scene, (side, point), (at, to)).with_context(|| moment.clone())?;
            let fits = verdicts.iter().any(|verdict| said.contains(verdict));
            ensure!(fits, "{moment}: {said}");
            at = now;
            load.wait_served(20).with_context(|| moment)?;
        }
        scene
            .lab
            .move_to(NAME, 3)?
            .ok()
            .context("and a move without trouble")?;
        load.wait_served(20)?;
        load.stop_and_verify(&scene.doors)?;
        Ok(())
    })
}

/// Loses a journal on one side of a move, and returns where the store is when all is settled, and
/// what was decided.
fn move_and_lose<S: Store>(
    scene: &Scene<'_, S>,
    (side, point): (Side, &str),
    (from, to): (usize, usize),
) -> anyhow::Result<(usize, String)> {
    let host = scene
        .lab
        .host(if side == Side::Source { from } else { to })?;
    let command = command_line(host, host.daemon("migrated")?)?;
    let hold = Hold::at(host, point)?;
    let moving = scene.lab.begin_move(NAME, to)?;
    hold.wait()?;
    end(host)?;
    hold.let_go()?;
    host.shell(&format!("rm {JOURNAL}"))?;
    // A source that is just deciding is waited for.
    let made = wait_for("the journal is made anew", PATIENCE, || {
        let made = run(host, &command)?;
        if made.stderr.contains("try again in a minute") {
            return Ok(None);
        }
        made.ok().map(Some)
    })?;
    back(host)?;
    // However the move went, for who asked for it: the deployment wants it there.
    drop(moving.wait()?);
    Ok((settled(scene, (from, to))?, made.stdout))
}

/// The store runs in one place, and nothing is under way.
fn settled<S: Store>(scene: &Scene<'_, S>, hosts: (usize, usize)) -> anyhow::Result<usize> {
    let at = wait_for("one host runs it and nothing moves", PATIENCE, || {
        let moving = scene.lab.migrations()?;
        if moving
            .iter()
            .any(|m| matches!(m.state(), "running" | "blocked"))
        {
            return Ok(None);
        }
        let store = scene.lab.application(NAME)?;
        let mut all = [hosts.0, hosts.1].into_iter();
        let at = all.find(|number| {
            let host = scene.lab.host(*number).ok();
            host.is_some_and(|host| store.host.as_deref() == Some(host.address()))
        });
        // Where it is not wanted it stays only after a move that failed.
        let last = moving.iter().rev().find(|m| m.0["application"] == NAME);
        let failed = last.is_some_and(|m| matches!(m.state(), "aborted" | "returned"));
        let stays = failed || store.host == store.desired_host;
        Ok(at.filter(|_| stays && store.state == "running"))
    })?;
    for number in [hosts.0, hosts.1] {
        let host = scene.lab.host(number)?;
        let runs = host.processes()?.contains(scene.store.process());
        ensure!(
            runs == (number == at),
            "on h{number} it runs: {runs}, and it should on h{at}"
        );
        if number != at {
            host.wait_no_live_volume()?;
        }
    }
    Ok(at)
}

/// Ends `migrated` of a host, spoils its journal, and lets it start again. Returns the command
/// that makes a new one.
fn lose(host: &Host, how: &str) -> anyhow::Result<String> {
    let command = command_line(host, host.daemon("migrated")?)?;
    end(host)?;
    host.shell(how)?;
    host.let_go("migrated")?;
    Ok(command)
}

/// Ends `migrated` of a host, with its hold on the journal, and keeps it down.
fn end(host: &Host) -> anyhow::Result<()> {
    let old = host.daemon("migrated")?;
    host.hold("migrated")?;
    host.kill_daemon("migrated")?;
    wait_until("it is dead", PATIENCE, || {
        let gone = host.exec(&["test", "-e", &format!("/proc/{old}")])?;
        Ok(gone.status == 1)
    })
}

/// The command of the daemon, as the one that makes a new journal.
fn command_line(host: &Host, pid: u32) -> anyhow::Result<String> {
    let words = host.shell(&format!("tr '\\0' ' ' < /proc/{pid}/cmdline"))?;
    let (program, rest) = words
        .trim()
        .split_once(' ')
        .context("it has no arguments")?;
    Ok(format!("{program} --rebuild-journal {rest}"))
}

fn run(host: &Host, command: &str) -> anyhow::Result<Outcome> {
    host.exec(&["sh", "-c", command])
}

/// Insists that `migrated` of a host does not start, and says so.
fn refuses(lab: &Lab, host: &Host, words: &str) -> anyhow::Result<()> {
    let log = format!("grep -cF -e '{words}' {}", log_of(lab, host));
    wait_for(&format!("it says {words:?}"), PATIENCE, || {
        let outcome = rehome_tests::program::run(
            std::process::Command::new("sh").args(["-c", &log]),
            PATIENCE,
        )?;
        Ok((outcome.status == 0).then_some(()))
    })?;
    let ready = host.exec(&["curl", "-sf", "http://127.0.0.1:9420/readyz"])?;
    ensure!(ready.status != 0, "it is ready: {ready:?}");
    Ok(())
}

fn log_of(lab: &Lab, host: &Host) -> String {
    let (lab, host) = (lab.name(), host.name());
    format!("/var/lib/rehome-lab/{lab}/{host}/log/migrated.log")
}

fn back(host: &Host) -> anyhow::Result<()> {
    host.let_go("migrated")?;
    host.wait_daemon("migrated", 0)
}
