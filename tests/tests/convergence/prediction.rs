//! What `--dry-run` says of a move, beside what the move then is: its shape, never its time.

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::load::block_on;
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::wait_until;
use serde_json::Value;

use crate::writer::{NAME, PATIENCE, PORT};

/// What is predicted for a move to a host.
fn predicted(lab: &Lab, host: usize) -> anyhow::Result<Value> {
    let to = lab.host(host)?.address();
    let told = lab
        .rehome(&["move", NAME, "--to", to, "--dry-run", "--json"])?
        .ok()?
        .json()?;
    let number = |value: &Value| value.as_f64().with_context(|| format!("{told}"));
    let window = number(&told["window_seconds"])?;
    let sum = number(&told["window"]["platform"])? + number(&told["window"]["application"])?;
    ensure!(window > 0.0 && (window - sum).abs() < 1e-6, "{told}");
    ensure!(number(&told["bandwidth"])? > 0.0, "{told}");
    ensure!(number(&told["copy_seconds"])? >= 0.0, "{told}");
    ensure!(told["rounds"].as_u64() >= Some(2), "{told}");
    ensure!(told["dirty_rate"].is_u64(), "{told}");
    ensure!(told["gives_up"].is_null(), "{told}");
    Ok(told)
}

#[test]
fn a_dry_run_says_what_a_move_sends_and_how_it_is_made_up() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        lab.deploy(&Deployment::new().with(NAME, 1, &Redis.body(PORT)))?
            .ok()?;
        lab.wait_running(NAME, 1)?;
        let door = lab.host(1)?.door(PORT)?;
        block_on(Redis.ballast(door, 24))?;

        let first = predicted(lab, 2)?;
        ensure!(
            first["delta"] == false && first["base"].is_null(),
            "{first}"
        );
        let all = first["bytes"].as_u64().unwrap_or_default();
        ensure!(all >= 24 << 20, "{first}");
        ensure!(lab.migrations()?.is_empty(), "a dry run moved something");

        lab.move_to(NAME, 2)?.ok()?;

        lab.wait_running(NAME, 2)?;
        let moved = lab.last_migration()?;
        ensure!(
            moved.0["predicted_window"].as_f64() > Some(0.0),
            "{moved:?}"
        );
        ensure!(moved.window()? > 0.0, "{moved:?}");
        let shown = lab.rehome(&["migrations", moved.id()])?.ok()?;
        shown.saying(", predicted ")?;
        wait_until("its prediction is held against it", PATIENCE, || {
            let metrics = lab.host(1)?.metrics("migrated")?;
            let count = "rehome_migration_window_error_seconds_count";
            let mut lines = metrics.lines();
            Ok(lines.any(|line| line.starts_with(count) && line.ends_with(" 1")))
        })?;

        // On the way back only the difference from what both sides have.
        block_on(Redis.ballast(door, 2))?;
        let back = predicted(lab, 1)?;
        ensure!(back["delta"] == true, "{back}");
        let base = back["base"].as_str().unwrap_or_default();
        ensure!(base.contains(moved.id()), "{back}");
        let bytes = back["bytes"].as_u64().unwrap_or_default();
        ensure!(bytes >= 2 << 20 && bytes < all / 2, "{back}");
        Ok(())
    })
}
