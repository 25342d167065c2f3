//! `rehome drain`: a host is emptied, and nobody notices.

use anyhow::ensure;
use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Runtime, with_lab};
use rehome_tests::load::Load;
use rehome_tests::page;
use rehome_tests::store::{Redis, Store as _};

#[test]
fn a_drain_empties_a_host_and_refuses_nobody() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new()
            .with("a", 1, &Redis.body(7001))
            .with("b", 1, &Redis.body(7002))
            .with("c", 1, &page::body(7003, "drained"))
            .with("d", 2, &page::body(7004, "stays"));
        lab.deploy(&deployment)?.ok()?;
        let stays = lab.wait_running("d", 2)?;
        let mut loads = Vec::new();
        for (name, port) in [("a", 7001), ("b", 7002)] {
            lab.wait_running(name, 1)?;
            let doors = lab.doors(port)?;
            let load = Load::start(Redis, &doors, 3)?;
            load.wait_served(9)?;
            loads.push((load, doors));
        }
        let empty = lab.host(1)?.address();

        let told = lab
            .rehome(&["drain", empty, "--dry-run", "--json"])?
            .ok()?
            .json()?;
        let predictions = told["predictions"].as_array().map_or(0, Vec::len);
        ensure!(predictions == 3, "{told}");
        ensure!(lab.migrations()?.is_empty(), "a dry run moved something");

        let done = lab.rehome(&["drain", empty, "--json"])?.ok()?.json()?;

        for (load, doors) in loads {
            load.wait_served(9)?;
            load.stop_and_verify(&doors)?.all_served()?;
        }
        ensure!(done["settled"] == true, "{done}");
        // The fewest first: a to h3, then h2 and h3 have one each and b goes to h2.
        for (name, host) in [("a", 3), ("b", 2), ("c", 3), ("d", 2)] {
            lab.wait_running(name, host)?;
        }
        ensure!(
            lab.application("d")?.run() == stays.run(),
            "d was restarted"
        );
        lab.host(1)?.has_no_live_volume()?;
        let left = lab.host(1)?.processes()?;
        ensure!(
            !left.contains("redis-server") && !left.contains("httpd"),
            "{left}"
        );
        ensure!(page::fetch(lab.host(1)?.door(7003)?)?.contains("SAYS=drained\n"));

        let again = lab.rehome(&["drain", empty])?.ok()?;
        again.saying("nothing to do")?;
        lab.rehome(&["drain", "10.1.2.3"])?
            .with_status(2)?
            .saying(empty)?;
        Ok(())
    })
}
