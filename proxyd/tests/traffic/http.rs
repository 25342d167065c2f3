//! Connections of HTTP clients outlive the move of their application: on one host.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rehome_shared::api::proxy::{ConnectionInfo, RouteKey};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::host::{
    Host, LIMIT, commit_verb, drain_verb, free_port, gate_ref, prepare_verb, tcp, version,
};
use crate::web::{WebApp, Wire, get, post};

/// A host with a route to one of two applications.
struct Scene {
    host: Host,
    port: u16,
    key: RouteKey,
    old: WebApp,
    new: WebApp,
}

impl Scene {
    async fn set() -> Result<Self> {
        let (host, port) = (Host::start_http().await?, free_port().await?);
        let (old, new) = (WebApp::start("old").await?, WebApp::start("new").await?);
        let key = tcp(port)?;
        host.open(&[], key, version(1, 0), old.target()).await?;
        Ok(Self {
            host,
            port,
            key,
            old,
            new,
        })
    }

    async fn client(&self) -> Result<Wire> {
        Ok(Wire::new(self.host.client(self.port).await?))
    }

    /// Clients whose first request was answered.
    async fn clients(&self, count: usize) -> Result<Vec<Wire>> {
        let mut clients = Vec::new();
        for number in 0..count {
            let mut client = self.client().await?;
            let path = format!("/before/{number}");
            ensure!(client.get(&path).await? == format!("old: {path}"));
            clients.push(client);
        }
        Ok(clients)
    }

    async fn prepare(&self) -> Result<()> {
        self.host.proxy.prepare(prepare_verb(version(1, 1))).await?;
        Ok(())
    }

    /// A drain has nobody to wait for, and a freeze nothing to cut.
    async fn has_nothing_to_end(&self) -> Result<()> {
        let (proxy, started) = (&self.host.proxy, Instant::now());
        let drained = proxy.drain(drain_verb(version(1, 1), LIMIT)).await?;
        ensure!(started.elapsed() < LIMIT && drained.active == 0);
        let frozen = proxy.freeze(gate_ref(version(1, 1))).await?;
        ensure!(
            (frozen.active, frozen.cut, frozen.drained) == (0, 0, 0),
            "{frozen:?}"
        );
        Ok(())
    }

    async fn commit(&self) -> Result<()> {
        let to = self.new.target();
        let verb = commit_verb(self.key, version(2, 0), to);
        self.host.proxy.commit(verb).await?;
        Ok(())
    }

    async fn is_parked(&self, count: u64) -> Result<()> {
        let parked = |route: &rehome_shared::api::proxy::RouteStatus| route.parked == count;
        self.host.wait(self.key, parked).await?;
        Ok(())
    }

    fn connections(&self) -> Vec<ConnectionInfo> {
        self.host.proxy.connections(Some(self.key)).connections
    }
}

