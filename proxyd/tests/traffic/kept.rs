//! A service manager that keeps the sockets of a proxy: while it starts again, clients wait and
//! are not refused.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{fs, iter};

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use socket2::SockRef;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpStream, UnixDatagram};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep, timeout};

use crate::app::App;
use crate::binary::{PROGRAM, Running, config, wait_for};
use crate::host::{LIMIT, ask, free_port, quiet_port, quiet_port_above, unused_address};

type Stored = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// What it keeps, by name, and who hears that it is told so.
struct Manager {
    directory: TempDir,
    stored: Stored,
    _hears: JoinSet<Result<()>>,
}

impl Manager {
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let words = UnixDatagram::bind(directory.path().join("notify"))?;
        let stored = Stored::default();
        let mut hears = JoinSet::new();
        hears.spawn(hear(words, Arc::clone(&stored)));
        Ok(Self {
            directory,
            stored,
            _hears: hears,
        })
    }

    /// What it keeps now: what was shut down it drops, as systemd does.
    fn names(&self) -> Vec<String> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.retain(|_, socket| SockRef::from(&*socket).is_listener().unwrap_or(false));
        stored.keys().cloned().collect()
    }

    /// Waits until it keeps exactly these.
    async fn keeps(&self, mut wanted: Vec<String>) -> Result<()> {
        let began = Instant::now();
        wanted.sort();
        while self.names() != wanted {
            ensure!(began.elapsed() < LIMIT, "{:?} is kept", self.names());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Starts a proxy with all that is kept.
    fn run(&self, file: &PathBuf) -> Result<Running> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: io::Result<Vec<_>> = stored.values().map(OwnedFd::try_clone).collect();
        let mappings = iter::zip(kept?, 3..).map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        let mut command = Command::new(PROGRAM);
        command
            .arg("--config")
            .arg(file)
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("LISTEN_FDS", stored.len().to_string())
            .stderr(Stdio::null())
            .fd_mappings(mappings.collect())?;
        Ok(Running(command.spawn()?))
    }
}

async fn hear(words: UnixDatagram, stored: Stored) -> Result<()> {
    loop {
        let (word, descriptor) = words
            .async_io(Interest::READABLE, || receive(&words))
            .await?;
        let name = word.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(name), Some(descriptor)) = (name, descriptor) {
            stored.insert(name.to_owned(), descriptor);
        }
    }
}

fn receive(words: &UnixDatagram) -> io::Result<(String, Option<OwnedFd>)> {
    let mut word = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut word)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = recvmsg(words, &mut into, &mut control, flags)?.bytes;
    let mut descriptors = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptor = descriptors.next().and_then(|mut rights| rights.next());
    let word = word.get(..length).unwrap_or_default();
    Ok((String::from_utf8_lossy(word).into_owned(), descriptor))
}

/// A proxy's file, and where it is reached.
struct Place {
    directory: TempDir,
    address: Ipv4Addr,
    page: SocketAddr,
    trunk: u16,
}

impl Place {
    async fn new() -> Result<Self> {
        let address = unused_address();
        Ok(Self {
            directory: tempfile::tempdir()?,
            address,
            page: SocketAddr::from((address, free_port().await?)),
            trunk: free_port().await?,
        })
    }

    fn text(&self, routes: &str) -> String {
        let base = self.directory.path();
        config(base, self.address, self.page, self.trunk, routes)
    }

    fn write(&self, text: &str) -> Result<PathBuf> {
        let file = self.directory.path().join("proxyd.yml");
        fs::write(&file, text)?;
        Ok(file)
    }

    /// What is kept of it, with these ports.
    fn kept(&self, ports: &[u16]) -> Vec<String> {
        let name = |port: &u16| format!("{port}@{}", self.address);
        let trunk = iter::once("trunk".to_owned());
        ports.iter().map(name).chain(trunk).collect()
    }

    async fn runs(&self) -> Result<()> {
        wait_for(self.page, "/healthz", "ok").await
    }

    /// Waits until the file was read again, so often by now.
    async fn reloaded(&self, running: &Running, times: u32) -> Result<()> {
        running.signal(Signal::HUP)?;
        let text = format!("reloads_total{{result=\"applied\"}} {times}");
        wait_for(self.page, "/metrics", &text).await
    }

    async fn refuses(&self, port: u16) -> Result<()> {
        let refused = TcpStream::connect((self.address, port)).await.err();
        let kind = refused.map(|error| error.kind());
        ensure!(kind == Some(io::ErrorKind::ConnectionRefused), "{kind:?}");
        Ok(())
    }
}

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

/// Asks again and again, each time on a connection of its own. One that was accepted may be closed
/// by a restart that finds it silent; none is refused.
async fn visits(at: (Ipv4Addr, u16), stop: Arc<AtomicBool>, seen: Arc<AtomicUsize>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let connected = timeout(LIMIT, TcpStream::connect(at)).await?;
        let mut client = connected.context("refused")?;
        match ask(&mut client, "x").await {
            Ok(answer) if answer == "a: x" => {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => ensure!(answer.is_empty(), "{answer}"),
            Err(_reset) => {}
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_in_a_storm_is_refused_while_a_proxy_is_restarted() -> Result<()> {
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
        let at = (place.address, port);
        clients.spawn(visits(at, Arc::clone(&stop), Arc::clone(&seen)));
    }
    for turn in 0..6 {
        let wanted = seen.load(Ordering::Relaxed) + 100;
        let began = Instant::now();
        while seen.load(Ordering::Relaxed) < wanted {
            ensure!(began.elapsed() < LIMIT, "the clients are stuck");
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            sleep(Duration::from_millis(5)).await;
        }
        if turn % 2 == 0 {
            running.signal(Signal::TERM)?;
            ensure!(running.exit().await?.success());
        } else {
            crash(&mut running).await?;
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

/// A restart says goodbye to who rests, whoever else it waits for.
#[tokio::test]
async fn a_silent_peer_of_the_trunk_does_not_keep_a_restart_from_saying_goodbye() -> Result<()> {
    let (manager, place, app) = (
        Manager::start()?,
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
