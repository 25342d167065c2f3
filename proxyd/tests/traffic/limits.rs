//! Limits hold back, they do not refuse.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rehome_shared::api::proxy::{ParkLimits, RouteIntent};
use rehome_shared::units::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{App, raw};
use crate::host::{Host, LIMIT, ask, file_route, free_port, tcp, unused_address, version};

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
pub(crate) async fn the_park_limit_holds_for_trunks_too_and_nobody_is_lost() -> Result<()> {
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

#[tokio::test]
async fn an_address_with_enough_connections_gets_no_more_of_them() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = Host::start_with(|config| config.limits.per_source = NonZeroU32::new(2)).await?;
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let mut first = host.client(port).await?;
    let mut second = host.client(port).await?;
    ensure!(ask(&mut first, "1").await? == "a: 1" && ask(&mut second, "2").await? == "a: 2");
    let mut third = host.client(port).await?;
    ensure!(
        ask(&mut third, "3").await.is_err(),
        "a third one was served"
    );
    ensure!(
        host.metrics()
            .await?
            .contains("rehome_proxy_shed_total{reason=\"source\"} 1")
    );
    // Another address has its own places.
    let other = TcpSocket::new_v4()?;
    other.bind((unused_address(), 0).into())?;
    let mut other = other.connect((host.address, port).into()).await?;
    ensure!(ask(&mut other, "4").await? == "a: 4");
    drop(first);
    host.wait(tcp(port)?, |status| status.active == 2).await?;
    let mut fourth = host.client(port).await?;
    ensure!(ask(&mut fourth, "5").await? == "a: 5");
    Ok(())
}

