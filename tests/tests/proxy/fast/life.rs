//! How the fast path begins and ends: whoever does not want it touches nothing in the kernel, and
//! whoever had it leaves nothing there that leads clients past a gate.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, ensure};
use rehome_tests::proxy::{PATIENCE, Setup, Version, park_limits};
use rehome_tests::wait::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::stage::{PORT, Stage, ask, end, leads, nft, table};

/// What starts a proxyd that may not ask the kernel.
const WEAK: [&str; 3] = ["setpriv", "--bounding-set", "-net_admin"];

fn has_marker(stage: &Stage) -> bool {
    stage.proxy.directory().join("state/fast_path").exists()
}

fn has_tables() -> anyhow::Result<bool> {
    let all = table("rehome")? + &table("rehome_anchor")?;
    Ok(!all.is_empty())
}

/// A move of the only route, there and back, and what its first verb is answered.
fn move_there_and_back(stage: &Stage, at: Version) -> anyhow::Result<()> {
    stage.proxy.prepare("db", at)?;
    stage.proxy.try_freeze("db", at)?.ok()?;
    stage.proxy.try_rollback("db", at)?.ok()?;
    ensure!(stage.ask()? == b'A');
    Ok(())
}

#[test]
fn who_does_not_want_it_leaves_the_tables_of_others_alone() -> anyhow::Result<()> {
    let mut stage = Stage::with(Setup::default())?;
    // It has the name of ours and is somebody else's.
    nft("table inet rehome { comment \"rehome proxyd of old\"; chain c { counter; }; }")?;
    let before = table("rehome")?;
    stage.open(Version(1, 0), &stage.a)?;
    ensure!(stage.ask()? == b'A');
    stage.proxy.signal(Signal::HUP)?;
    stage.proxy.terminate()?;
    stage.proxy.start_again()?;
    move_there_and_back(&stage, Version(1, 1))?;
    ensure!(table("rehome")? == before && table("rehome_anchor")?.is_empty());
    ensure!(!has_marker(&stage));
    Ok(())
}

#[test]
fn turned_off_it_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let client = stage.connect(PORT)?;
    ensure!(ask(&client)? == b'A' && has_marker(&stage));
    stage.proxy.rewrite("fast_path: off")?;
    stage.proxy.signal(Signal::HUP)?;
    wait_until("no element is left", PATIENCE, || Ok(!leads()?))?;
    // What flows is still counted, and ended where it has to be.
    ensure!(ask(&client)? == b'A' && has_tables()?);
    let counts = stage.proxy.prepare("db", Version(1, 1))?;
    ensure!(counts["active"] == 1, "{counts}");
    let counts = stage.proxy.try_freeze("db", Version(1, 1))?.ok()?;
    ensure!(counts["cut"] == 1, "{counts}");
    ensure!(end(&client)? == Some(ErrorKind::ConnectionReset));
    wait_until("nothing is left", PATIENCE, || {
        Ok(!has_tables()? && !has_marker(&stage))
    })?;
    stage.proxy.try_rollback("db", Version(1, 1))?.ok()?;
    move_there_and_back(&stage, Version(1, 2))?;
    ensure!(!has_tables()?);
    // And on again.
    stage.proxy.rewrite("fast_path: auto")?;
    stage.proxy.signal(Signal::HUP)?;
    stage.wait_for_kernel()?;
    ensure!(stage.ask()? == b'A' && has_marker(&stage));
    Ok(())
}

#[test]
fn an_ordinary_end_leaves_nothing_when_nothing_flows() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    stage.proxy.terminate()?;
    ensure!(!has_tables()? && !has_marker(&stage));
    // With flows the tables stay, and no element. Who starts without the privilege then moves gates
    // all the same: nobody is led past them.
    stage.proxy.start_again()?;
    stage.fast(Version(1, 0), &stage.a)?;
    let client = stage.connect(PORT)?;
    ensure!(ask(&client)? == b'A');
    stage.proxy.terminate()?;
    ensure!(has_tables()? && !leads()? && has_marker(&stage));
    stage.proxy.start_through(&WEAK);
    stage.proxy.start_again()?;
    ensure!(!has_marker(&stage));
    move_there_and_back(&stage, Version(1, 1))
}

