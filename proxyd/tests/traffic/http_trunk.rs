//! Connections of HTTP clients outlive the move of their application: from host to host, and for
//! clients of a host that is neither.

use anyhow::{Context as _, Result, ensure};
use rehome_shared::api::proxy::{RouteKey, RouteStatus};
use tokio::time::timeout;

use crate::host::{
    Host, LIMIT, commit_verb, drain_verb, free_port, gate_ref, prepare_verb, tcp, version,
};
use crate::web::{WebApp, Wire, get, post};

/// Three hosts; the application is on the first one.
struct Cluster {
    hosts: [Host; 3],
    port: u16,
    key: RouteKey,
}

impl Cluster {
    fn host(&self, number: usize) -> &Host {
        let [first, second, third] = &self.hosts;
        match number {
            0 => first,
            1 => second,
            _ => third,
        }
    }

    async fn set(app: &WebApp) -> Result<Self> {
        let hosts = [
            Host::start_http().await?,
            Host::start_http().await?,
            Host::start_http().await?,
        ];
        let port = free_port().await?;
        let key = tcp(port)?;
        let cluster = Self { hosts, port, key };
        cluster.tell(0, 1, app).await?;
        Ok(cluster)
    }

    /// Tells every host that the application is on this one.
    async fn tell(&self, owner: usize, epoch: u64, app: &WebApp) -> Result<()> {
        for number in 0..self.hosts.len() {
            self.tell_one(number, owner, epoch, app).await?;
        }
        Ok(())
    }

    async fn tell_one(&self, number: usize, owner: usize, epoch: u64, app: &WebApp) -> Result<()> {
        let all: Vec<&Host> = self.hosts.iter().collect();
        let target = if number == owner {
            app.target()
        } else {
            self.host(owner).as_target()?
        };
        let at = version(epoch, 0);
        self.host(number).open(&all, self.key, at, target).await
    }

    /// A client of each host, whose first request was answered.
    async fn clients(&self, answer: &str) -> Result<Vec<Wire>> {
        let mut clients = Vec::new();
        for host in &self.hosts {
            let mut client = Wire::new(host.client(self.port).await?);
            ensure!(client.get("/").await? == answer);
            clients.push(client);
        }
        Ok(clients)
    }

    /// Parks, drains and freezes the owner.
    async fn freeze(&self, owner: usize, epoch: u64) -> Result<()> {
        let (proxy, at) = (&self.host(owner).proxy, version(epoch, 1));
        proxy.prepare(prepare_verb(at)).await?;
        proxy.drain(drain_verb(at, LIMIT)).await?;
        let counts = proxy.freeze(gate_ref(at)).await?;
        ensure!((counts.active, counts.cut) == (0, 0), "{counts:?}");
        Ok(())
    }

    /// Leads the old owner to the new one.
    async fn commit(&self, from: usize, to: usize, epoch: u64) -> Result<()> {
        let target = self.host(to).as_target()?;
        let verb = commit_verb(self.key, version(epoch, 0), target);
        self.host(from).proxy.commit(verb).await?;
        Ok(())
    }

    async fn wait(&self, host: usize, wanted: impl Fn(&RouteStatus) -> bool) -> Result<()> {
        let host = self.host(host);
        host.wait(self.key, wanted).await?;
        Ok(())
    }
}

async fn ask_all(clients: &mut [Wire], path: &str, answer: &str) -> Result<()> {
    for (number, client) in clients.iter_mut().enumerate() {
        let said = client.get(path).await;
        let said = said.with_context(|| format!("client {number} asks {path}"))?;
        ensure!(said == answer, "client {number}: {said}");
    }
    Ok(())
}

#[tokio::test]
pub(crate) async fn clients_of_every_host_keep_their_connections_over_a_move_and_back() -> Result<()>
{
    let (old, new) = (WebApp::start("old").await?, WebApp::start("new").await?);
    let cluster = Cluster::set(&old).await?;
    let mut clients = cluster.clients("old: /").await?;
    cluster.freeze(0, 1).await?;
    for client in &mut clients {
        client.say(&post("/next", "x")).await?;
    }
    // All wait at the owner, wherever they came in.
    cluster.wait(0, |route| route.parked == 3).await?;
    ensure!(old.asked().len() == 3);
    cluster.tell_one(1, 1, 2, &new).await?;
    cluster.commit(0, 1, 2).await?;
    for client in &mut clients {
        ensure!(client.answer(false).await?.1 == "new: /next x");
    }
    // The third host has not heard of it: its client's requests go over the old owner.
    cluster.wait(0, |route| route.from_trunk == 1).await?;
    ask_all(&mut clients, "/chained", "new: /chained").await?;
    cluster.tell(1, 2, &new).await?;
    cluster.wait(0, |route| route.from_trunk == 0).await?;
    ask_all(&mut clients, "/direct", "new: /direct").await?;
    cluster.wait(1, |route| route.from_trunk == 2).await?;

    // And back, over the same connections; this time the third host hears first.
    cluster.freeze(1, 2).await?;
    cluster.tell_one(0, 0, 3, &old).await?;
    cluster.tell_one(2, 0, 3, &old).await?;
    ensure!(clients[0].get("/back").await? == "old: /back");
    ensure!(clients[2].get("/back").await? == "old: /back");
    clients[1].say(&get("/back")).await?;
    cluster.wait(1, |route| route.parked == 1).await?;
    cluster.commit(1, 0, 3).await?;
    ensure!(clients[1].answer(false).await?.1 == "old: /back");
    ensure!(new.asked().len() == 9, "{:?}", new.asked());
    ensure!(old.asked().len() == 6, "{:?}", old.asked());
    Ok(())
}

