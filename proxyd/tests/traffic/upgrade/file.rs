//! A successor whose file is another one than its predecessor's was.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rehome_shared::api::proxy::RouteIntent;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, sleep};

use super::site::Site;
use crate::app::App;
use crate::binary::PROGRAM;
use crate::host::{LIMIT, ask, free_port, quiet_port, unused_address, version};

async fn is_served(address: Ipv4Addr, port: u16) -> Result<()> {
    let mut client = TcpStream::connect((address, port)).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    Ok(())
}

/// What is not wanted any more is closed when all else is done.
async fn is_refused(address: Ipv4Addr, port: u16) -> Result<()> {
    let began = Instant::now();
    loop {
        match TcpStream::connect((address, port)).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(()),
            other => ensure!(began.elapsed() < LIMIT, "not refused: {other:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn addresses_that_were_reloaded_and_those_of_a_new_file_are_the_successors() -> Result<()> {
    let app = App::start("a").await?;
    let mut site = Site::start(PROGRAM).await?;
    let port = quiet_port()?;
    site.route(port, version(1, 0), RouteIntent::Open(app.target()))
        .await?;
    let (here, there) = (site.address, unused_address());
    let mut talks = TcpStream::connect((here, port)).await?;
    ensure!(ask(&mut talks, "x").await? == "a: x");
    let first = fs::read_to_string(site.file())?;
    let line = format!("\nlisten: [\"{here}\"]\n");
    ensure!(first.contains(&line), "{first}");
    // Reloaded, and the file says the same.
    let second = first.replace(&line, &format!("\nlisten: [\"{there}\"]\n"));
    fs::write(site.file(), &second)?;
    site.reload().await?;
    is_refused(here, port).await?;
    site.upgrade(PROGRAM).await?;
    is_served(there, port).await?;
    is_refused(here, port).await?;
    // Not reloaded: the successor opens what it misses and closes what is too much.
    for (text, served, refused) in [
        (first.clone(), vec![here], Some(there)),
        (first.replace(&line, "\n"), vec![here, there], None),
        (first.clone(), vec![here], Some(there)),
    ] {
        fs::write(site.file(), &text)?;
        // Who came and went is gone.
        site.until(port, |route| route.active == 1).await?;
        let reply = site.upgrade(PROGRAM).await?;
        ensure!((reply.relays, reply.stayed) == (1, 0), "{reply:?}");
        for address in served {
            is_served(address, port).await?;
        }
        if let Some(address) = refused {
            is_refused(address, port).await?;
        }
        ensure!(ask(&mut talks, "y").await? == "a: y");
    }
    Ok(())
}

/// As a reload would be.
#[tokio::test]
async fn a_file_with_a_port_that_cannot_be_had_is_refused_unless_it_was_missing_before()
-> Result<()> {
    let app = App::start("a").await?;
    let mut site = Site::start(PROGRAM).await?;
    let taken = TcpListener::bind((site.address, 0)).await?;
    let missing = taken.local_addr()?.port();
    let port = free_port().await?;
    let file = fs::read_to_string(site.file())?;
    let routes = |ports: &[u16]| {
        let route = |port| format!("{{external: {port}, backend: \"{}\"}}", app.addr);
        let routes: Vec<String> = ports.iter().map(route).collect();
        file.replace("routes: []", &format!("routes: [{}]", routes.join(", ")))
    };
    fs::write(site.file(), routes(&[port]))?;
    site.upgrade(PROGRAM).await?;
    is_served(site.address, port).await?;
    fs::write(site.file(), routes(&[port, missing]))?;
    let error = site.upgrade(PROGRAM).await.err().context("it did")?;
    let said = format!("{error:#}");
    ensure!(
        said.contains(&format!("port {missing}/tcp")) && said.contains("in use"),
        "{said}"
    );
    is_served(site.address, port).await?;
    drop(taken);
    site.upgrade(PROGRAM).await?;
    is_served(site.address, missing).await?;
    // A port that is lost to others while nobody runs is missing from then on; that is no news.
    let mut second = Site::start_with(PROGRAM, "").await?;
    let taken = TcpListener::bind((second.address, 0)).await?;
    let missing = taken.local_addr()?.port();
    let text = fs::read_to_string(second.file())?;
    let route = format!("{{external: {missing}, backend: \"{}\"}}", app.addr);
    fs::write(
        second.file(),
        text.replace("routes: []", &format!("routes: [{route}]")),
    )?;
    second.restart().await?;
    second.upgrade(PROGRAM).await?;
    drop(taken);
    let began = Instant::now();
    while is_served(second.address, missing).await.is_err() {
        ensure!(began.elapsed() < LIMIT, "it is not opened at last");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
