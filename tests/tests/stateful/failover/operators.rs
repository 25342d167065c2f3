//! What operators say at once, of more than one host, and of a machine that is not the same any more.

use std::process::Command;

use anyhow::{Context as _, ensure};
use rehome_tests::load::block_on;
use rehome_tests::program;
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::wait_for;

use super::{PATIENCE, at_once, blocked, gives_way, goes_on, nothing_runs_on, only, runs_on};
use crate::scene::{NAME, on_stage};

#[test]
fn of_two_operators_who_name_different_hosts_one_succeeds() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let old = at_once(scene, "w-old")?;
        // So h2 and h3 both keep a copy.
        for host in [2, 3, 1] {
            scene.lab.move_to(NAME, host)?.ok()?;
        }
        let (one, two, three) = (scene.lab.host(1)?, scene.lab.host(2)?, scene.lab.host(3)?);
        one.crash()?;
        let told = blocked(two, one.address())?;
        let epoch = application_epoch(&told)?;
        let begun = [two, three]
            .into_iter()
            .map(|to| {
                let fenced = format!("{}@{epoch}", one.address());
                to.begin(&[
                    "rehome",
                    "failover",
                    NAME,
                    "--to",
                    to.address(),
                    "--fenced",
                    &fenced,
                    "--accept-loss",
                ])
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let ended = begun
            .into_iter()
            .map(program::Running::wait)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let done: Vec<usize> = (2..)
            .zip(&ended)
            .filter(|(_, outcome)| outcome.status == 0)
            .map(|(number, _)| number)
            .collect();
        let &[owner] = done.as_slice() else {
            anyhow::bail!("not one of them succeeded: {ended:?}");
        };
        let now = runs_on(scene.lab, 5 - owner, owner)?;
        ensure!(now.epoch == epoch + 1, "{now:?}");
        let other = scene.lab.host(5 - owner)?;
        ensure!(
            !other.processes()?.contains(scene.store.process()),
            "two run"
        );
        other.has_no_live_volume()?;
        let words = block_on(scene.store.words(scene.doors[owner - 1]))?;
        ensure!(words.contains(&old), "{words:?}");
        one.start()?;
        nothing_runs_on(scene, 1)?;
        goes_on(scene, owner, 1, &only(&old))
    })
}

#[test]
fn two_hosts_that_are_gone_are_fenced_by_one_command() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let old = at_once(scene, "w-old")?;
        scene.lab.move_to(NAME, 2)?.ok()?;
        scene.lab.move_to(NAME, 1)?.ok()?;
        let (one, two, three) = (scene.lab.host(1)?, scene.lab.host(2)?, scene.lab.host(3)?);
        one.crash()?;
        three.crash()?;
        let also = format!(" --also-fenced {}", three.address());
        let command = wait_for("the command names both", PATIENCE, || {
            let command = blocked(two, one.address())?;
            Ok(command.contains(&also).then_some(command))
        })?;
        let without = command.replace(&also, "");
        let words: Vec<&str> = without.split(' ').collect();
        let refused = two.exec(&words)?.with_status(1)?;
        refused.saying(&format!("add --also-fenced {}", three.address()))?;

        two.shell(&command)?;

        let now = runs_on(scene.lab, 2, 2)?;
        ensure!(now.epoch == 4, "{now:?}");
        let words = block_on(scene.store.words(scene.doors[1]))?;
        ensure!(words.contains(&old), "{words:?}");
        for number in [1, 3] {
            scene.lab.host(number)?.start()?;
        }
        for number in [1, 3] {
            nothing_runs_on(scene, number)?;
        }
        goes_on(scene, 2, 3, &only(&old))
    })
}

#[test]
fn a_machine_that_was_replaced_does_not_stand_in_the_way_of_a_copy() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let old = at_once(scene, "w-old")?;
        scene.lab.move_to(NAME, 2)?.ok()?;
        scene.lab.move_to(NAME, 1)?.ok()?;
        let (owner, second) = (scene.lab.host(1)?, scene.lab.host(2)?);
        owner.crash()?;
        let disk = format!("/var/lib/rehome-lab/{}/{}", scene.lab.name(), owner.name());
        replace_disk(&disk)?;
        owner.start()?;

        let command = blocked(second, owner.address())?;
        ensure!(command.ends_with(" --accept-loss"), "{command}");
        second.shell(&command)?;

        let now = runs_on(scene.lab, 2, 2)?;
        ensure!(now.epoch == 4, "{now:?}");
        let words = block_on(scene.store.words(scene.doors[1]))?;
        ensure!(words.contains(&old), "{words:?}");
        // It answers, and agreed as all others did: it is not fenced.
        gives_way(scene, 1)?;
        goes_on(scene, 2, 1, &only(&old))
    })
}

/// Empties the disk of a host that is down: what is started then is a new machine with its name.
fn replace_disk(disk: &str) -> anyhow::Result<()> {
    // The kernel lets go of the pool's file when the last process of the host is gone.
    let line = format!(
        "while [ -n \"$(losetup -j {disk}/rehome/pool.img)\" ]; do sleep 0.1; done; \
         rm -rf {disk}/rehome/*"
    );
    let mut command = Command::new("sh");
    program::run(command.args(["-ec", &line]), PATIENCE)?.ok()?;
    Ok(())
}

/// The epoch of the owner that a command fences.
fn application_epoch(command: &str) -> anyhow::Result<u64> {
    let epoch = command.split_once('@').map(|(_, rest)| rest);
    let digits = epoch.and_then(|rest| rest.split(' ').next());
    Ok(digits.context("no epoch in the command")?.parse()?)
}
