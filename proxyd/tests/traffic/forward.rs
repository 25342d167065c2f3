//! Bytes travel unchanged, directly and over the trunk, on both families.

use std::time::Duration;

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::{RouteIntent, Target};
use rehome_shared::config::daemon::{FastPath, ListenOn, StaticRoute};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::{App, raw};
use crate::host::{Host, LIMIT, ask, file_route, free_port, quiet_port, tcp, version};

#[tokio::test]
async fn a_local_application_is_reached_directly() -> Result<()> {
    let (host, app, port) = (
        Host::start().await?,
        App::start("one").await?,
        free_port().await?,
    );
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "hello").await? == "one: hello");
    let connections = host.proxy.connections(Some(tcp(port)?)).connections;
    ensure!(
        connections.len() == 1 && connections[0].state == "relaying",
        "{connections:?}"
    );
    ensure!(connections[0].bytes_in == 6 && connections[0].client == client.local_addr()?);
    host.stop().await
}

#[tokio::test]
async fn a_remote_application_is_reached_over_its_trunk() -> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    owner
        .open(&[&here, &owner], tcp(port)?, version(1, 0), app.target())
        .await?;
    here.open(
        &[&here, &owner],
        tcp(port)?,
        version(1, 0),
        owner.as_target()?,
    )
    .await?;
    let mut client = here.client(port).await?;
    ensure!(ask(&mut client, "hello").await? == "one: hello");
    let at_owner = owner.status(tcp(port)?)?;
    ensure!(
        (at_owner.active, at_owner.from_trunk) == (1, 1),
        "{at_owner:?}"
    );
    // The owner knows the true client.
    let seen = owner.proxy.connections(None).connections;
    ensure!(seen[0].client == client.local_addr()?, "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn large_streams_arrive_whole_in_both_directions_at_once() -> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    owner
        .open(&[&here, &owner], tcp(port)?, version(1, 0), target)
        .await?;
    here.open(
        &[&here, &owner],
        tcp(port)?,
        version(1, 0),
        owner.as_target()?,
    )
    .await?;
    let up: Vec<u8> = (0..=250_u8).cycle().take(8_000_003).collect();
    let down: Vec<u8> = (3..=241_u8).cycle().take(9_000_017).collect();
    let client = async {
        let stream = here.client(port).await?;
        exchange(stream, &up, &down).await
    };
    let server = async {
        let (stream, _) = listener.accept().await?;
        exchange(stream, &down, &up).await
    };
    timeout(LIMIT, async { tokio::try_join!(client, server) }).await??;
    Ok(())
}

