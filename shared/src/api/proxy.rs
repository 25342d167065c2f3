//! The control of `proxyd`, spoken on its Unix socket (HTTP, JSON).
//!
//! | request | body → answer |
//! |---|---|
//! | `PUT /v1/routes` | [`SetRoutes`] → [`RoutesReply`]: the whole desired set; routes that are not in it close |
//! | `GET /v1/routes` | → [`RoutesReply`] |
//! | `POST /v1/gates/prepare` | [`Prepare`] → [`GateCounts`] |
//! | `POST /v1/gates/drain` | [`Drain`] → [`GateCounts`], when drained or at the deadline |
//! | `POST /v1/gates/freeze` | [`GateRef`] → [`GateCounts`] |
//! | `POST /v1/gates/commit` | [`Commit`] → [`GateCounts`] |
//! | `POST /v1/gates/rollback` | [`GateRef`] → [`GateCounts`] |
//! | `GET /v1/connections` | `?route=5432/tcp` → [`ConnectionsReply`] |
//! | `POST /v1/ports/check` | [`CheckPorts`] → [`CheckPortsReply`]: could these be listened on? |
//! | `POST /v1/upgrade` | [`Upgrade`] → [`UpgradeReply`], when another process has taken over everything |
//! | `POST /v1/reload` | → [`ReloadReply`]: reads the configuration file again; what cannot be had whole changes nothing, and the answer says why |
//!
//! A gate's verbs name an application: all its routes change together. Each verb may be
//! repeated; one with an older version than the gate's is answered with status 409, except that
//! a gate which leads to another host may always be drained and frozen: that ends what still
//! flows to the old instance on this one.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{AppName, HostAddr, InvalidId, Protocol, RouteVersion};
use crate::units::seconds;

/// The longest body of a request or an answer: it holds all the routes that there can be.
pub const MAX_BODY: usize = 64 << 20;

/// A route's identity: an external port and its transport. Written `5432/tcp`.
///
/// `http` ports are TCP listeners, so [`Protocol::Http`] never occurs in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RouteKey {
    external: u16,
    udp: bool,
}

impl RouteKey {
    /// The key of an external port.
    #[must_use]
    pub fn new(external: u16, protocol: Protocol) -> Self {
        Self {
            external,
            udp: protocol == Protocol::Udp,
        }
    }

    /// The port that every host listens on.
    #[must_use]
    pub fn external(self) -> u16 {
        self.external
    }

    /// Whether datagrams travel.
    #[must_use]
    pub fn is_udp(self) -> bool {
        self.udp
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            self.external,
            if self.udp { "udp" } else { "tcp" }
        )
    }
}

impl FromStr for RouteKey {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parse = || {
            let (port, protocol) = text.split_once('/')?;
            let udp = match protocol {
                "tcp" => false,
                "udp" => true,
                _ => return None,
            };
            Some(Self {
                external: port.parse().ok().filter(|p| *p != 0)?,
                udp,
            })
        };
        parse().ok_or_else(|| InvalidId {
            role: "route",
            value: text.to_owned(),
            rule: "write PORT/tcp or PORT/udp",
        })
    }
}

impl TryFrom<String> for RouteKey {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<RouteKey> for String {
    fn from(key: RouteKey) -> Self {
        key.to_string()
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// An application on this host.
    Local {
        /// Where it listens.
        addr: SocketAddr,
    },
    /// The trunk of the host that runs the application.
    Remote {
        /// That host.
        host: HostAddr,
        /// Its trunk, `address:port`.
        trunk: String,
    },
}

/// What a route is to do with new connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteIntent {
    /// Forward them.
    Open(Target),
    /// Hold them: the application is on its way.
    Park,
    /// Refuse them: the application is not meant to run.
    Closed,
}

/// The state of a route's gate, as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// New connections flow.
    Open,
    /// New connections are held.
    Parked,
    /// New connections are refused.
    Closed,
}

impl Gate {
    /// The word in JSON and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Parked => "parked",
            Self::Closed => "closed",
        }
    }
}

/// What travels on a route, as far as a proxy has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Whatever it is: it is passed on as it comes.
    #[default]
    Bytes,
    /// HTTP/1.1: connections of clients are kept open when the application moves.
    Http,
}

