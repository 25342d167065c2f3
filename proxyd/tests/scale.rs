//! What a change costs must not grow with the table: the same flips with 1,000 and with 100,000
//! routes. Ports are not opened for so many: their gates are closed.
//!
//! `cargo nextest run -p proxyd --no-capture -E 'binary(scale)'` shows the figures.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use proxyd::Proxyd;
use rehome_runtime::http_client::HttpClient;
use rehome_runtime::supervise::{Stop, Supervisor};
use rehome_shared::api::proxy::{
    Announce, Commit, CommitTarget, Content, GateRef, MAX_BODY, ParkLimits, Prepare, RouteIntent,
    RouteKey, RouteSpec, RouteStatus, RoutesReply, SetRoutes, Target,
};
use rehome_shared::config::daemon::{
    FastPath, ListenOn, Log, ProxyProtocol, ProxydConfig, ProxydLimits, ProxydTimeouts, Trunk,
};
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, Protocol, RouteVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const FEW: usize = 1_000;
const MANY: usize = 100_000;
/// Flipped one after the other; their routes are open, on ports of their own.
const FLIPS: u64 = 200;
/// Flipped at once.
const AT_ONCE: usize = 10_000;
/// How much more a single flip may take among so many more routes. A scan would take 100 times.
const RATIO: u32 = 5;

/// A proxy, and what was measured with its table.
struct Measured {
    proxy: Proxyd,
    supervisor: Supervisor,
    config: ProxydConfig,
    directory: tempfile::TempDir,
    desired: SetRoutes,
    set: Duration,
    /// A prepare, a freeze and a commit of one application, each time.
    flips: Vec<Duration>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_among_100_000_routes_costs_what_it_costs_among_1000() -> Result<()> {
    let (mut few, mut many) = (Measured::start(FEW).await?, Measured::start(MANY).await?);
    // By turns, so that what else the machine does concerns both.
    for generation in 1..=FLIPS {
        few.flip(generation).await?;
        many.flip(generation).await?;
    }
    let (flip_few, flip_many) = (few.finish().await?, many.finish().await?);
    ensure!(
        flip_many <= flip_few * RATIO,
        "a flip took {flip_few:?}, and {flip_many:?}"
    );
    Ok(())
}

impl Measured {
    async fn start(routes: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = config(directory.path(), routes)?;
        let supervisor = Supervisor::new();
        let proxy = Proxyd::start(&config, &supervisor).await?;
        let desired = desired(routes)?;
        let started = Instant::now();
        let reply = proxy.set_routes(desired.clone()).await?;
        let set = started.elapsed();
        ensure!(reply.routes.len() == routes, "{}", reply.routes.len());
        Ok(Self {
            proxy,
            supervisor,
            config,
            directory,
            desired,
            set,
            flips: Vec::new(),
        })
    }

    async fn flip(&mut self, generation: u64) -> Result<()> {
        let application = name(0)?;
        let verb = Prepare {
            application: application.clone(),
            version: version(1, 2 * generation),
            lease: Duration::from_secs(30),
            limits: limits(),
        };
        let gate = GateRef {
            application: application.clone(),
            version: version(1, 2 * generation),
        };
        let to = CommitTarget {
            key: self.desired.routes.first().context("no route")?.key,
            target: target(generation),
        };
        let commit = Commit {
            application,
            version: version(1, 2 * generation + 1),
            targets: vec![to],
        };
        let started = Instant::now();
        self.proxy.prepare(verb).await?;
        self.proxy.freeze(gate).await?;
        self.proxy.commit(commit).await?;
        self.flips.push(started.elapsed());
        Ok(())
    }

