//! Connections whose requests are followed, each between two sockets of its test.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::table::RouteTable;
use rehome_shared::api::proxy::{
    Announce, Content, ParkLimits, Prepare, RouteIntent, RouteKey, RouteSpec, SetRoutes, Target,
};
use rehome_shared::config::daemon::ProxydConfig;
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, RouteVersion};
use rehome_shared::units::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::rest::Event;
use super::*;
use crate::book::Origin;
use crate::book::connection::{Connection, Upstream as Leads};
use crate::book::held::Step;

mod sealed;

const LIMIT: Duration = Duration::from_secs(20);
const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn application() -> AppName {
    AppName::try_new("web").unwrap()
}

fn key() -> RouteKey {
    "80/tcp".parse().unwrap()
}

fn limits() -> ParkLimits {
    ParkLimits {
        park_limit: 10,
        park_timeout: LIMIT,
    }
}

/// A route to an application that moves.
struct Scene {
    context: Context,
    table: RouteTable,
    generation: u64,
    old: TcpListener,
    new: TcpListener,
    tasks: JoinSet<()>,
}

/// A connection that has reached its application and is not served yet, as the proxy has it.
struct Reached {
    active: Active,
    client: TcpStream,
    upstream: TcpStream,
}

/// The other ends of such a connection, and what is known of it.
struct Ends {
    client: TcpStream,
    app: TcpStream,
    connection: Arc<Connection>,
}

impl Scene {
    async fn set(adjust: impl FnOnce(&mut ProxydConfig)) -> Self {
        let listen = async || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut scene = Self {
            context: Context::of_file(adjust),
            table: RouteTable::default(),
            generation: 0,
            old: listen().await,
            new: listen().await,
            tasks: JoinSet::new(),
        };
        scene.lead(scene.old.local_addr().unwrap());
        scene
    }

    fn version(&mut self) -> RouteVersion {
        self.generation += 1;
        RouteVersion {
            epoch: Epoch(1),
            generation: Generation(self.generation),
        }
    }

    fn lead(&mut self, addr: SocketAddr) {
        let route = RouteSpec {
            key: key(),
            application: application(),
            version: self.version(),
            intent: RouteIntent::Open(Target::Local { addr }),
            limits: limits(),
            content: Content::Http,
            announce: Announce::default(),
        };
        let applied = self.table.apply(&SetRoutes {
            host: HostAddr::try_new("10.0.0.1").unwrap(),
            peers: vec![],
            routes: vec![route],
        });
        self.context.book.publish(&self.table, &applied.changes);
    }

    fn prepare(&mut self) {
        let verb = Prepare {
            application: application(),
            version: self.version(),
            lease: LIMIT,
            limits: limits(),
        };
        let changes = self.table.prepare(&verb).unwrap();
        self.context.book.publish(&self.table, &changes);
    }

    fn commit(&mut self) {
        self.lead(self.new.local_addr().unwrap());
    }

    async fn reach(&self) -> (Ends, Reached) {
        let ((client, from_client), (upstream, app)) =
            (pair(&self.new).await, pair(&self.old).await);
        let client_addr = client.local_addr().unwrap();
        let book = &self.context.book;
        let mut held = book
            .admit(key(), client_addr, client_addr, Origin::Client)
            .unwrap();
        let Step::Try(attempt) = held.step() else {
            panic!("it cannot be tried");
        };
        let local = Leads::Local(self.old.local_addr().unwrap());
        held.connection().set_upstream(Some(local));
        let active = held.activate(&attempt).unwrap();
        let ends = Ends {
            client,
            app,
            connection: Arc::clone(active.connection()),
        };
        let reached = Reached {
            active,
            client: from_client,
            upstream,
        };
        (ends, reached)
    }

    fn serve(&mut self, reached: Reached) {
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let sides = Sides::from((reached.client, reached.upstream));
            converse(context, reached.active, sides).await;
        });
    }

    /// One that is served.
    async fn talk(&mut self) -> Ends {
        let (ends, reached) = self.reach().await;
        self.serve(reached);
        ends
    }

    /// The next connection to the application where it is now.
    async fn arrives(&self) -> TcpStream {
        let accepted = timeout(LIMIT, self.new.accept()).await;
        accepted.unwrap().unwrap().0
    }
}

impl Reached {
    fn talk(self, context: &Context) -> (Talk, Active) {
        let sides = Sides::from((self.client, self.upstream));
        let talk = Talk::new(context.clone(), &self.active, sides);
        (talk, self.active)
    }
}