#[tokio::test]
async fn keep_alive_connections_outlive_a_move_and_each_request_is_answered_once() -> Result<()> {
    let scene = Scene::set().await?;
    let clients = scene.clients(50).await?;
    let status = scene
        .host
        .wait(scene.key, |route| route.resting == 50)
        .await?;
    ensure!(status.active == 0, "{status:?}");
    scene.prepare().await?;
    scene.has_nothing_to_end().await?;
    let asked = scene.old.asked().len();
    ensure!(asked == 50, "{asked}");
    let Scene {
        host,
        key,
        port,
        old,
        new,
    } = scene;
    old.stop().await;

    let mut waiting = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        waiting.spawn(async move {
            let said = client.get(&format!("/after/{number}")).await?;
            ensure!(said == format!("new: /after/{number}"), "{said}");
            ensure!(client.get("/again").await? == "new: /again");
            Ok(client)
        });
    }
    let mut newcomer = Wire::new(host.client(port).await?);
    newcomer.say(&get("/newcomer")).await?;
    host.wait(key, |route| route.parked == 51).await?;
    host.proxy
        .commit(commit_verb(key, version(2, 0), new.target()))
        .await?;
    while let Some(answered) = waiting.join_next().await {
        answered??;
    }
    ensure!(newcomer.answer(false).await?.1 == "new: /newcomer");
    let mut asked = new.asked();
    asked.retain(|path| path != "/again");
    asked.sort();
    asked.dedup();
    ensure!((asked.len(), new.asked().len()) == (51, 101), "{asked:?}");
    let counts = host
        .proxy
        .commit(commit_verb(key, version(2, 0), new.target()))
        .await?;
    ensure!(
        (counts.parked_total, counts.parked, counts.refused) == (51, 0, 0),
        "{counts:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_request_in_flight_is_answered_by_the_old_instance_and_the_next_one_waits() -> Result<()>
{
    let scene = Scene::set().await?;
    let mut client = scene.client().await?;
    client.get("/first").await?;
    client.say(&post("/slow", "body")).await?;
    scene.old.was_asked(2).await?;
    scene.prepare().await?;
    // It is silent for longer than what is taken for idle, and is not told goodbye.
    let drain = scene.host.proxy.drain(drain_verb(version(1, 1), LIMIT));
    let release = async {
        tokio::time::sleep(Duration::from_millis(1300)).await;
        scene.old.release(1);
    };
    let (counts, ()) = tokio::join!(drain, release);
    let counts = counts?;
    ensure!((counts.active, counts.cut) == (0, 0), "{counts:?}");
    ensure!(client.answer(false).await?.1 == "old: /slow body");
    client.say(&get("/next")).await?;
    scene.is_parked(1).await?;
    scene.commit().await?;
    ensure!(client.answer(false).await?.1 == "new: /next");
    ensure!(scene.old.asked() == ["/first", "/slow"] && scene.new.asked() == ["/next"]);
    Ok(())
}

#[tokio::test]
async fn requests_of_a_pipeline_go_one_at_a_time_and_to_where_the_route_leads_then() -> Result<()> {
    let scene = Scene::set().await?;
    let mut client = scene.client().await?;
    let all = [get("/slow/1"), post("/2", "two"), get("/3"), get("/4")].concat();
    client.say(&all).await?;
    scene.old.was_asked(1).await?;
    scene.prepare().await?;
    scene.old.release(1);
    ensure!(client.answer(false).await?.1 == "old: /slow/1");
    scene.is_parked(1).await?;
    ensure!(scene.old.asked().len() == 1);
    scene.commit().await?;
    for answer in ["new: /2 two", "new: /3", "new: /4"] {
        ensure!(client.answer(false).await?.1 == answer);
    }
    Ok(())
}

#[tokio::test]
async fn every_form_of_message_ends_at_a_boundary() -> Result<()> {
    let scene = Scene::set().await?;
    let mut client = scene.client().await?;
    let chunked = "POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n";
    let expects = "POST /expects HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    for (round, name) in ["old", "new"].into_iter().enumerate() {
        ensure!(client.ask(chunked).await?.1 == format!("{name}: /chunked abcde"));
        let (first, body) = client.ask("HEAD /head HTTP/1.1\r\n\r\n").await?;
        ensure!(first.ends_with("200 OK") && body.is_empty());
        ensure!(client.ask(&get("/unchanged")).await?.0.contains("304"));
        ensure!(client.ask(expects).await?.0.contains("100"));
        ensure!(client.ask("body").await?.1 == format!("{name}: /expects body"));
        let kept = "GET /kept HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
        ensure!(client.ask(kept).await?.1 == format!("{name}: /kept"));
        if round == 0 {
            scene.prepare().await?;
            client.say(&get("/between")).await?;
            scene.is_parked(1).await?;
            scene.commit().await?;
            ensure!(client.answer(false).await?.1 == "new: /between");
        }
    }
    let seen = scene.connections();
    let seen = seen.first().context("no connection")?;
    ensure!(
        (seen.state.as_str(), seen.requests) == ("resting", Some(11)),
        "{seen:?}"
    );
    ensure!(
        seen.upstream == Some(scene.new.addr.to_string()),
        "{seen:?}"
    );
    let metrics = scene.host.metrics().await?;
    let requests = format!("rehome_proxy_requests_total{{route=\"{}\"}} 11", scene.key);
    let resting = format!(
        "rehome_proxy_connections_resting{{route=\"{}\"}} 1",
        scene.key
    );
    ensure!(
        metrics.contains(&requests) && metrics.contains(&resting),
        "{metrics}"
    );
    Ok(())
}

