//! One live connection, as everybody may see it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proxyd_core::table::Route;
use rehome_shared::api::proxy::{ConnectionInfo, RouteKey};
use rehome_shared::ids::AppName;

use super::orders::Orders;
use crate::metrics::RouteMeters;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client.
    In,
    /// To the client.
    Out,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Connecting,
    Parked,
    Relaying,
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// To the application on this host.
    Local(SocketAddr),
    /// To the trunk of another host.
    Trunk(String),
}

/// A connection from its accept to its end.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) route: RouteKey,
    /// The route as it was when the connection came.
    by: Arc<Route>,
    pub(crate) client: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) accepted: Instant,
    stage: AtomicU8,
    upstream: Mutex<Option<Upstream>>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Microseconds from `accepted` to when the first byte could flow.
    flows_since: AtomicU64,
    /// Microseconds from `accepted` to the last byte.
    last_byte: AtomicU64,
    /// Whether that was the application's.
    answered: AtomicBool,
    /// Whether bytes are in hand that the client, or the application, has not taken yet.
    in_hand: [AtomicBool; 2],
    pub(crate) orders: Orders,
    pub(crate) meters: Arc<RouteMeters>,
}

impl Connection {
    pub(crate) fn new(
        id: u64,
        (route, by): (RouteKey, Arc<Route>),
        client: SocketAddr,
        destination: SocketAddr,
        meters: Arc<RouteMeters>,
    ) -> Self {
        Self {
            id,
            route,
            by,
            client,
            destination,
            accepted: Instant::now(),
            stage: AtomicU8::new(0),
            upstream: Mutex::new(None),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            flows_since: AtomicU64::new(0),
            last_byte: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            in_hand: Default::default(),
            orders: Orders::default(),
            meters,
        }
    }

    /// Whose it is, unless it came by a route of the file.
    pub(crate) fn application(&self) -> Option<&AppName> {
        self.by.application()
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Connecting,
            1 => Stage::Parked,
            _ => Stage::Relaying,
        }
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        let number = match stage {
            Stage::Connecting => 0,
            Stage::Parked => 1,
            Stage::Relaying => 2,
        };
        self.stage.store(number, Ordering::Relaxed);
    }

    /// How long it has been held, while it is parked.
    pub(super) fn parked_for(&self, now: Instant) -> Option<Duration> {
        (self.stage() == Stage::Parked).then(|| now.saturating_duration_since(self.accepted))
    }

    pub(crate) fn set_upstream(&self, upstream: Upstream) {
        *self.upstream.lock().unwrap_or_else(PoisonError::into_inner) = Some(upstream);
    }

    /// Where it goes, once that is known.
    pub(crate) fn upstream(&self) -> Option<String> {
        let upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner);
        upstream.as_ref().map(|upstream| match upstream {
            Upstream::Local(address) => address.to_string(),
            Upstream::Trunk(trunk) => trunk.clone(),
        })
    }

    /// Whether it goes to the application on this host: only such connections are drained here.
    pub(crate) fn is_local(&self) -> bool {
        let upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*upstream, Some(Upstream::Local(_)))
    }

    /// Notes bytes that were passed on.
    pub(crate) fn passed(&self, direction: Direction, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let (own, route) = match direction {
            Direction::In => (&self.bytes_in, &self.meters.bytes_in),
            Direction::Out => (&self.bytes_out, &self.meters.bytes_out),
        };
        self.answered
            .store(direction == Direction::Out, Ordering::Relaxed);
        own.fetch_add(bytes, Ordering::Relaxed);
        route.inc_by(bytes);
        self.touch();
    }

    /// Notes whether a direction has bytes in hand that were read, or are there to be read and
    /// find no room, and that its sink has not taken.
    pub(crate) fn set_in_hand(&self, direction: Direction, in_hand: bool) {
        let [inward, outward] = &self.in_hand;
        let of = match direction {
            Direction::In => inward,
            Direction::Out => outward,
        };
        of.store(in_hand, Ordering::Relaxed);
    }

    /// Whether something is on its way, however long nobody has taken any of it: an end that
    /// looks right would then be a lie.
    pub(crate) fn has_in_hand(&self) -> bool {
        self.in_hand.iter().any(|of| of.load(Ordering::Relaxed))
    }

    /// Bytes may flow from now on.
    pub(super) fn begin_to_flow(&self) {
        self.set_stage(Stage::Relaying);
        self.flows_since.store(self.age(), Ordering::Relaxed);
        self.touch();
    }

    /// Since when bytes may flow.
    pub(crate) fn flows_since(&self) -> Instant {
        self.accepted + Duration::from_micros(self.flows_since.load(Ordering::Relaxed))
    }

    /// Starts the clock of idleness again.
    pub(crate) fn touch(&self) {
        self.last_byte.store(self.age(), Ordering::Relaxed);
    }

    /// Microseconds since it was accepted.
    fn age(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// When the last byte passed.
    pub(crate) fn last_byte(&self) -> Instant {
        self.accepted + Duration::from_micros(self.last_byte.load(Ordering::Relaxed))
    }

    /// Whether the application spoke last.
    pub(crate) fn was_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn quiet_for(&self) -> Duration {
        self.last_byte().elapsed()
    }

    pub(crate) fn bytes(&self) -> (u64, u64) {
        (
            self.bytes_in.load(Ordering::Relaxed),
            self.bytes_out.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        let (bytes_in, bytes_out) = self.bytes();
        let state = match self.stage() {
            Stage::Connecting => "connecting",
            Stage::Parked => "parked",
            Stage::Relaying => "relaying",
        };
        ConnectionInfo {
            id: self.id,
            route: self.route,
            client: self.client,
            state: state.to_owned(),
            upstream: self.upstream(),
            age: self.accepted.elapsed(),
            bytes_in,
            bytes_out,
        }
    }
}