    /// Measures the rest, shows all and returns the median of the flips.
    #[expect(clippy::print_stdout, reason = "the figures are for people to see")]
    async fn finish(mut self) -> Result<Duration> {
        let routes = self.desired.routes.len();
        let changed = AT_ONCE.min(routes);
        for route in self.desired.routes.iter_mut().rev().take(changed) {
            route.version = version(2, 0);
        }
        let started = Instant::now();
        self.proxy.set_routes(self.desired.clone()).await?;
        let flip_many = started.elapsed();

        let started = Instant::now();
        let page = self.proxy.metrics_addr().context("no metrics")?;
        let text = get(page, "/metrics").await?;
        let metrics = started.elapsed();
        let lines = text.lines();
        let lines = lines.filter(|line| line.starts_with("rehome_route_info{"));
        ensure!(lines.count() == routes, "not all routes are shown");

        let before = known(self.proxy.routes());
        stop(&self.proxy, &self.supervisor).await?;
        let (start, memory, after) = program(self.directory.path(), &self.config).await?;
        ensure!(known(after) == before, "the program found other routes");

        self.flips.sort_unstable();
        let flip = self.flips.get(self.flips.len() / 2);
        let flip = *flip.context("nothing was measured")?;
        let set = self.set;
        println!(
            "{routes:>7} routes: set {set:?}, flip one {flip:?}, flip {changed} {flip_many:?}, \
             metrics {metrics:?}, start {start:?}, memory of the program {memory} KiB"
        );
        Ok(flip)
    }
}

/// What is known of routes, as text.
fn known(reply: RoutesReply) -> BTreeSet<String> {
    let routes = reply.routes.into_iter();
    let text = |route: RouteStatus| {
        let (key, application, version, target) =
            (route.key, route.application, route.version, route.target);
        format!("{key} {application} {version} {target:?}")
    };
    routes.map(text).collect()
}

async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Ends with the value, also when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the program itself on the routes that are kept: how long that takes, what memory it
/// has then, in KiB, and which routes it found.
async fn program(directory: &Path, config: &ProxydConfig) -> Result<(Duration, u64, RoutesReply)> {
    let ip = config.metrics.ip();
    let port = || -> Result<u16> { Ok(std::net::TcpListener::bind((ip, 0))?.local_addr()?.port()) };
    let page = SocketAddr::new(ip, port()?);
    let file = directory.join("proxyd.yml");
    let text = format!(
        "version: 1\nsocket: {socket}\nstate: {state}\nmetrics: {page}\n\
         trunk: {{listen: \"{ip}:{trunk}\"}}\nlisten: [\"{ip}\"]\n",
        socket = config.socket.display(),
        state = config.state.display(),
        trunk = port()?,
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyd"));
    command.arg("--config").arg(&file).stderr(Stdio::null());
    let running = Running(command.spawn()?);
    let started = Instant::now();
    while get(page, "/healthz").await.is_err() {
        ensure!(
            started.elapsed() < Duration::from_mins(1),
            "it does not start"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (start, memory) = (started.elapsed(), resident(running.0.id())?);
    let http = HttpClient::unix(&config.socket).with_answer_limit(MAX_BODY);
    let none: Option<&()> = None;
    let limit = Duration::from_mins(1);
    let found = http
        .request_json(Method::GET, "/v1/routes", none, limit)
        .await?;
    Ok((start, memory, found))
}

async fn stop(proxy: &Proxyd, supervisor: &Supervisor) -> Result<()> {
    supervisor.cancel();
    proxy.wind_down(Duration::from_millis(100)).await;
    let stop = supervisor.stop(Duration::from_secs(20)).await;
    ensure!(stop == Stop::Clean, "tasks are left");
    Ok(())
}

/// Only one route is open: on the port that the machine gives.
fn desired(routes: usize) -> Result<SetRoutes> {
    let spare = std::net::TcpListener::bind((address(routes), 0))?;
    let open = RouteKey::new(spare.local_addr()?.port(), Protocol::Tcp);
    drop(spare);
    let tcp = (1..=u16::MAX).map(|port| RouteKey::new(port, Protocol::Tcp));
    let udp = (1..=u16::MAX).map(|port| RouteKey::new(port, Protocol::Udp));
    let others = tcp.chain(udp).filter(|key| *key != open);
    let specs = std::iter::once(open).chain(others).take(routes).enumerate();
    let spec = |(number, key)| -> Result<RouteSpec> {
        let intent = if number == 0 {
            RouteIntent::Open(target(0))
        } else {
            RouteIntent::Closed
        };
        Ok(RouteSpec {
            content: Content::default(),
            announce: Announce::default(),
            key,
            application: name(number)?,
            version: version(1, 0),
            intent,
            limits: limits(),
        })
    };
    Ok(SetRoutes {
        host: HostAddr::try_new(address(routes).to_string())?,
        peers: vec![],
        routes: specs.map(spec).collect::<Result<_>>()?,
    })
}

fn name(number: usize) -> Result<AppName> {
    Ok(AppName::try_new(format!("application-{number}"))?)
}

fn version(epoch: u64, generation: u64) -> RouteVersion {
    RouteVersion {
        epoch: Epoch(epoch),
        generation: Generation(generation),
    }
}

fn limits() -> ParkLimits {
    ParkLimits {
        park_limit: 1000,
        park_timeout: Duration::from_mins(1),
    }
}

fn target(generation: u64) -> Target {
    let port = u16::try_from(1 + generation % 60_000).unwrap_or(1);
    let addr = ([127, 0, 0, 1], port).into();
    Target::Local { addr }
}

/// A loopback address that nobody else uses.
fn address(routes: usize) -> Ipv4Addr {
    let octet = |number: usize| u8::try_from(number % 250 + 1).unwrap_or(1);
    let process = usize::try_from(std::process::id()).unwrap_or(1);
    Ipv4Addr::new(
        127,
        octet(process / 250),
        octet(process),
        octet(routes / FEW + 200),
    )
}

fn config(directory: &Path, routes: usize) -> Result<ProxydConfig> {
    let ip = IpAddr::V4(address(routes));
    Ok(ProxydConfig {
        host: Some(ip.to_string().parse()?),
        socket: directory.join("proxyd.sock"),
        state: directory.join("state"),
        metrics: SocketAddr::new(ip, 0),
        log: Log::default(),
        trunk: Trunk {
            listen: SocketAddr::new(ip, 0),
            ..Trunk::default()
        },
        listen: ListenOn::Addresses(vec![ip]),
        proxy_protocol: ProxyProtocol::default(),
        fast_path: FastPath::Off,
        limits: ProxydLimits::default(),
        timeouts: ProxydTimeouts::default(),
        routes: Vec::new(),
    })
}

/// The memory of a process that is in use, in KiB.
fn resident(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}
