//! HTTP connections go over between two requests, or in the middle of a long one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::{Content, GateCounts, RouteIntent};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::site::Site;
use crate::binary::PROGRAM;
use crate::host::{LIMIT, commit_verb, free_port, prepare_verb, tcp, version};
use crate::web::{WebApp, Wire, get, post};

async fn http_site(app: &WebApp) -> Result<(Site, u16)> {
    let mut site = Site::start(PROGRAM).await?;
    site.content = Content::Http;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(app.target()))
        .await?;
    Ok((site, port))
}

#[tokio::test]
async fn clients_that_rest_or_wait_at_a_gate_keep_their_connections() -> Result<()> {
    let (old, new) = (WebApp::start("old").await?, WebApp::start("new").await?);
    let (mut site, port) = http_site(&old).await?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Wire::new(TcpStream::connect((site.address, port)).await?);
        ensure!(client.get("/").await? == "old: /");
        clients.push(client);
    }
    // One has begun to ask.
    clients[0].say("GET /begun HTTP/1.1\r\nHo").await?;
    let reply = site.upgrade(PROGRAM).await?;
    let moved = (reply.relays, reply.held, reply.stayed);
    ensure!(moved == (20, 0, 0), "{reply:?}");
    site.until(port, |route| (route.active, route.resting) == (0, 20))
        .await?;
    clients[0].say("st: x\r\n\r\n").await?;
    ensure!(clients[0].answer(false).await?.1 == "old: /begun");

    let prepare = prepare_verb(version(1, 1));
    site.verb::<_, GateCounts>("prepare", &prepare).await?;
    for client in &mut clients {
        client.say(&get("/next")).await?;
    }
    site.until(port, |route| route.parked == 20).await?;
    let reply = site.upgrade(PROGRAM).await?;
    let moved = (reply.relays, reply.held, reply.stayed);
    ensure!(moved == (20, 0, 0), "{reply:?}");
    site.until(port, |route| route.parked == 20).await?;
    old.stop().await;
    let commit = commit_verb(tcp(port)?, version(2, 0), new.target());
    let counts: GateCounts = site.verb("commit", &commit).await?;
    ensure!(counts.parked_total == 20, "{counts:?}");
    for client in &mut clients {
        ensure!(client.answer(false).await?.1 == "new: /next");
    }
    ensure!(new.asked().len() == 20);
    Ok(())
}

#[tokio::test]
async fn requests_in_flight_are_answered_on_their_connections() -> Result<()> {
    let app = WebApp::start("app").await?;
    let (mut site, port) = http_site(&app).await?;
    let connect = async || anyhow::Ok(Wire::new(TcpStream::connect((site.address, port)).await?));
    let (mut one, mut two) = (connect().await?, connect().await?);
    one.say(&get("/slow")).await?;
    // What it asks next is here already.
    two.say(&[post("/slow", "x"), get("/next")].concat())
        .await?;
    app.was_asked(2).await?;
    let reply = site.upgrade(PROGRAM).await?;
    let moved = (reply.relays, reply.held, reply.stayed);
    ensure!(moved == (2, 0, 0), "{reply:?}");
    app.release(2);
    ensure!(one.answer(false).await?.1 == "app: /slow");
    ensure!(two.answer(false).await?.1 == "app: /slow x");
    ensure!(two.answer(false).await?.1 == "app: /next");
    ensure!(one.get("/again").await? == "app: /again");
    let mut asked = app.asked();
    asked.sort();
    ensure!(asked == ["/again", "/next", "/slow", "/slow"], "{asked:?}");
    Ok(())
}

#[tokio::test]
async fn busy_clients_see_no_end_during_upgrades() -> Result<()> {
    let app = WebApp::start("app").await?;
    let (mut site, port) = http_site(&app).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let answers = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let stream = TcpStream::connect((site.address, port)).await?;
        let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
        let mut client = Wire::new(stream);
        // It was accepted.
        client.get("/").await?;
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let (_, body) = client.ask(&post("/", "x")).await?;
                ensure!(body == "app: / x", "{body}");
                answers.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    for _ in 0..3 {
        let (wanted, began) = (answers.load(Ordering::Relaxed) + 200, Instant::now());
        while answers.load(Ordering::Relaxed) < wanted {
            ensure!(began.elapsed() < LIMIT, "the clients are stuck");
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            sleep(Duration::from_millis(2)).await;
        }
        let reply = site.upgrade(PROGRAM).await?;
        ensure!((reply.relays, reply.stayed) == (8, 0), "{reply:?}");
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = timeout(LIMIT, clients.join_next()).await? {
        client??;
    }
    ensure!(app.asked().len() == 8 + answers.load(Ordering::Relaxed));
    Ok(())
}
