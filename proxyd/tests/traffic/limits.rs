//! Limits hold back, they do not refuse.

use std::time::Duration;

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::{ParkLimits, RouteIntent};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::host::{Host, LIMIT, ask, free_port, tcp, version};

#[tokio::test]
async fn beyond_the_park_limit_the_backlog_holds_the_clients() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    let limits = ParkLimits {
        park_limit: 3,
        park_timeout: LIMIT,
    };
    host.set_limited(&[], key, version(1, 0), RouteIntent::Park, limits)
        .await?;
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        // Each connect succeeds: the kernel completes it.
        let mut client = host.client(port).await?;
        clients.spawn(async move { ask(&mut client, "x").await });
    }
    host.wait(key, |status| status.parked == 3).await?;
    for _ in 0..20 {
        ensure!(host.status(key)?.parked == 3);
        sleep(Duration::from_millis(5)).await;
    }
    ensure!(host.metrics().await?.contains("reason=\"route_parked\""));
    host.set_limited(
        &[],
        key,
        version(1, 1),
        RouteIntent::Open(app.target()),
        limits,
    )
    .await?;
    let mut answers = 0;
    while let Some(answer) = timeout(LIMIT, clients.join_next()).await? {
        ensure!(answer?? == "a: x");
        answers += 1;
    }
    ensure!(answers == 20);
    Ok(())
}

#[tokio::test]
async fn the_park_limit_holds_for_trunks_too_and_nobody_is_lost() -> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("a").await?, free_port().await?);
    let key = tcp(port)?;
    let limits = ParkLimits {
        park_limit: 2,
        park_timeout: LIMIT,
    };
    owner
        .set_limited(&[&here], key, version(1, 0), RouteIntent::Park, limits)
        .await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let mut client = here.client(port).await?;
        clients.spawn(async move { ask(&mut client, "x").await });
    }
    owner.wait(key, |status| status.parked == 2).await?;
    here.wait(key, |status| status.parked >= 6).await?;
    ensure!(owner.status(key)?.parked == 2);
    let open = RouteIntent::Open(app.target());
    owner
        .set_limited(&[&here], key, version(1, 1), open, limits)
        .await?;
    while let Some(answer) = timeout(LIMIT, clients.join_next()).await? {
        ensure!(answer?? == "a: x");
    }
    Ok(())
}

#[tokio::test]
async fn the_limit_of_connections_frees_with_their_end() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = Host::start_with(|config| config.limits.per_route = 2).await?;
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    let mut first = host.client(port).await?;
    let mut second = host.client(port).await?;
    ensure!(ask(&mut first, "1").await? == "a: 1" && ask(&mut second, "2").await? == "a: 2");
    let mut third = host.client(port).await?;
    let waiting = timeout(Duration::from_millis(200), ask(&mut third, "3")).await;
    ensure!(waiting.is_err(), "a third connection was served");
    drop(first);
    let answer = crate::host::read_line(&mut third).await?;
    ensure!(answer == "a: 3", "{answer}");
    Ok(())
}
