//! What Prometheus sees of the data plane. Labels are bounded: routes, ends, limits.

use std::sync::OnceLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proxyd_core::limits::Full;
use proxyd_core::table::{Owner, Phase, RouteTable};
use proxyd_core::tally::End;
use rehome_shared::api::proxy::{RouteKey, Target};

use crate::book::connection::Connection;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    route: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    route: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    route: String,
    host: String,
    gate: &'static str,
    epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    result: &'static str,
}

/// The counters of one route, looked up once.
#[derive(Debug)]
pub(crate) struct RouteMeters {
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) active: Gauge,
    pub(crate) parked: Gauge,
    /// By the place of each end in [`End::ALL`], from its first one on: most ends never happen,
    /// and each would be a line of its own for every route.
    ends: [OnceLock<Counter>; End::ALL.len()],
}

/// Why the proxy did less than it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shed {
    /// A limit held a listener back.
    Limit(Full),
    /// The process or the machine is out of descriptors or memory.
    Descriptors,
    /// A trunk connection from an address that is no peer.
    Stranger,
    /// A trunk header that was none, or came too late.
    Header,
    /// A datagram that found no room.
    Datagram,
    /// A UDP client that found no room.
    Session,
}

impl Shed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Limit(full) => full.as_str(),
            Self::Descriptors => "descriptors",
            Self::Stranger => "stranger",
            Self::Header => "header",
            Self::Datagram => "datagram",
            Self::Session => "udp_session",
        }
    }
}