#[tokio::test]
pub(crate) async fn a_request_in_flight_over_the_trunk_finishes_where_it_began() -> Result<()> {
    let (old, new) = (WebApp::start("old").await?, WebApp::start("new").await?);
    let cluster = Cluster::set(&old).await?;
    let mut clients = cluster.clients("old: /").await?;
    clients[2]
        .say(&[post("/slow", "x"), get("/next")].concat())
        .await?;
    old.was_asked(4).await?;
    let release = async {
        cluster
            .wait(0, |route| {
                route.gate == rehome_shared::api::proxy::Gate::Parked
            })
            .await?;
        // The host that the client came to learns of the move meanwhile.
        cluster.tell_one(1, 1, 2, &new).await?;
        cluster.tell_one(2, 1, 2, &new).await?;
        old.release(1);
        anyhow::Ok(())
    };
    let (frozen, released) = tokio::join!(cluster.freeze(0, 1), release);
    frozen?;
    released?;
    ensure!(clients[2].answer(false).await?.1 == "old: /slow x");
    ensure!(clients[2].answer(false).await?.1 == "new: /next");
    cluster.commit(0, 1, 2).await?;
    ask_all(&mut clients, "/last", "new: /last").await?;
    Ok(())
}

/// The owner's host hears of the end of its application; no host tells its clients while that is on
/// its way.
#[tokio::test]
pub(crate) async fn an_end_of_the_application_is_heard_by_clients_of_other_hosts_only_at_an_open_gate()
-> Result<()> {
    let (old, new) = (WebApp::start("old").await?, WebApp::start("new").await?);
    let cluster = Cluster::set(&old).await?;
    let mut clients = cluster.clients("old: /").await?;
    cluster.freeze(0, 1).await?;
    old.stop().await;
    cluster.tell_one(1, 1, 2, &new).await?;
    cluster.commit(0, 1, 2).await?;
    ask_all(&mut clients, "/", "new: /").await?;
    new.close_idle();
    for client in &mut clients {
        ensure!(client.ends().await?);
    }
    drop(clients);
    for host in &cluster.hosts {
        let none = |route: &RouteStatus| route.active + route.resting == 0;
        host.wait(cluster.key, none).await?;
    }
    Ok(())
}

/// An older proxy on the way knows nothing of requests; what it does is heard as ever.
#[tokio::test]
pub(crate) async fn a_host_that_follows_no_requests_may_be_on_the_way() -> Result<()> {
    let (app, port) = (WebApp::start("app").await?, free_port().await?);
    let (here, owner) = (Host::start_http().await?, Host::start().await?);
    let (all, key) = ([&here, &owner], tcp(port)?);
    owner.open(&all, key, version(1, 0), app.target()).await?;
    here.open(&all, key, version(1, 0), owner.as_target()?)
        .await?;
    let mut client = Wire::new(here.client(port).await?);
    ensure!(client.get("/").await? == "app: /");
    ensure!(client.ask(&post("/", "x")).await?.1 == "app: / x");
    owner.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let drain = owner.proxy.drain(drain_verb(version(1, 1), LIMIT));
    let (counts, ended) = tokio::join!(drain, async {
        let ended = client.ends().await;
        drop(client);
        ended
    });
    ensure!(ended? && counts?.drained == 1);
    Ok(())
}

/// Busy clients of every host, while the application goes round.
#[tokio::test]
pub(crate) async fn busy_clients_of_every_host_notice_only_time() -> Result<()> {
    let apps = [
        WebApp::start("zero").await?,
        WebApp::start("one").await?,
        WebApp::start("two").await?,
    ];
    let cluster = Cluster::set(&apps[0]).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..12_usize {
        let stream = cluster.hosts[number % 3].client(cluster.port).await?;
        let (mut client, stopped) = (Wire::new(stream), stopped.clone());
        clients.spawn(async move {
            let mut asked = Vec::new();
            while !*stopped.borrow() {
                let path = format!("/{number}/{}", asked.len());
                let (first, _) = client.ask(&post(&path, "x")).await?;
                ensure!(first.ends_with("200 OK"), "{first}");
                asked.push(path);
            }
            Ok(asked)
        });
    }
    for epoch in 1..7_u64 {
        let (from, to) = (usize::try_from(epoch - 1)? % 3, usize::try_from(epoch)? % 3);
        apps[from].was_asked(apps[from].asked().len() + 60).await?;
        cluster.freeze(from, epoch).await?;
        cluster.tell_one(to, to, epoch + 1, &apps[to]).await?;
        cluster.commit(from, to, epoch + 1).await?;
        // The third one hears of it late, or not at all before the next move.
        if epoch % 2 == 0 {
            cluster.tell(to, epoch + 1, &apps[to]).await?;
        }
    }
    stop.send_replace(true);
    let mut asked = Vec::new();
    while let Some(client) = timeout(LIMIT, clients.join_next()).await? {
        asked.extend(client??);
    }
    let mut served: Vec<String> = apps.iter().flat_map(WebApp::asked).collect();
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
