//! A journal is made anew while nobody can be certain who owns one of the applications: the others
//! get theirs, and an operator decides about that one.

use anyhow::{Context as _, ensure};
use rehome_tests::lab::{Host, Lab};
use rehome_tests::load::block_on;
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::Value;

use super::{JOURNAL, PATIENCE, back, lose, run};
use crate::scene::{NAME, PORT, Scene, on_stage};

const OTHER: &str = "other";

/// What stands on the store's volume is copied, and brought back later.
const COPY: &str = "cd /var/lib/rehome/pool/meta && mkdir /var/lib/rehome/old && \
    cp $(grep -l '\"store\"' *) /var/lib/rehome/old/";
const OLD_POOL: &str = "cp /var/lib/rehome/old/* /var/lib/rehome/pool/meta/";

#[test]
fn one_application_that_is_undecided_keeps_no_other_from_its_journal() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        let command = leave_it_undecided(scene)?;
        go_on_with_what_is_here(scene, scene.lab.host(1)?, &command)
    })
}

#[test]
fn another_host_goes_on_with_its_copy_of_what_was_left_undecided() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        leave_it_undecided(scene)?;
        let lab = scene.lab;
        let fenced = format!("{}@3", lab.host(1)?.address());
        let to = lab.host(2)?.address();
        let words = ["failover", NAME, "--to", to, "--fenced", &fenced];
        let accepted = [&words[..], &["--accept-loss"]].concat();
        lab.host(3)?.rehome(&accepted)?.ok()?;
        let there = lab.wait_running(NAME, 2)?;
        ensure!(there.epoch == 4, "{there:?}");
        the_copy_is_removed_when_it_is_asked_for(lab)
    })
}

/// What was left undecided is another host's then, and what it alone holds is kept for people.
fn the_copy_is_removed_when_it_is_asked_for(lab: &Lab) -> anyhow::Result<()> {
    let listed = |arguments: &[&str]| -> anyhow::Result<Vec<Value>> {
        let words = [&["gc", "--json"], arguments].concat();
        let found = lab.rehome(&words)?.ok()?.json()?;
        let hosts = found["hosts"].as_array().into_iter().flatten();
        let copies = hosts.filter_map(|host| host["diverged"].as_array().cloned());
        Ok(copies.flatten().collect())
    };
    wait_until("its tree is set aside and listed", PATIENCE, || {
        Ok(listed(&["--dry-run"])?.len() == 1)
    })?;
    ensure!(listed(&[])?.len() == 1, "without its name it stays");
    let other = listed(&["--diverged", OTHER])?;
    ensure!(other.is_empty(), "another one's: {other:?}");
    let dry = listed(&["--diverged", NAME, "--dry-run"])?;
    ensure!(dry.len() == 1 && dry[0]["removed"] == false, "{dry:?}");
    let removed = listed(&["--diverged", NAME])?;
    ensure!(
        removed.len() == 1 && removed[0]["removed"] == true,
        "{removed:?}"
    );
    ensure!(listed(&["--dry-run"])?.is_empty());
    let left = lab.host(1)?.shell("ls /var/lib/rehome/pool/diverged")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// The store has been at the second host and back, and nobody can be certain of it.
fn leave_it_undecided(scene: &Scene<'_, Redis>) -> anyhow::Result<String> {
    let lab = scene.lab;
    let other = scene.store.body(PORT + 1);
    scene.open(&scene.alone(1).with(OTHER, 1, &other))?;
    let before = lab.wait_running(OTHER, 1)?;
    // Its epoch is 3 then, and an old copy of the pool says 1.
    lab.host(1)?.shell(COPY)?;
    lab.move_to(NAME, 2)?.ok()?;
    lab.move_to(NAME, 1)?.ok()?;
    lab.wait_running(NAME, 1)?;
    block_on(scene.store.add(scene.door(), "w-kept", None))?;

    let host = lab.host(1)?;
    let rebuild = lose(host, &format!("{OLD_POOL}; rm {JOURNAL}"))?;
    host.hold("migrated")?;
    let leave = format!("--leave {NAME}");
    let refused = run(host, &rebuild)?.with_status(1)?;
    refused.saying("is the pool an old copy?")?.saying(&leave)?;
    let made = run(host, &format!("{rebuild} {leave}"))?.with_status(1)?;
    made.saying("other: owner at epoch 1")?
        .saying("store: left undecided")?;
    back(host)?;

    let after = lab.wait_running(OTHER, 1)?;
    ensure!(
        after.run() == before.run(),
        "restarted for nothing: {after:?}"
    );
    // What stands here holds more than what the second host keeps, which is named as well.
    let command = blocked(lab, NAME)?;
    let here = host.address();
    let wanted = format!("rehome failover {NAME} --to {here} --fenced {here}@3 --accept-loss");
    ensure!(command == wanted, "{command}");
    let reason = lab.application(NAME)?.reason.unwrap_or_default();
    let copy = format!("--to {} --fenced {here}@3", lab.host(2)?.address());
    ensure!(reason.contains(&copy), "{reason}");
    one_store_runs_on(host)?;
    let trees = host.shell("ls /var/lib/rehome/pool/live")?;
    ensure!(trees.lines().count() == 2, "{trees}");
    Ok(command)
}

/// The operator decides that this host goes on with what is in its pool, as the status names it.
fn go_on_with_what_is_here(
    scene: &Scene<'_, Redis>,
    host: &Host,
    command: &str,
) -> anyhow::Result<()> {
    let (lab, here) = (scene.lab, host.address());
    let fenced = format!("{here}@3");
    let words = ["failover", NAME, "--to", here, "--fenced", &fenced];
    let asked = lab.host(3)?.rehome(&words)?.with_status(1)?;
    asked.saying("--accept-loss")?;
    lab.host(3)?.shell(command)?;
    let again = lab.wait_running(NAME, 1)?;
    ensure!(again.epoch == 4, "{again:?}");
    let kept = block_on(scene.store.words(scene.door()))?;
    ensure!(kept.contains("w-kept"), "{kept:?}");
    let hosts = lab.status()?["hosts"].clone();
    ensure!(!hosts.to_string().contains("\"fenced\":true"), "{hosts}");
    lab.move_to(NAME, 3)?.ok().context("and it moves")?;
    Ok(())
}

/// Waits until an application is blocked with a command, and returns that.
pub(super) fn blocked(lab: &Lab, name: &str) -> anyhow::Result<String> {
    wait_for("it is blocked, with a command", PATIENCE, || {
        // A host that lost everything is told the deployment by the others.
        let Ok(seen) = lab.application(name) else {
            return Ok(None);
        };
        let reason = seen.reason.unwrap_or_default();
        let said = reason.split_once("run: ");
        let Some((_, rest)) = said.filter(|_| seen.state == "blocked") else {
            return Ok(None);
        };
        let command = rest.split_once(" (").map_or(rest, |(command, _)| command);
        Ok(Some(command.to_owned()))
    })
}

fn one_store_runs_on(host: &Host) -> anyhow::Result<()> {
    wait_until("only the other one runs", PATIENCE, || {
        Ok(host.processes()?.matches("redis-server 0.0.0.0").count() == 1)
    })
}
