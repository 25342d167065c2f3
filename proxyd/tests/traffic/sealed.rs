//! Trunks over TLS: what goes over plain ones goes over these, and who may open them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::config::daemon::{Accepted, ProxydConfig, Sent, TrunkTls};
use rehome_shared::trunk::Header;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{App, raw};
use crate::certificates::Authority;
use crate::host::{Host, LIMIT, ask, db, free_port, seal_hosts, tcp, version};
use crate::{announce, http_trunk, limits, trunk, udp};

/// Plays a test of plain trunks with sealed ones.
fn sealed(test: fn() -> Result<()>) -> Result<()> {
    seal_hosts()?;
    test()
}

#[test]
fn connections_follow_their_application() -> Result<()> {
    sealed(trunk::a_client_of_a_third_host_follows_the_application)
}

#[test]
fn a_destination_holds_who_knows_more() -> Result<()> {
    sealed(trunk::a_destination_that_has_not_heard_yet_holds_instead_of_sending_back)
}

#[test]
fn a_route_is_waited_for() -> Result<()> {
    sealed(trunk::a_route_that_the_owner_learns_later_is_waited_for)
}

#[test]
fn a_freeze_cuts() -> Result<()> {
    sealed(trunk::an_owner_that_is_frozen_cuts_the_clients_of_other_hosts)
}

#[test]
fn who_goes_away_while_parked_is_forgotten() -> Result<()> {
    sealed(trunk::a_client_of_another_host_that_goes_away_while_parked_is_forgotten_there)
}

#[test]
fn a_drain_says_goodbye() -> Result<()> {
    sealed(trunk::an_owner_that_drains_says_goodbye_to_idle_clients_of_other_hosts)
}

#[test]
fn http_connections_outlive_a_move() -> Result<()> {
    sealed(http_trunk::clients_of_every_host_keep_their_connections_over_a_move_and_back)
}

#[test]
fn a_request_finishes_where_it_began() -> Result<()> {
    sealed(http_trunk::a_request_in_flight_over_the_trunk_finishes_where_it_began)
}

#[test]
fn an_end_of_an_application_is_heard_at_an_open_gate() -> Result<()> {
    sealed(http_trunk::an_end_of_the_application_is_heard_by_clients_of_other_hosts_only_at_an_open_gate)
}

#[test]
fn who_follows_no_requests_may_be_on_the_way() -> Result<()> {
    sealed(http_trunk::a_host_that_follows_no_requests_may_be_on_the_way)
}

#[test]
fn busy_http_clients_notice_only_time() -> Result<()> {
    sealed(http_trunk::busy_clients_of_every_host_notice_only_time)
}

#[test]
fn datagrams_go_over() -> Result<()> {
    sealed(udp::datagrams_are_echoed_locally_and_over_the_trunk)
}

#[test]
fn datagrams_follow_their_application() -> Result<()> {
    sealed(udp::a_session_follows_its_route_to_another_host)
}

#[test]
fn the_park_limit_holds() -> Result<()> {
    sealed(limits::the_park_limit_holds_for_trunks_too_and_nobody_is_lost)
}

#[test]
fn applications_know_their_clients() -> Result<()> {
    sealed(announce::the_owner_tells_its_application_who_the_client_of_another_host_is)
}

/// A host whose clients come to an application of another one.
pub(crate) struct Two {
    pub(crate) here: Host,
    pub(crate) owner: Host,
    pub(crate) app: App,
    pub(crate) port: u16,
    pub(crate) key: RouteKey,
}

impl Two {
    /// With these certificates; none is a host that knows nothing of TLS.
    pub(crate) async fn set(
        here: impl FnOnce(&str) -> Result<Option<TrunkTls>>,
        owner: impl FnOnce(&str) -> Result<Option<TrunkTls>>,
    ) -> Result<Self> {
        let (here, owner) = (start(here).await?, start(owner).await?);
        let (app, port) = (App::start("one").await?, free_port().await?);
        let key = tcp(port)?;
        owner
            .open(&[&here], key, version(1, 0), app.target())
            .await?;
        here.open(&[&owner], key, version(1, 0), owner.as_target()?)
            .await?;
        Ok(Self {
            here,
            owner,
            app,
            port,
            key,
        })
    }

