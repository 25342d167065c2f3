//! The verbs of a handoff, and what clients notice: time, and nothing else.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proxyd::VerbError;
use proxyd_core::gate::GateError;
use rehome_shared::api::proxy::{Gate, ParkLimits, RouteIntent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::{App, raw};
use crate::host::{
    Host, LIMIT, ask, commit_verb, drain_verb, free_port, gate_ref, prepare_verb, read_line, tcp,
    unused_address, version,
};

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn parked_clients_are_answered_by_the_new_target_and_none_is_refused() -> Result<()> {
    let (old, new) = (App::start("old").await?, App::start("new").await?);
    let (host, port) = (Host::start().await?, free_port().await?);
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), old.target()).await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let mut clients = JoinSet::new();
    for n in 0..300 {
        let mut client = host.client(port).await?;
        clients.spawn(async move { ask(&mut client, &n.to_string()).await });
    }
    let status = host.wait(key, |status| status.parked == 300).await?;
    ensure!(
        status.gate == Gate::Parked && status.active == 0,
        "{status:?}"
    );
    old.stop().await;
    host.proxy
        .commit(commit_verb(key, version(2, 0), new.target()))
        .await?;
    let mut answers = 0;
    while let Some(answer) = clients.join_next().await {
        ensure!(answer??.starts_with("new: "));
        answers += 1;
    }
    ensure!(answers == 300);
    // The verb repeated gives the final counts.
    let counts = host
        .proxy
        .commit(commit_verb(key, version(2, 0), new.target()))
        .await?;
    ensure!(
        (counts.parked_total, counts.parked, counts.refused) == (300, 0, 0),
        "{counts:?}"
    );
    ensure!(counts.longest_park_seconds.as_duration() > Duration::ZERO);
    Ok(())
}