/// All metrics of the data plane.
#[derive(Debug)]
pub(crate) struct Metrics {
    connections: Family<ResultLabels, Counter>,
    active: Family<RouteLabel, Gauge>,
    parked: Family<RouteLabel, Gauge>,
    bytes: Family<DirectionLabels, Counter>,
    info: Family<InfoLabels, Gauge>,
    shed: Family<ReasonLabel, Counter>,
    reloads: Family<ReloadLabel, Counter>,
    pub(crate) park_seconds: Histogram,
    pub(crate) connect_seconds: Histogram,
    pub(crate) connect_failures: Counter,
    pub(crate) leases_expired: Counter,
    pub(crate) listen_failures: Gauge,
    pub(crate) store_failures: Counter,
    pub(crate) store_corrupt: Counter,
    pub(crate) udp_sessions: Gauge,
    pub(crate) pipe_bytes: Gauge,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            connections: Family::default(),
            active: Family::default(),
            parked: Family::default(),
            bytes: Family::default(),
            info: Family::default(),
            shed: Family::default(),
            reloads: Family::default(),
            park_seconds: Histogram::new([
                0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
            ]),
            connect_seconds: Histogram::new([
                0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0,
            ]),
            connect_failures: Counter::default(),
            leases_expired: Counter::default(),
            listen_failures: Gauge::default(),
            store_failures: Counter::default(),
            store_corrupt: Counter::default(),
            udp_sessions: Gauge::default(),
            pipe_bytes: Gauge::default(),
        };
        metrics.register(registry);
        for result in ["applied", "rejected"] {
            // Both are shown from the start, so that a rate over them exists.
            drop(metrics.reloads.get_or_create(&ReloadLabel { result }));
        }
        metrics
    }

    #[rustfmt::skip]
    fn register(&self, to: &mut Registry) {
        to.register("proxy_connections", "Connections that ended, by how", self.connections.clone());
        to.register("proxy_connections_active", "Connections whose bytes flow", self.active.clone());
        to.register("proxy_connections_parked", "Connections that wait for their application", self.parked.clone());
        to.register("proxy_bytes", "Bytes passed on; in is from clients", self.bytes.clone());
        to.register("route_info", "What each route leads to; always 1", self.info.clone());
        to.register("proxy_shed", "Times that the proxy held back or turned away, by reason", self.shed.clone());
        to.register("config_reloads", "Reloads of the configuration file, by result", self.reloads.clone());
        to.register("proxy_park_seconds", "How long parked connections were held", self.park_seconds.clone());
        to.register("proxy_connect_seconds", "How long successful connects to applications and trunks took", self.connect_seconds.clone());
        to.register("proxy_connect_failures", "Connects to applications and trunks that failed", self.connect_failures.clone());
        to.register("proxy_leases_expired", "Leases of parked gates that ran out", self.leases_expired.clone());
        to.register("proxy_listen_failures", "Routes whose port cannot be listened on", self.listen_failures.clone());
        to.register("proxy_store_failures", "Tries to keep the routes on disk that failed", self.store_failures.clone());
        to.register("proxy_store_corrupt", "Files of kept routes that were damaged", self.store_corrupt.clone());
        to.register("proxy_pipe_bytes", "What the pipes of connections that carry bulk hold at most now", self.pipe_bytes.clone());
        to.register("proxy_udp_sessions", "UDP clients remembered now", self.udp_sessions.clone());
    }

    /// The meters of a route.
    pub(crate) fn route(&self, key: RouteKey) -> RouteMeters {
        let route = key.to_string();
        let bytes = |direction| {
            let labels = DirectionLabels {
                route: route.clone(),
                direction,
            };
            self.bytes.get_or_create(&labels).clone()
        };
        let label = RouteLabel {
            route: route.clone(),
        };
        RouteMeters {
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
            active: self.active.get_or_create(&label).clone(),
            parked: self.parked.get_or_create(&label).clone(),
            ends: Default::default(),
        }
    }

    fn count_end(&self, connection: &Connection, end: End) {
        let labels = || ResultLabels {
            route: connection.route.to_string(),
            result: end.as_str(),
        };
        let count = || self.connections.get_or_create(&labels()).clone();
        let mut ends = End::ALL.iter().zip(&connection.meters.ends);
        if let Some((_, counter)) = ends.find(|(of, _)| **of == end) {
            counter.get_or_init(count).inc();
        }
    }

    /// Removes what was shown of a route that is gone.
    pub(crate) fn forget(&self, key: RouteKey) {
        let label = RouteLabel {
            route: key.to_string(),
        };
        self.active.remove(&label);
        self.parked.remove(&label);
        for direction in ["in", "out"] {
            self.bytes.remove(&DirectionLabels {
                route: label.route.clone(),
                direction,
            });
        }
        for end in End::ALL {
            let route = label.route.clone();
            self.connections.remove(&ResultLabels {
                route,
                result: end.as_str(),
            });
        }
    }

    /// Shows the routes of a table and no others.
    pub(crate) fn show_routes(&self, table: &RouteTable) {
        self.info.clear();
        for (key, route) in table.routes() {
            let host = match (&route.phase, &route.owner) {
                (Phase::Open(Target::Remote { host, .. }), _) => host.to_string(),
                (Phase::Open(Target::Local { .. }), Owner::Application(_)) => {
                    table.host().map(ToString::to_string).unwrap_or_default()
                }
                (Phase::Open(Target::Local { .. }) | Phase::Parked(_) | Phase::Closed, _) => {
                    String::new()
                }
            };
            let labels = InfoLabels {
                route: key.to_string(),
                host,
                gate: route.phase.gate().as_str(),
                epoch: route.version.epoch.0,
            };
            self.info.get_or_create(&labels).set(1);
        }
    }

    /// Counts an end and writes the line of the access log.
    pub(crate) fn connection_ended(&self, connection: &Connection, end: End) {
        let (bytes_in, bytes_out) = connection.bytes();
        tracing::debug!(
            connection.id = connection.id,
            route = %connection.route,
            client.addr = %connection.client,
            end = end.as_str(),
            bytes_in,
            bytes_out,
            seconds = connection.accepted.elapsed().as_secs_f64(),
            "connection ended"
        );
        self.count_end(connection, end);
    }

    /// Counts that less was done than asked.
    pub(crate) fn shed(&self, why: Shed) {
        self.shed
            .get_or_create(&ReasonLabel {
                reason: why.as_str(),
            })
            .inc();
    }

    /// Counts a reload.
    pub(crate) fn reloaded(&self, result: &'static str) {
        self.reloads.get_or_create(&ReloadLabel { result }).inc();
    }
}
