//! The daemons' own files: `migrated.yml` and `proxyd.yml`.
//!
//! Read in two stages: the YAML tree first, then checked values with every default filled in,
//! so that a daemon never meets a missing or impossible setting. Unknown keys are problems, and
//! all problems are told at once. The defaults stand in `Default` impls here and nowhere else.

mod clients;
mod migrated;
mod proxyd;
mod settings;
#[cfg(test)]
mod tests;
mod trunk;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

pub(super) use clients::send_proxy;
pub use clients::{AcceptProxy, ProxyProtocol};
pub use migrated::migrated_config;
pub use proxyd::proxyd_config;
pub use trunk::{Accepted, MOST_READY, Sent, Trunk, TrunkTls};

use super::model::MigrationLimits;
use crate::api::proxy::Announce;
use crate::ids::{HostAddr, Protocol};
use crate::units::Bytes;

/// The port of migrated's API, for people's commands and for the other hosts.
pub const PEER_PORT: u16 = 7420;
/// The port of the trunk between proxyds.
pub const TRUNK_PORT: u16 = 7421;
/// Where migrated's control socket is unless its file says otherwise.
pub const MIGRATED_SOCKET: &str = "/run/rehome/migrated.sock";
/// Where proxyd's control socket is unless its file says otherwise.
pub const PROXYD_SOCKET: &str = "/run/rehome/proxyd.sock";

/// What `migrated.yml` says, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigratedConfig {
    /// This host, as deployment.yml names it.
    pub address: HostAddr,
    /// The API and the peers, over mutual TLS. Where the address is `[::]`, both families.
    pub listen: SocketAddr,
    /// The control socket of this host.
    pub socket: PathBuf,
    /// Where the journal is.
    pub state: PathBuf,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub metrics: SocketAddr,
    /// What is logged and how.
    pub log: Log,
    /// This host's identity and whom it trusts.
    pub tls: TlsFiles,
    /// The port that the other hosts' migrated listen on.
    pub peer_port: u16,
    /// Where volumes are.
    pub storage: Storage,
    /// What runs applications.
    pub runtime: Runtime,
    /// The proxyd of this host.
    pub proxy: ProxyEndpoint,
    /// How applications move unless their own `migration:` says otherwise.
    pub migration: MigrationLimits,
    /// What is refused for being too much.
    pub limits: MigratedLimits,
    /// The files that drive this host, where it is driven by files.
    pub files: Option<DeploymentFiles>,
}

/// What `proxyd.yml` says, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxydConfig {
    /// This host's name in the cluster; absent where proxyd serves static routes only.
    pub host: Option<HostAddr>,
    /// The control socket.
    pub socket: PathBuf,
    /// Where the routes are kept.
    pub state: PathBuf,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub metrics: SocketAddr,
    /// What is logged and how.
    pub log: Log,
    /// Where the other proxyds reach this one.
    pub trunk: Trunk,
    /// The addresses of external ports.
    pub listen: ListenOn,
    /// Who says in front of their bytes who the client is.
    pub proxy_protocol: ProxyProtocol,
    /// Whether the kernel may carry steady routes.
    pub fast_path: FastPath,
    /// What is refused or held back for being too much.
    pub limits: ProxydLimits,
    /// How long proxyd waits.
    pub timeouts: ProxydTimeouts,
    /// Routes that nobody has to publish; the external ports are unique per transport.
    pub routes: Vec<StaticRoute>,
}

/// What a daemon logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// Which events, in the language of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The PEM files of a host's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the cluster's authority.
    pub ca: PathBuf,
    /// This host's certificate.
    pub certificate: PathBuf,
    /// This host's private key.
    pub key: PathBuf,
}

/// Where volumes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// What keeps them.
    pub backend: Backend,
    /// The directory of the pool.
    pub path: PathBuf,
    /// The file that holds the pool, made where `path` is not on the right file system.
    pub image: Option<PoolImage>,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            backend: Backend::Btrfs,
            path: "/var/lib/rehome/pool".into(),
            image: None,
        }
    }
}

/// What keeps volumes. The file may also name `zfs` and `directory`, which this version answers
/// with a problem: a value of this type is one that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A btrfs subvolume for each volume.
    Btrfs,
}

/// A pool in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolImage {
    /// The file.
    pub path: PathBuf,
    /// How large it is made.
    pub size: Bytes,
}

/// What runs applications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runtime {
    /// Docker Engine, by its API socket.
    Docker {
        /// The socket.
        socket: PathBuf,
    },
    /// Podman, by its Docker-compatible API socket.
    Podman {
        /// The socket.
        socket: PathBuf,
    },
    /// Plain commands of the host.
    Process,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::Docker {
            socket: "/var/run/docker.sock".into(),
        }
    }
}

