//! A lab that is gone has left nothing on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Lab, Runtime, new_name, with_lab};
use rehome_tests::program;
use rehome_tests::store::{Postgres, Store as _};
use rehome_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_mins(2);

/// Everything on this machine in whose name or description the lab's name is: processes, mounts,
/// loop devices, control groups, directories.
fn traces(lab: &str) -> anyhow::Result<Vec<String>> {
    let script = format!(
        "ps -eo args | grep -F -e '/{lab}/' | grep -v -e grep -e 'sh -c'; \
         grep -F '/{lab}' /proc/self/mountinfo; \
         cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -F '/{lab}/'; \
         find /sys/fs/cgroup -maxdepth 3 -type d -name '*{lab}'; \
         ls -d /run/rehome-lab/{lab}* /var/lib/rehome-lab/{lab}* 2>/dev/null; true"
    );
    let mut command = Command::new("sh");
    let outcome = program::run(command.args(["-c", &script]), PATIENCE)?.ok()?;
    Ok(outcome.stdout.lines().map(str::to_owned).collect())
}

/// The interface of this machine that leads into a lab: other labs and tests have theirs beside it.
fn uplink(lab: &Lab) -> anyhow::Result<PathBuf> {
    let address = lab.host(1)?.address();
    let (network, _) = address.rsplit_once('.').context("no IPv4 address")?;
    let mut command = Command::new("ip");
    let listed = program::run(command.args(["-o", "-4", "addr", "show"]), PATIENCE)?.ok()?;
    let gateway = format!(" {network}.1/");
    let mut lines = listed.stdout.lines();
    let line = lines.find(|line| line.contains(&gateway));
    let name = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(Path::new("/sys/class/net").join(name.context("no interface")?))
}

#[test]
fn nothing_is_left_of_a_lab_with_a_container_and_a_volume() -> anyhow::Result<()> {
    let mut made = None;
    with_lab(Runtime::Docker, &[], |lab| {
        let uplink = uplink(lab)?;
        ensure!(uplink.exists(), "{} is none", uplink.display());
        made = Some((lab.name().to_owned(), uplink));
        lab.load_postgres()?;
        lab.deploy(&Deployment::new().with("store", 1, &Postgres.body(7000)))?
            .ok()?;
        lab.wait_running("store", 1)?;
        let found = traces(lab.name())?;
        ensure!(found.len() > 10, "this test does not see a lab: {found:#?}");
        lab.host(3)?.crash()
    })?;
    let (name, uplink) = made.context("there was no lab")?;
    let left = traces(&name)?;
    ensure!(left.is_empty(), "left: {left:#?}");
    ensure!(!uplink.exists(), "{} is left", uplink.display());
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
    let left = traces(&name)?;
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
            let deploy = |lab: &Lab, says| {
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
