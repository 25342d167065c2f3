//! What a proxy that stops leaves to the next one: who is connected does not notice.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::manager::{Manager, Place};
use crate::app::App;
use crate::binary::wait_for;
use crate::host::{LIMIT, ask, free_port};
use crate::upgrade::live::{echo, talk};
use crate::web::{WebApp, Wire};
use rehome_shared::api::proxy::Target;

fn at(target: &Target) -> Result<SocketAddr> {
    match target {
        Target::Local { addr } => Ok(*addr),
        Target::Remote { .. } => anyhow::bail!("it is elsewhere"),
    }
}

/// Connections of a route, as the metrics say.
async fn are_active(place: &Place, port: u16, active: usize) -> Result<()> {
    let text = format!("rehome_proxy_connections_active{{route=\"{port}/tcp\"}} {active}\n");
    wait_for(place.page, "/metrics", &text).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_talks_or_waits_goes_on_after_a_restart_and_no_byte_is_lost() -> Result<()> {
    let (manager, place) = (Manager::start()?, Place::new().await?);
    let (target, _echo) = echo().await?;
    let (talked, asked, awaited) = (free_port().await?, free_port().await?, free_port().await?);
    let web = WebApp::start("web").await?;
    // Nobody answers there yet.
    let absent = free_port().await?;
    let later = SocketAddr::from((place.address, absent));
    let routes = format!(
        "{{external: {talked}, backend: \"{}\"}}, {{external: {asked}, backend: \"{}\", \
         protocol: http}}, {{external: {awaited}, backend: \"{later}\"}}",
        at(&target)?,
        web.addr
    );
    let file = place.write(&place.text(&routes))?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    manager.keeps(place.kept(&[talked, asked, awaited])).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut talks = JoinSet::new();
    for seed in 1..=40 {
        let stream = TcpStream::connect((place.address, talked)).await?;
        let pause = Duration::from_millis(if seed < 4 { 1 } else { 40 + seed });
        talks.spawn(talk(stream, seed, pause, Arc::clone(&stop)));
    }
    let mut visitor = Wire::new(TcpStream::connect((place.address, asked)).await?);
    ensure!(visitor.get("/0").await?.starts_with("web"));
    let mut waiting = TcpStream::connect((place.address, awaited)).await?;
    let mut answer = JoinSet::new();
    answer.spawn(async move { ask(&mut waiting, "x").await });
    let held = format!("rehome_proxy_connections_parked{{route=\"{awaited}/tcp\"}} 1\n");
    wait_for(place.page, "/metrics", &held).await?;

    for turn in 1..=3 {
        are_active(&place, talked, 40).await?;
        manager.stop(&mut running).await?;
        running = manager.run(&file)?;
        place.runs().await?;
        are_active(&place, talked, 40).await?;
        wait_for(place.page, "/metrics", &held).await?;
        ensure!(visitor.get(&format!("/{turn}")).await?.starts_with("web"));
        // What was read is not kept any more.
        manager.keeps(place.kept(&[talked, asked, awaited])).await?;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = timeout(LIMIT, talks.join_next()).await? {
        ensure!(done?? > 1000);
    }
    let _app = App::start_at("late", later).await?;
    let answer = timeout(LIMIT, answer.join_next()).await?;
    ensure!(answer.context("nobody asked")??? == "late: x");
    are_active(&place, talked, 0).await
}

/// So many ports need more than one letter, and so many answers more than one queue.
#[tokio::test]
async fn datagrams_that_come_during_a_restart_are_answered_after_it() -> Result<()> {
    let (manager, place) = (Manager::start()?, Place::new().await?);
    let (mut applications, mut ports, mut routes) = (Vec::new(), BTreeSet::new(), Vec::new());
    for _ in 0..4 {
        let application = UdpSocket::bind("127.0.0.1:0").await?;
        let (backend, most) = (application.local_addr()?, ports.len() + 100);
        while ports.len() < most {
            let port = free_port().await?;
            if ports.insert(port) {
                let route = format!("{{external: {port}, backend: \"{backend}\", protocol: udp}}");
                routes.push(route);
            }
        }
        applications.push(application);
    }
    let file = place.write(&place.text(&routes.join(", ")))?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    manager.keeps(place.kept(&[])).await?;
    manager.stop(&mut running).await?;
    ensure!(manager.names().contains(&"letter-1".to_owned()));

    let mut clients = Vec::new();
    for port in ports {
        let client = UdpSocket::bind((place.address, 0)).await?;
        client.connect((place.address, port)).await?;
        client.send(&port.to_be_bytes()).await?;
        clients.push((port, client));
    }
    let _running = manager.run(&file)?;
    let mut space = [0; 8];
    for application in applications {
        for _ in 0..100 {
            let (length, from) = timeout(LIMIT, application.recv_from(&mut space)).await??;
            let question = space.get(..length).context("too long")?;
            application.send_to(question, from).await?;
        }
    }
    for (port, client) in clients {
        let length = timeout(LIMIT, client.recv(&mut space)).await??;
        ensure!(space.get(..length) == Some(&port.to_be_bytes()[..]));
    }
    Ok(())
}

/// Nobody comes back: what was left ends with the manager's copy.
#[tokio::test]
async fn connections_that_were_left_end_when_nobody_keeps_them_any_more() -> Result<()> {
    let (manager, place, app) = (
        Manager::start()?,
        Place::new().await?,
        App::start("a").await?,
    );
    let port = free_port().await?;
    let file = place.write(&place.text(&super::route(port, &app)))?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    let mut client = TcpStream::connect((place.address, port)).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    manager.stop(&mut running).await?;
    ensure!(manager.names().contains(&"letter-0".to_owned()));
    drop(manager);
    let end = timeout(LIMIT, client.read(&mut [0])).await?;
    ensure!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    Ok(())
}

/// A route may be gone from the file of the next one: who is connected stays so.
#[tokio::test]
async fn who_is_connected_stays_where_the_next_file_has_no_such_route() -> Result<()> {
    let (manager, place, app) = (
        Manager::start()?,
        Place::new().await?,
        App::start("a").await?,
    );
    let port = free_port().await?;
    let file = place.write(&place.text(&super::route(port, &app)))?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    let mut client = TcpStream::connect((place.address, port)).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    manager.stop(&mut running).await?;
    let _running = manager.run(&place.write(&place.text(""))?)?;
    place.runs().await?;
    ensure!(ask(&mut client, "y").await? == "a: y");
    place.refuses(port).await?;
    let taken = TcpListener::bind((place.address, port)).await;
    drop(taken.context("its port is free")?);
    Ok(())
}
