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
use proxyd::Proxyd;
use rehome_runtime::supervise::{Stop, Supervisor};
use rehome_shared::api::proxy::{
    Commit, CommitTarget, GateRef, ParkLimits, Prepare, RouteIntent, RouteKey, RouteSpec,
    SetRoutes, Target,
};
use rehome_shared::config::daemon::{
    ListenOn, Log, ProxydConfig, ProxydLimits, ProxydTimeouts, Trunk,
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

/// What was measured with a table.
struct Figures {
    set: Duration,
    /// The median of a prepare and a commit of one application.
    flip: Duration,
    /// Setting the whole table with so many routes changed.
    flip_many: Duration,
    load: Duration,
    /// What the program holds right after a start, in KiB.
    memory: u64,
    metrics: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_among_100_000_routes_costs_what_it_costs_among_1000() -> Result<()> {
    let few = measure(FEW).await?;
    let many = measure(MANY).await?;
    show(FEW, &few);
    show(MANY, &many);
    let most = few.flip * RATIO;
    ensure!(
        many.flip <= most,
        "a flip took {:?}, and {:?}",
        few.flip,
        many.flip
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures are for people to see")]
fn show(routes: usize, figures: &Figures) {
    let Figures {
        set,
        flip,
        flip_many,
        load,
        memory,
        metrics,
    } = figures;
    let many = AT_ONCE.min(routes);
    println!(
        "{routes:>7} routes: set {set:?}, flip one {flip:?}, flip {many} {flip_many:?}, \
         start {load:?}, metrics {metrics:?}, memory {memory} KiB"
    );
}

async fn measure(routes: usize) -> Result<Figures> {
    let directory = tempfile::tempdir()?;
    let config = config(directory.path(), routes)?;
    let supervisor = Supervisor::new();
    let proxy = Proxyd::start(&config, &supervisor).await?;

    let mut desired = desired(routes)?;
    let started = Instant::now();
    let reply = proxy.set_routes(desired.clone()).await?;
    let set = started.elapsed();
    ensure!(
        reply.routes.len() == routes,
        "{} routes",
        reply.routes.len()
    );
    drop(reply);

    let flip = flip_one(&proxy, desired.routes.first().context("no route")?.key).await?;

    let changed = AT_ONCE.min(routes);
    for route in desired.routes.iter_mut().rev().take(changed) {
        route.version = version(2, 0);
    }
    let started = Instant::now();
    proxy.set_routes(desired.clone()).await?;
    let flip_many = started.elapsed();

    let started = Instant::now();
    let text = scrape(&proxy).await?;
    let metrics = started.elapsed();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("rehome_route_info{"))
        .count();
    ensure!(lines == routes, "{lines} routes are shown");
    let before = known(&proxy);
    stop(&proxy, &supervisor).await?;
    drop(proxy);

    let supervisor = Supervisor::new();
    let started = Instant::now();
    let proxy = Proxyd::start(&config, &supervisor).await?;
    let load = started.elapsed();
    ensure!(known(&proxy) == before, "the start found other routes");
    stop(&proxy, &supervisor).await?;
    let memory = memory_of_the_program(directory.path(), &config).await?;
    Ok(Figures {
        set,
        flip,
        flip_many,
        load,
        memory,
        metrics,
    })
}

/// The median of a prepare and a commit.
async fn flip_one(proxy: &Proxyd, key: RouteKey) -> Result<Duration> {
    let application = name(0)?;
    let mut took = Vec::new();
    for generation in 1..=FLIPS {
        let verb = Prepare {
            application: application.clone(),
            version: version(1, 2 * generation),
            lease: Duration::from_secs(30),
            limits: limits(),
        };
        let commit = Commit {
            application: application.clone(),
            version: version(1, 2 * generation + 1),
            targets: vec![CommitTarget {
                key,
                target: target(generation),
            }],
        };
        let started = Instant::now();
        proxy.prepare(verb).await?;
        proxy
            .freeze(GateRef {
                application: application.clone(),
                version: version(1, 2 * generation),
            })
            .await?;
        proxy.commit(commit).await?;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    took.get(took.len() / 2)
        .copied()
        .context("nothing was measured")
}

/// What a proxy knows of its routes, as text.
fn known(proxy: &Proxyd) -> BTreeSet<String> {
    let routes = proxy.routes().routes.into_iter();
    routes
        .map(|route| {
            format!(
                "{} {} {} {:?}",
                route.key, route.application, route.version, route.gate
            )
        })
        .collect()
}

async fn scrape(proxy: &Proxyd) -> Result<String> {
    get(proxy.metrics_addr().context("no metrics")?, "/metrics").await
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

/// Starts the program itself on the routes that are kept, and looks at its memory.
async fn memory_of_the_program(directory: &Path, config: &ProxydConfig) -> Result<u64> {
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
    resident(running.0.id())
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
