use std::time::Duration;

use prometheus_client::registry::Registry;
use proxyd_core::tally::End;
use proxyd_core::way::Arrival;
use rehome_shared::api::proxy::{ParkLimits, Prepare, RouteIntent, RouteSpec, SetRoutes, Target};
use rehome_shared::ids::{Epoch, Generation, RouteVersion};

use super::connection::{Stage, Upstream};
use super::held::{Attempt, Pause, Step};
use super::*;
use crate::metrics::RouteMetrics;

fn at(generation: u64) -> RouteVersion {
    RouteVersion {
        epoch: Epoch(1),
        generation: Generation(generation),
    }
}

fn app(name: &str) -> AppName {
    AppName::try_new(name).unwrap()
}

fn key(port: u16) -> RouteKey {
    format!("{port}/tcp").parse().unwrap()
}

fn addr(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn limits() -> ParkLimits {
    ParkLimits {
        park_limit: 10,
        park_timeout: Duration::from_mins(1),
    }
}

/// A table and the book that follows it.
struct Proxy {
    table: RouteTable,
    book: Arc<Book>,
}

impl Proxy {
    fn new() -> Self {
        let limits = Limits {
            connections: 1000,
            per_route: 1000,
            parked_bytes: 1 << 20,
        };
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        Self {
            table: RouteTable::default(),
            book: Book::new(limits, metrics),
        }
    }

    /// The whole set: every route with its application and version.
    fn set(&mut self, routes: &[(u16, &str, u64, RouteIntent)]) {
        let spec = |(port, name, generation, intent): &(u16, &str, u64, RouteIntent)| RouteSpec {
            key: key(*port),
            application: app(name),
            version: at(*generation),
            intent: intent.clone(),
            limits: limits(),
        };
        let applied = self.table.apply(&SetRoutes {
            host: HostAddr::try_new("10.0.0.1").unwrap(),
            peers: vec![],
            routes: routes.iter().map(spec).collect(),
        });
        self.book.publish(&self.table, &applied.changes);
    }

    fn prepare(&mut self, name: &str, generation: u64) {
        let verb = Prepare {
            application: app(name),
            version: at(generation),
            lease: Duration::from_secs(30),
            limits: limits(),
        };
        let changes = self.table.prepare(&verb).unwrap();
        self.book.publish(&self.table, &changes);
    }

    fn admit(&self, port: u16, origin: Origin) -> Held {
        self.book
            .admit(key(port), addr(1), addr(port), origin)
            .unwrap()
    }

    fn client(&self, port: u16) -> Held {
        self.admit(port, Origin::Client)
    }

    /// A connection whose bytes flow.
    fn relay(&self, port: u16) -> active::Active {
        let mut held = self.client(port);
        let attempt = attempt(&mut held);
        held.connection().set_upstream(Upstream::Local(addr(port)));
        held.activate(&attempt).unwrap()
    }

    fn counts(&self, port: u16) -> (u64, u64) {
        let routes = self.book.routes().routes;
        let status = routes
            .iter()
            .find(|status| status.key == key(port))
            .unwrap();
        (status.active, status.parked)
    }
}

fn open(port: u16) -> RouteIntent {
    RouteIntent::Open(Target::Local { addr: addr(port) })
}

fn attempt(held: &mut Held) -> Attempt {
    match held.step() {
        Step::Try(attempt) => attempt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flip_calls_those_of_its_route_and_leaves_all_others_asleep() {
    let mut proxy = Proxy::new();
    proxy.set(&[
        (1, "a", 0, RouteIntent::Park),
        (2, "b", 0, RouteIntent::Park),
    ]);
    let waits = |held: &mut Held| match held.step() {
        Step::Wait(called) => called,
        other => panic!("{other:?}"),
    };
    let (mut one, mut two) = (proxy.client(1), proxy.client(2));
    let (mut called_one, mut called_two) = (waits(&mut one), waits(&mut two));
    let mut news = proxy.book.news(key(2));
    proxy.set(&[(1, "a", 1, open(1)), (2, "b", 0, RouteIntent::Park)]);
    called_one.try_recv().unwrap();
    assert!(called_two.try_recv().is_err() && !news.has_changed().unwrap());
    attempt(&mut one);
    proxy.set(&[(1, "a", 1, open(1)), (2, "b", 1, open(2))]);
    called_two.try_recv().unwrap();
    assert!(news.has_changed().unwrap());
    news.mark_unchanged();
}

#[test]
fn a_sender_that_is_ahead_is_woken_by_its_route_alone() {
    let mut proxy = Proxy::new();
    let elsewhere = || {
        let host = HostAddr::try_new("10.0.0.2").unwrap();
        let trunk = host.with_port(7421);
        RouteIntent::Open(Target::Remote { host, trunk })
    };
    proxy.set(&[(1, "a", 0, elsewhere()), (2, "b", 0, elsewhere())]);
    let arrival = Arrival {
        application: app("a"),
        known: at(5),
        hops: 0,
    };
    let mut held = proxy.admit(1, Origin::Trunk(Box::new(arrival)));
    let Step::WaitForNews(news) = held.step() else {
        panic!("not held");
    };
    proxy.set(&[(1, "a", 0, elsewhere()), (2, "b", 1, elsewhere())]);
    assert!(!news.has_changed().unwrap());
    proxy.set(&[(1, "a", 5, open(1)), (2, "b", 1, elsewhere())]);
    assert!(news.has_changed().unwrap());
    attempt(&mut held);
}

#[test]
fn a_failed_try_hears_of_its_own_route_at_once() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1)), (2, "b", 0, open(2))]);
    let mut held = proxy.client(1);
    attempt(&mut held);
    let Pause::For(_, news) = held.failed() else {
        panic!("somebody else tries");
    };
    proxy.set(&[(1, "a", 0, open(1)), (2, "b", 1, open(3))]);
    assert!(!news.has_changed().unwrap());
    proxy.set(&[(1, "a", 1, open(4)), (2, "b", 1, open(3))]);
    assert!(news.has_changed().unwrap());
}

