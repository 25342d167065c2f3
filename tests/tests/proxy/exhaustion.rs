//! What a machine can run out of. Each time the proxy does less than it was asked, says so in a
//! metric and at most once a second in its log, uses next to no processor time while it waits, and
//! goes on by itself when there is room again. Nobody is refused.

mod watch;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rehome_tests::network;
use rehome_tests::proxy::{PATIENCE, Proxy, Setup, Version, local, route, sum};
use rehome_tests::wait::wait_until;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustix::thread::set_thread_res_uid;

use crate::peer::{
    APPLICATION, End, PROMPT, accept, at_once, carry, connect, hears, nobody_comes, noise, rest,
    same,
};
use watch::{Peace, waits_in_peace};

const PORT: u16 = 5000;

/// A proxy with an open route to an application.
fn stage(setup: Setup) -> anyhow::Result<(Proxy, TcpListener)> {
    network::own()?;
    let proxy = Proxy::start(1, setup)?;
    proxy.set(&[route(PORT, "db", Version(1, 0), &local(APPLICATION))])?;
    Ok((proxy, TcpListener::bind(APPLICATION)?))
}

/// A client that asks, and an application that answers it and says goodbye.
fn asks(client: &mut TcpStream) -> anyhow::Result<()> {
    Ok(client.write_all(b"?")?)
}

fn answers(server: &mut TcpStream) -> anyhow::Result<()> {
    let mut question = [0];
    server.read_exact(&mut question)?;
    ensure!(&question == b"?");
    Ok(server.write_all(b"!")?)
}

/// Answers so many clients, whoever they are, and hears each out.
fn serve(application: &TcpListener, count: usize) -> anyhow::Result<()> {
    for number in 0..count {
        let mut server = accept(application).with_context(|| format!("client {number}"))?;
        answers(&mut server)?;
    }
    Ok(())
}

#[test]
fn descriptors() -> anyhow::Result<()> {
    let (proxy, application) = stage(Setup::default())?;
    let before = connect(proxy.door(PORT))?;
    let server = accept(&application)?;
    carry(&before, &server, 1, 1)?;
    let enough = limit_descriptors(&proxy, 3)?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        // The kernel completes it.
        let mut client = connect(proxy.door(PORT))?;
        asks(&mut client)?;
        clients.push(client);
    }
    waits_in_peace(&proxy, "descriptors", Peace::Mute)?;
    // What flows already needs no descriptor.
    carry(&before, &server, 2, 10_000)?;
    carry(&server, &before, 3, 10_000)?;
    limit_descriptors(&proxy, enough)?;
    serve(&application, clients.len())?;
    for client in &clients {
        hears(client, b"!", End::Fin)?;
    }
    ensure!(proxy.metric("rehome_proxy_shed_total", &["descriptors"])? > 0);
    ensure!(proxy.metric("rehome_proxy_connect_failures_total", &[])? == 0);
    Ok(())
}

/// Has the proxy open no descriptor from this number on; returns the number before.
fn limit_descriptors(proxy: &Proxy, number: u64) -> anyhow::Result<u64> {
    let pid = Pid::from_raw(i32::try_from(proxy.pid()?)?).context("no process")?;
    let limit = Rlimit {
        current: Some(number),
        maximum: Some(4096),
    };
    let before = prlimit(Some(pid), Resource::Nofile, limit)?;
    Ok(before.current.unwrap_or(4096).min(4096))
}

/// More clients than the machine has ports to connect from.
#[test]
fn ports() -> anyhow::Result<()> {
    const PORTS: usize = 32;
    const CLIENTS: usize = 60;
    let (proxy, application) = stage(Setup::default())?;
    proxy.prepare("db", Version(1, 1))?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = connect(proxy.door(PORT))?;
        asks(&mut client)?;
        // It waits for all that goes before.
        client.set_read_timeout(Some(6 * PROMPT))?;
        // Each goes when it has its answer: its connection has a port of the machine until then.
        clients.push(thread::spawn(move || hears(&client, b"!", End::Fin)));
    }
    network::set("ipv4/ip_local_port_range", "40000 40031")?;
    proxy.commit("db", Version(2, 0), PORT, &local(APPLICATION))?;
    let mut servers = Vec::new();
    for _ in 0..PORTS {
        servers.push(accept(&application)?);
    }
    waits_in_peace(&proxy, "ports", Peace::Speaks)?;
    let waiting = proxy.parked(PORT)? + proxy.active(PORT)?;
    ensure!(
        waiting >= u64::try_from(CLIENTS - 1)?,
        "{waiting} are there"
    );
    // Each that ends makes room for another one.
    for server in &mut servers {
        answers(server)?;
    }
    drop(servers);
    serve(&application, CLIENTS - PORTS)?;
    for client in clients {
        let heard = client.join();
        heard.map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    // It was not held against the application.
    ensure!(proxy.metric("rehome_proxy_connect_failures_total", &[])? == 0);
    proxy.wait("all have finished", |page| {
        let finished = sum(page, "rehome_proxy_connections_total", &["\"finished\""])?;
        Ok(finished == 60)
    })
}

