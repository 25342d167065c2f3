//! A proxy between clients and two instances of an application, each on a host of its own.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::network::{self, Far};
use rehome_tests::program;
use rehome_tests::proxy::{PATIENCE, Proxy, Setup, Version, local, route, sum};
use rehome_tests::wait::wait_until;
use serde_json::Value;

pub(crate) const PORT: u16 = 5000;
/// Where instances listen.
const INSIDE: u16 = 8080;

/// All of it.
pub(crate) struct Stage {
    pub(crate) proxy: Proxy,
    pub(crate) clients: Far,
    pub(crate) a: Far,
    pub(crate) b: Far,
}

impl Stage {
    /// With a fast path.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::with(Setup::with("fast_path: auto"))
    }

    pub(crate) fn with(setup: Setup) -> anyhow::Result<Self> {
        network::own()?;
        network::set("ipv4/ip_forward", "1")?;
        network::set("ipv6/conf/all/forwarding", "1")?;
        let (clients, a, b) = (Far::start(1)?, Far::start(2)?, Far::start(3)?);
        for (far, name) in [(&a, b'A'), (&b, b'B')] {
            far.run(move || serve(name))??;
        }
        let setup = Setup {
            address: Some(clients.near()),
            ..setup
        };
        let proxy = Proxy::start(1, setup)?;
        Ok(Self {
            proxy,
            clients,
            a,
            b,
        })
    }

    pub(crate) fn door(&self) -> SocketAddr {
        self.proxy.door(PORT)
    }

    /// Leads the port to an instance.
    pub(crate) fn open(&self, at: Version, to: &Far) -> anyhow::Result<()> {
        self.proxy.set(&[route(PORT, "db", at, &inside(to))])?;
        Ok(())
    }

    pub(crate) fn commit(&self, at: Version, to: &Far) -> anyhow::Result<Value> {
        self.proxy.commit("db", at, PORT, &inside(to))
    }

    /// Waits until the kernel carries the port; somebody has to have been there for that.
    pub(crate) fn wait_for_kernel(&self) -> anyhow::Result<()> {
        wait_until("the kernel carries the route", PATIENCE, || {
            let route = self.proxy.route(PORT)?;
            Ok(route["fast_path"]["carrier"] == "kernel")
        })
        .with_context(|| self.proxy.log().unwrap_or_default())
    }

    /// Opens the port, has a client ask, and waits until the kernel carries it, and user space has
    /// nobody.
    pub(crate) fn fast(&self, at: Version, to: &Far) -> anyhow::Result<()> {
        self.open(at, to)?;
        self.ask()?;
        self.wait_for_kernel()?;
        self.proxy.wait("the first client has ended", |page| {
            Ok(sum(page, "rehome_proxy_connections_active", &[])? == 0)
        })
    }

    /// Who answers a client, over a connection of its own.
    pub(crate) fn ask(&self) -> anyhow::Result<u8> {
        ask(&self.connect(PORT)?)
    }

    /// A client's connection.
    pub(crate) fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        let door = self.proxy.door(port);
        let stream = self
            .clients
            .run(move || TcpStream::connect_timeout(&door, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Connections that user space has seen the end of.
    pub(crate) fn seen(&self) -> anyhow::Result<u64> {
        self.proxy.metric("rehome_proxy_connections_total", &[])
    }
}

/// An instance, as a proxy is told.
pub(crate) fn inside(of: &Far) -> Value {
    local((of.address(), INSIDE).into())
}

/// What the packet filter holds of a table.
pub(crate) fn table(name: &str) -> anyhow::Result<String> {
    let mut list = Command::new("nft");
    let outcome = program::run(list.args(["list", "table", "inet", name]), PATIENCE)?;
    Ok(outcome.stdout)
}

/// Whether an element leads anywhere.
pub(crate) fn leads() -> anyhow::Result<bool> {
    Ok(table("rehome")?.contains(" : 10.1."))
}

pub(crate) fn nft(words: &str) -> anyhow::Result<()> {
    program::run(Command::new("nft").arg(words), PATIENCE)?.ok()?;
    Ok(())
}

/// An instance that answers each byte with its name over TCP, and over UDP each datagram with that
/// and the datagram.
fn serve(name: u8) -> anyhow::Result<()> {
    let everywhere = (Ipv4Addr::UNSPECIFIED, INSIDE);
    let (listener, socket) = (TcpListener::bind(everywhere)?, UdpSocket::bind(everywhere)?);
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            thread::spawn(move || answer(client, name));
        }
    });
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, client)) = socket.recv_from(&mut datagram) {
            let answer = [&[name], &datagram[..length]].concat();
            // A client that is gone is none of its business.
            drop(socket.send_to(&answer, client));
        }
    });
    Ok(())
}

