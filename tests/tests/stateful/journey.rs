//! Moves that go well.

use anyhow::ensure;
use rehome_tests::load::{Load, PARK_TIMEOUT, block_on, verify};
use rehome_tests::page;
use rehome_tests::store::Store;
use rehome_tests::wait::wait_until;
use serde_json::json;

use crate::scene::{NAME, Scene};

/// Applications that are linked to the store and one that is not, on the hosts of the journey.
pub(crate) fn a_move_takes_the_data_along_and_disturbs_no_other_application<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    let mut linked = page::body(7001, "linked");
    linked["links"] = json!([{"local_port": 5432, "remote_port": 7000, "alias": "db"}]);
    let deployment =
        scene
            .alone(1)
            .with("linked", 1, &linked)
            .with("beside", 2, &page::body(7002, "beside"));
    scene.open(&deployment)?;
    let runs = |name| scene.lab.application(name);
    let before = (runs("linked")?, runs("beside")?);
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;

    let moved = scene.lab.move_to(NAME, 2)?.ok()?.json()?;

    load.wait_served(30)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;
    ensure!(moved["migrations"][0]["state"] == "done", "{moved}");
    let store = scene.lab.wait_running(NAME, 2)?;
    ensure!(store.epoch == 2, "{store:?}");
    scene.lab.host(1)?.has_no_live_volume()?;
    let left = scene.lab.host(1)?.processes()?;
    ensure!(!left.contains(scene.store.process()), "still on h1: {left}");
    let there = scene.lab.host(2)?.processes()?;
    ensure!(there.contains(scene.store.process()), "not on h2: {there}");
    for (old, new) in [(&before.0, runs("linked")?), (&before.1, runs("beside")?)] {
        ensure!(
            old.instance.is_some() && old.run() == new.run(),
            "restarted: {old:?}, {new:?}"
        );
    }
    Ok(())
}

pub(crate) fn fifty_clients_on_three_hosts_meet_a_wait_and_no_refusal<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    scene.open(&scene.alone(1))?;
    let load = Load::start(scene.store, &scene.doors, 50)?;
    load.wait_served(200)?;

    scene.lab.move_to(NAME, 3)?.ok()?;

    load.wait_served(200)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;
    ensure!(
        tally.longest < PARK_TIMEOUT,
        "a client waited {:?}",
        tally.longest
    );
    let migration = scene.lab.last_migration()?;
    ensure!(migration.state() == "done", "{migration:?}");
    let window = migration.window()?;
    ensure!(window > 0.0, "{migration:?}");
    let connections = &migration.0["connections"];
    ensure!(connections["refused"] == 0, "{migration:?}");
    ensure!(
        connections["parked"].as_u64() > Some(0),
        "nobody was parked: {migration:?}"
    );
    for phase in [
        "prepare",
        "precopy",
        "park",
        "stop",
        "final_delta",
        "adopt",
        "start",
        "health",
    ] {
        ensure!(
            migration.0["phases"][phase].is_f64(),
            "no {phase}: {migration:?}"
        );
    }
    Ok(())
}

pub(crate) fn the_way_back_sends_a_difference<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    scene.open(&scene.alone(1))?;
    block_on(scene.store.ballast(scene.door(), 24))?;
    let load = Load::start(scene.store, &scene.doors, 4)?;
    load.wait_served(20)?;

    scene.lab.move_to(NAME, 2)?.ok()?;
    let there = scene.lab.last_migration()?;
    load.wait_served(20)?;
    scene.lab.move_to(NAME, 1)?.ok()?;
    let back = scene.lab.last_migration()?;

    load.wait_served(20)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;
    scene.lab.wait_running(NAME, 1)?;
    ensure!(there.bytes()? > 24 << 20, "{there:?}");
    ensure!(
        back.bytes()? * 3 < there.bytes()?,
        "not a difference: {back:?} after {there:?}"
    );
    ensure!(back.0["epoch"] == 3, "{back:?}");
    Ok(())
}

/// Removing an application keeps its volume; adding it back finds the data, on the same host and
/// on another one.
pub(crate) fn an_application_that_was_removed_finds_its_data_again<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    scene.open(&scene.alone(1))?;
    let load = Load::start(scene.store, &scene.doors, 4)?;
    load.wait_served(20)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;

    for host in [1, 2] {
        scene.lab.deploy(&scene.alone(1).without(NAME))?.ok()?;
        let kept = scene.lab.application(NAME)?;
        ensure!(
            kept.state == "stopped" && !kept.volumes.is_empty(),
            "{kept:?}"
        );
        for door in &scene.doors {
            wait_until(&format!("{door} is closed"), PARK_TIMEOUT, || {
                Ok(std::net::TcpStream::connect(door).is_err())
            })?;
        }
        scene.lab.deploy(&scene.alone(host))?.ok()?;
        scene.lab.wait_running(NAME, host)?;
        verify(scene.store, &scene.doors, &tally)?;
    }
    Ok(())
}