#[test]
fn a_verb_concerns_the_connections_of_its_application_alone() {
    let mut proxy = Proxy::new();
    proxy.set(&[
        (1, "a", 0, open(1)),
        (2, "a", 0, open(2)),
        (3, "b", 0, open(3)),
    ]);
    let relays = [proxy.relay(1), proxy.relay(2), proxy.relay(3)];
    let relaying = |connection: &Connection| connection.stage() == Stage::Relaying;
    proxy.book.begin_tally(&app("a"));
    proxy.prepare("a", 1);
    assert!(proxy.book.parks(&app("a")) && !proxy.book.parks(&app("b")));
    let _waits = proxy.client(2);
    assert_eq!(proxy.book.count(&app("a"), relaying), 2);
    assert_eq!(proxy.book.order(&app("a"), Order::Cut, relaying), 2);
    let orders = relays
        .each_ref()
        .map(|relay| relay.connection().orders.given());
    assert_eq!(orders, [Order::Cut, Order::Cut, Order::Run]);
    let [one, two, three] = relays;
    one.end(End::Cut);
    two.end(End::Cut);
    let counts = proxy.book.counts(&app("a"));
    assert_eq!((counts.active, counts.parked, counts.cut), (0, 1, 2));
    assert_eq!(proxy.book.counts(&app("b")).active, 1);
    assert_eq!(proxy.book.active(), 1);
    three.end(End::Finished);
    assert_eq!(proxy.book.active(), 0);
}

#[test]
fn connections_outlive_their_route_and_are_found_when_it_comes_back() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1))]);
    let (relay, parked) = (proxy.relay(1), proxy.client(1));
    proxy.prepare("a", 1);
    proxy.set(&[]);
    assert_eq!(proxy.book.connections(None).connections.len(), 2);
    assert_eq!(proxy.book.active(), 1);
    // The port is another application's now.
    proxy.set(&[(1, "b", 0, open(9))]);
    assert_eq!(proxy.counts(1).0, 1);
    assert_eq!(proxy.book.count(&app("b"), |_| true), 0);
    assert_eq!(proxy.book.count(&app("a"), |_| true), 2);
    proxy.set(&[]);
    relay.end(End::Finished);
    drop(parked);
    proxy.set(&[(1, "a", 2, open(1))]);
    assert_eq!(proxy.counts(1), (0, 0));
    let inner = proxy.book.lock();
    assert_eq!((inner.connections, inner.outlived.len()), (0, 0));
    assert!(inner.groups.get(&app("b")).is_none());
}

#[test]
fn an_attempt_by_an_old_route_does_not_get_through_a_parked_gate() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1))]);
    let mut held = proxy.client(1);
    let attempt = attempt(&mut held);
    proxy.prepare("a", 1);
    let mut held = held.activate(&attempt).unwrap_err();
    assert!(matches!(held.step(), Step::Wait(_)));
    assert_eq!(proxy.counts(1), (0, 1));
    drop(held);
    assert_eq!(proxy.counts(1), (0, 0));
}

#[test]
fn routes_are_shown_with_what_they_are_now_and_gone_ones_not() {
    let mut proxy = Proxy::new();
    let mut registry = Registry::with_prefix("rehome");
    registry.register_collector(Box::new(RouteMetrics(Arc::clone(&proxy.book))));
    let text = || rehome_runtime::telemetry::encode(&registry).unwrap();
    proxy.set(&[(1, "a", 0, open(1)), (2, "b", 0, RouteIntent::Closed)]);
    let relay = proxy.relay(1);
    relay.connection().passed(connection::Direction::In, 7);
    let shown = text();
    for line in [
        "rehome_proxy_connections_active{route=\"1/tcp\"} 1",
        "rehome_proxy_bytes_total{route=\"1/tcp\",direction=\"in\"} 7",
        "rehome_route_info{route=\"1/tcp\",host=\"10.0.0.1\",gate=\"open\",epoch=\"1\"} 1",
        "rehome_route_info{route=\"2/tcp\",host=\"\",gate=\"closed\",epoch=\"1\"} 1",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} in\n{shown}"
        );
    }
    assert!(
        !shown.contains("connections_active{route=\"2/tcp\"}"),
        "{shown}"
    );
    relay.end(End::Finished);
    let ended = "rehome_proxy_connections_total{route=\"1/tcp\",result=\"finished\"} 1";
    assert!(text().contains(ended));
    proxy.set(&[(2, "b", 0, RouteIntent::Closed)]);
    assert!(!text().contains("1/tcp"));
}

#[test]
fn more_routes_than_are_looked_at_at_once_are_all_there_in_order() {
    let mut proxy = Proxy::new();
    let routes: Vec<_> = (1..=2000)
        .map(|port| (port, "a", 0, RouteIntent::Closed))
        .collect();
    proxy.set(&routes);
    let shown: Vec<RouteKey> = proxy.book.glimpse().iter().map(|seen| seen.key).collect();
    let all: Vec<RouteKey> = proxy.table.routes().keys().copied().collect();
    assert_eq!(shown, all);
}
