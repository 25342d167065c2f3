//! What Prometheus sees of the data plane. Labels are bounded: routes, ends, limits.
//! [`RouteMetrics`] shows the routes; all else is in [`Metrics`].

mod routes;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proxyd_core::announce::HeaderError;
use proxyd_core::limits::Full;
use proxyd_core::tally::End;
use rehome_shared::api::proxy::RouteKey;

use crate::book::connection::Connection;
use crate::book::newcomer::Newcomer;
use crate::rarely::Rarely;
use crate::socket::{is_exhausted, lacks_ports};
pub(crate) use routes::RouteMetrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    result: &'static str,
}

/// What a route's connections add up to. What they are now is counted by the book.
#[derive(Debug, Default)]
pub(crate) struct RouteMeters {
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    /// Requests that were passed on, where they are followed.
    pub(crate) requests: Counter,
    /// What held clients have sent and nobody has read.
    pub(crate) unread: AtomicU64,
    /// By the place of each end in [`End::ALL`].
    ends: [AtomicU64; End::ALL.len()],
}

impl RouteMeters {
    fn count_end(&self, end: End) {
        let mut ends = End::ALL.iter().zip(&self.ends);
        if let Some((_, count)) = ends.find(|(of, _)| **of == end) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many connections ended, and how.
    fn ends(&self) -> impl Iterator<Item = (End, u64)> {
        let counts = self.ends.iter().map(|count| count.load(Ordering::Relaxed));
        End::ALL.into_iter().zip(counts)
    }
}

/// Why the proxy did less than it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shed {
    /// A limit held a listener back.
    Limit(Full),
    /// The process or the machine is out of descriptors or memory.
    Descriptors,
    /// The machine is out of ports to connect from.
    Ports,
    /// Relays hold as much between reads and writes as they may.
    Memory,
    /// The kernel has no pipe that is worth it: bulk is copied.
    Pipes,
    /// A client address that has as many connections as it may.
    Source,
    /// A client that a listed network did not announce, or not in time.
    Announcement,
    /// A trunk connection from an address that is no peer.
    Stranger,
    /// A trunk header that was none, or came too late.
    Header,
    /// A trunk connection that is not sealed, where it has to be.
    TrunkPlain,
    /// One that is, where nobody can open it.
    TrunkSealed,
    /// A trunk connection whose other side is not believed, or does not believe.
    TrunkCertificate,
    /// One whose handshake was begun and did not come to its end.
    TrunkHandshake,
    /// One that was to be kept ready here, beyond what there are places for.
    TrunkReady,
    /// A host that speaks for another one.
    TrunkSender,
    /// A datagram that found no room.
    Datagram,
    /// A UDP client that found no room.
    Session,
}

impl Shed {
    const ALL: [Self; 20] = [
        Self::Limit(Full::RouteParked),
        Self::Limit(Full::RouteConnections),
        Self::Limit(Full::Connections),
        Self::Limit(Full::ParkedBytes),
        Self::Descriptors,
        Self::Ports,
        Self::Memory,
        Self::Pipes,
        Self::Source,
        Self::Announcement,
        Self::Stranger,
        Self::Header,
        Self::TrunkPlain,
        Self::TrunkSealed,
        Self::TrunkCertificate,
        Self::TrunkHandshake,
        Self::TrunkReady,
        Self::TrunkSender,
        Self::Datagram,
        Self::Session,
    ];

    /// What this machine is out of, when that is why a connect failed.
    pub(crate) fn shortage(error: &io::Error) -> Option<Self> {
        if is_exhausted(error) {
            Some(Self::Descriptors)
        } else {
            lacks_ports(error).then_some(Self::Ports)
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Limit(full) => full.as_str(),
            Self::Descriptors => "descriptors",
            Self::Ports => "ports",
            Self::Memory => "memory",
            Self::Pipes => "pipes",
            Self::Source => "source",
            Self::Announcement => "proxy_header",
            Self::Stranger => "stranger",
            Self::Header => "header",
            Self::TrunkPlain => "trunk_plain",
            Self::TrunkSealed => "trunk_sealed",
            Self::TrunkCertificate => "trunk_certificate",
            Self::TrunkHandshake => "trunk_handshake",
            Self::TrunkReady => "trunk_ready",
            Self::TrunkSender => "trunk_sender",
            Self::Datagram => "datagram",
            Self::Session => "udp_session",
        }
    }
}