impl Content {
    /// Whether nothing is known of it.
    #[must_use]
    pub fn is_bytes(&self) -> bool {
        *self == Self::Bytes
    }
}

impl From<Protocol> for Content {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp | Protocol::Udp => Self::Bytes,
            Protocol::Http => Self::Http,
        }
    }
}

/// What an application is told of a client in front of the client's bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Announce {
    /// Nothing: the bytes alone.
    #[default]
    Nothing,
    /// Its address, by a header of version 2 of the PROXY protocol.
    ProxyV2,
}

impl Announce {
    /// Whether nothing is told.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

/// One route of the desired set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSpec {
    /// Which.
    pub key: RouteKey,
    /// Whose.
    pub application: AppName,
    /// How new; a proxy never goes back.
    pub version: RouteVersion,
    /// What to do.
    pub intent: RouteIntent,
    /// Limits while parked.
    pub limits: ParkLimits,
    /// What travels. A proxy that does not know the word passes bytes on.
    #[serde(default, skip_serializing_if = "Content::is_bytes")]
    pub content: Content,
    /// What the application is told of its clients.
    #[serde(default, skip_serializing_if = "Announce::is_nothing")]
    pub announce: Announce,
}

/// Limits of a parked gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkLimits {
    /// Connections held per route; beyond it the listener stops accepting.
    pub park_limit: u32,
    /// How long each may be held, in seconds.
    #[serde(with = "seconds")]
    pub park_timeout: Duration,
}

/// `PUT /v1/routes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRoutes {
    /// This host, as the cluster knows it.
    pub host: HostAddr,
    /// Hosts that may send trunk connections.
    pub peers: Vec<HostAddr>,
    /// All routes.
    pub routes: Vec<RouteSpec>,
}

/// The answer to `PUT` and `GET /v1/routes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesReply {
    /// Every route as it is now.
    pub routes: Vec<RouteStatus>,
}

/// A route as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    /// Which.
    pub key: RouteKey,
    /// Whose.
    pub application: AppName,
    /// The version that is in force.
    pub version: RouteVersion,
    /// The gate.
    pub gate: Gate,
    /// Where it leads, when it is open.
    pub target: Option<Target>,
    /// Why this host cannot listen, when it cannot.
    pub listen_error: Option<String>,
    /// Connections being relayed.
    pub active: u64,
    /// Connections being held.
    pub parked: u64,
    /// Of the relayed ones, those that came over the trunk.
    pub from_trunk: u64,
    /// HTTP connections without a request in flight; they are not among the relayed ones.
    #[serde(default)]
    pub resting: u64,
    /// What travels.
    #[serde(default, skip_serializing_if = "Content::is_bytes")]
    pub content: Content,
    /// How it is carried, on a host where the kernel may carry routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<FastPathStatus>,
}

/// How a route is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPathStatus {
    /// What passes new connections on.
    pub carrier: Carrier,
    /// Why it is user space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whose address the application sees, where the kernel passes connections on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<ClientAddress>,
}

/// What passes connections on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// The kernel, packet by packet.
    Kernel,
    /// `proxyd` itself.
    UserSpace,
}

/// Whose address an application sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAddress {
    /// The client's, unless the way to the client is the way to the application.
    Kept,
    /// This host's.
    Replaced,
}

/// `POST /v1/gates/prepare`: hold new connections from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Which gate.
    pub application: AppName,
    /// The version of the parked state; at least the gate's own.
    pub version: RouteVersion,
    /// After this, in seconds, without a word, the proxy asks what is true; it stays parked.
    #[serde(with = "seconds")]
    pub lease: Duration,
    /// Limits while parked.
    pub limits: ParkLimits,
}

/// `POST /v1/gates/drain`: let what flows finish, idle connections first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Which gate.
    pub application: AppName,
    /// The version of its `prepare`.
    pub version: RouteVersion,
    /// The most to wait, in seconds.
    #[serde(with = "seconds")]
    pub deadline: Duration,
}

/// `POST /v1/gates/freeze` (end what remains) and `/rollback` (open to the old target).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRef {
    /// Which gate.
    pub application: AppName,
    /// The version of its `prepare`; for a rollback, a version that is at least that.
    pub version: RouteVersion,
}

