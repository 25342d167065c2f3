//! A proxy with a loopback address of its own, and clients.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxyd::Proxyd;
use rehome_runtime::supervise::{Stop, Supervisor};
use rehome_shared::api::proxy::{
    Announce, Commit, CommitTarget, Content, Drain, GateRef, ParkLimits, Prepare, RouteIntent,
    RouteKey, RouteSpec, RouteStatus, SetRoutes, Target,
};
use rehome_shared::config::daemon::{
    AcceptProxy, FastPath, ListenOn, Log, ProxyProtocol, ProxydConfig, ProxydLimits,
    ProxydTimeouts, StaticRoute, Trunk,
};
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, Protocol, RouteVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::certificates::Authority;

/// No wait of a test is longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// An address that no other test uses: tests run in processes of their own or side by side.
pub(crate) fn unused_address() -> Ipv4Addr {
    static LAST: AtomicU32 = AtomicU32::new(1);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id() % (250 * 250);
    let octet = |n: u32| u8::try_from(n).unwrap_or(1);
    Ipv4Addr::new(
        127,
        octet(process / 250 + 1),
        octet(process % 250 + 1),
        octet(number % 250 + 1),
    )
}

pub(crate) struct Host {
    pub(crate) proxy: Proxyd,
    pub(crate) address: Ipv4Addr,
    pub(crate) config: ProxydConfig,
    /// What travels on the routes that are set from now on.
    pub(crate) content: Content,
    /// What applications are told on them.
    pub(crate) announce: Announce,
    supervisor: Supervisor,
    _directory: tempfile::TempDir,
}

/// A port that nobody has at any address, and that neither the kernel nor [`quiet_port`] gives out:
/// the tests of a process have addresses of their own, and each port once.
pub(crate) async fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(31_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(port < 32_768, "every port was given");
        // Somebody may listen at all addresses.
        if TcpListener::bind((unused_address(), port)).await.is_ok() {
            return Ok(port);
        }
    }
}

/// A port that nobody has at any address: below those that the kernel gives out.
pub(crate) fn quiet_port() -> Result<u16> {
    quiet_port_above(10_000)
}