/// An application need not hear all of a request to answer it.
#[tokio::test]
async fn an_early_answer_is_the_last_one_that_is_followed() -> Result<()> {
    let scene = Scene::set().await?;
    let mut client = scene.client().await?;
    client.get("/").await?;
    let expects = "POST /refuse HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    ensure!(client.ask(expects).await?.0.contains("417"));
    ensure!(client.ends().await?);
    // What would have been the body is none of the next request.
    client.say("body").await?;
    drop(client);
    let none = |route: &rehome_shared::api::proxy::RouteStatus| route.active + route.resting == 0;
    scene.host.wait(scene.key, none).await?;
    ensure!(scene.old.asked() == ["/"], "{:?}", scene.old.asked());
    Ok(())
}

/// A body that takes its time is of the request that has begun, whatever the gate says.
#[tokio::test]
async fn a_slow_body_goes_on_to_the_old_instance_through_a_parked_gate() -> Result<()> {
    let scene = Scene::set().await?;
    let mut client = scene.client().await?;
    client
        .say("POST /lazily HTTP/1.1\r\nContent-Length: 6\r\n\r\nab")
        .await?;
    scene
        .host
        .wait(scene.key, |route| route.active == 1)
        .await?;
    scene.prepare().await?;
    for piece in ["cd", "ef"] {
        tokio::time::sleep(Duration::from_millis(30)).await;
        client.say(piece).await?;
    }
    ensure!(client.answer(false).await?.1 == "old: /lazily abcdef");
    // A head that is not whole has not begun.
    client.say("GET /next HTTP/1.1\r\nHo").await?;
    scene.is_parked(1).await?;
    scene.commit().await?;
    client.say("st: x\r\n\r\n").await?;
    ensure!(client.answer(false).await?.1 == "new: /next");
    Ok(())
}

#[tokio::test]
async fn an_upgraded_connection_is_a_plain_one() -> Result<()> {
    let scene = Scene::set().await?;
    let mut client = scene.client().await?;
    client.get("/").await?;
    let upgrade = "GET /upgrade HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let (first, _) = client.ask(upgrade).await?;
    ensure!(first.contains("101"), "{first}");
    client.say("GET / HTTP/1.1\r\n\r\n\u{1}").await?;
    ensure!(client.exactly(19).await? == b"GET / HTTP/1.1\r\n\r\n\x01");
    let status = scene.host.status(scene.key)?;
    ensure!((status.active, status.resting) == (1, 0), "{status:?}");
    scene.prepare().await?;
    let drain = scene.host.proxy.drain(drain_verb(version(1, 1), LIMIT));
    let goodbye = async {
        ensure!(client.ends().await?, "bytes instead of an end");
        drop(client);
        Ok(())
    };
    let (counts, gone) = tokio::join!(drain, goodbye);
    gone?;
    ensure!(counts?.drained == 1);
    // An upgrade that is offered and not taken is a request like any other.
    let mut client = scene.client().await?;
    scene.commit().await?;
    let offer = "GET /no HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    ensure!(client.ask(offer).await?.1 == "new: /no");
    scene
        .host
        .wait(scene.key, |route| route.resting == 1)
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_application_that_ends_a_connection_is_heard_unless_it_is_on_its_way() -> Result<()> {
    let scene = Scene::set().await?;
    let mut heard = scene.client().await?;
    heard.get("/").await?;
    ensure!(heard.ask(&get("/close")).await?.1 == "old: /close");
    ensure!(heard.ends().await?);
    let mut until_end = scene.client().await?;
    until_end.say(&get("/until-end")).await?;
    let head = until_end.head().await?.context("no answer")?;
    ensure!(head.first.contains("200"));
    ensure!(until_end.exactly(15).await? == b"old: /until-end" && until_end.ends().await?);

    let (mut idle, mut kept) = (scene.client().await?, scene.client().await?);
    idle.get("/").await?;
    kept.get("/").await?;
    scene
        .host
        .wait(scene.key, |route| route.resting == 2)
        .await?;
    scene.prepare().await?;
    // Both upstream connections go; no client hears of it.
    scene.old.close_idle();
    for client in [&mut idle, &mut kept] {
        client.say(&get("/later")).await?;
    }
    scene.is_parked(2).await?;
    scene.commit().await?;
    for client in [&mut idle, &mut kept] {
        ensure!(client.answer(false).await?.1 == "new: /later");
    }
    // With the gate open it is heard again.
    scene.new.close_idle();
    ensure!(idle.ends().await? && kept.ends().await?);
    Ok(())
}

async fn is_reset(stream: &mut TcpStream) -> Result<bool> {
    let end = timeout(LIMIT, stream.read(&mut [0; 64])).await?;
    Ok(end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset))
}

