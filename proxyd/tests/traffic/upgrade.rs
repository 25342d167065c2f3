//! A proxy that hands over to another process while clients talk: none of them notices.

mod file;
mod keep_alive;
pub(crate) mod live;
mod newcomers;
mod room;
mod sealed;
mod site;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use rehome_shared::api::proxy::{Gate, GateCounts, RouteIntent, Target};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{App, raw};
use crate::binary::PROGRAM;
use crate::host::{
    LIMIT, ask, commit_verb, drain_verb, free_port, gate_ref, prepare_verb, tcp, version,
};
use live::{echo, talk};
use site::Site;

/// Hands `count` connections with traffic over `times`, and checks every byte. Most pause 20 to
/// 60 units between two pieces; a few hardly pause, and are spliced. Returns the milliseconds that
/// the last one took.
async fn hand_over_live(count: u64, times: usize, unit: Duration) -> Result<u64> {
    let (target, _echo) = echo().await?;
    let limits = "limits: {connections: 20000, per_route: 20000, udp_sessions: 1}\n";
    let mut site = Site::start_with(PROGRAM, limits).await?;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(target))
        .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    let mut streams = Vec::new();
    for n in 1..=count {
        streams.push(TcpStream::connect((site.address, port)).await?);
        if n % 500 == 0 {
            // More at once overflow a backlog, and the kernel takes its time to try again.
            site.until(port, |route| route.active == n).await?;
        }
    }
    for (n, stream) in (0_u64..).zip(streams) {
        let pause = if n < 4 {
            Duration::from_millis(1)
        } else {
            unit * u32::try_from(20 + n % 40)?
        };
        clients.spawn(talk(stream, 7 + 31 * n, pause, Arc::clone(&stop)));
    }
    site.until(port, |route| route.active == count).await?;
    let mut took = 0;
    for turn in 0..times {
        sleep(Duration::from_millis(200)).await;
        let reply = site.upgrade(PROGRAM).await?;
        ensure!(
            (reply.relays, reply.held, reply.stayed) == (count, 0, 0),
            "{turn}: {reply:?}"
        );
        took = reply.milliseconds;
        ensure!(u128::from(took) < LIMIT.as_millis(), "{reply:?}");
        ensure!(site.status(port).await?.active == count);
    }
    sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    let mut bytes = 0;
    while let Some(done) = timeout(LIMIT, clients.join_next()).await? {
        bytes += done??;
    }
    ensure!(bytes > count * 1000, "only {bytes} bytes were sent");
    site.until(port, |route| route.active == 0).await?;
    Ok(took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_connections_are_handed_over_again_and_again_without_a_byte_lost() -> Result<()> {
    hand_over_live(200, 3, Duration::from_millis(4)).await?;
    Ok(())
}

/// As many as descriptors allow. A minute; run by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as many descriptors as there are: cargo nextest run --run-ignored only nine_thousand"]
async fn nine_thousand_live_connections_are_handed_over() -> Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit)?;
    let took = hand_over_live(9000, 1, Duration::from_millis(200)).await?;
    println!("9,000 connections were handed over in {took} ms");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_clients_sees_no_error_during_ten_handovers() -> Result<()> {
    let app = App::start("a").await?;
    let mut site = Site::start(PROGRAM).await?;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(app.target()))
        .await?;
    let (stop, answers) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = JoinSet::new();
    for n in 0..16 {
        let (stop, answers, address) = (Arc::clone(&stop), Arc::clone(&answers), site.address);
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = timeout(LIMIT, TcpStream::connect((address, port))).await??;
                let answer = ask(&mut stream, &n.to_string()).await?;
                ensure!(answer == format!("a: {n}"), "{answer}");
                answers.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    for _ in 0..10 {
        let wanted = answers.load(Ordering::Relaxed) + 200;
        let began = Instant::now();
        while answers.load(Ordering::Relaxed) < wanted {
            ensure!(began.elapsed() < LIMIT, "the clients are stuck");
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            sleep(Duration::from_millis(2)).await;
        }
        let reply = site.upgrade(PROGRAM).await?;
        ensure!(reply.stayed == 0, "{reply:?}");
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

#[tokio::test]
async fn waiting_clients_go_over_and_are_served_by_a_commit_there() -> Result<()> {
    let (old, new) = (App::start("old").await?, App::start("new").await?);
    let mut site = Site::start(PROGRAM).await?;
    let port = free_port().await?;
    let key = tcp(port)?;
    site.route(port, version(1, 0), RouteIntent::Open(old.target()))
        .await?;
    let prepare = prepare_verb(version(1, 1));
    site.verb::<_, GateCounts>("prepare", &prepare).await?;
    let mut clients = JoinSet::new();
    for n in 0..50 {
        let mut client = TcpStream::connect((site.address, port)).await?;
        clients.spawn(async move { ask(&mut client, &n.to_string()).await });
    }
    let gone = TcpStream::connect((site.address, port)).await?;
    site.until(port, |route| route.parked == 51).await?;

    let reply = site.upgrade(PROGRAM).await?;
    ensure!((reply.held, reply.relays) == (51, 0), "{reply:?}");
    let status = site.status(port).await?;
    ensure!(
        status.gate == Gate::Parked && status.parked == 51 && status.version == version(1, 1),
        "{status:?}"
    );
    // The successor watches them as its own.
    drop(gone);
    site.until(port, |route| route.parked == 50).await?;
    let late = TcpStream::connect((site.address, port)).await?;
    site.until(port, |route| route.parked == 51).await?;
    old.stop().await;
    let commit = commit_verb(key, version(2, 0), new.target());
    let counts: GateCounts = site.verb("commit", &commit).await?;
    // Counted on from where the old process was.
    ensure!(counts.parked_total == 52, "{counts:?}");
    while let Some(answer) = clients.join_next().await {
        ensure!(answer??.starts_with("new: "));
    }
    drop(late);
    Ok(())
}

/// Beyond a limit a listener holds a client that it has accepted, and the kernel the rest.
#[tokio::test]
async fn clients_beyond_a_limit_go_over_too() -> Result<()> {
    let app = App::start("a").await?;
    let mut site = Site::start(PROGRAM).await?;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(app.target()))
        .await?;
    let mut prepare = prepare_verb(version(1, 1));
    prepare.limits.park_limit = 2;
    site.verb::<_, GateCounts>("prepare", &prepare).await?;
    let mut clients = JoinSet::new();
    for n in 0..12 {
        let mut client = TcpStream::connect((site.address, port)).await?;
        clients.spawn(async move { ask(&mut client, &n.to_string()).await });
    }
    site.until(port, |route| route.parked == 2).await?;
    let reply = site.upgrade(PROGRAM).await?;
    ensure!((2..=3).contains(&reply.held), "{reply:?}");
    let back = gate_ref(version(1, 2));
    site.verb::<_, GateCounts>("rollback", &back).await?;
    let mut answers = 0;
    while let Some(answer) = timeout(LIMIT, clients.join_next()).await? {
        answer??;
        answers += 1;
    }
    ensure!(answers == 12);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_trunk_are_handed_over_with_live_and_waiting_clients() -> Result<()> {
    let (target, _echo) = echo().await?;
    let mut here = Site::start(PROGRAM).await?;
    let mut owner = Site::start(PROGRAM).await?;
    let (port, waits) = (free_port().await?, free_port().await?);
    let keys = [tcp(port)?, tcp(waits)?];
    let at = version(1, 0);
    let local = keys.map(|key| (key, RouteIntent::Open(target.clone())));
    owner.tell(&[&here], at, &local).await?;
    let remote = keys.map(|key| (key, RouteIntent::Open(owner.as_target())));
    here.tell(&[&owner], at, &remote).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for n in 0..10 {
        let stream = TcpStream::connect((here.address, port)).await?;
        let pause = Duration::from_millis(if n == 0 { 0 } else { 20 });
        clients.spawn(talk(stream, 5 + n, pause, Arc::clone(&stop)));
    }
    here.until(port, |route| route.active == 10).await?;
    let mut prepare = prepare_verb(version(1, 1));
    prepare.application = site::other();
    owner.verb::<_, GateCounts>("prepare", &prepare).await?;
    let mut waiting = JoinSet::new();
    for n in 0..5 {
        let mut client = TcpStream::connect((here.address, waits)).await?;
        waiting.spawn(async move { ask(&mut client, &n.to_string()).await });
    }
    owner.until(waits, |route| route.parked == 5).await?;

    for _ in 0..2 {
        let reply = owner.upgrade(PROGRAM).await?;
        ensure!(
            (reply.relays, reply.held, reply.stayed) == (10, 5, 0),
            "{reply:?}"
        );
        let before = owner.connections(waits).await?;
        let reply = here.upgrade(PROGRAM).await?;
        ensure!(
            (reply.relays, reply.held, reply.stayed) == (10, 5, 0),
            "{reply:?}"
        );
        // They come again with their headers, and the old ones are forgotten.
        owner.until_others(waits, &before).await?;
        owner.until(waits, |route| route.parked == 5).await?;
        ensure!(owner.status(port).await?.from_trunk == 10);
    }
    let mut back = gate_ref(version(1, 2));
    back.application = site::other();
    owner.verb::<_, GateCounts>("rollback", &back).await?;
    while let Some(answer) = timeout(LIMIT, waiting.join_next()).await? {
        answer??;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = timeout(LIMIT, clients.join_next()).await? {
        ensure!(done?? > 10_000);
    }
    Ok(())
}

/// What a service manager hears: the unit is active all the time. The successor gives it sockets to
/// keep only when it has been named, because nobody else is listened to.
#[tokio::test]
async fn the_service_manager_hears_of_the_successor_and_from_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path)?;
    let path = path.to_str().context("no text")?.to_owned();
    let mut site = Site::start_in(PROGRAM, "", &[("NOTIFY_SOCKET", path)]).await?;
    let mut heard = Vec::new();
    while heard.len() < 2 {
        heard.push(hear(&socket).await?);
    }
    heard.sort();
    let (ready, keep) = ("READY=1\n", "FDSTORE=1\nFDNAME=trunk\n");
    ensure!(heard == [keep, ready], "{heard:?}");
    let reply = site.upgrade(PROGRAM).await?;
    heard.clear();
    while heard.len() < 3 {
        heard.push(hear(&socket).await?);
    }
    let last = heard.pop();
    ensure!(last.as_deref() == Some(keep), "{heard:?} and then {last:?}");
    heard.sort();
    let told = format!("MAINPID={}\nWATCHDOG=1\n", reply.pid);
    ensure!(heard == [told.as_str(), ready], "{heard:?}");
    // The old one has ended without a word that it stops.
    ensure!(socket.try_recv(&mut [0; 256]).is_err());
    Ok(())
}

async fn hear(socket: &tokio::net::UnixDatagram) -> Result<String> {
    let mut word = [0; 256];
    let length = timeout(LIMIT, socket.recv(&mut word)).await??;
    let word = word.get(..length).context("too long")?;
    Ok(String::from_utf8(word.to_vec())?)
}

#[tokio::test]
async fn a_drain_that_runs_is_broken_off_and_counts_everything_when_it_is_repeated() -> Result<()> {
    let (listener, target) = raw().await?;
    let mut site = Site::start(PROGRAM).await?;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(target))
        .await?;
    let mut client = TcpStream::connect((site.address, port)).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    client.write_all(b"long question").await?;
    server.read_exact(&mut [0; 13]).await?;
    let prepare = prepare_verb(version(1, 1));
    site.verb::<_, GateCounts>("prepare", &prepare).await?;
    let drain = drain_verb(version(1, 1), 2 * LIMIT);
    let control = site.control();
    let drained = async move { control.verb::<_, GateCounts>("drain", &drain).await };
    let upgraded = async {
        sleep(Duration::from_millis(300)).await;
        site.upgrade(PROGRAM).await
    };
    let (drained, upgraded) = tokio::join!(drained, upgraded);
    ensure!(upgraded?.relays == 1);
    let error = drained.err().context("the drain said that it was over")?;
    ensure!(
        error.status() == Some(StatusCode::SERVICE_UNAVAILABLE),
        "{error:?}"
    );
    // The successor has the connection, and its verbs see it.
    let short = drain_verb(version(1, 1), Duration::from_millis(50));
    let counts: GateCounts = site.verb("drain", &short).await?;
    ensure!(counts.active == 1, "{counts:?}");
    let counts: GateCounts = site.verb("freeze", &gate_ref(version(1, 1))).await?;
    ensure!((counts.active, counts.cut) == (0, 1), "{counts:?}");
    // It may have heard a goodbye before, which is no error.
    timeout(LIMIT, client.ready(Interest::ERROR)).await??;
    Ok(())
}

