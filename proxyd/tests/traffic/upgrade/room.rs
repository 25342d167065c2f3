//! A handover where there is little room, in the old process or in the new one.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use rehome_shared::api::proxy::{Drain, GateCounts, RouteIntent, Target};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::site::Site;
use crate::app::{App, raw};
use crate::binary::PROGRAM;
use crate::host::{
    LIMIT, ask, drain_verb, free_port, prepare_verb, read_line, tcp, unused_address, version,
};

/// The successor counts those who are on their way when newcomers knock.
#[tokio::test]
async fn at_a_limit_who_waits_outside_does_not_take_the_place_of_who_comes_over() -> Result<()> {
    let app = App::start("a").await?;
    let limits = "limits: {connections: 10, per_route: 10, udp_sessions: 1}\n";
    let mut site = Site::start_with(PROGRAM, limits).await?;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(app.target()))
        .await?;
    let mut inside = Vec::new();
    for _ in 0..10 {
        let mut client = TcpStream::connect((site.address, port)).await?;
        ensure!(ask(&mut client, "x").await? == "a: x");
        inside.push(client);
    }
    let mut outside = Vec::new();
    for _ in 0..30 {
        let mut client = TcpStream::connect((site.address, port)).await?;
        client.write_all(b"y\n").await?;
        outside.push(client);
    }
    for _ in 0..3 {
        let reply = site.upgrade(PROGRAM).await?;
        ensure!((reply.relays, reply.stayed) == (10, 0), "{reply:?}");
        ensure!(site.status(port).await?.active == 10);
        ensure!(outside.iter().all(has_heard_nothing));
    }
    for client in &mut inside {
        ensure!(ask(client, "z").await? == "a: z");
    }
    drop(inside);
    for mut client in outside {
        ensure!(read_line(&mut client).await? == "a: y");
    }
    Ok(())
}

fn has_heard_nothing(client: &TcpStream) -> bool {
    let heard = client.try_read(&mut [0]);
    heard.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Clients that have asked, and their application, which has not answered.
async fn questions(
    site: &Site,
    port: u16,
    listener: &TcpListener,
    count: usize,
) -> Result<Vec<(TcpStream, TcpStream)>> {
    let mut pairs = Vec::new();
    for _ in 0..count {
        let mut client = TcpStream::connect((site.address, port)).await?;
        let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
        client.write_all(b"?").await?;
        ensure!(timeout(LIMIT, server.read_u8()).await?? == b'?');
        pairs.push((client, server));
    }
    Ok(pairs)
}

/// Drains until nothing flows; that begins when the successor has heard that the old process is
/// gone.
async fn drained(site: &Site, drain: &Drain) -> Result<()> {
    let began = Instant::now();
    loop {
        match site.verb::<_, GateCounts>("drain", drain).await {
            Ok(counts) if counts.active == 0 => return Ok(()),
            other => ensure!(began.elapsed() < LIMIT, "{other:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_successor_has_no_room_for_is_passed_on_by_the_old_process() -> Result<()> {
    let (listener, target) = raw().await?;
    let mut site = Site::start(PROGRAM).await?;
    let (port, waits) = (free_port().await?, free_port().await?);
    let late = SocketAddr::from((unused_address(), free_port().await?));
    let routes = [
        (tcp(port)?, RouteIntent::Open(target)),
        (tcp(waits)?, RouteIntent::Open(Target::Local { addr: late })),
    ];
    site.tell(&[], version(1, 0), &routes).await?;
    let asked = Instant::now();
    let mut pairs = questions(&site, port, &listener, 40).await?;
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect((site.address, waits)).await?;
        waiting.spawn(async move { ask(&mut client, "w").await });
    }
    site.until(waits, |route| route.parked == 3).await?;
    let small = site.file().with_file_name("small");
    fs::write(
        &small,
        format!("#!/bin/sh\nulimit -n 64\nexec {PROGRAM} \"$@\"\n"),
    )?;
    fs::set_permissions(&small, Permissions::from_mode(0o755))?;
    let reply = site.hand_over(&small).await?;
    ensure!((reply.relays, reply.held) == (0, 0), "{reply:?}");
    ensure!(reply.stayed == 43 && !reply.why.is_empty(), "{reply:?}");
    // Who was in the middle of something finishes it, unless that lasts longer than what is taken
    // for silence.
    let last = pairs.pop().context("no pair")?;
    for (mut client, mut server) in pairs {
        server.write_all(b"!").await?;
        drop(server);
        let mut heard = Vec::new();
        timeout(LIMIT, client.read_to_end(&mut heard)).await??;
        let late = heard.is_empty() && asked.elapsed() >= Duration::from_secs(1);
        ensure!(heard == b"!" || late, "{heard:?}");
    }

    // The successor serves, and does not say of a drain what it cannot know.
    let (newcomer, mut answers) = questions(&site, port, &listener, 1).await?.remove(0);
    let prepare = prepare_verb(version(1, 1));
    site.verb::<_, GateCounts>("prepare", &prepare).await?;
    let drain = drain_verb(version(1, 1), Duration::from_millis(100));
    let error = site.verb::<_, GateCounts>("drain", &drain).await.err();
    let status = error.context("it was drained")?.status();
    ensure!(
        status == Some(StatusCode::SERVICE_UNAVAILABLE),
        "{status:?}"
    );
    // Who waits there gets through.
    let _late = App::start_at("late", late).await?;
    while let Some(answer) = timeout(LIMIT, waiting.join_next()).await? {
        ensure!(answer?? == "late: w");
    }
    // A stop does not wait for the rest of the thirty seconds.
    let began = Instant::now();
    site.signal_first(Signal::TERM)?;
    site.now_is(reply.pid).await?;
    ensure!(began.elapsed() < Duration::from_secs(15), "it waited");
    drop(last);
    answers.write_all(b"!").await?;
    drop((answers, newcomer));
    drained(&site, &drain).await
}
