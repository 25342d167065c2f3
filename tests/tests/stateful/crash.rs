//! Daemons and hosts that die at the worst moment.

use std::time::Duration;

use anyhow::ensure;
use rehome_tests::cluster::{Application, Migration};
use rehome_tests::deployment::{Deployment, HARD_CAP, changed};
use rehome_tests::load::{Load, block_on, verify};
use rehome_tests::store::Store;
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::json;

use crate::scene::{NAME, PORT, Scene};

const PATIENCE: Duration = Duration::from_mins(2);

pub(crate) fn migrated_dies_on_the_source_in_the_middle_of_the_copy<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    dies_in_the_middle_of_the_copy(scene, 1)
}

pub(crate) fn migrated_dies_on_the_destination_in_the_middle_of_the_copy<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    dies_in_the_middle_of_the_copy(scene, 2)
}

/// The command that submitted a move may go: the move does not. `rehome abort` calls it off.
pub(crate) fn a_move_that_is_called_off_leaves_the_application_untouched<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    let before = open_with_a_slow_copy(scene)?;
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;
    let command = scene.lab.begin_move(NAME, 2)?;
    let migration = in_the_middle_of_the_copy(scene)?;
    drop(command);
    load.wait_served(10)?;
    let still = scene.lab.last_migration()?;
    ensure!(
        still.state() == "running",
        "it went with its command: {still:?}"
    );

    let aborted = scene
        .lab
        .rehome(&["abort", migration.id(), "--json"])?
        .ok()?
        .json()?;

    ensure!(aborted["state"] == "aborted", "{aborted}");
    load.wait_served(30)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;
    let after = scene.lab.wait_running(NAME, 1)?;
    ensure!(
        after.run() == before.run(),
        "restarted for nothing: {after:?}"
    );
    scene.lab.host(2)?.has_no_live_volume()?;
    wait_until("nothing of it is left on h2", PATIENCE, || {
        let listing = "cd /var/lib/rehome/pool && find recv snap";
        let received = scene.lab.host(2)?.shell(listing)?;
        Ok(!received.contains(migration.id()))
    })?;
    // Asked for again, it goes through: not by itself.
    scene.lab.move_to(NAME, 2)?.ok()?;
    scene.lab.wait_running(NAME, 2)?;
    verify(scene.store, &scene.doors, &tally)
}

/// Deploys a store whose copy takes some seconds.
fn open_with_a_slow_copy<S: Store>(scene: &Scene<'_, S>) -> anyhow::Result<Application> {
    let slow = json!({"migration": {"bandwidth_limit": "8MiB", "hard_cap": HARD_CAP}});
    let body = changed(&scene.store.body(PORT), &slow);
    scene.open(&Deployment::new().with(NAME, 1, &body))?;
    block_on(scene.store.ballast(scene.door(), 24))?;
    scene.lab.application(NAME)
}

fn in_the_middle_of_the_copy<S: Store>(scene: &Scene<'_, S>) -> anyhow::Result<Migration> {
    wait_for("the copy is in its middle", PATIENCE, || {
        let running = |m: &Migration| m.phase() == "precopy" && m.streamed() > 4 << 20;
        Ok(scene.lab.migrations()?.into_iter().find(running))
    })
}

/// The move goes on or is called off; the application serves all the time.
fn dies_in_the_middle_of_the_copy<S: Store>(
    scene: &Scene<'_, S>,
    victim: usize,
) -> anyhow::Result<()> {
    let before = open_with_a_slow_copy(scene)?;
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;
    let command = scene.lab.begin_move(NAME, 2)?;
    in_the_middle_of_the_copy(scene)?;

    let host = scene.lab.host(victim)?;
    let old = host.daemon("migrated")?;
    host.kill_daemon("migrated")?;
    let during = host.processes()?;
    ensure!(
        victim != 1 || during.contains(scene.store.process()),
        "the application went with its daemon: {during}"
    );
    host.wait_daemon("migrated", old)?;

    let outcome = command.wait()?;
    load.wait_served(30)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;
    let migration = wait_for("the move has ended", PATIENCE, || {
        let last = scene.lab.last_migration()?;
        Ok((last.state() != "running").then_some(last))
    })?;
    match migration.state() {
        "done" => {
            outcome.with_status(0)?;
            scene.lab.wait_running(NAME, 2)?;
            scene.lab.host(1)?.has_no_live_volume()
        }
        "aborted" => {
            outcome.with_status(1)?;
            let after = scene.lab.wait_running(NAME, 1)?;
            ensure!(
                after.run() == before.run(),
                "restarted for nothing: {after:?}"
            );
            scene.lab.host(2)?.has_no_live_volume()
        }
        other => anyhow::bail!("{other}: {migration:?}"),
    }
}

pub(crate) fn the_owner_crashes_and_comes_back_with_its_data<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    let always = json!({"restart_policy": {"name": "always"}});
    let body = changed(&scene.store.body(PORT), &always);
    scene.open(&Deployment::new().with(NAME, 1, &body))?;
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;
    let host = scene.lab.host(1)?;

    host.crash()?;
    wait_until("it alone does not answer", PATIENCE, || {
        let status = ["status", "--json"];
        let seen = scene.lab.host(2)?.rehome(&status)?.ok()?.json()?;
        let silent = seen["hosts"].as_array().into_iter().flatten();
        let silent: Vec<_> = silent.filter(|entry| entry["reachable"] == false).collect();
        Ok(silent.len() == 1 && silent[0]["address"] == host.address())
    })?;
    host.start()?;

    scene.lab.wait_running(NAME, 1)?;
    load.wait_served(30)?;
    // Requests in flight fail with their host; what was acknowledged is there.
    let tally = load.stop_and_verify(&scene.doors)?;
    ensure!(tally.unanswered == 0, "{tally:?}");
    Ok(())
}