    /// A client is served once this host has another file.
    async fn is_mended_by(&self, host: &Host, tls: Option<TrunkTls>, held: Held) -> Result<()> {
        ensure!(self.app.accepted.load(Ordering::Relaxed) == 0);
        let Held(mut client) = held;
        let mut config = host.config.clone();
        config.trunk.tls = tls;
        host.proxy.configure(&config).await?;
        ensure!(crate::host::read_line(&mut client).await? == "one: x");
        Ok(())
    }

    /// A client that has asked.
    async fn asks(&self) -> Result<Held> {
        let mut client = self.here.client(self.port).await?;
        client.write_all(b"x\n").await?;
        Ok(Held(client))
    }
}

/// A client that waits for its answer.
struct Held(tokio::net::TcpStream);

async fn start(tls: impl FnOnce(&str) -> Result<Option<TrunkTls>>) -> Result<Host> {
    let mut wrong = Ok(());
    let adjust = |config: &mut ProxydConfig| {
        // It hears its name from `migrated`: a file that has it must have its certificate.
        let name = config.host.take().map(|host| host.to_string());
        match tls(&name.unwrap_or_default()) {
            Ok(tls) => config.trunk.tls = tls,
            Err(error) => wrong = Err(error),
        }
    };
    let host = Host::start_with(adjust).await?;
    wrong?;
    Ok(host)
}