/// `POST /v1/gates/commit`: lead somewhere else and let the held connections go there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Which gate.
    pub application: AppName,
    /// The new version, larger than the gate's.
    pub version: RouteVersion,
    /// The new target of each route.
    pub targets: Vec<CommitTarget>,
}

/// A route's new target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitTarget {
    /// Which route.
    pub key: RouteKey,
    /// Where it leads now.
    pub target: Target,
}

/// The answer to a gate's verb. Counts run from the gate's `prepare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GateCounts {
    /// Relayed now.
    pub active: u64,
    /// Held now.
    pub parked: u64,
    /// Held at any time.
    pub parked_total: u64,
    /// Ended by themselves, or closed politely while idle.
    pub drained: u64,
    /// Reset.
    pub cut: u64,
    /// Turned away: past the park timeout.
    pub refused: u64,
    /// The longest that one was held, in seconds.
    pub longest_park_seconds: f64_seconds::Seconds,
}

/// A wire number of seconds that can be compared.
pub mod f64_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Serialize};

    /// Seconds, whole milliseconds inside so that values compare exactly.
    #[derive(
        Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize,
    )]
    #[serde(from = "f64", into = "f64")]
    pub struct Seconds(Duration);

    impl Seconds {
        /// As a duration.
        #[must_use]
        pub fn as_duration(self) -> Duration {
            self.0
        }
    }

    impl From<Duration> for Seconds {
        fn from(value: Duration) -> Self {
            Self(value)
        }
    }

    impl From<f64> for Seconds {
        /// Anything that is not a duration (negative, not a number) counts as zero.
        fn from(value: f64) -> Self {
            Self(Duration::try_from_secs_f64(value).unwrap_or_default())
        }
    }

    impl From<Seconds> for f64 {
        fn from(value: Seconds) -> Self {
            value.0.as_secs_f64()
        }
    }
}

/// `POST /v1/upgrade`: start this program and hand everything over to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// The program, by its absolute path.
    pub executable: PathBuf,
    /// What it is started with: where its configuration is.
    pub arguments: Vec<String>,
}

/// The answer to [`Upgrade`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReply {
    /// The process that serves now.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Listening sockets that went over.
    pub sockets: u64,
    /// Clients that waited for their application and went over.
    pub held: u64,
    /// Connections whose bytes flow and that went over.
    pub relays: u64,
    /// Connections that could not go over. The old process passes them on for a while, ends them
    /// politely when they are idle, and then ends them.
    pub stayed: u64,
    /// Why.
    pub why: Vec<String>,
    /// How long it took from the moment that nobody was accepted.
    pub milliseconds: u64,
}

/// `POST /v1/ports/check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckPorts {
    /// The ports that a deployment needs.
    pub keys: Vec<RouteKey>,
}

/// The answer to [`CheckPorts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckPortsReply {
    /// The ports that cannot be listened on, with the reason.
    pub problems: Vec<PortProblem>,
}

/// A port that cannot be listened on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortProblem {
    /// Which.
    pub key: RouteKey,
    /// Why.
    pub reason: String,
}

/// The answer to `POST /v1/reload`: the file is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReloadReply {
    /// Ports that cannot be listened on all the same: of routes that `migrated` tells, and of
    /// routes of the file that were missing before.
    pub missing: Vec<PortProblem>,
}

/// `GET /v1/connections`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionsReply {
    /// Live connections, at most 10,000, the oldest first.
    pub connections: Vec<ConnectionInfo>,
    /// How many there are.
    #[serde(default)]
    pub total: u64,
}

/// One live connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Unique while `proxyd` runs.
    pub id: u64,
    /// Its route.
    pub route: RouteKey,
    /// The client's address.
    pub client: SocketAddr,
    /// `parked`, `connecting` or `relaying`; `resting` for an HTTP connection between requests.
    pub state: String,
    /// Where it goes, once that is known.
    pub upstream: Option<String>,
    /// Seconds since it was accepted.
    #[serde(with = "seconds")]
    pub age: Duration,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// The requests that were seen, where they are looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
}
