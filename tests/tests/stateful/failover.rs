//! An owner that is gone for good: what an operator is told, what the printed command does, and
//! how the host that comes back gives way.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::cluster::Application;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Host, Lab};
use rehome_tests::load::{Load, Tally, block_on, verify};
use rehome_tests::store::{Redis, Store};
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::{Value, json};

use crate::ambush::Side;
use crate::hold::Hold;
use crate::scene::{NAME, PORT, Scene, on_stage};

mod operators;

const PATIENCE: Duration = Duration::from_mins(2);

/// The builds that have fail points.
const FAULTY: &[&str] = &["--faulty"];

/// The source has released it, durably, and has said so to nobody.
const RELEASED: &str = "journal/source/released/after";

#[test]
fn a_source_that_dies_after_its_release_is_granted_for_without_loss() -> anyhow::Result<()> {
    on_stage(Redis, FAULTY, |scene| {
        scene.open(&patient(scene, 1))?;
        refused_while_the_owner_answers(scene)?;
        let load = Load::start(scene.store, behind(scene), 4)?;
        load.wait_served(20)?;
        let released = die_at_the_release(scene, Side::Source)?;
        let host = scene.lab.host(2)?;
        let command = blocked(host, scene.lab.host(1)?.address())?;
        ensure!(!command.contains("--accept-loss"), "{command}");
        refused(
            scene.lab,
            &command.replace(&format!("@{released}"), "@77"),
            &format!("--fenced {}@{released}", scene.lab.host(1)?.address()),
        )?;
        let (two, three) = (host.address(), scene.lab.host(3)?.address());
        refused(
            scene.lab,
            &command.replace(&format!("--to {two}"), &format!("--to {three}")),
            "keeps nothing",
        )?;

        scene.lab.host(3)?.shell(&command)?;

        let now = runs_on(scene.lab, 2, 2)?;
        ensure!(now.epoch == released + 1, "{now:?}");
        load.wait_served(20)?;
        let tally = load.stop();
        verify(scene.store, behind(scene), &tally)?;
        // Said again, it is done already.
        scene
            .lab
            .host(3)?
            .shell(&command)?
            .find("before")
            .context("not said")?;

        scene.lab.host(1)?.start()?;
        nothing_runs_on(scene, 1)?;
        ensure!(copies(scene.lab)?.is_empty(), "it wrote nothing alone");
        goes_on(scene, 2, 1, &tally)
    })
}

#[test]
fn a_destination_that_dies_after_the_release_is_taken_back_from() -> anyhow::Result<()> {
    on_stage(Redis, FAULTY, |scene| {
        scene.open(&patient(scene, 1))?;
        let doors = [scene.doors[0], scene.doors[2]];
        let load = Load::start(scene.store, &doors, 4)?;
        load.wait_served(20)?;
        let released = die_at_the_release(scene, Side::Destination)?;
        let command = blocked(scene.lab.host(1)?, scene.lab.host(2)?.address())?;
        ensure!(
            !command.contains("--accept-loss"),
            "h2 never heard of the grant: {command}"
        );
        let id = scene.lab.last_migration()?.id().to_owned();
        let late = scene.lab.rehome(&["abort", &id])?.with_status(1)?;
        late.saying(&format!("{}'s, at epoch", scene.lab.host(2)?.address()))?;

        scene.lab.host(3)?.shell(&command)?;

        let now = runs_on(scene.lab, 1, 1)?;
        ensure!(now.epoch == released + 2, "{now:?}");
        load.wait_served(20)?;
        let tally = load.stop();
        verify(scene.store, &doors, &tally)?;
        scene.lab.host(2)?.start()?;
        nothing_runs_on(scene, 2)?;
        goes_on(scene, 1, 2, &tally)
    })
}

