use std::time::Duration;

use prometheus_client::registry::Registry;
use proxyd_core::handover::{self, Coming, Identity};
use proxyd_core::tally::End;
use proxyd_core::way::Arrival;
use rehome_shared::api::proxy::{
    Announce, Content, ParkLimits, Prepare, RouteIntent, RouteSpec, SetRoutes, Target,
};
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
    content: Content,
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
            content: Content::default(),
        }
    }

    /// The whole set: every route with its application and version.
    fn set(&mut self, routes: &[(u16, &str, u64, RouteIntent)]) {
        let spec = |(port, name, generation, intent): &(u16, &str, u64, RouteIntent)| RouteSpec {
            content: self.content,
            announce: Announce::default(),
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
        held.connection()
            .set_upstream(Some(Upstream::Local(addr(port))));
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

/// A connection of another process.
fn known(id: u64, port: u16) -> Identity {
    Identity {
        id,
        route: key(port),
        application: Some(app("a")),
        client: addr(1),
        destination: addr(port),
        age: 0,
        flowing: 0,
        upstream: None,
        bytes_in: 0,
        bytes_out: 0,
        quiet: 0,
        answered: false,
        origin: handover::Origin::Client,
    }
}

#[test]
fn a_number_that_another_process_gave_twice_is_two_connections() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1))]);
    let one = proxy.book.adopt_active(&known(7, 1));
    let two = proxy.book.adopt_active(&known(7, 1));
    assert_eq!((one.connection().id, two.connection().id), (7, 8));
    assert_eq!(proxy.book.count(&app("a"), |_| true), 2);
    one.end(End::Finished);
    assert_eq!(proxy.book.count(&app("a"), |_| true), 1);
    let newcomer = proxy.client(1);
    assert_eq!(newcomer.connection().id, 9);
    two.end(End::Finished);
}

#[test]
fn a_newcomer_whose_route_is_gone_gives_its_place_back_and_tells_who_waits_for_it() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1)), (2, "b", 0, open(2))]);
    proxy.book.set_limits(Limits {
        connections: 2,
        per_route: 1000,
        parked_bytes: 1 << 20,
    });
    let newcomer = proxy.book.expect(key(1)).unwrap();
    let _other = proxy.client(2);
    proxy.set(&[(2, "b", 0, open(2))]);
    let mut room = proxy.book.room();
    room.mark_unchanged();
    assert!(proxy.book.may_admit(key(2)).is_err());
    let gone = newcomer.admit(addr(1), addr(1)).map(drop);
    assert!(matches!(gone, Err(NotAdmitted::NoRoute)));
    assert!(room.has_changed().unwrap());
    assert!(proxy.book.may_admit(key(2)).is_ok());
}

#[test]
fn newcomers_do_not_get_the_places_of_those_who_are_on_their_way_from_another_process() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1)), (2, "a", 0, open(2))]);
    let full = |proxy: &Proxy| proxy.book.may_admit(key(1)).is_err();
    let coming = Coming { held: 7, active: 2 };
    proxy.book.count_on(&handover::Counts {
        last_id: 20,
        coming: [(key(1), coming)].into(),
        ..handover::Counts::default()
    });
    let newcomers = [proxy.client(1), proxy.client(1)];
    let last = proxy.client(1);
    assert!(full(&proxy) && proxy.book.may_admit(key(2)).is_ok());
    // Nothing changes by those that come, waiting or not.
    let _held = proxy.book.adopt_held(&known(3, 1), false);
    let _relay = proxy.book.adopt_active(&known(4, 1));
    assert!(full(&proxy));
    drop(newcomers);
    assert!(!full(&proxy));
    let _again = [proxy.client(1), proxy.client(1)];
    assert!(full(&proxy));
    let mut room = proxy.book.room();
    room.mark_unchanged();
    proxy.book.all_came();
    assert!(!full(&proxy) && room.has_changed().unwrap());
    drop(last);
}

#[test]
fn what_is_counted_here_is_what_another_process_expects() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1)), (2, "a", 0, open(2))]);
    let (relay, held) = (proxy.relay(1), proxy.client(1));
    let outlived = proxy.relay(2);
    proxy.set(&[(1, "a", 0, open(1))]);
    let counts = proxy.book.counted();
    let here = Coming { held: 1, active: 1 };
    let gone = Coming { held: 0, active: 1 };
    assert_eq!(counts.coming, [(key(1), here), (key(2), gone)].into());
    assert_eq!(counts.last_id, 3);
    relay.end(End::Finished);
    outlived.end(End::Finished);
    drop(held);
    assert!(proxy.book.counted().coming.is_empty());
}

