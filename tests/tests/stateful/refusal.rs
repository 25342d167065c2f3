//! Destinations that cannot take the application, or cannot start it.

use anyhow::ensure;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::load::Load;
use rehome_tests::store::Store;
use serde_json::json;

use crate::scene::{NAME, PORT, Scene};

/// The command that came with the move ends at once; the configuration that ran before does not.
pub(crate) fn a_destination_that_cannot_start_it_gives_it_back<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    scene.open(&scene.alone(1))?;
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;

    let bad = changed(
        &scene.store.body(PORT),
        &json!({"command": ["sh", "-c", "exit 42"]}),
    );
    let refused = scene
        .lab
        .deploy(&Deployment::new().with(NAME, 2, &bad))?
        .with_status(1)?;

    load.wait_served(30)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;
    refused.saying("42")?;
    let migration = scene.lab.last_migration()?;
    ensure!(migration.state() == "returned", "{migration:?}");
    ensure!(migration.error().contains("42"), "{migration:?}");
    let store = scene.lab.wait_running(NAME, 1)?;
    ensure!(store.epoch == 3, "{store:?}");
    let there = scene.lab.host(2)?;
    there.wait_no_live_volume()?;
    ensure!(
        !there.processes()?.contains(scene.store.process()),
        "it still runs on h2"
    );
    Ok(())
}

pub(crate) fn a_full_destination_is_refused_before_a_byte_moves<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    scene.open(&scene.alone(1))?;
    let load = Load::start(scene.store, &scene.doors, 6)?;
    load.wait_served(30)?;
    let before = scene.lab.application(NAME)?;
    let there = scene.lab.host(2)?;
    there.shell(
        "cd /var/lib/rehome/pool && fallocate -l $(($(stat -f -c '%a * %S' .) - (2 << 20))) full",
    )?;

    let refused = scene.lab.move_to(NAME, 2)?.with_status(1)?;

    refused.saying("space")?;
    let migration = scene.lab.last_migration()?;
    ensure!(migration.state() == "aborted", "{migration:?}");
    ensure!(migration.bytes()? == 0, "{migration:?}");
    ensure!(
        scene.lab.application(NAME)?.run() == before.run(),
        "it was restarted"
    );
    load.wait_served(30)?;
    let tally = load.stop_and_verify(&scene.doors)?;
    tally.all_served()?;

    // With room again, the same move goes through.
    there.shell("rm /var/lib/rehome/pool/full && sync -f /var/lib/rehome/pool")?;
    scene.lab.move_to(NAME, 2)?.ok()?;
    scene.lab.wait_running(NAME, 2)?;
    rehome_tests::load::verify(scene.store, &scene.doors, &tally)
}
