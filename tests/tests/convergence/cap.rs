//! The hard cap: a window that will pass it is given up, and the source serves again.

use std::time::Duration;

use anyhow::ensure;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Runtime, with_lab};
use rehome_tests::load::{Load, block_on};
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::wait_for;
use serde_json::json;

use crate::writer::{NAME, PORT, body, serves, with};

const PATIENCE: Duration = Duration::from_mins(3);

/// It is quiet until it is told to stop; then it writes more than the window has time for.
#[test]
fn what_is_written_during_the_stop_calls_the_move_off_and_the_source_serves() -> anyhow::Result<()>
{
    with_lab(Runtime::Process, &[], |lab| {
        let script = "cd /data; busybox httpd -f -p 8080 -h /data & echo served >index.html; \
                      trap 'dd if=/dev/urandom of=last bs=1M count=48 2>/dev/null; exit 0' TERM; \
                      while :; do sleep 0.1 & wait $!; done";
        let limits = json!({"bandwidth_limit": "1MiB", "hard_cap": "20s"});
        let quiet = with(
            &body(&limits),
            &json!({"command": ["sh", "-c", script], "stop_grace": "30s"}),
        );
        lab.deploy(&Deployment::new().with(NAME, 1, &quiet))?.ok()?;
        let before = lab.wait_running(NAME, 1)?;

        let told = lab.move_to(NAME, 2)?.with_status(1)?;

        // Not at the cap, but as soon as it is clear that it would be passed.
        told.saying("and pass the hard cap of 20.0 s")?;
        let migration = lab.last_migration()?;
        ensure!(migration.state() == "aborted", "{migration:?}");
        ensure!(migration.0["phases"]["stop"].is_f64(), "{migration:?}");
        let after = lab.wait_running(NAME, 1)?;
        ensure!(after.epoch == before.epoch, "{after:?}");
        serves(lab, 1)?;
        lab.host(2)?.has_no_live_volume()?;
        Ok(())
    })
}

/// The proxy of the source is away when its gate is to be parked, and comes back in time.
#[test]
fn a_proxy_that_comes_back_within_the_deadline_does_not_call_the_move_off() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let slow = json!({"migration": {"bandwidth_limit": "4MiB", "hard_cap": "2m"}});
        let store = changed(&Redis.body(PORT), &slow);
        lab.deploy(&Deployment::new().with(NAME, 1, &store))?.ok()?;
        let doors = lab.doors(PORT)?;
        lab.wait_running(NAME, 1)?;
        block_on(Redis.ballast(doors[0], 16))?;
        let command = lab.begin_move(NAME, 2)?;
        let phase = |wanted: &'static str| {
            wait_for(&format!("it is in {wanted}"), PATIENCE, || {
                let last = lab.migrations()?.pop();
                Ok(last.filter(|m| m.phase() == wanted))
            })
        };
        phase("precopy")?;
        let host = lab.host(1)?;
        let old = host.daemon("proxyd")?;
        host.hold("proxyd")?;
        host.kill_daemon("proxyd")?;
        phase("park")?;
        host.let_go("proxyd")?;
        host.wait_daemon("proxyd", old)?;

        command.wait()?.ok()?;
        lab.wait_running(NAME, 2)?;
        let load = Load::start(Redis, &doors, 3)?;
        load.wait_served(12)?;
        load.stop_and_verify(&doors)?.all_served()
    })
}
