//! What happens to the proxies: kills, restarts, upgrades, reloads. The last host is only reloaded.

use std::time::{Duration, Instant};

use anyhow::ensure;
use fastrand::Rng;
use rustix::process::Signal;

use super::world::{HOSTS, World};

/// Files that a proxy may have, each with the route and the limits of its own.
const FILES: [&str; 4] = [
    "",
    "limits: {pipe_bytes: 1MiB, relay_bytes: 4MiB}",
    "timeouts: {half_close: 20s, keepalive: 30s}",
    "routes: [{external: 6001, backend: \"127.0.9.9:8080\"}]",
];

/// Disturbs the proxies for so long; the memory of the last one after a quarter of it, where that
/// is long enough for it to have seen everything.
pub(super) fn work(world: &World, mut rng: Rng, length: Duration) -> anyhow::Result<Option<u64>> {
    let begin = Instant::now();
    let mut early = None;
    while begin.elapsed() < length {
        std::thread::park_timeout(Duration::from_millis(rng.u64(100..1500)));
        let host = rng.usize(0..HOSTS);
        match rng.u8(0..8) {
            0 | 1 if host < HOSTS - 1 => away(world, host, Signal::KILL, &mut rng)?,
            2 if host < HOSTS - 1 => away(world, host, Signal::TERM, &mut rng)?,
            6 | 7 if host < HOSTS - 1 => upgrade(world, host)?,
            3 => reject(world, host)?,
            _ => reload(world, host, rng.choice(FILES).unwrap_or_default())?,
        }
        let quarter = length > Duration::from_mins(4) && begin.elapsed() > length / 4;
        if early.is_none() && quarter {
            early = Some(world.proxy(HOSTS - 1).memory()?);
        }
    }
    Ok(early)
}

/// Ends a proxy and starts it again. What it is asked meanwhile is asked again.
fn away(world: &World, host: usize, signal: Signal, rng: &mut Rng) -> anyhow::Result<()> {
    let kind = if signal == Signal::KILL {
        "killed"
    } else {
        "stopped"
    };
    world.diary.note(&format!("host {host} is {kind}"));
    let _cuts = world.disturb();
    world.set_away(host);
    // Whoever talks to it is cut off and lets go of it.
    world.proxy(host).signal(signal)?;
    let mut proxy = world.proxy_mut(host);
    let status = proxy.wait_for_end()?;
    if signal == Signal::TERM {
        ensure!(status.success(), "host {host} stopped with {status}");
        world.count_stop();
    } else {
        world.count_kill();
    }
    std::thread::park_timeout(Duration::from_millis(rng.u64(0..300)));
    proxy.start_again()?;
    world.set_away(host);
    Ok(())
}

/// Has a proxy hand over to another process: nobody is to notice.
fn upgrade(world: &World, host: usize) -> anyhow::Result<()> {
    world.diary.note(&format!("host {host} is upgraded"));
    let reply = world.proxy(host).upgrade()?;
    ensure!(reply["stayed"] == 0, "host {host}: {reply}");
    world.count_upgrade();
    Ok(())
}

fn reload(world: &World, host: usize, lines: &str) -> anyhow::Result<()> {
    world.proxy_mut(host).rewrite(lines)?;
    let answer = world.proxy(host).send(("POST", "/v1/reload"), None)?;
    ensure!(answer.status == 200, "host {host}: {lines:?}: {answer:?}");
    world.count_reload();
    Ok(())
}

/// A wrong file changes nothing.
fn reject(world: &World, host: usize) -> anyhow::Result<()> {
    world
        .proxy_mut(host)
        .rewrite("limits: {pipe_bites: 1MiB}")?;
    let answer = world.proxy(host).send(("POST", "/v1/reload"), None)?;
    ensure!(
        answer.status == 422,
        "host {host}: a wrong file: {answer:?}"
    );
    // The file is right again before anything starts by it.
    world.proxy_mut(host).rewrite("")?;
    Ok(())
}

/// Every proxy has the file that it began with, and knows where everything is.
pub(super) fn calm_down(world: &World) -> anyhow::Result<()> {
    for host in 0..HOSTS {
        reload(world, host, "")?;
        world.tell(host)?;
    }
    Ok(())
}