pub(crate) async fn until(host: &Host, what: &str) -> Result<()> {
    let said = timeout(LIMIT, async {
        while !host.metrics().await?.contains(what) {
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    });
    said.await.with_context(|| what.to_owned())?
}

#[tokio::test]
async fn a_host_of_another_authority_is_believed_by_nobody_until_it_has_another_certificate()
-> Result<()> {
    let (cluster, other) = (Authority::new()?, Authority::new()?);
    let two = Two::set(
        |name| Ok(Some(other.tls(name)?)),
        |name| Ok(Some(cluster.tls(name)?)),
    )
    .await?;
    let held = two.asks().await?;
    for host in [&two.here, &two.owner] {
        until(host, "reason=\"trunk_certificate\"").await?;
    }
    let right = cluster.tls(two.here.name()?.as_str())?;
    two.is_mended_by(&two.here, Some(right), held).await
}

#[tokio::test]
async fn a_plain_sender_is_refused_until_both_are_accepted() -> Result<()> {
    let cluster = Authority::new()?;
    let two = Two::set(|_| Ok(None), |name| Ok(Some(cluster.tls(name)?))).await?;
    let held = two.asks().await?;
    until(&two.owner, "reason=\"trunk_plain\"").await?;
    let mut both = cluster.tls(two.owner.name()?.as_str())?;
    both.accept = Accepted::Both;
    two.is_mended_by(&two.owner, Some(both), held).await
}

#[tokio::test]
async fn a_sealed_sender_does_not_become_plain_by_itself_but_by_its_file() -> Result<()> {
    let cluster = Authority::new()?;
    let two = Two::set(|name| Ok(Some(cluster.tls(name)?)), |_| Ok(None)).await?;
    let held = two.asks().await?;
    until(&two.owner, "reason=\"trunk_sealed\"").await?;
    until(&two.here, "reason=\"trunk_handshake\"").await?;
    let mut plain = cluster.tls(two.here.name()?.as_str())?;
    plain.send = Sent::Plain;
    two.is_mended_by(&two.here, Some(plain), held).await
}

#[tokio::test]
async fn trunks_of_trusted_networks_are_plain() -> Result<()> {
    let cluster = Authority::new()?;
    let trusting = |name: &str| {
        let mut tls = cluster.tls(name)?;
        tls.plain = vec!["127.0.0.0/8".parse()?];
        Ok(Some(tls))
    };
    // The other one knows nothing of TLS at all.
    let two = Two::set(trusting, |_| Ok(None)).await?;
    let mut client = two.here.client(two.port).await?;
    ensure!(ask(&mut client, "x").await? == "one: x");
    let two = Two::set(|_| Ok(None), trusting).await?;
    let mut client = two.here.client(two.port).await?;
    ensure!(ask(&mut client, "x").await? == "one: x");
    Ok(())
}

/// Its certificate is of the cluster, and names another host.
#[tokio::test]
async fn a_host_speaks_only_for_itself() -> Result<()> {
    let cluster = Authority::new()?;
    let two = Two::set(
        |_| Ok(Some(cluster.tls("127.0.0.99")?)),
        |name| Ok(Some(cluster.tls(name)?)),
    )
    .await?;
    let held = two.asks().await?;
    until(&two.owner, "reason=\"trunk_sender\"").await?;
    let own = cluster.tls(two.here.name()?.as_str())?;
    two.is_mended_by(&two.here, Some(own), held).await?;

    // And so the other way: who answers is not who is meant.
    let two = Two::set(
        |name| Ok(Some(cluster.tls(name)?)),
        |_| Ok(Some(cluster.tls("127.0.0.99")?)),
    )
    .await?;
    let held = two.asks().await?;
    until(&two.here, "reason=\"trunk_certificate\"").await?;
    let own = cluster.tls(two.owner.name()?.as_str())?;
    two.is_mended_by(&two.owner, Some(own), held).await
}

/// It believes the owner, who does not believe it, and says so after the sender's handshake.
#[tokio::test]
async fn a_host_that_is_not_believed_says_so_itself() -> Result<()> {
    let (cluster, other) = (Authority::new()?, Authority::new()?);
    let two = Two::set(
        |name| {
            let mut tls = other.tls(name)?;
            (tls.files.ca, tls.ready) = (cluster.ca(), 4);
            Ok(Some(tls))
        },
        |name| Ok(Some(cluster.tls(name)?)),
    )
    .await?;
    let held = two.asks().await?;
    for host in [&two.here, &two.owner] {
        until(host, "reason=\"trunk_certificate\"").await?;
    }
    let right = cluster.tls(two.here.name()?.as_str())?;
    two.is_mended_by(&two.here, Some(right), held).await
}

#[tokio::test]
async fn a_certificate_of_another_host_is_an_error_where_the_file_names_this_one() -> Result<()> {
    let cluster = Authority::new()?;
    let of = |config: &mut ProxydConfig, tls| config.trunk.tls = Some(tls);
    for tls in [cluster.tls("127.0.0.99")?, cluster.common("127.0.0.99")?] {
        let started = Host::start_with(|config| of(config, tls)).await;
        let error = started.err().context("it has started")?;
        ensure!(format!("{error:#}").contains("127.0.0.99"), "{error:#}");
    }
    let host = Host::start().await?;
    let mut config = host.config.clone();
    of(&mut config, cluster.tls("127.0.0.99")?);
    ensure!(host.proxy.configure(&config).await.is_err());
    let name = host.name()?;
    of(&mut config, cluster.tls(name.as_str())?);
    host.proxy.configure(&config).await?;
    Ok(())
}

#[tokio::test]
async fn certificates_are_read_again_and_connections_go_on() -> Result<()> {
    let (old, new) = (Authority::new()?, Authority::new()?);
    let tls = |name: &str| Ok(Some(old.tls(name)?));
    let two = Two::set(tls, tls).await?;
    let mut before = two.here.client(two.port).await?;
    ensure!(ask(&mut before, "1").await? == "one: 1");
    // Files that are no certificates change nothing.
    let ca = old.ca();
    let right = std::fs::read(&ca)?;
    std::fs::write(&ca, "nonsense")?;
    ensure!(two.here.proxy.configure(&two.here.config).await.is_err());
    std::fs::write(&ca, right)?;
    for host in [&two.here, &two.owner] {
        let mut config = host.config.clone();
        config.trunk.tls = Some(new.tls(host.name()?.as_str())?);
        host.proxy.configure(&config).await?;
    }
    let mut after = two.here.client(two.port).await?;
    ensure!(ask(&mut after, "2").await? == "one: 2");
    ensure!(ask(&mut before, "3").await? == "one: 3");
    Ok(())
}

/// Whoever cuts the way cannot make it look like an end.
#[tokio::test]
async fn a_trunk_that_is_cut_off_without_a_word_is_a_reset() -> Result<()> {
    let cluster = Authority::new()?;
    let (listener, target) = raw().await?;
    let two = Two::set(
        |name| Ok(Some(cluster.tls(name)?)),
        |name| Ok(Some(cluster.tls(name)?)),
    )
    .await?;
    two.owner
        .open(&[&two.here], two.key, version(2, 0), target)
        .await?;
    // A way between them that ends like a plain connection does.
    let between = tokio::net::TcpListener::bind((two.owner.address, 0)).await?;
    let relay = rehome_shared::api::proxy::Target::Remote {
        host: two.owner.name()?,
        trunk: between.local_addr()?.to_string(),
    };
    two.here
        .open(&[&two.owner], two.key, version(2, 0), relay)
        .await?;
    let mut client = two.here.client(two.port).await?;
    let (mut near, _) = timeout(LIMIT, between.accept()).await??;
    let socket = TcpSocket::new_v4()?;
    socket.bind((two.here.address, 0).into())?;
    let mut far = socket.connect(two.owner.proxy.trunk_addr()).await?;
    let (cut, is_cut) = tokio::sync::oneshot::channel();
    let mut way = JoinSet::new();
    way.spawn(async move {
        // Nothing is on the way when it is cut.
        tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut near, &mut far) => drop(ended),
            cut = is_cut => drop(cut),
        }
        (near, far)
    });
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    client.write_all(b"question").await?;
    let mut question = [0; 8];
    timeout(LIMIT, server.read_exact(&mut question)).await??;
    server.write_all(b"half an ans").await?;
    let mut answer = [0; 11];
    timeout(LIMIT, client.read_exact(&mut answer)).await??;
    ensure!(cut.send(()).is_ok(), "the way has ended by itself");
    let (mut near, mut far) = way.join_next().await.context("no way")??;
    // Each side gets a polite end of TCP.
    near.shutdown().await?;
    far.shutdown().await?;
    for stream in [&mut client, &mut server] {
        let end = timeout(LIMIT, stream.read(&mut [0; 1])).await?;
        let kind = end.err().map(|error| error.kind());
        ensure!(
            kind == Some(std::io::ErrorKind::ConnectionReset),
            "{kind:?}"
        );
    }
    Ok(())
}