#[test]
fn the_newest_copy_goes_on_when_its_loss_is_accepted_and_what_diverged_is_kept()
-> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let old = at_once(scene, "w-old")?;
        // So h2 has an older copy, and h3 has nothing.
        scene.lab.move_to(NAME, 2)?.ok()?;
        scene.lab.move_to(NAME, 1)?.ok()?;
        let new = at_once(scene, "w-new")?;
        let owner = scene.lab.host(1)?;
        owner.crash()?;
        let command = blocked(scene.lab.host(2)?, owner.address())?;
        ensure!(command.ends_with(" --accept-loss"), "{command}");
        let lossless = command.replace(" --accept-loss", "");
        refused(scene.lab, &lossless, "what store wrote since is lost")?;
        let (two, three) = (scene.lab.host(2)?.address(), scene.lab.host(3)?.address());
        refused(
            scene.lab,
            &command.replace(&format!("--to {two}"), &format!("--to {three}")),
            "keeps nothing",
        )?;

        scene.lab.host(3)?.shell(&command)?;

        let now = runs_on(scene.lab, 2, 2)?;
        ensure!(now.epoch == 4, "{now:?}");
        let words = block_on(scene.store.words(scene.doors[1]))?;
        ensure!(words.contains(&old) && !words.contains(&new), "{words:?}");
        owner.start()?;
        nothing_runs_on(scene, 1)?;
        diverged_on(scene.lab, owner)?;
        let kept = word_in_copies(owner, &new)?;
        ensure!(kept, "what was lost is not in the copy");
        goes_on(scene, 2, 1, &only(&old))?;
        ensure!(!copies(scene.lab)?.is_empty(), "the copy is gone");
        Ok(())
    })
}

#[test]
fn an_owner_that_was_only_cut_off_gives_way_when_it_hears() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let old = at_once(scene, "w-old")?;
        scene.lab.move_to(NAME, 2)?.ok()?;
        scene.lab.move_to(NAME, 1)?.ok()?;
        let (owner, second) = (scene.lab.host(1)?, scene.lab.host(2)?);
        cut_off(scene.lab, owner)?;
        let alone = at_once(scene, "w-alone")?;
        let command = blocked(second, owner.address())?;
        second.shell(&command)?;
        runs_on(scene.lab, 2, 2)?;
        let before = owner.processes()?;
        ensure!(
            before.contains(scene.store.process()),
            "it was not cut off but stopped: {before}"
        );

        owner.shell("nft delete table inet cut_off")?;

        nothing_runs_on(scene, 1)?;
        diverged_on(scene.lab, owner)?;
        ensure!(word_in_copies(owner, &alone)?, "what it took is gone");
        let words = block_on(scene.store.words(scene.door()))?;
        ensure!(!words.contains(&alone), "behind h1: {words:?}");
        goes_on(scene, 2, 1, &only(&old))
    })
}

#[test]
fn what_has_no_volume_is_taken_over_by_whoever_is_asked() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        let body = changed(&scene.store.body(PORT), &json!({"volume": null}));
        let mut body = body;
        if let Some(keys) = body.as_object_mut() {
            keys.remove("volume");
            keys.insert(
                "command".to_owned(),
                json!([
                    "redis-server",
                    "--port",
                    "6379",
                    "--bind",
                    "0.0.0.0",
                    "--protected-mode",
                    "no",
                    "--save",
                    "",
                    "--loglevel",
                    "warning",
                ]),
            );
        }
        let other = scene.store.body(PORT + 1);
        let deployment = Deployment::new()
            .with(NAME, 1, &body)
            .with("kept", 1, &other);
        scene.open(&deployment)?;
        let owner = scene.lab.host(1)?;
        owner.crash()?;
        let command = blocked(scene.lab.host(2)?, owner.address())?;
        ensure!(!command.contains("--accept-loss"), "{command}");
        scene.lab.host(3)?.shell(&command)?;
        let there = application(scene.lab.host(2)?, NAME)?;
        ensure!(there.state == "running" && there.epoch == 2, "{there:?}");

        // The other one stays the dead host's: it is neither moved nor made anew, and whatever
        // does not concern it can be deployed.
        let arguments = scene
            .lab
            .deploy_arguments(&deployment.with(NAME, 2, &body).with("kept", 3, &other))?;
        let words: Vec<&str> = ["rehome"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str))
            .collect();
        let outcome = scene.lab.host(2)?.exec(&words)?.with_status(1)?;
        outcome.saying("rehome failover kept")?;
        owner.start()?;
        wait_until("the other one runs again", PATIENCE, || {
            Ok(application(scene.lab.host(2)?, "kept")?.state == "running")
        })?;
        wait_until("the first does not run there any more", PATIENCE, || {
            Ok(owner.processes()?.matches("redis-server 0.0.0.0").count() == 1)
        })
    })
}

