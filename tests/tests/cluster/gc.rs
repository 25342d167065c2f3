//! `rehome gc` removes what an accident left, and nothing else.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::load::block_on;
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::wait_until;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

const POOL: &str = "cd /var/lib/rehome/pool";

/// Kind and name of all that is found, by the number of its host.
fn found(document: &Value) -> anyhow::Result<Vec<(usize, String, String)>> {
    let hosts = document["hosts"].as_array().context("no hosts")?;
    let mut all = Vec::new();
    for (number, host) in (1..).zip(hosts) {
        ensure!(host["problem"].is_null(), "{host}");
        for item in host["garbage"].as_array().context("no garbage")? {
            let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
            all.push((number, text("kind"), text("name")));
        }
    }
    all.sort();
    Ok(all)
}

fn collect(lab: &Lab, arguments: &[&str]) -> anyhow::Result<Value> {
    let words = [&["gc", "--json"], arguments].concat();
    lab.rehome(&words)?.ok()?.json()
}

#[test]
fn gc_removes_what_an_accident_left_and_nothing_that_anybody_needs() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        lab.deploy(&Deployment::new().with("store", 1, &Redis.body(7000)))?
            .ok()?;
        lab.wait_running("store", 1)?;
        lab.move_to("store", 2)?.ok()?;
        let before = lab.wait_running("store", 2)?;
        let door = lab.host(3)?.door(7000)?;
        block_on(Redis.add(door, "w-1", None))?;
        // What the destination keeps of a move's rounds it drops when it has heard of the end.
        wait_until("nothing is found", PATIENCE, || {
            Ok(found(&collect(lab, &["--dry-run"])?)?.is_empty())
        })?;

        // A round of a migration that nobody knows, half a snapshot, a volume that came and was
        // forgotten; and a snapshot that somebody made for himself.
        let lost = "mig-01jd0000000000000000000000-1";
        let owner = lab.host(2)?;
        owner.shell(&format!(
            "{POOL}; dataset=$(ls live); mkdir snap/$dataset/{lost} snap/$dataset/mine; \
             btrfs -q subvolume snapshot -r live/$dataset snap/$dataset/{lost}/data; \
             btrfs -q subvolume snapshot -r live/$dataset snap/$dataset/mine/data"
        ))?;
        let other = lab.host(3)?;
        let stray = "7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11";
        let dataset = owner.shell(&format!("{POOL}; ls live"))?.trim().to_owned();
        let meta = owner.shell(&format!("{POOL}; base64 -w0 meta/{dataset}.json"))?;
        other.shell(&format!(
            "{POOL}; mkdir -p snap/{stray}/{lost} recv/{stray}/half; \
             btrfs -q subvolume create snap/{stray}/{lost}/data; \
             btrfs -q subvolume create recv/{stray}/half/data; \
             echo {meta} | base64 -d >meta/{stray}.json"
        ))?;

        let expected = [
            (2, "snapshot".to_owned(), lost.to_owned()),
            (3, "partial".to_owned(), "half".to_owned()),
            (3, "volume".to_owned(), stray.to_owned()),
        ];
        let dry = collect(lab, &["--dry-run"])?;
        ensure!(found(&dry)? == expected, "{dry}");
        let again = collect(lab, &["--dry-run"])?;
        ensure!(
            found(&again)? == expected,
            "a dry run removed something: {again}"
        );

        // What only a silent host may know is kept.
        lab.host(1)?.crash()?;
        let doubtful = other.rehome(&["gc", "--dry-run", "--json"])?;
        let doubtful = doubtful.with_status(1)?.json()?;
        let left = doubtful["hosts"].as_array().into_iter().flatten();
        let left: Vec<_> = left.map(|host| host["garbage"].clone()).collect();
        ensure!(
            left.iter().filter_map(Value::as_array).flatten().count() == 1,
            "with a silent host only the half is certain: {doubtful}"
        );
        lab.host(1)?.start()?;

        let removed = collect(lab, &[])?;
        ensure!(found(&removed)? == expected, "{removed}");
        ensure!(found(&collect(lab, &["--dry-run"])?)?.is_empty());
        let kept = owner.shell(&format!("{POOL}; ls snap/*"))?;
        ensure!(kept.contains("mine") && kept.contains("-final-1"), "{kept}");
        ensure!(!kept.contains(lost), "{kept}");
        let after = lab.wait_running("store", 2)?;
        ensure!(after.run() == before.run(), "it was restarted");
        ensure!(block_on(Redis.words(door))?.contains("w-1"));
        // The common base is still one: the way back sends a difference.
        lab.move_to("store", 1)?.ok()?;
        ensure!(block_on(Redis.words(door))?.contains("w-1"));
        Ok(())
    })
}