impl Ends {
    async fn is(&self, stage: Stage) {
        let waits = async {
            while self.connection.stage() != stage {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = timeout(LIMIT, waits).await;
        assert!(waited.is_ok(), "still {:?}", self.connection.stage());
    }

    /// It is asked to leave, and is put back to work.
    async fn stands_still(&self) {
        assert!(self.connection.orders.leave());
        self.is_back().await;
    }

    async fn is_back(&self) {
        let waits = async {
            while self.connection.orders.is_leaving() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(timeout(LIMIT, waits).await.is_ok(), "it does not stop");
    }

    /// A request that is answered.
    async fn ask(&mut self) {
        say(&mut self.client, GET).await;
        hear(&mut self.app, GET).await;
        say(&mut self.app, OK).await;
        hear(&mut self.client, OK).await;
    }
}

/// A connection through a listener: who connected, and who accepted.
async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (connected.unwrap(), accepted.unwrap().0)
}

async fn say(stream: &mut TcpStream, text: &str) {
    let said = timeout(LIMIT, stream.write_all(text.as_bytes())).await;
    said.unwrap().unwrap();
}

async fn bytes(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = timeout(LIMIT, stream.read_exact(&mut bytes)).await;
    assert!(matches!(read, Ok(Ok(_))), "{read:?} of {length}");
    bytes
}

async fn hear(stream: &mut TcpStream, text: &str) {
    let heard = bytes(stream, text.len()).await;
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

/// Waits for an end that looks right, without a byte before it.
async fn ends(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(LIMIT, stream.read(&mut byte)).await;
    assert!(matches!(read, Ok(Ok(0))), "{read:?}: {byte:?}");
}

/// Fills all that is between two sockets, and says with how much.
async fn fill(stream: &TcpStream) -> usize {
    let mut filled = 0;
    while timeout(Duration::from_millis(300), stream.writable())
        .await
        .is_ok()
    {
        match stream.try_write(&[b'-'; 1 << 14]) {
            Ok(length) => filled += length,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    filled
}

/// An application may answer before it has got all of a request. What is left of that is no
/// request, whatever it looks like.
#[tokio::test]
async fn what_is_left_of_a_request_is_not_taken_for_the_next_one() {
    let mut scene = Scene::set(|_| {}).await;
    let (mut ends, reached) = scene.reach().await;
    let filled = fill(&reached.upstream).await;
    scene.serve(reached);
    let post = format!(
        "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{GET}",
        GET.len()
    );
    say(&mut ends.client, &post).await;
    ends.is(Stage::Answering).await;
    say(&mut ends.app, OK).await;
    hear(&mut ends.client, OK).await;
    ends.is(Stage::Relaying).await;
    scene.prepare();
    scene.commit();
    let heard = bytes(&mut ends.app, filled + post.len()).await;
    assert!(heard.ends_with(post.as_bytes()));
}

#[tokio::test]
async fn a_goodbye_does_not_cut_off_an_answer_that_is_not_understood() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    say(&mut all.client, GET).await;
    hear(&mut all.app, GET).await;
    all.connection.orders.give(Order::ClosePolitely);
    let twice = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok";
    say(&mut all.app, twice).await;
    hear(&mut all.client, twice).await;
    all.is(Stage::Relaying).await;
    assert_eq!(all.connection.orders.given(), Order::Run);
    // It is given again at a pause.
    all.connection.orders.give(Order::ClosePolitely);
    ends(&mut all.client).await;
}

#[tokio::test]
async fn who_was_told_goodbye_cannot_leave() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    all.connection.orders.give(Order::ClosePolitely);
    ends(&mut all.client).await;
    assert!(!all.connection.orders.leave());
}

/// It goes on as a relay, and back to work where nobody takes it.
#[tokio::test]
async fn a_request_in_flight_is_hurried_without_a_byte_lost() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    let (begun, rest) = ("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab", "cd");
    say(&mut all.client, begun).await;
    hear(&mut all.app, begun).await;
    assert!(all.connection.orders.leave());
    all.is(Stage::Answering).await;
    all.connection.orders.hurry();
    all.is(Stage::Relaying).await;
    say(&mut all.client, &[rest, GET].concat()).await;
    hear(&mut all.app, &[rest, GET].concat()).await;
    say(&mut all.app, &[OK, OK].concat()).await;
    hear(&mut all.client, &[OK, OK].concat()).await;
}

/// One that may be asked again is, where the route leads by then.
#[tokio::test]
async fn a_request_that_is_hurried_at_a_parked_gate_waits_there() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    say(&mut all.client, GET).await;
    hear(&mut all.app, GET).await;
    scene.prepare();
    assert!(all.connection.orders.leave());
    all.connection.orders.hurry();
    all.is(Stage::Parked).await;
    scene.commit();
    let mut new = scene.arrives().await;
    hear(&mut new, GET).await;
    say(&mut new, OK).await;
    hear(&mut all.client, OK).await;
}

/// Who was let go at a prepare has no application that would end it; its own time does.
#[tokio::test]
async fn a_client_that_is_silent_after_a_move_is_told_goodbye_when_its_time_is_over() {
    let mut scene = Scene::set(|config| {
        config.timeouts.idle = Some(Duration::from_millis(50));
    })
    .await;
    let (mut all, reached) = scene.reach().await;
    scene.prepare();
    scene.serve(reached);
    ends(&mut all.app).await;
    // Not while the gate is parked.
    let waits = timeout(Duration::from_millis(200), all.client.readable());
    assert!(waits.await.is_err());
    scene.commit();
    ends(&mut all.client).await;
}

#[tokio::test]
async fn what_follows_an_answer_after_a_goodbye_reaches_nobody() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    let post = "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
    say(&mut all.client, &[GET, post].concat()).await;
    hear(&mut all.app, GET).await;
    all.connection.orders.give(Order::ClosePolitely);
    say(&mut all.app, OK).await;
    hear(&mut all.client, OK).await;
    ends(&mut all.client).await;
    say(&mut all.client, post).await;
    ends(&mut all.app).await;
    drop(all.client);
    let ended = timeout(LIMIT, scene.tasks.join_next()).await;
    ended.unwrap().unwrap().unwrap();
    assert_eq!(scene.context.book.connection_count(), 0);
}