#[tokio::test]
async fn datagrams_and_half_closed_connections_go_on_too() -> Result<()> {
    let (listener, target) = raw().await?;
    let app = UdpSocket::bind("127.0.0.1:0").await?;
    let mut site = Site::start(PROGRAM).await?;
    let (port, udp) = (free_port().await?, free_port().await?);
    let at = version(1, 0);
    let addr = app.local_addr()?;
    site.routes(
        at,
        &[
            (tcp(port)?, RouteIntent::Open(target)),
            (
                format!("{udp}/udp").parse()?,
                RouteIntent::Open(Target::Local { addr }),
            ),
        ],
    )
    .await?;
    let mut client = TcpStream::connect((site.address, port)).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    client.write_all(b"question").await?;
    client.shutdown().await?;
    let mut heard = Vec::new();
    timeout(LIMIT, server.read_to_end(&mut heard)).await??;
    let sender = UdpSocket::bind("127.0.0.1:0").await?;
    sender.connect((site.address, udp)).await?;
    for round in 0..2_u8 {
        sender.send(&[round]).await?;
        let mut byte = [9];
        let (_, from) = timeout(LIMIT, app.recv_from(&mut byte)).await??;
        ensure!(byte == [round]);
        app.send_to(b"yes", from).await?;
        let mut answer = [0; 3];
        timeout(LIMIT, sender.recv(&mut answer)).await??;
        ensure!(&answer == b"yes");
        if round == 0 {
            site.upgrade(PROGRAM).await?;
        }
    }
    server.write_all(b"late answer").await?;
    drop(server);
    let mut heard = String::new();
    timeout(LIMIT, client.read_to_string(&mut heard)).await??;
    ensure!(heard == "late answer");
    Ok(())
}