/// What has no answer at a freeze: a question that may be asked twice is, anything else ends.
#[tokio::test]
async fn only_what_is_safe_is_asked_a_second_time() -> Result<()> {
    let scene = Scene::set().await?;
    let (mut safe, mut unsafe_, mut fresh) = (
        scene.client().await?,
        scene.client().await?,
        scene.client().await?,
    );
    safe.get("/").await?;
    unsafe_.get("/").await?;
    safe.say(&get("/slow/safe")).await?;
    unsafe_.say(&post("/slow/unsafe", "x")).await?;
    // On its first upstream connection nothing shows that it was read at all.
    fresh.say(&get("/slow/fresh")).await?;
    scene.old.was_asked(5).await?;
    scene.prepare().await?;
    let counts = scene.host.proxy.freeze(gate_ref(version(1, 1))).await?;
    ensure!((counts.active, counts.cut) == (0, 2), "{counts:?}");
    ensure!(is_reset(&mut unsafe_.stream).await? && is_reset(&mut fresh.stream).await?);
    scene.is_parked(1).await?;
    scene.new.release(1);
    scene.commit().await?;
    ensure!(safe.answer(false).await?.1 == "new: /slow/safe");
    ensure!(scene.new.asked() == ["/slow/safe"]);
    // A later freeze finds it again.
    safe.say(&post("/slow", "x")).await?;
    scene.new.was_asked(2).await?;
    scene
        .host
        .proxy
        .prepare(prepare_verb(version(2, 1)))
        .await?;
    let counts = scene.host.proxy.freeze(gate_ref(version(2, 1))).await?;
    ensure!((counts.active, counts.cut) == (0, 1), "{counts:?}");
    ensure!(is_reset(&mut safe.stream).await?);
    Ok(())
}