/// Its answer comes first, then the end.
#[tokio::test]
async fn a_lifetime_that_is_over_costs_nobody_a_request_that_has_waited() {
    for _ in 0..8 {
        let mut scene = Scene::set(|config| {
            config.timeouts.lifetime = Some(Duration::from_millis(1));
        })
        .await;
        let (mut all, reached) = scene.reach().await;
        scene.prepare();
        scene.serve(reached);
        say(&mut all.client, GET).await;
        all.is(Stage::Parked).await;
        scene.commit();
        let mut app = scene.arrives().await;
        hear(&mut app, GET).await;
        say(&mut app, OK).await;
        hear(&mut all.client, OK).await;
        ends(&mut all.client).await;
    }
}

/// A gate may change between the moment at which a connection is reached and its first rest.
#[tokio::test]
async fn a_prepare_before_the_first_rest_closes_the_way_to_the_application() {
    let mut scene = Scene::set(|_| {}).await;
    let (mut all, reached) = scene.reach().await;
    scene.prepare();
    scene.serve(reached);
    ends(&mut all.app).await;
    assert_eq!(all.connection.upstream(), None);
    scene.commit();
    say(&mut all.client, GET).await;
    hear(&mut scene.arrives().await, GET).await;
}

#[tokio::test]
async fn an_end_of_the_application_is_heard_only_where_the_route_leads() {
    let mut scene = Scene::set(|_| {}).await;
    let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
    let said = || [Ok(0), Ok(1), Err(broken())];
    for said in said() {
        let (_ends, reached) = scene.reach().await;
        let (mut talk, active) = reached.talk(&scene.context);
        let is_broken = said.is_err();
        match talk.heed(&Event::Upstream(said), &active) {
            Err(Turn::Plain) => assert!(!is_broken),
            Err(Turn::End(end)) => assert!(is_broken && end == End::UpstreamReset),
            Err(Turn::Rest | Turn::Gate | Turn::Leave | Turn::Goodbye(_)) | Ok(()) => {
                panic!("it is not heard")
            }
        }
    }
    for said in said() {
        let (_ends, reached) = scene.reach().await;
        let context = scene.context.clone();
        let (mut talk, active) = reached.talk(&context);
        scene.prepare();
        assert!(talk.heed(&Event::Upstream(said), &active).is_ok());
        assert!(talk.upstream.is_none());
        scene.lead(scene.old.local_addr().unwrap());
    }
}

#[tokio::test]
async fn a_last_answer_at_a_parked_gate_is_followed_by_an_end_and_no_request() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    let last = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    say(&mut all.client, &[last, GET].concat()).await;
    hear(&mut all.app, last).await;
    scene.prepare();
    say(&mut all.app, OK).await;
    hear(&mut all.client, OK).await;
    ends(&mut all.client).await;
    ends(&mut all.app).await;
}