/// The parser behind TLS is the one of plain trunks, and as strict.
#[tokio::test]
async fn nonsense_is_turned_away_before_and_after_the_handshake() -> Result<()> {
    let cluster = Authority::new()?;
    let tls = |name: &str| Ok(Some(cluster.tls(name)?));
    let two = Two::set(tls, tls).await?;
    let connect = async || {
        let socket = TcpSocket::new_v4()?;
        socket.bind((two.here.address, 0).into())?;
        socket.connect(two.owner.proxy.trunk_addr()).await
    };
    for (bytes, reason) in [
        (b"\x16\x03\x01\x00\x05hello".as_slice(), "trunk_certificate"),
        (b"GET / HTTP/1.1\r\n\r\n", "trunk_plain"),
    ] {
        let mut stream = connect().await?;
        stream.write_all(bytes).await?;
        let mut rest = Vec::new();
        // An alert may come before the end.
        drop(timeout(LIMIT, stream.read_to_end(&mut rest)).await?);
        until(&two.owner, &format!("reason=\"{reason}\"")).await?;
    }
    // A header of a plain trunk, well made.
    let header = Header {
        client: "192.0.2.1:1".parse()?,
        destination: "192.0.2.2:2".parse()?,
        route: two.key,
        application: db(),
        hops: 0,
        sender: two.here.name()?,
        version: version(1, 0),
    };
    let mut stream = connect().await?;
    stream.write_all(&header.encode()).await?;
    let end = timeout(LIMIT, stream.read(&mut [0; 1])).await?;
    ensure!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    ensure!(two.app.accepted.load(Ordering::Relaxed) == 0);
    Ok(())
}
