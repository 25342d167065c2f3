//! The proxies of both hosts are upgraded in the middle of a move.

use std::time::Duration;

use anyhow::Context as _;
use rehome_tests::load::Load;
use rehome_tests::store::Redis;
use rehome_tests::wait::wait_until;

use crate::ambush::when_it_says;
use crate::scene::{NAME, on_stage};

const PATIENCE: Duration = Duration::from_mins(1);

const UPGRADE: &str = "proxyd --upgrade --config /etc/rehome/proxyd.yml";

/// What the source says as it prepares, drains and ends what flows, beside what the destination
/// says when it is about to open its own gate.
const MOMENTS: [(&str, &str); 4] = [
    ("phase=\"park\"", "this host is the owner now"),
    ("phase=\"drain\"", "the application is healthy here"),
    ("phase=\"stop\"", "clients are served here"),
    ("phase=\"final_delta\"", "this host is the owner now"),
];

#[test]
fn the_proxies_of_both_hosts_are_upgraded_in_the_middle_of_moves_and_no_client_is_refused()
-> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&scene.alone(1))?;
        let load = Load::start(scene.store, &scene.doors, 12)?;
        load.wait_served(30)?;
        for ((here, there), (from, to)) in MOMENTS.into_iter().zip([(1, 2), (2, 1)].repeat(2)) {
            let (source, destination) = (scene.lab.host(from)?, scene.lab.host(to)?);
            let before = [source.daemon("proxyd")?, destination.daemon("proxyd")?];
            let upgrades = [
                when_it_says(scene.lab, source, here, UPGRADE)?,
                when_it_says(scene.lab, destination, there, UPGRADE)?,
            ];
            let moved = scene.lab.move_to(NAME, to)?.ok();
            moved.with_context(|| format!("{here}, {there}"))?;
            for upgrade in upgrades {
                upgrade.wait()?.ok()?.saying("handed over")?;
            }
            for (host, before) in [source, destination].into_iter().zip(before) {
                // The first process of the host knows who its daemon is, and starts no second one.
                host.wait_daemon("proxyd", before)?;
                wait_until("one proxy runs", PATIENCE, || {
                    let running = host.processes()?;
                    let proxies = running.lines().filter(|line| line.contains("/proxyd "));
                    Ok(proxies.count() == 1)
                })?;
            }
            scene.lab.wait_running(NAME, to)?;
            load.wait_served(30)?;
        }
        let tally = load.stop_and_verify(&scene.doors)?;
        tally.all_served()
    })
}