/// The proxyd of a host, as its migrated sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyEndpoint {
    /// Its control socket.
    pub socket: PathBuf,
    /// The port that the proxyds of the cluster listen on for each other.
    pub trunk_port: u16,
}

impl Default for ProxyEndpoint {
    fn default() -> Self {
        Self {
            socket: PROXYD_SOCKET.into(),
            trunk_port: TRUNK_PORT,
        }
    }
}

/// What migrated refuses for being too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigratedLimits {
    /// Migrations that this host sends at the same time, and as many that it takes; more wait.
    pub concurrent_migrations: u32,
    /// Bytes per second that all migrations of this host may send together.
    pub bandwidth: Option<Bytes>,
    /// The largest body of a request.
    pub request_bytes: Bytes,
    /// After a start of the host, so long hosts that do not answer are waited for before what was
    /// here is started without their word.
    pub start_alone_after: Duration,
}

impl Default for MigratedLimits {
    fn default() -> Self {
        Self {
            concurrent_migrations: 2,
            bandwidth: None,
            request_bytes: Bytes(4 << 20),
            start_alone_after: Duration::from_mins(1),
        }
    }
}

/// The files that drive a host, applied at start and at reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentFiles {
    /// Where applications run.
    pub deployment: PathBuf,
    /// What they are.
    pub application: PathBuf,
}

/// The addresses on which external ports are opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListenOn {
    /// One socket for both families on `[::]`; `0.0.0.0` where the host has no IPv6.
    #[default]
    DualStack,
    /// One socket per address, each for its own family. Never empty, no address twice.
    Addresses(Vec<IpAddr>),
}

/// What proxyd refuses or holds back for being too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxydLimits {
    /// Connections of all routes together.
    pub connections: u32,
    /// Connections of one route.
    pub per_route: u32,
    /// Connections of one client address, UDP clients included; without a limit when absent (`0`
    /// in the file).
    pub per_source: Option<NonZeroU32>,
    /// Parked connections of one route, where the route brings no limit of its own.
    pub parked: u32,
    /// The longest park, where the route brings no limit of its own.
    pub park_timeout: Duration,
    /// What clients that are held may have sent and nobody has read, all together.
    pub parked_bytes: Bytes,
    /// UDP clients remembered at once.
    pub udp_sessions: u32,
    /// What the buffers and pipes of all connections may hold together, between a read and a
    /// write. Beyond it a connection gets by with 4 KiB each way.
    pub relay_bytes: Bytes,
    /// What the pipes of relays that carry bulk may hold together. Without room there, bytes are
    /// copied.
    pub pipe_bytes: Bytes,
}

impl Default for ProxydLimits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            per_route: 10_000,
            per_source: None,
            parked: 10_000,
            park_timeout: Duration::from_mins(1),
            parked_bytes: Bytes(256 << 20),
            udp_sessions: 4096,
            relay_bytes: Bytes(256 << 20),
            // Below the 64 MiB that Linux lets a user without powers have.
            pipe_bytes: Bytes(48 << 20),
        }
    }
}

/// How long proxyd waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxydTimeouts {
    /// For an application to accept.
    pub connect: Duration,
    /// For the second half of a half-closed connection.
    pub half_close: Duration,
    /// For the next byte of an idle connection; for ever when absent (`0s` in the file).
    pub idle: Option<Duration>,
    /// How long a connection may last at all; for ever when absent (`0s` in the file).
    pub lifetime: Option<Duration>,
    /// For the next datagram of a UDP client.
    pub udp_idle: Duration,
    /// Before the first TCP keepalive probe.
    pub keepalive: Duration,
    /// For sent bytes to be acknowledged (`TCP_USER_TIMEOUT`).
    pub user_timeout: Duration,
}

impl Default for ProxydTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            half_close: Duration::from_secs(30),
            idle: None,
            lifetime: None,
            udp_idle: Duration::from_mins(1),
            keepalive: Duration::from_mins(1),
            user_timeout: Duration::from_mins(1),
        }
    }
}

/// A route that stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticRoute {
    /// The port that clients connect to.
    pub external: u16,
    /// What travels.
    pub protocol: Protocol,
    /// Where it goes.
    pub backend: SocketAddr,
    /// Whether the kernel may carry it, where it may carry any.
    pub fast_path: FastPath,
    /// Who announces its clients.
    pub accept_proxy: AcceptProxy,
    /// What the backend is told of each client.
    pub send_proxy: Announce,
}

/// Whether steady routes may be carried by the kernel. Left out, a proxy has no fast path, and a
/// route may have one where its proxy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FastPath {
    /// Where it helps, and nothing asks for every connection: the kernel counts none for
    /// [`ProxydLimits::per_source`], and ends none after [`ProxydTimeouts::lifetime`].
    #[default]
    Auto,
    /// Never.
    Off,
}

/// `127.0.0.1` with a port, the default place of metrics.
fn localhost(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