fn answer(mut client: TcpStream, name: u8) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut byte = [0];
    while client.read(&mut byte)? == 1 {
        match byte {
            // Whom it sees.
            [b'@'] => writeln!(client, "{}", client.peer_addr()?)?,
            _ => client.write_all(&[name])?,
        }
    }
    Ok(())
}

/// Who answers.
pub(crate) fn ask(mut stream: &TcpStream) -> anyhow::Result<u8> {
    let mut answer = [0];
    stream.write_all(b"?")?;
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

/// How a connection ended, which is to happen by itself.
pub(crate) fn end(mut stream: &TcpStream) -> anyhow::Result<Option<ErrorKind>> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(None),
        Ok(_) => anyhow::bail!("bytes instead of an end"),
        Err(error) => Ok(Some(error.kind())),
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
    failed: Mutex<Vec<String>>,
}

/// Clients that ask all the time, some over connections of their own for each question, others
/// over one for all.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) const CLIENTS: u64 = 6;

    pub(crate) fn begin(stage: &Stage) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (door, of) = (stage.door(), Arc::clone(&shared));
        let threads = stage.clients.run(move || {
            let client = |number| {
                let shared = Arc::clone(&of);
                thread::spawn(move || shared.ask_all_the_time(door, number % 2 == 0))
            };
            (0..Self::CLIENTS).map(client).collect()
        })?;
        Ok(Self { shared, threads })
    }

    /// Waits until there were some more answers.
    pub(crate) fn make_progress(&self) -> anyhow::Result<()> {
        let wanted = self.shared.answers.load(Ordering::Relaxed) + 100;
        wait_until("clients have answers", PATIENCE, || {
            self.insist()?;
            Ok(self.shared.answers.load(Ordering::Relaxed) >= wanted)
        })
    }

    fn insist(&self) -> anyhow::Result<()> {
        let failed = self.shared.failed.lock();
        let failed = failed.unwrap_or_else(PoisonError::into_inner);
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }

    /// Sends them home, and insists that none of them was refused or cut.
    pub(crate) fn stop(mut self) -> anyhow::Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.threads.drain(..) {
            ensure!(client.join().is_ok(), "a client panicked");
        }
        self.insist()?;
        Ok(self.shared.answers.load(Ordering::Relaxed))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn ask_all_the_time(&self, door: SocketAddr, one_for_all: bool) {
        let mut kept: Option<TcpStream> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let asked = match kept.take().filter(|_| one_for_all) {
                Some(stream) => Ok(stream),
                None => connect(door),
            };
            let asked = asked.and_then(|stream| ask(&stream).map(|_| stream));
            match asked {
                Ok(stream) => kept = Some(stream),
                Err(error) => {
                    let failed = self.failed.lock();
                    let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
                    failed.push(format!("one for all {one_for_all}: {error:#}"));
                    return;
                }
            }
            self.answers.fetch_add(1, Ordering::Relaxed);
            thread::park_timeout(Duration::from_millis(1));
        }
    }
}

fn connect(door: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&door, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}