/// Relays whose readers do not read have all the memory there is.
#[test]
fn relay_memory() -> anyhow::Result<()> {
    const BUDGET: u64 = 256 << 10;
    const STALLED: usize = 24;
    /// What somebody has who comes when there is nothing left.
    const TINY: u64 = 4 << 10;
    let (proxy, application) = stage(Setup::with("limits: {relay_bytes: 256KiB}"))?;
    small_buffers()?;
    let mut stalled = Vec::new();
    for number in 0..STALLED {
        let client = connect(proxy.door(PORT))?;
        let mut server = accept(&application)?;
        server.set_write_timeout(Some(Duration::from_millis(100)))?;
        let sent = fill(&mut server, u64::try_from(number)?)?;
        stalled.push((client, server, sent));
    }
    waits_in_peace(&proxy, "\"memory\"", Peace::Once)?;
    let held = proxy.metric("rehome_proxy_relay_bytes", &[])?;
    ensure!(held > 0 && held <= BUDGET + 24 * TINY, "{held} bytes");
    // Who reads is not held back by those who do not.
    let (other, server) = (connect(proxy.door(PORT))?, accept(&application)?);
    carry(&server, &other, 100, 1 << 20)?;
    carry(&other, &server, 101, 1 << 20)?;
    drop((other, server));
    let mut readers = Vec::new();
    for (client, server, sent) in stalled {
        drop(server);
        readers.push(thread::spawn(move || {
            let (came, end) = rest(&client)?;
            ensure!(end == End::Fin, "{end:?}");
            same(&sent, &came)
        }));
    }
    for reader in readers {
        let read = reader.join();
        read.map_err(|_| anyhow::anyhow!("a reader panicked"))??;
    }
    proxy.wait("all memory is given back", |page| {
        Ok(sum(page, "rehome_proxy_relay_bytes", &[])? == 0)
    })
}

/// So that little fills a connection whose reader does not read.
fn small_buffers() -> anyhow::Result<()> {
    network::set("ipv4/tcp_wmem", "4096 65536 65536")?;
    network::set("ipv4/tcp_rmem", "4096 65536 65536")
}