/// A wait has its own time, however old its connection is, and takes nobody's place.
#[tokio::test]
async fn an_old_connection_waits_as_long_as_a_new_one() -> Result<()> {
    let scene = Scene::set().await?;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = scene.client().await?;
        client.get("/").await?;
        clients.push(client);
    }
    let mut verb = prepare_verb(version(1, 1));
    let waits = Duration::from_secs(10);
    verb.limits.park_timeout = waits;
    verb.limits.park_limit = 2;
    let old = async {
        while scene.connections().iter().any(|c| c.age <= waits) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, old).await?;
    scene.host.proxy.prepare(verb.clone()).await?;
    for client in &mut clients {
        client.say(&get("/waits")).await?;
    }
    // Five wait, and there is room for newcomers all the same.
    let mut newcomer = scene.client().await?;
    newcomer.say(&get("/newcomer")).await?;
    scene.is_parked(6).await?;
    scene.commit().await?;
    for client in &mut clients {
        ensure!(client.answer(false).await?.1 == "new: /waits");
    }
    ensure!(newcomer.answer(false).await?.1 == "new: /newcomer");

    // And when it is over, it is over.
    verb.version = version(2, 1);
    verb.limits.park_timeout = Duration::from_secs(1);
    scene.host.proxy.prepare(verb).await?;
    let first = clients.first_mut().context("no client")?;
    first.say(&get("/too-long")).await?;
    ensure!(is_reset(&mut first.stream).await?);
    let ended = "result=\"park_timeout\"} 1";
    ensure!(scene.host.metrics().await?.contains(ended));
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_between_requests_is_forgotten() -> Result<()> {
    let scene = Scene::set().await?;
    let (mut one, mut two, mut asks) = (
        scene.client().await?,
        scene.client().await?,
        scene.client().await?,
    );
    one.get("/").await?;
    two.get("/").await?;
    drop(one);
    scene
        .host
        .wait(scene.key, |route| route.resting == 2)
        .await?;
    scene.prepare().await?;
    drop(two);
    scene
        .host
        .wait(scene.key, |route| route.resting == 1)
        .await?;
    // It asks and finishes, which is legal, and waits for its answer.
    asks.say(&get("/asks")).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut asks.stream).await?;
    scene.is_parked(1).await?;
    scene.commit().await?;
    ensure!(asks.answer(false).await?.1 == "new: /asks" && asks.ends().await?);
    drop(asks);
    let idle = |route: &rehome_shared::api::proxy::RouteStatus| route.resting + route.active == 0;
    scene.host.wait(scene.key, idle).await?;
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_stops_lets_requests_finish_and_says_goodbye_to_those_that_rest() -> Result<()>
{
    let scene = Scene::set().await?;
    let (mut rests, mut asks) = (scene.client().await?, scene.client().await?);
    rests.get("/").await?;
    asks.say(&get("/slow")).await?;
    scene.old.was_asked(2).await?;
    let wind_down = scene.host.proxy.wind_down(LIMIT);
    let clients = async {
        ensure!(rests.ends().await?);
        drop(rests);
        scene.old.release(1);
        ensure!(asks.answer(false).await?.1 == "old: /slow" && asks.ends().await?);
        drop(asks);
        Ok(())
    };
    let (gone, ()) = tokio::join!(clients, wind_down);
    gone
}

/// Requests all the time, over a move and back: none is lost, none is asked twice.
#[tokio::test]
async fn busy_clients_notice_only_time() -> Result<()> {
    let scene = Scene::set().await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = JoinSet::new();
    for number in 0..16_u32 {
        let (mut client, stopped) = (scene.client().await?, stopped.clone());
        clients.spawn(async move {
            let mut asked = Vec::new();
            while !*stopped.borrow() {
                let path = format!("/{number}/{}", asked.len());
                let request = if number % 2 == 0 {
                    get(&path)
                } else {
                    post(&path, "x")
                };
                let (first, _) = client.ask(&request).await?;
                ensure!(first.ends_with("200 OK"), "{first}");
                asked.push(path);
            }
            Ok(asked)
        });
    }
    for epoch in 1..8_u64 {
        let served = if epoch % 2 == 0 {
            &scene.new
        } else {
            &scene.old
        };
        served.was_asked(served.asked().len() + 100).await?;
        let at = version(epoch, 1);
        scene.host.proxy.prepare(prepare_verb(at)).await?;
        scene.host.proxy.drain(drain_verb(at, LIMIT)).await?;
        let frozen = scene.host.proxy.freeze(gate_ref(at)).await?;
        ensure!((frozen.active, frozen.cut) == (0, 0), "{frozen:?}");
        let before = served.asked().len();
        scene.is_parked(16).await?;
        ensure!(served.asked().len() == before, "asked after the freeze");
        let next = if epoch % 2 == 0 {
            &scene.old
        } else {
            &scene.new
        };
        let verb = commit_verb(scene.key, version(epoch + 1, 0), next.target());
        scene.host.proxy.commit(verb).await?;
    }
    stop.send_replace(true);
    let mut asked = Vec::new();
    while let Some(client) = clients.join_next().await {
        asked.extend(client??);
    }
    let mut served = [scene.old.asked(), scene.new.asked()].concat();
    asked.sort();
    served.sort();
    ensure!(
        asked == served,
        "{} asked, {} served",
        asked.len(),
        served.len()
    );
    Ok(())
}
