//! The size limit of a volume.

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::{Deployment, HARD_CAP, changed};
use rehome_tests::lab::Runtime;
use rehome_tests::load::block_on;
use rehome_tests::store::Store;
use serde_json::json;

use crate::scene::{NAME, PORT, Scene};

/// Room for an empty PostgreSQL and a little more.
const LIMIT: u64 = 128 << 20;

pub(crate) fn a_volume_keeps_its_limit_when_it_moves<S: Store>(
    scene: &Scene<'_, S>,
) -> anyhow::Result<()> {
    let mut body = scene.store.body(PORT);
    body["volume"]["maximum_size"] = json!("128MiB");
    if S::RUNTIME == Runtime::Process {
        // With `always` Redis ends itself when it cannot write; so it complains to the client.
        let command = body["command"].as_array_mut().context("no command")?;
        for word in command.iter_mut().filter(|word| **word == "always") {
            *word = json!("everysec");
        }
    }
    let fast = json!({"bandwidth_limit": "1GiB", "hard_cap": HARD_CAP});
    let body = changed(&body, &json!({"migration": fast}));
    scene.open(&Deployment::new().with(NAME, 1, &body))?;
    block_on(scene.store.ballast(scene.door(), 8))?;

    scene.lab.move_to(NAME, 2)?.ok()?;

    let store = scene.lab.wait_running(NAME, 2)?;
    let limits: Vec<_> = store.volumes.iter().map(|(_, limit)| *limit).collect();
    ensure!(limits == [Some(LIMIT)], "{store:?}");
    let complaint = (0..40)
        .find_map(|_| block_on(scene.store.ballast(scene.door(), 8)).err())
        .context("320 MiB fit into 128 MiB")?;
    // How the kernel says that a quota, which is what limits a volume on btrfs, is used up.
    // PostgreSQL may also hit it in its own log of writes: then it tells its operator.
    let mut said = format!("{complaint:#}");
    if S::RUNTIME == Runtime::Docker {
        let logs = "docker ps -aq | xargs -n 1 docker logs 2>&1";
        said.push_str(&scene.lab.host(2)?.shell(logs)?);
    }
    let known = ["No space left on device", "Disk quota exceeded"];
    ensure!(known.iter().any(|words| said.contains(words)), "{said}");
    let used = scene
        .lab
        .host(2)?
        .shell("du -sm /var/lib/rehome/pool/live | cut -f1")?;
    ensure!(
        used.trim().parse::<u64>()? <= (LIMIT >> 20) + 1,
        "{used} MiB are used"
    );
    Ok(())
}
