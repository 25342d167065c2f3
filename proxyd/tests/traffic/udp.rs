//! Datagrams: local, over the trunk, held while parked, and following a move.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rehome_shared::api::proxy::{CommitTarget, Gate, RouteKey, Target};
use rehome_shared::units::Bytes;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::host::{Host, LIMIT, commit_verb, free_port, gate_ref, prepare_verb, version};

/// Answers each datagram with its own name and the datagram.
struct Echo {
    target: Target,
    _task: JoinSet<()>,
}

async fn echo(name: &'static str) -> Result<Echo> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let target = Target::Local {
        addr: socket.local_addr()?,
    };
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let mut reply = format!("{name}: ").into_bytes();
            reply.extend(buffer.iter().take(length));
            if socket.send_to(&reply, from).await.is_err() {
                return;
            }
        }
    });
    Ok(Echo {
        target,
        _task: task,
    })
}

async fn free_udp() -> Result<(u16, RouteKey)> {
    let port = free_port().await?;
    Ok((port, format!("{port}/udp").parse()?))
}

async fn client(host: &Host, port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket
        .connect(SocketAddr::from((host.address, port)))
        .await?;
    Ok(socket)
}

async fn receive(socket: &UdpSocket) -> Result<String> {
    let mut buffer = vec![0; 65_535];
    let length = timeout(LIMIT, socket.recv(&mut buffer))
        .await
        .context("no answer")??;
    buffer.truncate(length);
    Ok(String::from_utf8(buffer)?)
}

#[tokio::test]
pub(crate) async fn datagrams_are_echoed_locally_and_over_the_trunk() -> Result<()> {
    let (here, owner, app) = (
        Host::start().await?,
        Host::start().await?,
        echo("one").await?,
    );
    let (port, key) = free_udp().await?;
    owner
        .open(&[&here], key, version(1, 0), app.target.clone())
        .await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    for host in [&owner, &here] {
        let (first, second) = (client(host, port).await?, client(host, port).await?);
        for n in 0..50 {
            first.send(format!("first {n}").as_bytes()).await?;
            second.send(format!("second {n}").as_bytes()).await?;
            ensure!(receive(&first).await? == format!("one: first {n}"));
            ensure!(receive(&second).await? == format!("one: second {n}"));
        }
        let large = "x".repeat(60_000);
        first.send(large.as_bytes()).await?;
        ensure!(receive(&first).await? == format!("one: {large}"));
        first.send(b"").await?;
        ensure!(
            receive(&first).await? == "one: ",
            "an empty datagram is one too"
        );
    }
    let metrics = here.metrics().await?;
    ensure!(metrics.contains("rehome_proxy_udp_sessions 2"));
    // Sessions and sockets that rest hold no buffers.
    ensure!(
        metrics.contains("rehome_proxy_relay_bytes 0\n")
            && metrics.contains("rehome_proxy_datagram_bytes 0\n"),
        "{metrics}"
    );
    Ok(())
}

#[tokio::test]
async fn datagrams_are_held_while_parked_and_the_newest_survive() -> Result<()> {
    let (host, app) = (Host::start().await?, echo("one").await?);
    let (port, key) = free_udp().await?;
    host.open(&[], key, version(1, 0), app.target.clone())
        .await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    ensure!(host.status(key)?.gate == Gate::Parked);
    let socket = client(&host, port).await?;
    for n in 0..300 {
        socket.send(n.to_string().as_bytes()).await?;
        // Let the proxy read, so that the kernel's own buffer drops nothing.
        tokio::task::yield_now().await;
    }
    timeout(LIMIT, async {
        while !host.metrics().await?.contains("reason=\"datagram\"} 44") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    host.proxy.rollback(gate_ref(version(1, 2))).await?;
    for n in 44..300 {
        ensure!(receive(&socket).await? == format!("one: {n}"));
    }
    Ok(())
}

#[tokio::test]
async fn held_datagrams_have_their_own_memory_and_the_newest_survive() -> Result<()> {
    // A quarter of it: room for four.
    let host = Host::start_with(|config| config.limits.relay_bytes = Bytes(4 * 4000 * 4)).await?;
    let (port, key) = free_udp().await?;
    let app = echo("one").await?;
    host.open(&[], key, version(1, 0), app.target.clone())
        .await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let socket = client(&host, port).await?;
    for n in 0..10 {
        socket.send(format!("{n:<4000}").as_bytes()).await?;
    }
    timeout(LIMIT, async {
        while !host.metrics().await?.contains("reason=\"datagram\"} 6") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    let metrics = host.metrics().await?;
    ensure!(
        metrics.contains("rehome_proxy_datagram_bytes 16000\n"),
        "{metrics}"
    );
    host.proxy.rollback(gate_ref(version(1, 2))).await?;
    for n in 6..10 {
        ensure!(receive(&socket).await? == format!("one: {n:<4000}"));
    }
    Ok(())
}

#[tokio::test]
pub(crate) async fn a_session_follows_its_route_to_another_host() -> Result<()> {
    let (here, source, destination) = (
        Host::start().await?,
        Host::start().await?,
        Host::start().await?,
    );
    let all = [&here, &source, &destination];
    let (old, new) = (echo("old").await?, echo("new").await?);
    let (port, key) = free_udp().await?;
    source
        .open(&all, key, version(1, 0), old.target.clone())
        .await?;
    here.open(&all, key, version(1, 0), source.as_target()?)
        .await?;
    let (third, at_source) = (client(&here, port).await?, client(&source, port).await?);
    for socket in [&third, &at_source] {
        socket.send(b"a").await?;
        ensure!(receive(socket).await? == "old: a");
    }
    source.proxy.prepare(prepare_verb(version(1, 1))).await?;
    // The session over the trunk ended; what is sent now waits for the owner's word.
    timeout(LIMIT, async {
        while !source
            .metrics()
            .await?
            .contains("rehome_proxy_udp_sessions 2")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    at_source.send(b"b").await?;
    destination
        .open(&all, key, version(2, 0), new.target.clone())
        .await?;
    let targets = vec![CommitTarget {
        key,
        target: destination.as_target()?,
    }];
    let mut commit = commit_verb(key, version(2, 0), new.target.clone());
    commit.targets = targets;
    source.proxy.commit(commit).await?;
    ensure!(receive(&at_source).await? == "new: b");
    let mut answer = String::new();
    timeout(LIMIT, async {
        // Datagrams may be lost in the moment of the change; senders repeat.
        while !answer.starts_with("new") {
            third.send(b"c").await?;
            if let Ok(next) = timeout(Duration::from_millis(100), receive(&third)).await {
                answer = next?;
            }
        }
        anyhow::Ok(())
    })
    .await??;
    ensure!(answer == "new: c", "{answer}");
    Ok(())
}