/// Its end is passed on, and its answer is waited for as any other is.
#[tokio::test]
async fn a_client_that_finishes_after_its_question_is_answered_like_any_other() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    say(&mut all.client, GET).await;
    all.client.shutdown().await.unwrap();
    hear(&mut all.app, GET).await;
    ends(&mut all.app).await;
    assert_eq!(all.connection.stage(), Stage::Answering);
    say(&mut all.app, OK).await;
    hear(&mut all.client, OK).await;
    all.is(Stage::Relaying).await;
    drop(all.app);
    ends(&mut all.client).await;
}

/// The gate of another host may hold a request for longer than a connection may be idle.
#[tokio::test]
async fn a_request_that_another_host_holds_is_not_idle() {
    let idle = Duration::from_millis(1500);
    let mut scene = Scene::set(|config| config.timeouts.idle = Some(idle)).await;
    let (mut all, reached) = scene.reach().await;
    say(&mut all.client, GET).await;
    let trunk = Leads::Trunk("10.0.0.2:7421".to_owned());
    all.connection.set_upstream(Some(trunk));
    scene.serve(reached);
    hear(&mut all.app, GET).await;
    let waits = timeout(2 * idle, all.client.readable());
    assert!(waits.await.is_err());
    say(&mut all.app, OK).await;
    hear(&mut all.client, OK).await;
    ends(&mut all.client).await;
}

#[tokio::test]
async fn what_nobody_has_asked_for_is_passed_on_with_what_follows() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    say(&mut all.client, &[GET, GET].concat()).await;
    hear(&mut all.app, GET).await;
    say(&mut all.app, &[OK, "stray"].concat()).await;
    hear(&mut all.client, OK).await;
    hear(&mut all.client, "stray").await;
    hear(&mut all.app, GET).await;
    all.is(Stage::Relaying).await;
}

#[tokio::test]
async fn a_stream_of_events_is_plain_after_its_head() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    say(&mut all.client, GET).await;
    hear(&mut all.app, GET).await;
    let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    say(&mut all.app, events).await;
    hear(&mut all.client, events).await;
    all.is(Stage::Relaying).await;
}

#[tokio::test]
async fn a_long_head_goes_through_where_there_is_no_memory() {
    let mut scene = Scene::set(|config| config.limits.relay_bytes = Bytes(0)).await;
    let mut all = scene.talk().await;
    let field = "x".repeat(10_000);
    let long = format!("GET / HTTP/1.1\r\nA: {field}\r\n\r\n");
    for _ in 0..2 {
        say(&mut all.client, &long).await;
        hear(&mut all.app, &long).await;
        say(&mut all.app, OK).await;
        hear(&mut all.client, OK).await;
    }
    all.is(Stage::Resting).await;
}

/// With nobody who collects it, it goes on here: taken from its event loop and back.
#[tokio::test]
async fn who_is_to_leave_stands_still_between_two_requests_and_loses_nothing() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    all.stands_still().await;
    all.ask().await;
    // In the middle of a head.
    let (begin, rest) = GET.split_at(7);
    say(&mut all.client, begin).await;
    all.stands_still().await;
    say(&mut all.client, rest).await;
    hear(&mut all.app, GET).await;
    // Not in the middle of a flight.
    assert!(all.connection.orders.leave());
    say(&mut all.app, OK).await;
    hear(&mut all.client, OK).await;
    all.is_back().await;
    // And not waiting at the gate.
    scene.prepare();
    say(&mut all.client, GET).await;
    all.is(Stage::Parked).await;
    all.stands_still().await;
    all.is(Stage::Parked).await;
    let routes = scene.context.book.routes().routes;
    assert_eq!((routes[0].parked, routes[0].resting), (1, 1));
    scene.commit();
    let mut app = scene.arrives().await;
    hear(&mut app, GET).await;
    say(&mut app, OK).await;
    hear(&mut all.client, OK).await;
    all.is(Stage::Resting).await;
}

/// What was sent in vain is sent again, and what the client has sent after it is not lost.
#[tokio::test]
async fn a_question_that_is_asked_again_is_followed_by_the_next_one() {
    let mut scene = Scene::set(|_| {}).await;
    let mut all = scene.talk().await;
    all.ask().await;
    let post = "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
    say(&mut all.client, &[GET, post].concat()).await;
    hear(&mut all.app, GET).await;
    scene.prepare();
    all.connection.orders.give(Order::Cut);
    all.is(Stage::Parked).await;
    scene.commit();
    let mut app = scene.arrives().await;
    for asked in [GET, post] {
        hear(&mut app, asked).await;
        say(&mut app, OK).await;
        hear(&mut all.client, OK).await;
    }
}
