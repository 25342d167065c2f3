//! The four answers to rounds that do not shrink.

use anyhow::ensure;
use rehome_tests::lab::{Runtime, with_lab};
use rehome_tests::wait::wait_until;
use serde_json::json;

use crate::writer::{NAME, PATIENCE, Stage, holds, nothing_is_held, serves};

#[test]
fn abort_gives_up_when_the_rounds_do_not_shrink() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let stage = Stage::begin(lab, &json!({"on_stall": "abort"}))?;
        stage.given_up("on_stall is abort").map(drop)
    })
}

#[test]
fn cutover_gives_up_what_does_not_fit_the_hard_cap_and_takes_what_does() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let stage = Stage::begin(lab, &json!({"on_stall": "cutover"}))?;
        stage.given_up("over the hard cap of 4.0 s")?;
        let patient = json!({"on_stall": "cutover", "hard_cap": "60s"});
        Stage::begin(lab, &patient)?.arrived().map(drop)
    })
}

#[test]
fn wait_goes_on_until_the_application_calms_down() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        // The cap is not what it waits for.
        let patient = json!({"on_stall": "wait", "hard_cap": "60s"});
        let stage = Stage::begin(lab, &patient)?;
        // More rounds than max_rounds allows to the others.
        stage.wait("a fourth round", |m| {
            m.0["now"]["round"].as_u64() >= Some(4)
        })?;
        serves(lab, 1)?;
        stage.calm()?;
        stage.arrived().map(drop)
    })
}

#[test]
fn wait_gives_up_when_the_application_never_calms_down() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let stage = Stage::begin(lab, &json!({"on_stall": "wait", "max_rounds": 1}))?;
        let migration = stage.given_up("did not calm down")?;
        let rounds = migration.0["rounds"].as_array().map_or(0, Vec::len);
        ensure!(rounds == 8, "{migration:?}");
        Ok(())
    })
}

#[test]
fn throttle_makes_the_rounds_shrink_where_cutover_gives_up() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        // The window itself may take its time, if only it is foreseen as a short one.
        let patient = json!({"on_stall": "throttle", "hard_cap": "60s"});
        let stage = Stage::begin(lab, &patient)?;
        if holds(lab.host(1)?)?.is_none() {
            eprintln!("SKIPPED: groups of this lab have no controller for the processor");
            return Ok(());
        }
        let held = stage.wait("it is held back", |m| m.0["throttled"].as_u64() >= Some(20))?;
        ensure!(held.state() == "running", "{held:?}");
        ensure!(
            holds(lab.host(1)?)?.is_some_and(|held| held.len() == 1),
            "said and not done: {held:?}"
        );
        serves(lab, 1)?;
        let migration = stage.arrived()?;
        let percent = migration.0["throttled"].as_u64();
        ensure!(percent >= Some(20) && percent <= Some(99), "{migration:?}");
        let predicted = migration.0["predicted_window"].as_f64();
        ensure!(
            predicted <= Some(4.0),
            "the rounds did not shrink: {migration:?}"
        );
        Ok(())
    })
}

#[test]
fn nothing_stays_held_when_the_daemon_or_the_move_ends() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let stage = Stage::begin(lab, &json!({"on_stall": "throttle"}))?;
        let host = lab.host(1)?;
        if holds(host)?.is_none() {
            eprintln!("SKIPPED: groups of this lab have no controller for the processor");
            return Ok(());
        }
        let is_held = |m: &rehome_tests::cluster::Migration| m.0["throttled"].as_u64() >= Some(20);
        let migration = stage.wait("it is held back", is_held)?;

        let old = host.daemon("migrated")?;
        host.hold("migrated")?;
        host.kill_daemon("migrated")?;
        ensure!(
            holds(host)?.is_some_and(|held| !held.is_empty()),
            "nothing was held"
        );
        host.let_go("migrated")?;
        wait_until("the next daemon lets it go", PATIENCE, || {
            Ok(holds(host)?.is_some_and(|held| held.is_empty()))
        })?;
        host.wait_daemon("migrated", old)?;

        // The move goes on, and holds it again, until it is called off.
        stage.wait("it is held back again", is_held)?;
        lab.rehome(&["abort", migration.id(), "--json"])?.ok()?;
        nothing_is_held(host)?;
        serves(lab, 1)?;
        let after = lab.wait_running(NAME, 1)?;
        ensure!(after.run() == stage.before.run(), "restarted: {after:?}");
        Ok(())
    })
}
