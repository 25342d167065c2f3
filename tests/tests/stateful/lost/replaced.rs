//! A machine is replaced by an empty one at the same address: nothing is made anew, empty, the
//! status names what can be done, and that works while the new machine is up.

use anyhow::ensure;
use rehome_tests::deployment::changed;
use rehome_tests::load::block_on;
use rehome_tests::store::{Redis, Store as _};
use serde_json::json;

use super::left::blocked;
use super::{back, end, lose, run};
use crate::scene::{NAME, PORT, on_stage};

const WEB: &str = "web";

/// Its processes end, and its pool and its journal are empty.
const REPLACED: &str = "for pid in $(pidof redis-server); do kill -9 $pid; done; \
    cd /var/lib/rehome/pool; for tree in live/* snap/*/*/data; do \
    if [ -e $tree ]; then btrfs -q subvolume delete $tree; fi; done; \
    rm -rf snap/* meta/* /var/lib/rehome/migrated/*";

#[test]
fn a_machine_that_was_replaced_is_given_its_applications_back_or_loses_them() -> anyhow::Result<()>
{
    on_stage(Redis, &[], |scene| {
        let lab = scene.lab;
        let mut web = changed(&scene.store.body(PORT + 1), &stateless());
        if let Some(keys) = web.as_object_mut() {
            keys.remove("volume");
        }
        let deployment = scene.alone(1).with(WEB, 1, &web);
        scene.open(&deployment)?;
        lab.wait_running(WEB, 1)?;
        block_on(scene.store.add(scene.door(), "w-early", None))?;
        lab.move_to(NAME, 2)?.ok()?;
        lab.move_to(NAME, 1)?.ok()?;

        let host = lab.host(1)?;
        let rebuild = lose(host, REPLACED)?;
        back(host)?;
        let web_command = blocked(lab, WEB)?;
        ensure!(web_command.contains("rehome failover web"), "{web_command}");
        // Not even a new deployment makes them anew, empty.
        let again = lab.deploy(&deployment)?;
        ensure!(again.status == 1, "{again}");

        let still = blocked(lab, WEB)?;
        ensure!(still.contains("rehome failover web"), "{still}");
        let command = blocked(lab, NAME)?;
        ensure!(command.contains("--accept-loss"), "{command}");
        lab.host(3)?.shell(&command)?;
        let there = lab.wait_running(NAME, 2)?;
        ensure!(there.epoch == 4, "{there:?}");
        let words = block_on(scene.store.words(scene.doors[1]))?;
        ensure!(words.contains("w-early"), "{words:?}");

        // What has no volumes the others know all of.
        end(host)?;
        run(host, &rebuild)?.ok()?.saying("web: owner at epoch 1")?;
        back(host)?;
        lab.wait_running(WEB, 1)?;
        host.wait_no_live_volume()
    })
}

fn stateless() -> serde_json::Value {
    json!({"command": [
        "redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no",
        "--save", "", "--loglevel", "warning",
    ]})
}