#[tokio::test]
async fn the_command_tells_what_happened_and_why_not() -> Result<()> {
    let mut site = Site::start(PROGRAM).await?;
    let command = || {
        let mut command = Command::new(PROGRAM);
        command.arg("--upgrade").arg("--config").arg(site.file());
        command
    };
    let output = timeout(3 * LIMIT, command().output()).await??;
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && said.contains("handed over to") && said.contains("sockets"),
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pid = said
        .split_once("(pid ")
        .and_then(|(_, rest)| rest.split_once(')'))
        .context("no pid")?;
    site.now_is(pid.0.parse()?).await?;
    // A successor whose file means other sockets is refused, and the running one goes on.
    let file = std::fs::read_to_string(site.file())?;
    let elsewhere = TcpListener::bind((site.address, 0)).await?.local_addr()?;
    let trunk = file
        .lines()
        .find(|line| line.starts_with("trunk:"))
        .context("no trunk")?;
    let other = file.replace(trunk, &format!("trunk: {{listen: \"{elsewhere}\"}}"));
    std::fs::write(site.file(), &other)?;
    let mut command = Command::new(PROGRAM);
    command.arg("--upgrade").arg("--config").arg(site.file());
    let output = timeout(3 * LIMIT, command.output()).await??;
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        !output.status.success() && said.contains("trunk.listen"),
        "{said}"
    );
    std::fs::write(site.file(), file)?;
    // So is one that cannot be built, and it takes nothing with it.
    let (state, aside) = (
        site.file().with_file_name("state"),
        site.file().with_file_name("aside"),
    );
    std::fs::rename(&state, &aside)?;
    std::fs::write(&state, "")?;
    let error = site.upgrade(PROGRAM).await.err().context("it did")?;
    ensure!(
        format!("{error:#}").contains("cannot use the state directory"),
        "{error:#}"
    );
    std::fs::remove_file(&state)?;
    std::fs::rename(&aside, &state)?;
    let app = App::start("a").await?;
    let port = free_port().await?;
    site.route(port, version(1, 0), RouteIntent::Open(app.target()))
        .await?;
    let mut client = TcpStream::connect((site.address, port)).await?;
    ensure!(ask(&mut client, "x").await? == "a: x");
    site.upgrade(PROGRAM).await?;
    ensure!(ask(&mut client, "y").await? == "a: y");
    Ok(())
}

/// One that may be another one where the proxy runs, and one that is none.
#[tokio::test]
async fn a_program_that_cannot_succeed_is_refused() -> Result<()> {
    let mut site = Site::start(PROGRAM).await?;
    for (program, why) in [
        ("proxyd", "no absolute path"),
        ("/bin/false", "does not start"),
        ("/there/is/none", "system directory"),
    ] {
        let error = site.upgrade(program).await.err().context("it did")?;
        ensure!(format!("{error:#}").contains(why), "{error:#}");
    }
    site.upgrade(PROGRAM).await?;
    Ok(())
}
