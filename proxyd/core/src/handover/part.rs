//! What changes hands.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::{AppName, RouteVersion};
use serde::{Deserialize, Serialize};

use crate::reload::{Place, Spot};
use crate::tally::Tally;

/// A part's number, unique in one handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartId(pub u64);

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that changes hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All routes, as they are kept on disk, in this form; they are the part's bytes.
    Table {
        /// The form.
        form: u32,
        /// Ports that could not be had there either.
        #[serde(default)]
        missing: Vec<RouteKey>,
    },
    /// A socket that clients or other programs come to.
    Socket(Socket),
    /// What was counted and heard so far.
    Counts(Counts),
    /// A client that is not known yet: the header that announces it is not there, and nothing of
    /// it was read. Descriptor: its socket.
    Newcomer(Newcomer),
    /// A client that waits for its application. Descriptor: its socket.
    Held(Held),
    /// A connection whose bytes flow. Descriptors: the client's socket, the application's, and
    /// the two ends of the pipe of each half that has one.
    Relay(Relay),
    /// A connection whose requests are followed, between two of them. Descriptors: the client's
    /// socket, and the application's where there is one. Its bytes are the begin of a request.
    Rest(Rest),
}

/// A socket that clients or other programs come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Socket {
    /// The control socket.
    Control,
    /// That of the metrics.
    Metrics,
    /// The trunk's.
    Trunk,
    /// One of an external port.
    Port {
        /// The route.
        key: RouteKey,
        /// The one address that it listens on; otherwise on every one of both families.
        at: Option<IpAddr>,
    },
}

impl From<Spot> for Socket {
    fn from(Spot { key, place }: Spot) -> Self {
        let at = match place {
            Place::Everywhere => None,
            Place::Address(ip) => Some(ip),
        };
        Self::Port { key, at }
    }
}

/// What was counted and heard so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// The last number that a connection was given.
    pub last_id: u64,
    /// Since each gate was prepared.
    #[serde(default)]
    pub tallies: BTreeMap<AppName, Tally>,
    /// How many milliseconds ago somebody spoke of each parked gate.
    #[serde(default)]
    pub heard: BTreeMap<AppName, u64>,
    /// The connections that are about to come, by route: newcomers do not get their places.
    #[serde(default)]
    pub coming: BTreeMap<RouteKey, Coming>,
}

/// Connections of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Coming {
    /// Those that wait for their application.
    #[serde(default)]
    pub held: u64,
    /// Those whose bytes flow.
    #[serde(default)]
    pub active: u64,
}

/// What is known of a connection. Times are microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number, which is its place in the line too.
    pub id: u64,
    /// Its route.
    pub route: RouteKey,
    /// Whose that was when it came.
    pub application: Option<AppName>,
    /// The client.
    pub client: SocketAddr,
    /// Where the client connected to.
    pub destination: SocketAddr,
    /// How long ago it was accepted.
    pub age: u64,
    /// How long ago its bytes could flow first.
    #[serde(default)]
    pub flowing: u64,
    /// Where it goes.
    #[serde(default)]
    pub upstream: Option<Upstream>,
    /// Bytes from the client so far.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes to the client so far.
    #[serde(default)]
    pub bytes_out: u64,
    /// How long ago the last byte passed.
    #[serde(default)]
    pub quiet: u64,
    /// Whether that was the application's.
    #[serde(default)]
    pub answered: bool,
    /// Whether it came over a trunk, and what it said there.
    #[serde(default)]
    pub origin: Origin,
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// To the application on this host.
    Local(SocketAddr),
    /// To the trunk of another host.
    Trunk(String),
}

/// Where a connection came in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// On the external port.
    #[default]
    Client,
    /// Over the trunk.
    Trunk {
        /// Whose route the sender means.
        application: AppName,
        /// The version that the sender went by.
        known: RouteVersion,
        /// How many trunks said "moved" before.
        hops: u8,
    },
}

/// A client that is not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// The route that it came by.
    pub route: RouteKey,
    /// How many microseconds ago it was accepted.
    pub age: u64,
}

/// A client that waits for its application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What is known of it.
    pub identity: Identity,
    /// Whether it counts as parked already.
    #[serde(default)]
    pub parked: bool,
}

/// A connection whose bytes flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// What is known of it.
    pub identity: Identity,
    /// From the client.
    pub inward: Half,
    /// To the client.
    pub outward: Half,
    /// The client was told that it is over, for this.
    #[serde(default)]
    pub goodbye: Option<Goodbye>,
    /// The application broke while it was written to; what it had said still goes out.
    #[serde(default)]
    pub broken: bool,
}

/// A connection between two requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// What is known of it.
    pub identity: Identity,
    /// Whether it has a connection to its application.
    #[serde(default)]
    pub reaches: bool,
    /// How many bytes of its next request were read.
    #[serde(default)]
    pub begun: u32,
    /// How many microseconds that has been parked for; none, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<u64>,
}

/// Why a client was told that it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goodbye {
    /// Its application moves.
    Drain,
    /// Its lifetime is over.
    Lifetime,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Half {
    /// It has ended.
    #[serde(default)]
    pub done: bool,
    /// What was read and not written yet.
    #[serde(default)]
    pub load: Bytes,
    /// It carries bulk.
    #[serde(default)]
    pub bulk: bool,
}

/// Bytes between their read and their write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bytes {
    /// None.
    #[default]
    None,
    /// So many are with the part.
    Here(u32),
    /// So many are in a pipe.
    Piped(u32),
}

impl Bytes {
    fn shape(self) -> (usize, u64) {
        match self {
            Self::None => (0, 0),
            Self::Here(bytes) => (0, u64::from(bytes)),
            Self::Piped(_) => (2, 0),
        }
    }
}

impl Part {
    /// How many descriptors and bytes belong to it; `None` where any number does.
    pub(super) fn shape(&self) -> (usize, Option<u64>) {
        match self {
            Self::Table { .. } => (0, None),
            Self::Counts(_) => (0, Some(0)),
            Self::Socket(_) | Self::Newcomer(_) | Self::Held(_) => (1, Some(0)),
            Self::Rest(rest) => {
                let descriptors = if rest.reaches { 2 } else { 1 };
                (descriptors, Some(u64::from(rest.begun)))
            }
            Self::Relay(relay) => {
                let ((a, b), (c, d)) = (relay.inward.load.shape(), relay.outward.load.shape());
                (
                    2_usize.saturating_add(a).saturating_add(c),
                    Some(b.saturating_add(d)),
                )
            }
        }
    }

    /// Whether a connection moves with it, so that it has to be released before it is touched.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        match self {
            Self::Newcomer(_) | Self::Held(_) | Self::Relay(_) | Self::Rest(_) => true,
            Self::Table { .. } | Self::Socket(_) | Self::Counts(_) => false,
        }
    }
}