fn http() -> Proxy {
    let mut proxy = Proxy::new();
    proxy.content = Content::Http;
    proxy
}

fn resting(proxy: &Proxy) -> (u64, u64, u64) {
    let routes = proxy.book.routes().routes;
    let status = routes.first().unwrap();
    (status.active, status.resting, status.parked)
}

#[test]
fn a_request_begins_only_where_its_route_leads() {
    let mut proxy = http();
    proxy.set(&[(1, "a", 0, open(1))]);
    let (asks, rests) = (proxy.relay(1), proxy.relay(1));
    assert_eq!(resting(&proxy), (0, 2, 0));
    assert!(asks.begin(Stage::Answering) && asks.leads_on());
    assert_eq!(resting(&proxy), (1, 1, 0));
    let mut news = proxy.book.news(key(1));
    proxy.prepare("a", 1);
    assert!(news.has_changed().unwrap());
    news.mark_unchanged();
    assert!(!rests.begin(Stage::Answering) && !rests.begin(Stage::Relaying));
    assert!(!asks.rest());
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 2, 0), 2));
    // Neither a drain nor a freeze has to wait for them.
    let flows = |c: &Connection| matches!(c.stage(), Stage::Answering | Stage::Relaying);
    assert_eq!(proxy.book.count(&app("a"), flows), 0);
    proxy.set(&[(1, "a", 2, open(1))]);
    assert!(rests.begin(Stage::Answering), "back where it was");
    proxy.set(&[(1, "a", 3, open(2))]);
    assert!(!asks.begin(Stage::Answering), "elsewhere");
    // What is closed, gone or another one's leads nobody elsewhere.
    proxy.set(&[(1, "a", 4, RouteIntent::Closed)]);
    assert!(asks.leads_on());
    proxy.set(&[(1, "b", 0, open(7))]);
    assert!(asks.leads_on());
    proxy.set(&[]);
    assert!(asks.leads_on());
    rests.end(End::Finished);
    asks.end(End::Finished);
    let inner = proxy.book.lock();
    assert_eq!(
        (inner.connections, inner.relayed, inner.outlived.len()),
        (0, 0, 0)
    );
}

#[test]
fn a_wait_is_an_episode_of_its_own_and_takes_no_place_of_newcomers() {
    let mut proxy = http();
    proxy.set(&[(1, "a", 0, open(1))]);
    let relays: Vec<_> = (0..20).map(|_| proxy.relay(1)).collect();
    proxy.prepare("a", 1);
    for relay in &relays {
        relay.connection().orders.give(Order::Cut);
    }
    let before = std::time::Instant::now();
    let mut waiting: Vec<Held> = relays.into_iter().map(active::Active::wait).collect();
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 20, 20), 0));
    // There is room for ten that are held.
    proxy.book.may_admit(key(1)).unwrap();
    let mut newcomer = proxy.client(1);
    for held in &mut waiting {
        assert!(matches!(held.step(), Step::Wait(_)));
        assert!(held.deadline(Duration::ZERO) >= before + limits().park_timeout);
        let connection = held.connection();
        assert_eq!(connection.orders.given(), Order::Run);
        assert_eq!(
            (connection.stage(), connection.is_local()),
            (Stage::Parked, false)
        );
    }
    let Step::Wait(_called) = newcomer.step() else {
        panic!("not held");
    };
    proxy.set(&[(1, "a", 2, open(2))]);
    let mut first = waiting.swap_remove(0);
    let active = match first.step() {
        Step::Try(attempt) => first.activate(&attempt).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 20, 20), 1));
    assert!(active.begin(Stage::Answering));
    drop((waiting, newcomer));
    assert_eq!(resting(&proxy), (1, 0, 0));
    active.end(End::Finished);
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 0, 0), 0));
    let counts = proxy.book.counts(&app("a"));
    let seen = (counts.parked_total, counts.drained, counts.refused);
    assert_eq!(seen, (21, 1, 20), "{counts:?}");
}

