//! Clients that are announced go over with what was said of them, also before all of it was said.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::{GateCounts, RouteIntent};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::site::{Site, other};
use crate::announce::{CLIENT, announcement};
use crate::app::App;
use crate::binary::{PROGRAM, wait_for};
use crate::host::{ask, free_port, gate_ref, prepare_verb, read_line, tcp, version};

const FILE: &str = "proxy_protocol: {accept_from: [127.0.0.1], header_timeout: 60s}\n";

/// Waits until so many are to be announced at a port.
async fn newcomers(site: &Site, port: u16, count: usize) -> Result<()> {
    let line = format!(
        "rehome_proxy_newcomers{{route=\"{}\"}} {count}\n",
        tcp(port)?
    );
    wait_for(site.page, "/metrics", &line).await
}

#[tokio::test]
async fn who_is_not_announced_yet_and_finds_no_room_is_served_by_the_old_process() -> Result<()> {
    let app = App::start("a").await?;
    let mut site = Site::start_with(PROGRAM, FILE).await?;
    let port = free_port().await?;
    let to = RouteIntent::Open(app.target());
    site.route(port, version(1, 0), to).await?;
    let mut clients = Vec::new();
    for _ in 0..80 {
        clients.push(TcpStream::connect((site.address, port)).await?);
    }
    newcomers(&site, port, clients.len()).await?;
    let small = site.file().with_file_name("small");
    let script = format!("#!/bin/sh\nulimit -n 64\nexec {PROGRAM} \"$@\"\n");
    fs::write(&small, script)?;
    fs::set_permissions(&small, Permissions::from_mode(0o755))?;
    let reply = site.hand_over(&small).await?;
    ensure!(reply.stayed > 0 && !reply.why.is_empty(), "{reply:?}");
    ensure!(reply.stayed + reply.held == 80, "{reply:?}");
    let announcement = announcement()?;
    for client in &mut clients {
        client.write_all(&announcement).await?;
        ensure!(ask(client, "x").await? == "a: x");
    }
    drop(clients);
    site.now_is(reply.pid).await
}

#[tokio::test]
async fn clients_keep_the_address_that_was_announced_or_is_about_to_be() -> Result<()> {
    let app = App::start("a").await?;
    let mut site = Site::start_with(PROGRAM, FILE).await?;
    let (port, parked) = (free_port().await?, free_port().await?);
    let routes = [port, parked].map(|port| (tcp(port), RouteIntent::Open(app.target())));
    let routes = routes.map(|(key, to)| key.map(|key| (key, to)));
    let [first, second] = routes;
    let at = version(1, 0);
    site.tell(&[], at, &[first?, second?]).await?;
    let mut prepare = prepare_verb(version(1, 1));
    prepare.application = other();
    site.verb::<_, GateCounts>("prepare", &prepare).await?;

    let announcement = announcement()?;
    let mut relayed = TcpStream::connect((site.address, port)).await?;
    relayed.write_all(&announcement).await?;
    ensure!(ask(&mut relayed, "1").await? == "a: 1");
    let mut waits = TcpStream::connect((site.address, parked)).await?;
    waits
        .write_all(&[&announcement, b"2\n".as_slice()].concat())
        .await?;
    site.until(parked, |route| route.parked == 1).await?;
    let mut silent = TcpStream::connect((site.address, parked)).await?;
    let mut half = TcpStream::connect((site.address, port)).await?;
    let (begin, end) = announcement.split_at(17);
    half.write_all(begin).await?;

    for _ in 0..2 {
        for port in [port, parked] {
            newcomers(&site, port, 1).await?;
        }
        let reply = site.upgrade(PROGRAM).await?;
        // Who is not announced is one of the held ones, wherever it was when this began.
        ensure!(
            (reply.relays, reply.held, reply.stayed) == (1, 3, 0),
            "{reply:?}"
        );
        let known = site.all_connections().await?;
        ensure!(known.len() == 2 && known.iter().all(|one| one.client.to_string() == CLIENT));
    }
    half.write_all(&[end, b"3\n"].concat()).await?;
    ensure!(read_line(&mut half).await? == "a: 3");
    silent.write_all(&announcement).await?;
    site.until(parked, |route| route.parked == 2).await?;
    let known = site.all_connections().await?;
    ensure!(known.len() == 4 && known.iter().all(|one| one.client.to_string() == CLIENT));
    let mut back = gate_ref(version(1, 2));
    back.application = other();
    site.verb::<_, GateCounts>("rollback", &back).await?;
    ensure!(read_line(&mut waits).await? == "a: 2");
    ensure!(ask(&mut silent, "4").await? == "a: 4" && ask(&mut relayed, "5").await? == "a: 5");
    Ok(())
}