/// An application without a volume moves like this: both instances run, new clients go to the
/// other host, and only those of the old instance are drained.
#[tokio::test]
async fn a_gate_that_leads_away_drains_the_old_instance_and_leaves_the_others() -> Result<()> {
    let (old, new) = (App::start("old").await?, App::start("new").await?);
    let (from, to, port) = (
        Host::start().await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    from.open(&[&to], key, version(1, 0), old.target()).await?;
    let mut before = from.client(port).await?;
    ensure!(ask(&mut before, "x").await? == "old: x");
    from.proxy.prepare(prepare_verb(version(1, 1))).await?;
    to.open(&[&from], key, version(2, 0), new.target()).await?;
    from.open(&[&to], key, version(2, 0), to.as_target()?)
        .await?;
    let mut after = from.client(port).await?;
    ensure!(ask(&mut after, "y").await? == "new: y");
    let drained = from
        .proxy
        .drain(drain_verb(version(1, 1), Duration::from_secs(10)));
    let (counts, closed) = tokio::join!(drained, async {
        // Idle, so told politely; it answers as a pool does, by closing.
        let closed = before.read(&mut [0; 1]).await;
        drop(before);
        closed
    });
    ensure!(closed? == 0 && counts?.drained == 1);
    let counts = from.proxy.freeze(gate_ref(version(1, 1))).await?;
    ensure!((counts.active, counts.cut) == (1, 0), "{counts:?}");
    ensure!(ask(&mut after, "z").await? == "new: z");
    Ok(())
}

#[tokio::test]
async fn a_rollback_opens_to_the_old_target() -> Result<()> {
    let (old, host, port) = (
        App::start("old").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), old.target()).await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let mut client = host.client(port).await?;
    host.wait(key, |status| status.parked == 1).await?;
    host.proxy.rollback(gate_ref(version(1, 2))).await?;
    ensure!(ask(&mut client, "x").await? == "old: x");
    // A prepare that was under way meanwhile is too late.
    let late = host.proxy.prepare(prepare_verb(version(1, 1))).await;
    ensure!(
        matches!(late, Err(VerbError::Gate(GateError::Stale { .. }))),
        "{late:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_older_desired_set_does_not_open_a_parked_gate() -> Result<()> {
    let (old, host, port) = (
        App::start("old").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(3, 0), old.target()).await?;
    host.proxy.prepare(prepare_verb(version(3, 1))).await?;
    for stale in [version(2, 9), version(3, 0), version(3, 1)] {
        let status = host
            .set(&[], key, stale, RouteIntent::Open(old.target()))
            .await?;
        ensure!(
            status.gate == Gate::Parked && status.version == version(3, 1),
            "{status:?}"
        );
    }
    let error = host
        .proxy
        .commit(commit_verb(key, version(3, 1), old.target()))
        .await;
    ensure!(
        matches!(error, Err(VerbError::Gate(GateError::Stale { .. }))),
        "{error:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_drain_closes_idle_connections_politely_and_leaves_busy_ones() -> Result<()> {
    let (host, port) = (Host::start().await?, free_port().await?);
    let (listener, target) = raw().await?;
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), target).await?;
    let mut idle = host.client(port).await?;
    let (mut idle_server, _) = listener.accept().await?;
    let mut busy = host.client(port).await?;
    let (mut busy_server, _) = listener.accept().await?;
    host.wait(key, |status| status.active == 2).await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;

    // A long question, whose answer the application owes.
    let chatter = async {
        loop {
            busy.write_all(b"tick\n").await?;
            ensure!(read_line(&mut busy_server).await? == "tick");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let goodbye = async {
        // The idle client sees an end, says goodbye, and its application hears that.
        ensure!(timeout(LIMIT, idle.read(&mut [0; 8])).await?? == 0);
        idle.write_all(b"bye").await?;
        drop(idle);
        let mut heard = Vec::new();
        timeout(LIMIT, idle_server.read_to_end(&mut heard)).await??;
        ensure!(heard == b"bye", "{heard:?}");
        drop(idle_server);
        Ok(())
    };
    // The busy one has the whole drain, which a freeze ends.
    let frozen = async {
        let gone = async {
            goodbye.await?;
            host.wait(key, |status| status.active < 2).await
        };
        let left = tokio::select! {
            left = gone => left?,
            failed = chatter => { let never: Result<()> = failed; never?; unreachable!() }
        };
        ensure!(left.active == 1, "{left:?}");
        Ok(host.proxy.freeze(gate_ref(version(1, 1))).await?)
    };
    let drain = host.proxy.drain(drain_verb(version(1, 1), LIMIT));
    let (drained, frozen) = tokio::join!(drain, frozen);
    let (drained, frozen) = (drained?, frozen?);
    for counts in [drained, frozen] {
        ensure!(
            (counts.active, counts.drained, counts.cut) == (0, 1, 1),
            "{counts:?}"
        );
    }
    let end = timeout(LIMIT, async {
        loop {
            if let Err(error) = busy.read_u8().await {
                return error.kind();
            }
        }
    });
    ensure!(end.await? == std::io::ErrorKind::ConnectionReset);
    Ok(())
}

/// A client that never pauses for long is told goodbye near the end, between two questions.
#[tokio::test]
async fn a_busy_client_is_served_until_near_the_end_of_a_drain_and_then_let_go() -> Result<()> {
    const DRAIN: Duration = Duration::from_secs(1);
    /// The client that thinks least has 40 ms in which its silence is long enough. Some stalls
    /// shorter than this leave it a chance.
    const STALL: Duration = Duration::from_millis(5);
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    let mut clients = JoinSet::new();
    for think in [10, 20, 40] {
        let client = host.client(port).await?;
        clients.spawn(busy(client, Duration::from_millis(think)));
    }
    host.wait(key, |status| status.active == 3).await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;

    let began = Instant::now();
    let mut stall = Duration::ZERO;
    tokio::select! {
        drained = host.proxy.drain(drain_verb(version(1, 1), DRAIN)) => drop(drained?),
        never = longest_stall(began, &mut stall) => match never {},
    }
    let counts = host.proxy.freeze(gate_ref(version(1, 1))).await?;
    ensure!(
        (counts.active, counts.drained + counts.cut) == (0, 3),
        "{counts:?}"
    );
    // When this machine runs nobody for a while, a busy client is silent too, or has no chance.
    let stalled = stall >= STALL;
    ensure!(counts.cut == 0 || stalled, "{counts:?}");
    while let Some(client) = clients.join_next().await {
        let Last { asked, end } = client??;
        let served = asked.duration_since(began);
        ensure!(served > DRAIN / 2 || stalled, "{served:?}");
        ensure!(end == End::Goodbye || stalled, "{end:?}");
    }
    Ok(())
}

/// How long this machine runs nobody here from now on, at most.
async fn longest_stall(mut before: Instant, longest: &mut Duration) -> Infallible {
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        *longest = before.elapsed().max(*longest);
        before = Instant::now();
    }
}

/// How a connection ended, and when its last question that was answered was asked.
struct Last {
    asked: Instant,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Goodbye,
    Reset,
}

/// Asks again and again, until the end; there is no part of an answer.
async fn busy(mut client: TcpStream, think: Duration) -> Result<Last> {
    let mut last = Instant::now();
    loop {
        let asked = Instant::now();
        let end = match timeout(LIMIT, question(&mut client)).await? {
            Ok(true) => None,
            Ok(false) => Some(End::Goodbye),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Some(End::Reset),
                _ => return Err(error.into()),
            },
        };
        if let Some(end) = end {
            return Ok(Last { asked: last, end });
        }
        last = asked;
        tokio::time::sleep(think).await;
    }
}

