//! One live connection, as everybody may see it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proxyd_core::handover::{self, Identity};
use proxyd_core::table::Route;
use rehome_shared::api::proxy::{ConnectionInfo, Content, RouteKey};
use rehome_shared::ids::AppName;

use super::Origin;
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
    /// Bytes flow, and nobody knows what they mean.
    Relaying,
    /// A request is in flight.
    Answering,
    /// There is none.
    Resting,
}

impl Stage {
    const ALL: [Self; 5] = [
        Self::Connecting,
        Self::Parked,
        Self::Relaying,
        Self::Answering,
        Self::Resting,
    ];

    fn number(self) -> u8 {
        match self {
            Self::Connecting => 0,
            Self::Parked => 1,
            Self::Relaying => 2,
            Self::Answering => 3,
            Self::Resting => 4,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Parked => "parked",
            Self::Relaying | Self::Answering => "relaying",
            Self::Resting => "resting",
        }
    }
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
    /// Microseconds from `accepted` to when it began to wait, for the last time.
    waits_since: AtomicU64,
    /// Whether that is not over, though it rests: it is about to wait somewhere else.
    waits_on: AtomicBool,
    /// The requests that were seen.
    requests: AtomicU64,
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
            waits_since: AtomicU64::new(0),
            waits_on: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            last_byte: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            in_hand: Default::default(),
            orders: Orders::default(),
            meters,
        }
    }

    /// One that another proxy took in and knows this of, under its number here.
    pub(super) fn adopted(
        (id, known): (u64, &Identity),
        by: Arc<Route>,
        stage: Stage,
        meters: Arc<RouteMeters>,
    ) -> Self {
        let now = Instant::now();
        let age = Duration::from_micros(known.age);
        let last_byte = known.age.saturating_sub(known.quiet);
        let flows_since = known.age.saturating_sub(known.flowing);
        let upstream = known.upstream.clone().map(|upstream| match upstream {
            handover::Upstream::Local(address) => Upstream::Local(address),
            handover::Upstream::Trunk(trunk) => Upstream::Trunk(trunk),
        });
        let route = (known.route, by);
        let connection = Self {
            accepted: now.checked_sub(age).unwrap_or(now),
            upstream: Mutex::new(upstream),
            bytes_in: AtomicU64::new(known.bytes_in),
            bytes_out: AtomicU64::new(known.bytes_out),
            flows_since: AtomicU64::new(flows_since),
            last_byte: AtomicU64::new(last_byte),
            answered: AtomicBool::new(known.answered),
            ..Self::new(id, route, known.client, known.destination, meters)
        };
        connection.set_stage(stage);
        connection
    }

    /// What another proxy has to know of it.
    pub(crate) fn identity(&self, origin: &Origin) -> Identity {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (bytes_in, bytes_out) = self.bytes();
        let upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner);
        Identity {
            id: self.id,
            route: self.route,
            application: self.application().cloned(),
            client: self.client,
            destination: self.destination,
            age: micros(self.accepted.elapsed()),
            flowing: micros(self.flows_since().elapsed()),
            upstream: upstream.as_ref().map(|upstream| match upstream {
                Upstream::Local(address) => handover::Upstream::Local(*address),
                Upstream::Trunk(trunk) => handover::Upstream::Trunk(trunk.clone()),
            }),
            bytes_in,
            bytes_out,
            quiet: micros(self.quiet_for()),
            answered: self.was_answered(),
            origin: origin.into(),
        }
    }

    /// Whose it is, unless it came by a route of the file.
    pub(crate) fn application(&self) -> Option<&AppName> {
        self.by.application()
    }

    /// The route as it was when the connection came.
    pub(super) fn by(&self) -> &Arc<Route> {
        &self.by
    }

    /// Whether its requests are followed.
    pub(crate) fn is_http(&self) -> bool {
        self.by.content == Content::Http
    }

    pub(crate) fn stage(&self) -> Stage {
        let number = self.stage.load(Ordering::Relaxed);
        let mut all = Stage::ALL.into_iter();
        all.find(|stage| stage.number() == number)
            .unwrap_or(Stage::Relaying)
    }

    /// Whether it can go on in another process now: not with a request in flight that is followed.
    pub(super) fn may_leave(&self) -> bool {
        if self.orders.is_bound() {
            return false;
        }
        match self.stage() {
            Stage::Connecting | Stage::Parked | Stage::Relaying | Stage::Resting => true,
            Stage::Answering => false,
        }
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage.number(), Ordering::Relaxed);
    }

    /// It waits again: from now on, or, when it was only interrupted, as before. Then it is known
    /// since when, and was counted.
    pub(super) fn begin_to_wait(&self) -> Option<Instant> {
        self.set_stage(Stage::Connecting);
        self.set_upstream(None);
        if self.waits_on.swap(false, Ordering::Relaxed) {
            let since = Duration::from_micros(self.waits_since.load(Ordering::Relaxed));
            return Some(self.accepted + since);
        }
        self.waits_since.store(self.age(), Ordering::Relaxed);
        None
    }

    /// It was parked, and its waiting goes on when it waits the next time.
    pub(super) fn interrupt_wait(&self) {
        self.waits_on.store(true, Ordering::Relaxed);
    }

    /// For how many microseconds it has waited, when that was interrupted.
    pub(crate) fn waited(&self) -> Option<u64> {
        let since = self.waits_since.load(Ordering::Relaxed);
        self.waits_on
            .load(Ordering::Relaxed)
            .then(|| self.age().saturating_sub(since))
    }

    /// It has waited for so many microseconds, and was counted, in another process.
    pub(super) fn waits_on_for(&self, waited: u64) {
        let since = self.age().saturating_sub(waited);
        self.waits_since.store(since, Ordering::Relaxed);
        self.interrupt_wait();
    }

    /// How long it has been held, while it is parked.
    pub(super) fn parked_for(&self, now: Instant) -> Option<Duration> {
        let since = Duration::from_micros(self.waits_since.load(Ordering::Relaxed));
        let held = now.saturating_duration_since(self.accepted + since);
        (self.stage() == Stage::Parked).then_some(held)
    }

    /// A request was passed on.
    pub(crate) fn note_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.meters.requests.inc();
    }

    /// The requests that were passed on, where they are followed.
    pub(crate) fn requests(&self) -> Option<u64> {
        self.is_http()
            .then(|| self.requests.load(Ordering::Relaxed))
    }

    pub(crate) fn set_upstream(&self, upstream: Option<Upstream>) {
        *self.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
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

    /// Bytes may flow from now on, for the first time or again.
    pub(super) fn begin_to_flow(&self) {
        let stage = if self.is_http() {
            Stage::Resting
        } else {
            Stage::Relaying
        };
        self.set_stage(stage);
        // Only the first time counts, and only this task sets it.
        if self.flows_since.load(Ordering::Relaxed) == 0 {
            self.flows_since.store(self.age(), Ordering::Relaxed);
        }
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
        ConnectionInfo {
            id: self.id,
            route: self.route,
            client: self.client,
            state: self.stage().as_str().to_owned(),
            upstream: self.upstream(),
            age: self.accepted.elapsed(),
            bytes_in,
            bytes_out,
            requests: self.requests(),
        }
    }
}
