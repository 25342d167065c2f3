//! Several moves at once: each application in its own hand, and no host overrun.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use rehome_tests::cluster::Migration;
use rehome_tests::deployment::{Deployment, HARD_CAP, changed};
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::load::{Load, block_on};
use rehome_tests::store::{Redis, Store as _};
use serde_json::json;

/// Three stores: name, port, and the hosts between which each moves.
type Plan = [(&'static str, u16, usize, usize); 3];

/// Each is copied for six seconds at least, so that all are on their way at the same time however
/// late one begins.
fn deployment(plan: &Plan, after: bool) -> Deployment {
    let slow = json!({"migration": {"bandwidth_limit": "4MiB", "hard_cap": HARD_CAP}});
    plan.iter()
        .fold(Deployment::new(), |all, (name, port, from, to)| {
            let host = if after { to } else { from };
            all.with(name, *host, &changed(&Redis.body(*port), &slow))
        })
}

/// Asks for all moves with one deployment.
fn by_deployment(lab: &Lab, plan: &Plan) -> anyhow::Result<()> {
    lab.deploy(&deployment(plan, true))?.ok()?;
    Ok(())
}

/// Asks for each move by itself, in another host and all at the same instant; each command ends
/// well and tells of its own move only. Two that come at the same instant find out when they tell
/// the others: what one of them has begun by then is called off, and made in the other's deployment.
fn by_moves(lab: &Lab, plan: &Plan) -> anyhow::Result<()> {
    let mut begun = Vec::new();
    for (at, (name, _, _, to)) in (1..).zip(plan) {
        let to = lab.host(*to)?.address();
        let words = ["rehome", "move", name, "--to", to, "--json"];
        begun.push((name, lab.host(at)?.begin(&words)?));
    }
    for (name, running) in begun {
        let told = running.wait()?.ok()?.json()?;
        let own = told["migrations"].as_array().context("no migrations")?;
        let done = own.iter().filter(|m| m["state"] == "done").count();
        ensure!(
            done == 1 && own.iter().all(|m| m["application"] == *name),
            "{told}"
        );
    }
    Ok(())
}

/// Moves the stores under load, each with something to copy; nobody is refused and nothing lost.
fn all_at_once(
    lab: &Lab,
    plan: &Plan,
    ask: fn(&Lab, &Plan) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Migration>> {
    lab.deploy(&deployment(plan, false))?.ok()?;
    let mut loads = Vec::new();
    for (name, port, from, _) in plan {
        lab.wait_running(name, *from)?;
        let doors: Vec<SocketAddr> = lab.doors(*port)?;
        block_on(Redis.ballast(doors[0], 24))?;
        let load = Load::start(Redis, &doors, 3)?;
        load.wait_served(9)?;
        loads.push((load, doors));
    }

    ask(lab, plan)?;

    for (load, doors) in loads {
        load.wait_served(9)?;
        load.stop_and_verify(&doors)?.all_served()?;
    }
    for (name, _, from, to) in plan {
        let moved = lab.wait_running(name, *to)?;
        ensure!(moved.epoch == 2, "{name}: {moved:?}");
        let here = lab.host(*from)?.processes()?;
        let comes = plan.iter().any(|(_, _, _, other)| other == from);
        ensure!(comes || !here.contains("redis-server"), "left: {here}");
    }
    let migrations = lab.migrations()?;
    let done = migrations.iter().filter(|m| m.state() == "done").count();
    let overtaken = migrations.iter().filter(|m| was_overtaken(m)).count();
    ensure!(
        done == 3 && done + overtaken == migrations.len(),
        "{migrations:?}"
    );
    Ok(migrations)
}

/// Whether it was called off for a newer deployment before a byte had moved.
fn was_overtaken(migration: &Migration) -> bool {
    let error = migration.0["error"].as_str().unwrap_or_default();
    let begun = migration.0["bytes"].as_u64() != Some(0);
    migration.state() == "aborted" && error.contains("does not want it on") && !begun
}

#[test]
fn three_applications_move_at_once_between_two_hosts_under_load() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let plan = [("a", 7001, 1, 2), ("b", 7002, 1, 2), ("c", 7003, 2, 1)];
        let migrations = all_at_once(lab, &plan, by_deployment)?;
        ensure!(migrations.len() == 3, "{migrations:?}");
        Ok(())
    })
}

#[test]
fn several_move_commands_at_once_each_end_well_with_their_own_report() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        all_at_once(
            lab,
            &[("a", 7001, 1, 2), ("b", 7002, 1, 3), ("c", 7003, 2, 1)],
            by_moves,
        )
        .map(drop)
    })
}

/// Two hosts give, one takes: as many come there at a time as it may take, and the others wait.
#[test]
fn what_comes_to_a_busy_host_waits_for_its_turn() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let plan = [("a", 7001, 1, 2), ("b", 7002, 1, 2), ("c", 7003, 3, 2)];
        let migrations = all_at_once(lab, &plan, by_deployment)?;
        ensure!(migrations.len() == 3, "{migrations:?}");
        let waited = |m: &&Migration| m.0["phases"]["queue"].as_f64() > Some(0.0);
        let turn = migrations.iter().find(waited);
        turn.with_context(|| format!("nobody waited: {migrations:?}"))?;
        Ok(())
    })
}