/// Whether it was answered.
async fn question(client: &mut TcpStream) -> io::Result<bool> {
    let mut answer = [0; 5];
    client.write_all(b"x\n").await?;
    let length = client.read(&mut answer).await?;
    if length == 0 {
        return Ok(false);
    }
    let (_, rest) = answer.split_at_mut(length);
    client.read_exact(rest).await?;
    if &answer == b"a: x\n" {
        Ok(true)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[tokio::test]
async fn a_drain_without_connections_returns_at_once() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let early = host.proxy.drain(drain_verb(version(1, 0), LIMIT)).await;
    ensure!(
        matches!(early, Err(VerbError::Gate(GateError::NotPrepared { .. }))),
        "{early:?}"
    );
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let started = Instant::now();
    host.proxy.drain(drain_verb(version(1, 1), LIMIT)).await?;
    ensure!(started.elapsed() < LIMIT);
    Ok(())
}

#[tokio::test]
async fn a_park_ends_at_its_timeout_and_is_counted() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    let mut verb = prepare_verb(version(1, 1));
    verb.limits = ParkLimits {
        park_limit: 10,
        park_timeout: SHORT,
    };
    host.proxy.prepare(verb.clone()).await?;
    let started = Instant::now();
    let mut client = host.client(port).await?;
    ensure!(timeout(LIMIT, client.read(&mut [0; 1])).await?? == 0);
    ensure!(started.elapsed() >= SHORT);
    host.wait(key, |status| status.parked == 0).await?;
    let counts = host.proxy.prepare(verb).await?;
    ensure!(
        (counts.parked_total, counts.refused) == (1, 1),
        "{counts:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_application_that_is_not_there_yet_is_waited_for() -> Result<()> {
    // While it is away nobody else is at its address.
    let (app, host, port) = (
        App::start_at("a", (unused_address(), 0).into()).await?,
        Host::start().await?,
        free_port().await?,
    );
    let (key, addr) = (tcp(port)?, app.addr);
    host.open(&[], key, version(1, 0), app.target()).await?;
    app.stop().await;
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let mut client = host.client(port).await?;
        clients.spawn(async move { ask(&mut client, "x").await });
    }
    host.wait(key, |status| status.parked == 50).await?;
    let _back = App::start_at("back", addr).await?;
    while let Some(answer) = clients.join_next().await {
        ensure!(answer?? == "back: x");
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_go_away_while_parked_are_forgotten() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let (gone, mut asked, reset) = (
        host.client(port).await?,
        host.client(port).await?,
        host.client(port).await?,
    );
    asked.write_all(b"question\n").await?;
    asked.shutdown().await?;
    let mut after_data = host.client(port).await?;
    after_data.write_all(b"lost\n").await?;
    host.wait(key, |status| status.parked == 4).await?;
    drop(gone);
    host.wait(key, |status| status.parked == 3).await?;
    abort(reset)?;
    host.wait(key, |status| status.parked == 2).await?;
    abort(after_data)?;
    host.wait(key, |status| status.parked == 1).await?;
    // The one that had asked and finished is a legal half-close and gets its answer.
    host.proxy.rollback(gate_ref(version(1, 1))).await?;
    let mut answer = String::new();
    timeout(LIMIT, asked.read_to_string(&mut answer)).await??;
    ensure!(answer == "a: question\n", "{answer:?}");
    ensure!(app.accepted.load(std::sync::atomic::Ordering::Relaxed) == 1);
    Ok(())
}

fn abort(stream: TcpStream) -> Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

#[tokio::test]
async fn a_lease_that_runs_out_is_told_and_opens_nothing() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    let mut verb = prepare_verb(version(1, 1));
    verb.lease = Duration::from_millis(100);
    host.proxy.prepare(verb).await?;
    timeout(LIMIT, async {
        while host.metrics().await?.contains("leases_expired_total 0") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    ensure!(host.status(key)?.gate == Gate::Parked);
    Ok(())
}