/// Sends all, ends its direction, and checks what comes until the other end.
async fn exchange(stream: TcpStream, send: &[u8], want: &[u8]) -> Result<()> {
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        write.write_all(send).await?;
        write.shutdown().await?;
        anyhow::Ok(())
    };
    let receiving = async {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await?;
        ensure!(got == want, "{} bytes instead of {}", got.len(), want.len());
        Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

#[tokio::test]
async fn one_dual_stack_listener_serves_both_families() -> Result<()> {
    let (app, port) = (App::start("one").await?, quiet_port()?);
    let host = Host::start_with(|config| config.listen = ListenOn::DualStack).await?;
    let status = host
        .set(
            &[],
            tcp(port)?,
            version(1, 0),
            RouteIntent::Open(app.target()),
        )
        .await?;
    ensure!(status.listen_error.is_none(), "{status:?}");
    let mut v4 = TcpStream::connect(("127.0.0.1", port)).await?;
    ensure!(ask(&mut v4, "four").await? == "one: four");
    let mut v6 = TcpStream::connect(("::1", port)).await?;
    ensure!(ask(&mut v6, "six").await? == "one: six");
    let clients = host.proxy.connections(None).connections;
    ensure!(
        clients.iter().any(|c| c.client.is_ipv4()),
        "a mapped address is shown as IPv4"
    );
    Ok(())
}

#[tokio::test]
async fn routes_of_the_file_are_served_alone_and_changed_by_a_reload() -> Result<()> {
    let (one, two, port) = (
        App::start("one").await?,
        App::start("two").await?,
        free_port().await?,
    );
    let route = |backend| file_route(port, backend);
    let host = Host::start_with(|config| config.routes = vec![route(one.addr)]).await?;
    let mut before = host.client(port).await?;
    ensure!(ask(&mut before, "a").await? == "one: a");
    let mut config = host.config.clone();
    config.routes = vec![route(two.addr)];
    host.proxy.configure(&config).await?;
    let mut after = host.client(port).await?;
    ensure!(ask(&mut after, "b").await? == "two: b");
    ensure!(
        ask(&mut before, "c").await? == "one: c",
        "a reload cut a connection"
    );
    config.routes.clear();
    host.proxy.configure(&config).await?;
    ensure!(
        host.client(port).await.is_err(),
        "a removed route still listens"
    );
    Ok(())
}

#[tokio::test]
async fn a_file_route_without_backend_closes_after_the_connect_timeout() -> Result<()> {
    let port = free_port().await?;
    let host = Host::start_with(|config| {
        config.timeouts.connect = Duration::from_millis(200);
        config.routes = vec![StaticRoute {
            fast_path: FastPath::Off,
            ..file_route(port, "127.0.0.1:1".parse().unwrap())
        }];
    })
    .await?;
    let mut client = host.client(port).await?;
    let read = timeout(LIMIT, client.read_u8()).await?;
    ensure!(read.is_err());
    let metrics = host.metrics().await?;
    ensure!(
        metrics.contains("result=\"connect_failed\"} 1"),
        "{metrics}"
    );
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_had_later() -> Result<()> {
    let (app, port) = (App::start("one").await?, free_port().await?);
    let host = Host::start().await?;
    let squatter = tokio::net::TcpListener::bind((host.address, port)).await?;
    let status = host
        .set(
            &[],
            tcp(port)?,
            version(1, 0),
            RouteIntent::Open(app.target()),
        )
        .await?;
    let error = status.listen_error.unwrap_or_default();
    ensure!(error.contains("in use"), "{error:?}");
    drop(squatter);
    host.wait(tcp(port)?, |status| status.listen_error.is_none())
        .await?;
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "hello").await? == "one: hello");
    Ok(())
}

#[tokio::test]
async fn a_port_that_was_taken_is_not_called_so_when_its_gate_opens_again() -> Result<()> {
    let (app, port) = (App::start("one").await?, free_port().await?);
    let host = Host::start().await?;
    let squatter = tokio::net::TcpListener::bind((host.address, port)).await?;
    let open = || RouteIntent::Open(app.target());
    let status = host.set(&[], tcp(port)?, version(1, 0), open()).await?;
    ensure!(status.listen_error.is_some(), "{status:?}");
    let closed = RouteIntent::Closed;
    let status = host.set(&[], tcp(port)?, version(1, 1), closed).await?;
    ensure!(status.listen_error.is_none(), "{status:?}");
    drop(squatter);
    let status = host.set(&[], tcp(port)?, version(1, 2), open()).await?;
    ensure!(status.listen_error.is_none(), "{status:?}");
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "hello").await? == "one: hello");
    Ok(())
}

#[tokio::test]
async fn a_closed_route_refuses_and_a_removed_one_too() -> Result<()> {
    let (app, port) = (App::start("one").await?, free_port().await?);
    let host = Host::start().await?;
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    host.client(port).await?;
    host.set(&[], tcp(port)?, version(1, 1), RouteIntent::Closed)
        .await?;
    ensure!(host.client(port).await.is_err());
    host.open(
        &[],
        tcp(port)?,
        version(1, 2),
        Target::Local { addr: app.addr },
    )
    .await?;
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "again").await? == "one: again");
    Ok(())
}