/// All metrics of the data plane.
#[derive(Debug)]
pub(crate) struct Metrics {
    shed: Family<ReasonLabel, Counter>,
    /// When each reason was last told, by its place in [`Shed::ALL`].
    told: [Rarely; Shed::ALL.len()],
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
    pub(crate) relay_bytes: Gauge,
    pub(crate) datagram_bytes: Gauge,
    pub(crate) parked_bytes: Gauge,
    pub(crate) trunks_ready: Gauge,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            shed: Family::default(),
            told: Default::default(),
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
            relay_bytes: Gauge::default(),
            datagram_bytes: Gauge::default(),
            parked_bytes: Gauge::default(),
            trunks_ready: Gauge::default(),
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
        to.register("proxy_datagram_bytes", "What datagrams that wait hold now", self.datagram_bytes.clone());
        to.register("proxy_relay_bytes", "What connections hold at most now between a read and a write", self.relay_bytes.clone());
        to.register("proxy_parked_bytes", "What held clients have sent and nobody has read", self.parked_bytes.clone());
        to.register("proxy_trunks_ready", "Sealed connections to other hosts that are kept ready", self.trunks_ready.clone());
        to.register("proxy_udp_sessions", "UDP clients remembered now", self.udp_sessions.clone());
    }

    /// Counts an end and writes the line of the access log.
    pub(crate) fn connection_ended(connection: &Connection, end: End) {
        let (bytes_in, bytes_out) = connection.bytes();
        tracing::debug!(
            target: "access",
            {
                connection.id = connection.id,
                route = %connection.route,
                client.addr = %connection.client,
                upstream = connection.upstream(),
                end = end.as_str(),
                requests = connection.requests(),
                bytes_in,
                bytes_out,
                seconds = connection.accepted.elapsed().as_secs_f64()
            },
            "connection ended"
        );
        connection.meters.count_end(end);
    }

    /// The same for a client that never became known. What is logged as its address is that of who
    /// was to announce it.
    pub(crate) fn newcomer_ended(
        newcomer: &Newcomer,
        address: Option<SocketAddr>,
        (end, error): (End, Option<HeaderError>),
    ) {
        tracing::debug!(
            target: "access",
            {
                route = %newcomer.route(),
                proxy.addr = address.map(tracing::field::display),
                end = end.as_str(),
                error = error.map(tracing::field::display),
                seconds = newcomer.since().elapsed().as_secs_f64()
            },
            "connection ended"
        );
        newcomer.meters().count_end(end);
    }

    /// Counts that less was done than asked, and says so, each reason once a second.
    pub(crate) fn shed(&self, why: Shed) {
        if let Some(times) = self.count_shed(why) {
            let reason = why.as_str();
            tracing::warn!(reason, times, "held back or turned away");
        }
    }

    /// The same, with what happened.
    pub(crate) fn shed_for(&self, why: Shed, what: &dyn fmt::Display) {
        if let Some(times) = self.count_shed(why) {
            let reason = why.as_str();
            tracing::warn!(reason, times, error = %what, "held back or turned away");
        }
    }

    /// The same of a client that was not announced as it must be, with what is wrong: most often
    /// it is how the proxy in front is set up.
    pub(crate) fn unannounced(
        &self,
        (route, address): (RouteKey, SocketAddr),
        error: Option<HeaderError>,
    ) {
        let why = Shed::Announcement;
        if let Some(times) = self.count_shed(why) {
            let error = error.map_or_else(|| "it came too late".to_owned(), |e| e.to_string());
            tracing::warn!(
                reason = why.as_str(),
                times,
                %route,
                proxy.addr = %address,
                error,
                "turned away without a PROXY header that is right"
            );
        }
    }

    /// Counts it, and says how often it happened where it is time to tell.
    fn count_shed(&self, why: Shed) -> Option<u64> {
        let reason = why.as_str();
        self.shed.get_or_create(&ReasonLabel { reason }).inc();
        let mut told = Shed::ALL.iter().zip(&self.told);
        let (_, told) = told.find(|(reason, _)| **reason == why)?;
        told.due()
    }

    /// Counts a reload.
    pub(crate) fn reloaded(&self, result: &'static str) {
        self.reloads.get_or_create(&ReloadLabel { result }).inc();
    }
}
