//! What was told is kept: a proxy serves after a restart without anybody.

use std::fs;

use anyhow::{Context, Result, ensure};
use rehome_shared::api::proxy::Gate;

use crate::app::App;
use crate::host::{Host, ask, free_port, gate_ref, prepare_verb, tcp, version};

#[tokio::test]
async fn routes_are_served_again_after_a_restart() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    host.open(&[], tcp(port)?, version(5, 1), app.target())
        .await?;
    let host = host.restart().await?;
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    ensure!(host.status(tcp(port)?)?.version == version(5, 1));
    Ok(())
}

#[tokio::test]
async fn a_parked_gate_comes_back_parked_and_knows_its_way_back() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let host = host.restart().await?;
    ensure!(host.status(key)?.gate == Gate::Parked);
    let mut client = host.client(port).await?;
    host.wait(key, |status| status.parked == 1).await?;
    host.proxy.rollback(gate_ref(version(1, 2))).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    Ok(())
}

/// The first epoch 1 in the file becomes 7.
fn raise_epoch(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let one = b"\"epoch\":1";
    let at = bytes.windows(one.len()).position(|window| window == one)?;
    *bytes.get_mut(at + one.len() - 1)? = b'7';
    Some(bytes)
}

#[tokio::test]
async fn damaged_routes_are_moved_aside_and_loud() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    host.stop().await?;
    let file = host.config.state.join("routes");
    let damaged = raise_epoch(fs::read(&file)?).context("no epoch in the file")?;
    fs::write(&file, &damaged)?;
    let host = host.restart().await?;
    ensure!(
        host.proxy.routes().routes.is_empty(),
        "damaged routes are served"
    );
    ensure!(
        host.metrics()
            .await?
            .contains("rehome_proxy_store_corrupt_total 1")
    );
    let aside = fs::read_dir(&host.config.state)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("routes.corrupt."))
        .context("the damaged file is gone")?;
    ensure!(fs::read(host.config.state.join(aside))? == damaged);
    // What migrated says next is kept again.
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let host = host.restart().await?;
    ensure!(host.proxy.routes().routes.len() == 1);
    Ok(())
}