/// Another one, from 10,000 on above this, for a test that needs several.
pub(crate) fn quiet_port_above(lowest: u16) -> Result<u16> {
    let first = lowest + u16::try_from(std::process::id() % 9_000)?;
    for port in first..first + 500 {
        if std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("every port is taken")
}

pub(crate) fn tcp(port: u16) -> Result<RouteKey> {
    Ok(format!("{port}/tcp").parse()?)
}

pub(crate) fn db() -> AppName {
    "db".parse()
        .unwrap_or_else(|_| unreachable!("a valid name"))
}

pub(crate) fn version(epoch: u64, generation: u64) -> RouteVersion {
    RouteVersion {
        epoch: Epoch(epoch),
        generation: Generation(generation),
    }
}

pub(crate) fn park_limits() -> ParkLimits {
    ParkLimits {
        park_limit: 1000,
        park_timeout: Duration::from_secs(15),
    }
}

pub(crate) fn prepare_verb(at: RouteVersion) -> Prepare {
    let lease = Duration::from_secs(30);
    Prepare {
        application: db(),
        version: at,
        lease,
        limits: park_limits(),
    }
}

pub(crate) fn gate_ref(at: RouteVersion) -> GateRef {
    GateRef {
        application: db(),
        version: at,
    }
}

pub(crate) fn drain_verb(at: RouteVersion, deadline: Duration) -> Drain {
    Drain {
        application: db(),
        version: at,
        deadline,
    }
}

pub(crate) fn commit_verb(key: RouteKey, at: RouteVersion, target: Target) -> Commit {
    Commit {
        application: db(),
        version: at,
        targets: vec![CommitTarget { key, target }],
    }
}

thread_local! {
    /// Whoever makes certificates for the hosts of this thread's test.
    static AUTHORITY: RefCell<Option<Authority>> = const { RefCell::new(None) };
}

/// The hosts that this thread starts from now on seal their trunks.
pub(crate) fn seal_hosts() -> Result<()> {
    let authority = Authority::new()?;
    AUTHORITY.with_borrow_mut(|all| *all = Some(authority));
    Ok(())
}

/// What the file of a host says of that, in its mapping of the trunk.
pub(crate) fn seal_line(name: &str) -> Result<String> {
    AUTHORITY.with_borrow(|authority| {
        let Some(authority) = authority else {
            return Ok(String::new());
        };
        let files = authority.files(name)?;
        let [ca, certificate, key] =
            [files.ca, files.certificate, files.key].map(|file| file.display().to_string());
        Ok(format!(
            ", tls: {{ca: {ca}, certificate: {certificate}, key: {key}, ready: 1}}"
        ))
    })
}

fn seal(config: &mut ProxydConfig) -> Result<()> {
    let name = config.host.as_ref().context("no name")?.to_string();
    AUTHORITY.with_borrow(|authority| {
        if let Some(authority) = authority {
            let mut tls = authority.tls(&name)?;
            tls.ready = 2;
            config.trunk.tls = Some(tls);
        }
        Ok(())
    })
}

impl Host {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// One whose routes carry HTTP.
    pub(crate) async fn start_http() -> Result<Self> {
        let mut host = Self::start().await?;
        host.content = Content::Http;
        Ok(host)
    }

    pub(crate) async fn start_with(adjust: impl FnOnce(&mut ProxydConfig)) -> Result<Self> {
        let address = unused_address();
        let directory = tempfile::tempdir()?;
        let ip = IpAddr::V4(address);
        let mut config = ProxydConfig {
            host: Some(address.to_string().parse()?),
            socket: directory.path().join("proxyd.sock"),
            state: directory.path().join("state"),
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
        };
        seal(&mut config)?;
        adjust(&mut config);
        let supervisor = Supervisor::new();
        let proxy = Proxyd::start(&config, &supervisor).await?;
        Ok(Self {
            proxy,
            address,
            config,
            content: Content::default(),
            announce: Announce::default(),
            supervisor,
            _directory: directory,
        })
    }

    /// Stops the proxy and starts another one on the same state.
    pub(crate) async fn restart(mut self) -> Result<Self> {
        self.stop().await?;
        self.supervisor = Supervisor::new();
        self.proxy = Proxyd::start(&self.config, &self.supervisor).await?;
        Ok(self)
    }

    pub(crate) async fn stop(&self) -> Result<()> {
        self.supervisor.cancel();
        self.proxy.wind_down(Duration::from_millis(100)).await;
        ensure!(
            self.supervisor.stop(LIMIT).await == Stop::Clean,
            "tasks are left"
        );
        Ok(())
    }

    pub(crate) fn name(&self) -> Result<HostAddr> {
        Ok(self.address.to_string().parse()?)
    }

    /// This host as other hosts lead to it.
    pub(crate) fn as_target(&self) -> Result<Target> {
        Ok(Target::Remote {
            host: self.name()?,
            trunk: self.proxy.trunk_addr().to_string(),
        })
    }

    pub(crate) async fn set(
        &self,
        peers: &[&Host],
        key: RouteKey,
        version: RouteVersion,
        intent: RouteIntent,
    ) -> Result<RouteStatus> {
        self.set_limited(peers, key, version, intent, park_limits())
            .await
    }

    pub(crate) async fn set_limited(
        &self,
        peers: &[&Host],
        key: RouteKey,
        version: RouteVersion,
        intent: RouteIntent,
        limits: ParkLimits,
    ) -> Result<RouteStatus> {
        let routes = vec![RouteSpec {
            content: self.content,
            announce: self.announce,
            key,
            application: db(),
            version,
            intent,
            limits,
        }];
        let peers = peers
            .iter()
            .map(|host| host.name())
            .collect::<Result<_>>()?;
        let reply = self
            .proxy
            .set_routes(SetRoutes {
                host: self.name()?,
                peers,
                routes,
            })
            .await?;
        reply
            .routes
            .into_iter()
            .find(|route| route.key == key)
            .context("the route is missing")
    }

    pub(crate) async fn open(
        &self,
        peers: &[&Host],
        key: RouteKey,
        at: RouteVersion,
        to: Target,
    ) -> Result<()> {
        self.set(peers, key, at, RouteIntent::Open(to)).await?;
        Ok(())
    }

    pub(crate) fn status(&self, key: RouteKey) -> Result<RouteStatus> {
        let routes = self.proxy.routes().routes;
        routes
            .into_iter()
            .find(|route| route.key == key)
            .context("the route is missing")
    }

    /// Waits until the route's status is as wanted.
    pub(crate) async fn wait(
        &self,
        key: RouteKey,
        wanted: impl Fn(&RouteStatus) -> bool,
    ) -> Result<RouteStatus> {
        let found = timeout(LIMIT, async {
            loop {
                let status = self.status(key)?;
                if wanted(&status) {
                    return anyhow::Ok(status);
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        found
            .await
            .with_context(|| format!("still {:?}", self.status(key)))?
    }

    pub(crate) async fn client(&self, port: u16) -> Result<TcpStream> {
        Ok(timeout(LIMIT, TcpStream::connect((self.address, port))).await??)
    }

    pub(crate) async fn metrics(&self) -> Result<String> {
        let address = self.proxy.metrics_addr().context("no metrics")?;
        get(address, "/metrics").await
    }
}

/// A route of the configuration file.
pub(crate) fn file_route(external: u16, backend: SocketAddr) -> StaticRoute {
    StaticRoute {
        external,
        protocol: Protocol::Tcp,
        backend,
        fast_path: FastPath::Auto,
        accept_proxy: AcceptProxy::default(),
        send_proxy: Announce::default(),
    }
}

/// The body of a page.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await??;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok(body.to_owned())
}

/// Sends a line and reads the answer line.
pub(crate) async fn ask(stream: &mut TcpStream, line: &str) -> Result<String> {
    timeout(LIMIT, async {
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        read_line(stream).await
    })
    .await?
}

pub(crate) async fn read_line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = timeout(LIMIT, stream.read_u8()).await??;
        if byte == b'\n' {
            return Ok(String::from_utf8(line)?);
        }
        line.push(byte);
    }
}