#[test]
fn no_gate_is_moved_while_the_kernel_may_lead_past_it() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    stage.proxy.kill()?;
    // The element of the one that crashed is there, and this one cannot take it out.
    stage.proxy.start_through(&WEAK);
    stage.proxy.rewrite("fast_path: off")?;
    stage.proxy.start_again()?;
    ensure!(leads()? && stage.ask()? == b'A');
    let limits = park_limits(100, PATIENCE);
    let refused = stage.proxy.try_prepare("db", Version(1, 1), &limits)?;
    ensure!(refused.status == 503, "{refused:?}");
    let log = stage.proxy.log()?;
    ensure!(log.contains("no gate is moved"), "{log}");
    stage.proxy.kill()?;
    // With the privilege it does, before anybody is served.
    stage.proxy.start_through(&[]);
    stage.proxy.start_again()?;
    ensure!(!leads()?);
    wait_until("nothing is left", PATIENCE, || {
        Ok(!has_tables()? && !has_marker(&stage))
    })?;
    // It was parked all the same.
    stage.proxy.try_rollback("db", Version(1, 1))?.ok()?;
    move_there_and_back(&stage, Version(1, 2))
}

/// Somebody who owns the table of our name.
struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        // It fails only when it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn own_table() -> anyhow::Result<Owner> {
    let mut nft = Command::new("nft");
    let nft = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = Owner(nft.spawn()?);
    let words = owner.0.stdin.as_mut().context("it has no input")?;
    words.write_all(b"add table inet rehome { flags owner; }\n")?;
    words.flush()?;
    wait_until("it is owned", PATIENCE, || {
        Ok(table("rehome")?.contains("owner"))
    })?;
    Ok(owner)
}

#[test]
fn a_kernel_that_refuses_our_tables_keeps_no_gate_from_moving() -> anyhow::Result<()> {
    let mut stage = Stage::with(Setup::default())?;
    let owner = own_table()?;
    stage.proxy.rewrite("fast_path: auto")?;
    stage.proxy.signal(Signal::HUP)?;
    stage.open(Version(1, 0), &stage.a)?;
    stage.proxy.wait("it says so", |page| {
        Ok(page.contains("{state=\"unavailable\"} 1"))
    })?;
    ensure!(stage.ask()? == b'A' && !has_marker(&stage));
    move_there_and_back(&stage, Version(1, 1))?;
    drop(owner);
    // It is tried again by and by.
    stage.wait_for_kernel()?;
    move_there_and_back(&stage, Version(1, 2))
}

#[test]
fn a_successor_that_knows_nothing_of_elements_gets_none() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    stage.fast(Version(1, 0), &stage.a)?;
    // It greets as a version without a fast path does, and says nothing more.
    let older = stage.proxy.directory().join("older");
    fs::write(
        &older,
        "#!/bin/sh\nexec 3<&0\n\
         { printf '%s' '{\"hello\":{\"protocol\":1,\"oldest\":1,\"version\":\"0.1\",\"table\":1}}' >&3\n\
         exec sleep 60; } <&3 >/dev/null 2>&1 &\necho \"pid $!\"\n",
    )?;
    fs::set_permissions(&older, fs::Permissions::from_mode(0o755))?;
    let body = json!({"executable": older, "arguments": []});
    thread::scope(|scope| {
        let proxy = &stage.proxy;
        let upgrade = scope.spawn(move || proxy.send(("POST", "/v1/upgrade"), Some(&body)));
        wait_until("no element is left", PATIENCE, || Ok(!leads()?))?;
        let answer = upgrade.join().ok().context("it panicked")??;
        ensure!(answer.status >= 400, "{answer:?}");
        anyhow::Ok(())
    })?;
    // It did not take over: this one has the kernel carry it again.
    stage.wait_for_kernel()?;
    ensure!(leads()? && stage.ask()? == b'A');
    move_there_and_back(&stage, Version(1, 1))
}