#[test]
fn a_connection_that_waits_again_leaves_as_one_that_rests() {
    let mut proxy = http();
    proxy.set(&[(1, "a", 0, open(1))]);
    let asks = proxy.relay(1);
    proxy.prepare("a", 1);
    let waits = asks.wait();
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 1, 1), 0));
    let rests = waits.back();
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 1, 0), 1));
    let known = rests.connection().identity(rests.origin());
    let waited = rests.connection().waited();
    let coming = proxy.book.counted().coming;
    assert_eq!(coming, [(key(1), Coming { held: 0, active: 1 })].into());
    rests.depart();
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 0, 0), 0));
    let here = proxy.book.adopt_resting(&known, waited);
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 1, 0), 1));
    assert!(here.connection().is_http() && !here.begin(Stage::Answering));
    // It waits on: it is counted once, and its time goes on.
    let waits = here.wait();
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 1, 1), 0));
    assert_eq!(proxy.book.counts(&app("a")).parked_total, 1);
    waits.back().end(End::Finished);
    assert_eq!((resting(&proxy), proxy.book.active()), ((0, 0, 0), 0));
}

#[test]
fn a_connection_that_rested_where_the_route_does_not_lead_here_is_not_led_on() {
    let mut proxy = http();
    proxy.set(&[(1, "a", 0, open(1))]);
    let asks = proxy.relay(1);
    asks.rest();
    let mut known = asks.connection().identity(asks.origin());
    for (was, leads_on) in [(1, true), (2, false)] {
        known.upstream = Some(handover::Upstream::Local(addr(was)));
        let here = proxy.book.adopt_resting(&known, None);
        assert_eq!(here.leads_on(), leads_on);
        here.end(End::Finished);
    }
}

#[test]
fn the_next_request_of_another_host_s_client_is_led_on() {
    let mut proxy = http();
    proxy.set(&[(1, "a", 0, open(1))]);
    let arrival = Arrival {
        application: app("a"),
        known: at(0),
        hops: 0,
    };
    let mut held = proxy.admit(1, Origin::Trunk(Box::new(arrival)));
    let first = attempt(&mut held);
    let active = held.activate(&first).unwrap();
    let from_trunk = |proxy: &Proxy| proxy.book.routes().routes[0].from_trunk;
    assert_eq!(from_trunk(&proxy), 1);
    let host = HostAddr::try_new("10.0.0.2").unwrap();
    let trunk = host.with_port(7421);
    let elsewhere = RouteIntent::Open(Target::Remote { host, trunk });
    proxy.set(&[(1, "a", 1, elsewhere.clone())]);
    assert!(!active.leads_on());
    let mut again = active.wait();
    let next = attempt(&mut again);
    assert!(matches!(
        next.by.phase.target(),
        Some(Target::Remote { .. })
    ));
    assert_eq!(from_trunk(&proxy), 1);
    let active = again.activate(&next).unwrap();
    // But not to another application.
    proxy.set(&[(1, "b", 0, elsewhere)]);
    let mut held = active.wait();
    assert!(matches!(held.step(), Step::Leave(_)));
    held.end(End::Refused);
    proxy.set(&[(1, "a", 2, open(1))]);
    assert_eq!((resting(&proxy), from_trunk(&proxy)), ((0, 0, 0), 0));
}

#[test]
fn a_route_is_steady_when_somebody_has_reached_where_it_leads_and_nobody_is_held() {
    let mut proxy = Proxy::new();
    proxy.set(&[(1, "a", 0, open(1))]);
    let steady = |proxy: &Proxy| proxy.book.is_steady(key(1), |_| true);
    assert!(!steady(&proxy));
    let _relay = proxy.relay(1);
    assert!(steady(&proxy));
    assert!(!proxy.book.is_steady(key(1), |_| false));
    let held = proxy.client(1);
    assert!(!steady(&proxy));
    drop(held);
    assert!(steady(&proxy));
    // There, nobody has been yet.
    proxy.set(&[(1, "a", 1, open(2))]);
    assert!(!steady(&proxy));
    let _relay = proxy.relay(1);
    assert!(steady(&proxy));
    proxy.book.doubt(key(1));
    assert!(!steady(&proxy));
    proxy.prepare("a", 2);
    assert!(!steady(&proxy));
}
