//! What a container uses, and holding it to less.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use migrated::runtime::docker::DockerRuntime;
use migrated::runtime::{Cpus, Runtime, Usage};
use rehome_shared::ids::AppName;
use rehome_shared::units::Bytes;

use crate::engine::Engine;
use crate::{GRACE, app, says, shell, up, volume};

/// Far below what a busy loop gets on the busiest machine.
const LITTLE: Cpus = Cpus(0.02);

/// A busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Uses of the processor, per second, over a stretch of time.
async fn used(runtime: &DockerRuntime, name: &AppName, stretch: Duration) -> Result<f64> {
    let began = Instant::now();
    let before = runtime.usage(name).await?;
    tokio::time::sleep(stretch).await;
    let after = runtime.usage(name).await?;
    let used = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    Ok(used / began.elapsed().as_secs_f64())
}

async fn is_free(runtime: &DockerRuntime, name: &AppName) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while used(runtime, name, Duration::from_millis(300)).await? <= 4.0 * LITTLE.0 {
        ensure!(Instant::now() < deadline, "it is not free");
    }
    Ok(())
}

async fn is_held(runtime: &DockerRuntime, name: &AppName) -> Result<()> {
    let used = used(runtime, name, Duration::from_secs(2)).await?;
    ensure!(used < 2.0 * LITTLE.0, "it used {used} of a processor");
    Ok(())
}

#[tokio::test]
async fn a_container_gets_less_while_it_is_held_and_is_free_again_at_each_end() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let name = app("busy")?;
    up(&runtime, &shell("busy", "echo up; while :; do :; done")?).await?;
    is_free(&runtime, &name).await?;

    runtime.throttle(&name, Some(LITTLE)).await?;
    is_held(&runtime, &name).await?;
    runtime.throttle(&name, None).await?;
    is_free(&runtime, &name).await?;

    // Another daemon lets go what this one held.
    runtime.throttle(&name, Some(LITTLE)).await?;
    is_held(&runtime, &name).await?;
    engine.runtime().throttle(&name, None).await?;
    is_free(&runtime, &name).await?;

    // What holds it is not part of the container.
    runtime.throttle(&name, Some(LITTLE)).await?;
    runtime.stop(&name, Duration::from_millis(100)).await?;
    runtime.throttle(&name, Some(LITTLE)).await?;
    runtime.start(&name).await?;
    is_free(&runtime, &name).await
}

#[tokio::test]
async fn what_a_container_writes_is_counted() -> Result<()> {
    let Some(engine) = Engine::start()? else {
        return Ok(());
    };
    let runtime = engine.runtime();
    let script = "dd if=/dev/zero of=/data/written bs=1M count=8; echo up; exec sleep 600";
    let mut wanted = shell("writer", script)?;
    wanted.mounts.push(volume(&engine)?);
    let name = app("writer")?;
    assert_eq!(runtime.usage(&name).await?, Usage::default());
    runtime.create(&wanted).await?;
    runtime.start(&name).await?;
    says(&runtime, "writer", "up").await?;
    let usage = runtime.usage(&name).await?;
    ensure!(usage.written >= Bytes(8 << 20), "{usage:?}");
    runtime.stop(&name, GRACE).await?;
    assert_eq!(runtime.usage(&name).await?, Usage::default());
    Ok(())
}
