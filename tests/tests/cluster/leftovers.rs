//! A lab that is gone has left nothing on this machine.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Runtime, new_name, with_lab};
use rehome_tests::program;
use rehome_tests::store::{Postgres, Store as _};
use rehome_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_mins(2);

/// Everything on this machine in whose name or description the lab's name is: processes, mounts,
/// loop devices, control groups, directories; and the network interfaces of labs.
fn traces(lab: &str) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let script = format!(
        "ps -eo args | grep -F -e '/{lab}/' | grep -v -e grep -e 'sh -c'; \
         grep -F '/{lab}' /proc/self/mountinfo; \
         cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -F '/{lab}/'; \
         find /sys/fs/cgroup -maxdepth 3 -type d -name '*{lab}'; \
         ls -d /run/rehome-lab/{lab}* /var/lib/rehome-lab/{lab}* 2>/dev/null; true"
    );
    let lines = |line: &str| -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("sh");
        let outcome = program::run(command.args(["-c", line]), PATIENCE)?.ok()?;
        Ok(outcome.stdout.lines().map(str::to_owned).collect())
    };
    Ok((lines(&script)?, lines("ls /sys/class/net")?))
}

#[test]
fn nothing_is_left_of_a_lab_with_a_container_and_a_volume() -> anyhow::Result<()> {
    let (_, interfaces) = traces("none")?;
    let mut name = String::new();
    with_lab(Runtime::Docker, &[], |lab| {
        lab.name().clone_into(&mut name);
        lab.load_postgres()?;
        lab.deploy(&Deployment::new().with("store", 1, &Postgres.body(7000)))?
            .ok()?;
        lab.wait_running("store", 1)?;
        let (found, _) = traces(lab.name())?;
        ensure!(found.len() > 10, "this test does not see a lab: {found:#?}");
        lab.host(3)?.crash()
    })?;
    let (left, after) = traces(&name)?;
    ensure!(left.is_empty(), "left: {left:#?}");
    let new: Vec<_> = after
        .iter()
        .filter(|name| !interfaces.contains(name))
        .collect();
    ensure!(new.is_empty(), "interfaces left: {new:?}");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab_whose_making_was_interrupted() -> anyhow::Result<()> {
    let name = new_name()?;
    let mut command = Command::new(program::built("rehome")?);
    command.args(["lab", "--name", &name, "up", "--runtime", "process"]);
    let making = program::start(&mut command, PATIENCE)?;
    let disk = format!("/var/lib/rehome-lab/{name}/h2");
    wait_until("the second host is made", PATIENCE, || {
        Ok(std::path::Path::new(&disk).exists())
    })?;
    program::run(
        Command::new("kill").args(["-INT", &making.pid().to_string()]),
        PATIENCE,
    )?
    .ok()?;
    let outcome = making.wait().context("after SIGINT")?;
    ensure!(outcome.status != 0, "{outcome}");
    let (left, _) = traces(&name)?;
    ensure!(left.is_empty(), "left: {left:#?}");
    Ok(())
}

#[test]
fn two_labs_at_once_do_not_see_each_other() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |first| {
        with_lab(Runtime::Process, &[], |second| {
            ensure!(
                first.addresses() != second.addresses(),
                "{:?}",
                first.addresses()
            );
            let deploy = |lab: &rehome_tests::lab::Lab, says| {
                let body = rehome_tests::page::body(7001, says);
                lab.deploy(&Deployment::new().with("page", 1, &body))?.ok()
            };
            deploy(first, "first")?;
            deploy(second, "second")?;
            for (lab, says) in [(first, "SAYS=first\n"), (second, "SAYS=second\n")] {
                let page = rehome_tests::page::fetch(lab.host(2)?.door(7001)?)?;
                ensure!(page.contains(says), "{page}");
            }
            Ok(())
        })?;
        ensure!(first.application("page")?.state == "running");
        Ok(())
    })
}