/// The store, which may take its time to hand over.
fn patient(scene: &Scene<'_, Redis>, host: usize) -> Deployment {
    let patience = json!({
        "migration": {"downtime_budget": "50s", "hard_cap": "60s", "park_timeout": "120s"}
    });
    let body = changed(&scene.store.body(PORT), &patience);
    Deployment::new().with(NAME, host, &body)
}

/// The doors of the hosts that stay.
fn behind<'a>(scene: &'a Scene<'_, Redis>) -> &'a [SocketAddr] {
    scene.doors.get(1..).unwrap_or_default()
}

fn at_once(scene: &Scene<'_, Redis>, word: &str) -> anyhow::Result<String> {
    block_on(scene.store.add(scene.door(), word, None))?;
    Ok(word.to_owned())
}

/// One word and no other.
fn only(word: &str) -> Tally {
    let words = BTreeSet::from([word.to_owned()]);
    Tally {
        acknowledged: words.clone(),
        sent: words,
        ..Tally::default()
    }
}

fn refused_while_the_owner_answers(scene: &Scene<'_, Redis>) -> anyhow::Result<()> {
    let (one, two) = (scene.lab.host(1)?.address(), scene.lab.host(2)?.address());
    let command = format!("rehome failover {NAME} --to {two} --fenced {one}@1 --accept-loss");
    refused(scene.lab, &command, "answers")
}

/// Insists that a command is refused for a reason, and that nothing changed.
fn refused(lab: &Lab, command: &str, why: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = command.split(' ').collect();
    let generation =
        |host: &Host| -> anyhow::Result<Value> { Ok(status(host)?["generation"].clone()) };
    let before = generation(lab.host(3)?)?;
    let outcome = lab.host(3)?.exec(&words)?.with_status(1)?;
    outcome.saying(why)?;
    ensure!(
        before == generation(lab.host(3)?)?,
        "it changed the deployment"
    );
    Ok(())
}

/// Moves the store from h1 to h2 and kills one of the two for good, when h1 has released it and h2
/// has not heard of it. Returns the epoch that it was released at.
fn die_at_the_release(scene: &Scene<'_, Redis>, side: Side) -> anyhow::Result<u64> {
    let lab = scene.lab;
    let source = lab.host(1)?;
    let epoch = application(lab.host(3)?, NAME)?.epoch;
    let hold = Hold::at(source, RELEASED)?;
    let command = lab.begin_move(NAME, 2)?;
    hold.wait()?;
    drop(command);
    match side {
        Side::Source => source.crash()?,
        Side::Destination => {
            lab.host(2)?.crash()?;
            hold.let_go()?;
        }
    }
    Ok(epoch)
}

fn status(host: &Host) -> anyhow::Result<Value> {
    host.rehome(&["status", "--json"])?.ok()?.json()
}

fn application(host: &Host, name: &str) -> anyhow::Result<Application> {
    let status = status(host)?;
    let all = status["applications"].as_array().into_iter().flatten();
    let entry = all.into_iter().find(|entry| entry["name"] == name);
    Application::read(entry.with_context(|| format!("no {name} in {status}"))?)
}

/// Waits until the store is blocked, and returns the command that its status names for the case
/// that `gone` never comes back.
fn blocked(host: &Host, gone: &str) -> anyhow::Result<String> {
    wait_for("it is blocked, with a command", PATIENCE, || {
        let seen = application(host, NAME)?;
        let reason = seen.reason.unwrap_or_default();
        let said = reason.split_once("and run: ");
        let Some((before, rest)) = said.filter(|_| seen.state == "blocked") else {
            return Ok(None);
        };
        ensure!(before.contains(gone), "{reason}");
        let command = rest.split_once(" (").map_or(rest, |(command, _)| command);
        Ok(Some(command.to_owned()))
    })
}