/// Writes until nothing is taken any more; what was.
fn fill(stream: &mut TcpStream, seed: u64) -> anyhow::Result<Vec<u8>> {
    let (mut sent, mut rng) = (Vec::new(), seed << 32);
    loop {
        rng += 1;
        let block = noise(rng, 1 << 14);
        let mut rest = block.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(length) => {
                    sent.extend_from_slice(&rest[..length]);
                    rest = &rest[length..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(sent),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A client that is held has sent more than all such clients may.
#[test]
fn bytes_of_parked_clients() -> anyhow::Result<()> {
    let (proxy, application) = stage(Setup::with("limits: {parked_bytes: 10KiB}"))?;
    proxy.prepare("db", Version(1, 1))?;
    let talks = connect(proxy.door(PORT))?;
    let long = noise(1, 100_000);
    (&talks).write_all(&long)?;
    talks.shutdown(std::net::Shutdown::Write)?;
    proxy.wait("the bytes are noticed", |page| {
        Ok(sum(page, "rehome_proxy_parked_bytes", &[])? >= 10 << 10)
    })?;
    let mut late = Vec::new();
    for _ in 0..20 {
        let mut client = connect(proxy.door(PORT))?;
        asks(&mut client)?;
        late.push(client);
    }
    waits_in_peace(&proxy, "parked_bytes", Peace::Once)?;
    ensure!(proxy.parked(PORT)? <= 2, "it accepts all the same");
    proxy.commit("db", Version(2, 0), PORT, &local(APPLICATION))?;
    let first = accept(&application)?;
    hears(&first, &long, End::Fin)?;
    drop(first);
    serve(&application, late.len())?;
    for client in &late {
        hears(client, b"!", End::Fin)?;
    }
    ensure!(proxy.metric("rehome_proxy_parked_bytes", &[])? == 0);
    Ok(())
}

/// Packets of connections that are new are lost then, so an application seems not to answer.
#[test]
fn tracking_table() -> anyhow::Result<()> {
    let (proxy, application) = stage(Setup::default())?;
    let Some(room) = network::track()? else {
        // A kernel without one.
        return Ok(());
    };
    proxy.prepare("db", Version(1, 1))?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = connect(proxy.door(PORT))?;
        asks(&mut client)?;
        clients.push(client);
    }
    network::fill_tracking_table(room)?;
    proxy.commit("db", Version(2, 0), PORT, &local(APPLICATION))?;
    let (begin, before) = (Instant::now(), proxy.processor()?);
    ensure!(
        nobody_comes(&application)?,
        "there is room for a connection"
    );
    wait_until("some seconds pass", PATIENCE, || {
        Ok(begin.elapsed() > Duration::from_secs(3))
    })?;
    let used = proxy.processor()?.saturating_sub(before);
    let passed = begin.elapsed();
    ensure!(used < passed.mul_f64(0.25), "{used:?} of {passed:?}");
    ensure!(proxy.parked(PORT)? == 20, "clients are lost");
    network::clear_tracking_table()?;
    serve(&application, clients.len())?;
    for client in &clients {
        hears(client, b"!", End::Fin)?;
    }
    ensure!(proxy.metric("rehome_proxy_connect_failures_total", &[])? > 0);
    Ok(())
}

/// The kernel gives a user without powers only so many pages for pipes. Then bulk is copied, and
/// spliced again when there are pages.
#[test]
fn pages_of_pipes() -> anyhow::Result<()> {
    const USER: u32 = 64_123;
    let (proxy, application) = stage(Setup {
        user: Some(USER),
        ..Setup::default()
    })?;
    let (hold, release) = std::sync::mpsc::channel::<()>();
    let (tell, held) = std::sync::mpsc::channel();
    let holder = thread::spawn(move || {
        let pages = take_pages(USER)?;
        tell.send(pages.len())?;
        // Until the test lets go of the other end.
        let _gone = release.recv();
        drop(pages);
        anyhow::Ok(())
    });
    let count = held.recv_timeout(PATIENCE);
    ensure!(count.is_ok_and(|count| count > 0), "{:?}", holder.join());
    let (client, server) = (connect(proxy.door(PORT))?, accept(&application)?);
    bulk(&client, &server)?;
    ensure!(
        proxy.metric("rehome_proxy_pipe_bytes", &[])? == 0,
        "it has a pipe"
    );
    ensure!(
        proxy.metric("rehome_proxy_shed_total", &["\"pipes\""])? > 0,
        "it is silent"
    );
    waits_in_peace(&proxy, "\"pipes\"", Peace::Once)?;
    drop(hold);
    ensure!(
        holder.join().is_ok_and(|ended| ended.is_ok()),
        "the pages are held"
    );
    wait_until("bulk is spliced again", PATIENCE, || {
        bulk(&client, &server)?;
        Ok(proxy.metric("rehome_proxy_pipe_bytes", &[])? > 0)
    })
}

/// Many bytes both ways.
fn bulk(client: &TcpStream, server: &TcpStream) -> anyhow::Result<()> {
    at_once(
        || carry(client, server, 1, 16 << 20),
        || carry(server, client, 2, 16 << 20),
    )?;
    Ok(())
}

/// All pages that a user may have for pipes. The calling thread is that user from now on.
fn take_pages(user: u32) -> anyhow::Result<Vec<rustix::fd::OwnedFd>> {
    const LARGE: usize = 1 << 20;
    /// What a pipe has at first, while there are pages.
    const USUAL: usize = 64 << 10;
    let user = rustix::process::Uid::from_raw(user);
    set_thread_res_uid(user, user, user)?;
    let mut pipes = Vec::new();
    for _ in 0..4096 {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Near the end of the pages a pipe stays as it was made.
        let _grown = fcntl_setpipe_size(&write, LARGE);
        let size = fcntl_getpipe_size(&write)?;
        pipes.extend([read, write]);
        if size < USUAL {
            return Ok(pipes);
        }
    }
    anyhow::bail!("there is no end of pages for pipes")
}
