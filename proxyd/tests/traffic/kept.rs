//! A service manager that keeps what a proxy has: while it starts again, clients wait and are not
//! refused.

mod left;
mod manager;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep, timeout};

use crate::app::App;
use crate::binary::Running;
use crate::host::{LIMIT, ask, free_port, quiet_port, quiet_port_above};
use manager::{Manager, Place};

fn route(port: u16, app: &App) -> String {
    format!("{{external: {port}, backend: \"{}\"}}", app.addr)
}

async fn crash(running: &mut Running) -> Result<()> {
    running.signal(Signal::KILL)?;
    running.exit().await?;
    Ok(())
}

#[tokio::test]
async fn who_comes_while_a_crashed_proxy_is_not_there_waits_and_is_served() -> Result<()> {
    let (manager, place, app) = (
        Manager::start()?,
        Place::new().await?,
        App::start("a").await?,
    );
    let port = free_port().await?;
    let text = place.text(&route(port, &app));
    let file = place.write(&text)?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    manager.keeps(place.kept(&[port])).await?;
    crash(&mut running).await?;

    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect((place.address, port)).await?;
        clients.spawn(async move { ask(&mut client, "x").await });
    }
    let mut running = manager.run(&file)?;
    while let Some(answer) = timeout(LIMIT, clients.join_next()).await? {
        ensure!(answer?? == "a: x");
    }

    // What is not wanted any more refuses, whoever has it.
    place.runs().await?;
    place.write(&place.text(""))?;
    place.reloaded(&running, 1).await?;
    place.refuses(port).await?;
    manager.keeps(place.kept(&[])).await?;
    place.write(&text)?;
    place.reloaded(&running, 2).await?;
    manager.keeps(place.kept(&[port])).await?;

    // A start with another file closes what it does not want.
    crash(&mut running).await?;
    let _running = manager.run(&place.write(&place.text(""))?)?;
    place.runs().await?;
    manager.keeps(place.kept(&[])).await?;
    place.refuses(port).await
}

/// Addresses change at a restart; what was kept of others is in nobody's way.
#[tokio::test]
async fn what_was_kept_at_other_addresses_is_in_nobodys_way() -> Result<()> {
    let (manager, mut place) = (Manager::start()?, Place::new().await?);
    let app = App::start("a").await?;
    let (port, trunk) = (quiet_port()?, quiet_port_above(20_000)?);
    place.trunk = trunk;
    let elsewhere = |text: &str| {
        let all = format!(
            "listen: [\"0.0.0.0\", \"::\"]\nroutes: [{}]\n",
            route(port, &app)
        );
        let (rest, _) = text.split_once("listen: [").unwrap_or((text, ""));
        format!("{rest}{all}")
    };
    let first = place.text(&route(port, &app));
    let mut running = manager.run(&place.write(&first)?)?;
    place.runs().await?;
    manager.keeps(place.kept(&[port])).await?;
    crash(&mut running).await?;

    // From one address to all of both families, to all at once, and back.
    let apart = elsewhere(&first);
    let both = apart.replace("listen: [\"0.0.0.0\", \"::\"]\n", "");
    let at = |at: &str| format!("{port}@{at}");
    let trunk_name = || "trunk".to_owned();
    let steps = [
        (apart, vec![at("0.0.0.0"), at("__"), trunk_name()]),
        (both, vec![at("everywhere"), trunk_name()]),
        (first, place.kept(&[port])),
    ];
    for (text, names) in steps {
        let mut running = manager.run(&place.write(&text)?)?;
        place.runs().await?;
        manager.keeps(names).await.with_context(|| text.clone())?;
        let wide = !text.contains("listen: [\"127");
        let mut doors = vec![SocketAddr::from((place.address, port))];
        if wide {
            doors.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        }
        for door in doors {
            let mut client = TcpStream::connect(door).await?;
            ensure!(ask(&mut client, "x").await? == "a: x", "{door}: {text}");
        }
        crash(&mut running).await?;
    }

    // The trunk moves within its port, and the page to a port that clients had.
    let narrow = SocketAddr::from((place.address, trunk));
    let wide = SocketAddr::from((Ipv4Addr::UNSPECIFIED, trunk));
    place.page.set_port(port);
    let text = place
        .text("")
        .replace(&narrow.to_string(), &wide.to_string());
    let _running = manager.run(&place.write(&text)?)?;
    place.runs().await?;
    manager.keeps(vec![trunk_name()]).await
}

/// How a proxy ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Stops,
    Crashes,
}

/// Asks again and again, each time on a connection of its own. None is refused; one that was
/// accepted ends with a proxy that crashes.
async fn visits(
    (at, ends): ((Ipv4Addr, u16), Ends),
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let connected = timeout(LIMIT, TcpStream::connect(at)).await?;
        let mut client = connected.context("refused")?;
        match ask(&mut client, "x").await {
            Ok(answer) if answer == "a: x" => {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => ensure!(ends == Ends::Crashes && answer.is_empty(), "{answer:?}"),
            Err(error) => ensure!(ends == Ends::Crashes, "{error:#}"),
        }
    }
    Ok(())
}

/// Clients come all the time while a proxy ends so and starts again.
async fn storm(ends: Ends) -> Result<()> {
    let (manager, place, app) = (
        Manager::start()?,
        Place::new().await?,
        App::start("a").await?,
    );
    let port = free_port().await?;
    let file = place.write(&place.text(&route(port, &app)))?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    manager.keeps(place.kept(&[port])).await?;
    let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let at = ((place.address, port), ends);
        clients.spawn(visits(at, Arc::clone(&stop), Arc::clone(&seen)));
    }
    for _ in 0..4 {
        let wanted = seen.load(Ordering::Relaxed) + 100;
        let began = Instant::now();
        while seen.load(Ordering::Relaxed) < wanted {
            ensure!(began.elapsed() < LIMIT, "the clients are stuck");
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            sleep(Duration::from_millis(5)).await;
        }
        match ends {
            Ends::Stops => manager.stop(&mut running).await?,
            Ends::Crashes => crash(&mut running).await?,
        }
        running = manager.run(&file)?;
    }
    place.runs().await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = timeout(LIMIT, clients.join_next()).await? {
        ended??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_in_a_storm_notices_that_a_proxy_is_restarted() -> Result<()> {
    storm(Ends::Stops).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_in_a_storm_is_refused_while_a_proxy_crashes() -> Result<()> {
    storm(Ends::Crashes).await
}

/// Where nobody keeps connections, a stop says goodbye to who rests, whoever else it waits for.
#[tokio::test]
async fn a_silent_peer_of_the_trunk_does_not_keep_a_stop_from_saying_goodbye() -> Result<()> {
    let (manager, place, app) = (
        Manager::without_letters()?,
        Place::new().await?,
        App::start("a").await?,
    );
    let port = free_port().await?;
    let file = place.write(&place.text(&route(port, &app)))?;
    let mut running = manager.run(&file)?;
    place.runs().await?;
    let _silent = TcpStream::connect((place.address, place.trunk)).await?;
    let mut client = TcpStream::connect((place.address, port)).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    sleep(Duration::from_secs(1)).await;
    running.signal(Signal::TERM)?;
    let end = timeout(LIMIT, client.read(&mut [0])).await?;
    ensure!(end? == 0, "it was not told goodbye");
    ensure!(running.exit().await?.success());
    Ok(())
}