/// Waits until the store runs on a host, as another one tells it.
fn runs_on(lab: &Lab, asked: usize, number: usize) -> anyhow::Result<Application> {
    let address = lab.host(number)?.address();
    wait_for(&format!("it runs on {address}"), PATIENCE, || {
        let seen = application(lab.host(asked)?, NAME)?;
        let there = seen.state == "running" && seen.host.as_deref() == Some(address);
        Ok(there.then_some(seen))
    })
}

/// Waits until nothing of the store is on a host: no process, no live tree.
fn gives_way(scene: &Scene<'_, Redis>, number: usize) -> anyhow::Result<()> {
    let host = scene.lab.host(number)?;
    wait_until("it gives way", PATIENCE, || {
        let runs = host.processes()?.contains(scene.store.process());
        Ok(!runs && host.has_no_live_volume().is_ok())
    })
}

/// The same on a host that was off when another one took over.
fn nothing_runs_on(scene: &Scene<'_, Redis>, number: usize) -> anyhow::Result<()> {
    let host = scene.lab.host(number)?;
    gives_way(scene, number)?;
    // And so it stays when it has heard of everything.
    wait_until("its status says that it was fenced", PATIENCE, || {
        let seen = status(host)?;
        let hosts = seen["hosts"].as_array().context("no hosts")?;
        let me = hosts
            .iter()
            .find(|entry| entry["address"] == host.address());
        Ok(me.is_some_and(|me| me["fenced"] == true))
    })?;
    ensure!(!host.processes()?.contains(scene.store.process()));
    Ok(())
}

/// The copies that the status names.
fn copies(lab: &Lab) -> anyhow::Result<Vec<Value>> {
    let status = status(lab.host(2)?)?;
    let all = status["applications"]
        .as_array()
        .context("no applications")?;
    Ok(all
        .iter()
        .filter_map(|entry| entry["diverged"].as_array())
        .flatten()
        .cloned()
        .collect())
}

/// Waits until the status names a copy on a host, which is there and read-only.
fn diverged_on(lab: &Lab, host: &Host) -> anyhow::Result<()> {
    let copy = wait_for("a diverged copy is shown", PATIENCE, || {
        Ok(copies(lab)?
            .into_iter()
            .find(|copy| copy["host"] == host.address()))
    })?;
    let path = copy["path"].as_str().context("no path")?;
    let touched = host.exec(&["touch", &format!("{path}/x")])?;
    ensure!(touched.status != 0, "{path} can be written to");
    Ok(())
}

fn word_in_copies(host: &Host, word: &str) -> anyhow::Result<bool> {
    let found = host.exec(&["grep", "-rqF", word, "/var/lib/rehome/pool/diverged"])?;
    Ok(found.status == 0)
}

/// Drops what comes from and goes to the other hosts; clients have their own way in.
fn cut_off(lab: &Lab, host: &Host) -> anyhow::Result<()> {
    let mut rules = vec!["add table inet cut_off".to_owned()];
    for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
        rules.push(format!(
            "add chain inet cut_off {hook} {{ type filter hook {hook} priority 0; }}"
        ));
        let others = lab.hosts().iter().filter(|h| h.name() != host.name());
        rules.extend(others.map(|other| {
            let address = other.address();
            format!("add rule inet cut_off {hook} ip {side} {address} drop")
        }));
    }
    host.shell(&format!("nft '{}'", rules.join("; "))).map(drop)
}

/// The host that is back is a host like any other: it leaves the fenced ones at the next
/// deployment, and the next move to it works.
fn goes_on(scene: &Scene<'_, Redis>, from: usize, to: usize, tally: &Tally) -> anyhow::Result<()> {
    let lab = scene.lab;
    let address = lab.host(to)?.address();
    lab.host(from)?
        .rehome(&["move", NAME, "--to", address])?
        .ok()?;
    runs_on(lab, 3, to)?;
    verify(scene.store, &scene.doors, tally)?;
    let seen = status(lab.host(3)?)?;
    let hosts = seen["hosts"].as_array().context("no hosts")?;
    ensure!(
        hosts.iter().all(|entry| entry["fenced"] != true),
        "still fenced: {seen}"
    );
    Ok(())
}
