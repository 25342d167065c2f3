//! Over TLS a connection cannot go to another process; who waits for one, or rests, can.

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::{Content, GateCounts, RouteIntent};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::site::{self, Site};
use crate::app::App;
use crate::binary::{PROGRAM, wait_for};
use crate::host::{LIMIT, ask, free_port, gate_ref, prepare_verb, seal_hosts, tcp, version};
use crate::web::{WebApp, Wire};

/// Two hosts with sealed trunks, and two routes of the second one's applications.
async fn sites(content: Content, to: &RouteIntent) -> Result<(Site, Site, [u16; 2])> {
    seal_hosts()?;
    let (mut here, mut owner) = (Site::start(PROGRAM).await?, Site::start(PROGRAM).await?);
    (here.content, owner.content) = (content, content);
    let ports = [free_port().await?, free_port().await?];
    let keys = [tcp(ports[0])?, tcp(ports[1])?];
    let at = version(1, 0);
    let local = keys.map(|key| (key, to.clone()));
    owner.tell(&[&here], at, &local).await?;
    let remote = keys.map(|key| (key, RouteIntent::Open(owner.as_target())));
    here.tell(&[&owner], at, &remote).await?;
    Ok((here, owner, ports))
}

#[tokio::test]
async fn relays_over_a_sealed_trunk_stay_and_who_waits_behind_one_does_not() -> Result<()> {
    let app = App::start("a").await?;
    let open = RouteIntent::Open(app.target());
    let (mut here, mut owner, [port, waits]) = sites(Content::Bytes, &open).await?;
    let mut client = TcpStream::connect((here.address, port)).await?;
    ensure!(ask(&mut client, "1").await? == "a: 1");
    // It is in the middle of a question: an old process tells nobody goodbye who is.
    client.write_all(b"2").await?;
    here.until_bytes(3).await?;
    owner.until_bytes(3).await?;
    let mut prepare = prepare_verb(version(1, 1));
    prepare.application = site::other();
    owner.verb::<_, GateCounts>("prepare", &prepare).await?;
    let mut waiting = JoinSet::new();
    for n in 0..5 {
        let mut client = TcpStream::connect((here.address, waits)).await?;
        waiting.spawn(async move { ask(&mut client, &n.to_string()).await });
    }
    owner.until(waits, |route| route.parked == 5).await?;
    // One is ready, and is no reason not to go.
    wait_for(here.page, "/metrics", "rehome_proxy_trunks_ready 1\n").await?;

    let first = owner.hand_over(PROGRAM.as_ref()).await?;
    ensure!(
        (first.relays, first.held, first.stayed) == (0, 0, 1),
        "{first:?}"
    );
    // Their host holds them, and they come again: one first, as after any trunk that broke.
    owner.until(waits, |route| route.parked > 0).await?;
    let second = here.hand_over(PROGRAM.as_ref()).await?;
    ensure!(
        (second.relays, second.held, second.stayed) == (0, 5, 1),
        "{second:?}"
    );
    // The old processes pass on what they have, and end with it.
    ensure!(ask(&mut client, "").await? == "a: 2");
    let mut back = gate_ref(version(1, 2));
    back.application = site::other();
    drop(client);
    owner.now_is(first.pid).await?;
    here.now_is(second.pid).await?;
    owner.verb::<_, GateCounts>("rollback", &back).await?;
    while let Some(answer) = timeout(LIMIT, waiting.join_next()).await? {
        answer??;
    }
    Ok(())
}

#[tokio::test]
async fn http_connections_that_rest_go_over_without_their_sealed_way() -> Result<()> {
    let app = WebApp::start("a").await?;
    let open = RouteIntent::Open(app.target());
    let (mut here, _owner, [port, _]) = sites(Content::Http, &open).await?;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Wire::new(TcpStream::connect((here.address, port)).await?);
        ensure!(client.get("/1").await? == "a: /1");
        clients.push(client);
    }
    here.until(port, |route| route.resting == 5).await?;
    let reply = here.upgrade(PROGRAM).await?;
    ensure!(
        (reply.relays, reply.held, reply.stayed) == (5, 0, 0),
        "{reply:?}"
    );
    for client in &mut clients {
        ensure!(client.get("/2").await? == "a: /2");
    }
    Ok(())
}