#[tokio::test]
async fn what_parked_clients_have_sent_stops_their_route_and_no_other() -> Result<()> {
    let (app, port, other) = (
        App::start("a").await?,
        free_port().await?,
        free_port().await?,
    );
    let host = Host::start_with(|config| {
        config.limits.parked_bytes = Bytes(10_000);
        config.routes = vec![file_route(other, app.addr)];
    })
    .await?;
    let key = tcp(port)?;
    host.set(&[], key, version(1, 0), RouteIntent::Park).await?;
    let mut talks = host.client(port).await?;
    let long = "x".repeat(20_000);
    talks.write_all(format!("{long}\n").as_bytes()).await?;
    timeout(LIMIT, async {
        while !host
            .metrics()
            .await?
            .contains("rehome_proxy_parked_bytes 20001")
        {
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    // The listener notices with the next client: it looked before it accepted.
    let mut late = JoinSet::new();
    for _ in 0..3 {
        let mut client = host.client(port).await?;
        late.spawn(async move { ask(&mut client, "late").await });
    }
    timeout(LIMIT, async {
        while !host.metrics().await?.contains("reason=\"parked_bytes\"}") {
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    ensure!(host.status(key)?.parked <= 2);
    let mut elsewhere = host.client(other).await?;
    ensure!(ask(&mut elsewhere, "y").await? == "a: y");

    let open = RouteIntent::Open(app.target());
    host.set(&[], key, version(1, 1), open).await?;
    ensure!(crate::host::read_line(&mut talks).await? == format!("a: {long}"));
    while let Some(answer) = timeout(LIMIT, late.join_next()).await? {
        ensure!(answer?? == "a: late");
    }
    ensure!(
        host.metrics()
            .await?
            .contains("rehome_proxy_parked_bytes 0\n")
    );
    Ok(())
}

#[tokio::test]
async fn readers_that_do_not_read_leave_memory_for_those_who_do() -> Result<()> {
    /// Room for a few buffers, and what a buffer has then and beyond it.
    const BUDGET: u64 = 256 << 10;
    const SMALL: u64 = 16 << 10;
    const TINY: u64 = 4 << 10;
    let host = Host::start_with(|config| config.limits.relay_bytes = Bytes(BUDGET)).await?;
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    host.open(&[], tcp(port)?, version(1, 0), target).await?;
    let mut stalled = Vec::new();
    let block = vec![7; 1 << 16];
    for _ in 0..24 {
        let client = host.client(port).await?;
        let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
        // Until nothing is taken any more.
        while let Ok(written) = timeout(Duration::from_millis(50), server.write(&block)).await {
            written?;
        }
        stalled.push((client, server));
    }
    let held = timeout(LIMIT, lent(&host, &stalled, BUDGET - SMALL)).await??;
    ensure!(held <= BUDGET + 24 * TINY, "{held}");
    // All is lent, and nobody who has it reads.
    let mut other = host.client(port).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    let sends = async { server.write_all(&vec![8; 1 << 20]).await };
    let reads = async {
        let mut bytes = vec![0; 1 << 20];
        other.read_exact(&mut bytes).await?;
        ensure!(bytes.iter().all(|byte| *byte == 8));
        anyhow::Ok(())
    };
    let (sent, read) = timeout(LIMIT, async { tokio::join!(sends, reads) }).await?;
    sent?;
    read?;
    drop((other, server));
    let mut rest = JoinSet::new();
    for (mut client, server) in stalled {
        rest.spawn(async move {
            drop(server);
            let mut bytes = 0_usize;
            let mut piece = vec![0; 1 << 16];
            loop {
                match client.read(&mut piece).await? {
                    0 => return anyhow::Ok(bytes),
                    length => {
                        ensure!(piece[..length].iter().all(|byte| *byte == 7));
                        bytes += length;
                    }
                }
            }
        });
    }
    while let Some(bytes) = timeout(LIMIT, rest.join_next()).await? {
        ensure!(bytes?? > 0);
    }
    host.wait(tcp(port)?, |status| status.active == 0).await?;
    ensure!(gauge(&host, "rehome_proxy_relay_bytes ").await? == 0);
    Ok(())
}

/// What is lent, once that is more than this: on a machine that ran the proxy too late, who does not
/// read can be sent more.
async fn lent(host: &Host, stalled: &[(TcpStream, TcpStream)], least: u64) -> Result<u64> {
    loop {
        let lent = gauge(host, "rehome_proxy_relay_bytes ").await?;
        if lent > least {
            return Ok(lent);
        }
        for (_, server) in stalled {
            let _full = server.try_write(&[7; 1 << 14]);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn gauge(host: &Host, name: &str) -> Result<u64> {
    let metrics = host.metrics().await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.context("no such metric")?.parse()?)
}

#[tokio::test]
async fn a_lifetime_does_not_begin_while_a_client_is_parked() -> Result<()> {
    let lifetime = Duration::from_millis(500);
    let host = Host::start_with(|config| config.timeouts.lifetime = Some(lifetime)).await?;
    let (app, port) = (App::start("a").await?, free_port().await?);
    host.set(&[], tcp(port)?, version(1, 0), RouteIntent::Park)
        .await?;
    let mut client = host.client(port).await?;
    // It has asked when its lifetime begins: who waits for an answer is not told goodbye.
    client.write_all(b"hello\n").await?;
    host.wait(tcp(port)?, |status| status.parked == 1).await?;
    sleep(2 * lifetime).await;
    let opened = Instant::now();
    host.open(&[], tcp(port)?, version(1, 1), app.target())
        .await?;
    let mut heard = String::new();
    timeout(LIMIT, client.read_to_string(&mut heard)).await??;
    ensure!(heard == "a: hello\n", "{heard:?}");
    let lived = opened.elapsed();
    ensure!(lived >= lifetime, "it had only {lived:?} of its lifetime");
    Ok(())
}

#[tokio::test]
async fn a_connection_ends_at_its_first_pause_after_its_lifetime() -> Result<()> {
    let lifetime = Duration::from_millis(200);
    let host = Host::start_with(|config| config.timeouts.lifetime = Some(lifetime)).await?;
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    let key = tcp(port)?;
    host.set(&[], key, version(1, 0), RouteIntent::Park).await?;
    let mut client = host.client(port).await?;
    // It has asked when its lifetime begins, however late this machine runs it.
    client.write_all(b"a slow question").await?;
    host.wait(key, |status| status.parked == 1).await?;
    host.open(&[], key, version(1, 1), target).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    timeout(LIMIT, server.read_exact(&mut [0; 15])).await??;
    // Who has asked is not cut off from the answer.
    sleep(4 * lifetime).await;
    server.write_all(b"the answer").await?;
    let mut rest = Vec::new();
    timeout(LIMIT, client.read_to_end(&mut rest)).await??;
    ensure!(rest == b"the answer", "{rest:?}");
    drop((client, server));
    host.wait(key, |status| status.active == 0).await?;
    let metrics = host.metrics().await?;
    ensure!(metrics.contains("result=\"lifetime\"} 1"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_connection_without_a_pause_is_cut_when_its_lifetime_is_long_over() -> Result<()> {
    let host = Host::start_with(|config| {
        config.timeouts.lifetime = Some(Duration::from_millis(100));
        config.timeouts.half_close = Duration::from_millis(300);
    })
    .await?;
    let (app, port) = (App::start("a").await?, free_port().await?);
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let started = Instant::now();
    let mut client = host.client(port).await?;
    while ask(&mut client, "x").await.is_ok() {
        ensure!(started.elapsed() < LIMIT, "it goes on for ever");
    }
    ensure!(started.elapsed() >= Duration::from_millis(90));
    // On a machine that runs nobody for a while there was a pause: it was told goodbye.
    drop(client);
    host.wait(tcp(port)?, |status| status.active == 0).await?;
    let metrics = host.metrics().await?;
    ensure!(metrics.contains("result=\"lifetime\"} 1"), "{metrics}");
    Ok(())
}
