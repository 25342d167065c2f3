//! Clients that a proxy in front announces, and applications that are told of theirs.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxyd_core::announce::{Announced, LONGEST, Seen, header, look};
use rehome_shared::api::proxy::{Announce, ConnectionInfo, Content, ParkLimits, RouteIntent};
use rehome_shared::config::daemon::{AcceptProxy, ProxydConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::app::{App, raw};
use crate::host::{Host, LIMIT, ask, commit_verb, file_route, free_port, read_line, tcp, version};

/// Clients of the tests connect from here unless they bind to another address.
const BALANCER: &str = "127.0.0.1";

pub(crate) const CLIENT: &str = "192.0.2.7:4242";

/// A host that believes the balancer.
async fn behind_balancer(adjust: impl FnOnce(&mut ProxydConfig)) -> Result<Host> {
    let network = BALANCER.parse()?;
    Host::start_with(|config| {
        config.proxy_protocol.accept_from = vec![network];
        // A test waits for nothing that only comes when a machine is busy.
        config.proxy_protocol.header_timeout = LIMIT;
        adjust(config);
    })
    .await
}

/// The header of version 2 that announces [`CLIENT`].
pub(crate) fn announcement() -> Result<Vec<u8>> {
    Ok(header(CLIENT.parse()?, "198.51.100.1:443".parse()?))
}

/// Reads a header, and not a byte more.
pub(crate) async fn told(stream: &mut TcpStream) -> Result<Announced> {
    let mut bytes = Vec::new();
    loop {
        if let Seen::Whole { announced, .. } = look(&bytes)? {
            return Ok(announced);
        }
        bytes.push(timeout(LIMIT, stream.read_u8()).await??);
    }
}

fn is_the_client(announced: Announced) -> bool {
    matches!(announced, Announced::Client { client, destination }
        if client.to_string() == CLIENT && destination.to_string() == "198.51.100.1:443")
}

/// Waits until there is exactly one connection.
async fn one(host: &Host) -> Result<ConnectionInfo> {
    let found = timeout(LIMIT, async {
        loop {
            let mut all = host.proxy.connections(None).connections;
            if all.len() == 1 {
                return all.pop();
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    found.await?.context("none")
}

async fn until_metrics_say(host: &Host, what: &str) -> Result<()> {
    let said = timeout(LIMIT, async {
        while !host.metrics().await?.contains(what) {
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    });
    said.await.with_context(|| what.to_owned())?
}

/// It is reset: what it gets is no answer.
async fn is_turned_away(client: &mut TcpStream) -> Result<()> {
    let read = timeout(LIMIT, client.read(&mut [0; 1])).await?;
    let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    ensure!(read.as_ref().is_err_and(reset), "{read:?}");
    Ok(())
}

/// [`announcement`] with a field that fills it to the longest that is taken.
fn long_announcement() -> Result<Vec<u8>> {
    let short = announcement()?;
    let (fixed, addresses) = short.split_at(16);
    let (what, _length) = fixed.split_at(14);
    let body = u16::try_from(LONGEST - 16)?.to_be_bytes();
    let field = u16::try_from(LONGEST - short.len() - 3)?.to_be_bytes();
    let mut header = [what, &body, addresses, &[0x04], &field].concat();
    header.resize(LONGEST, 0);
    Ok(header)
}

#[tokio::test]
async fn what_follows_the_header_goes_over_byte_by_byte_however_it_comes() -> Result<()> {
    let (listener, _) = raw().await?;
    let port = free_port().await?;
    let backend = listener.local_addr()?;
    let host = behind_balancer(|config| config.routes = vec![file_route(port, backend)]).await?;
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n".to_vec();
    let bytes: Vec<u8> = (0..5000).map(|n: u32| n.to_le_bytes()[0]).collect();
    for (header, piece) in [
        (v1.clone(), usize::MAX),
        (v1, 1),
        (announcement()?, usize::MAX),
        (announcement()?, 1),
        (announcement()?, 20),
        (long_announcement()?, usize::MAX),
        (long_announcement()?, 90),
    ] {
        let mut client = host.client(port).await?;
        client.set_nodelay(true)?;
        let all = [header.as_slice(), &bytes].concat();
        let (slow, rest) = all.split_at(if piece > 100 { 0 } else { header.len() + 3 });
        for piece in slow.chunks(piece) {
            client.write_all(piece).await?;
            // Each in a segment of its own.
            tokio::task::yield_now().await;
        }
        client.write_all(rest).await?;
        client.shutdown().await?;
        let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
        let mut got = Vec::new();
        timeout(LIMIT, server.read_to_end(&mut got)).await??;
        ensure!(got == bytes, "{} bytes of {}", got.len(), bytes.len());
        ensure!(one(&host).await?.client.to_string() == CLIENT);
        server.write_all(b"bye").await?;
        drop(server);
        let mut bye = Vec::new();
        timeout(LIMIT, client.read_to_end(&mut bye)).await??;
        ensure!(bye == b"bye");
    }
    Ok(())
}

/// No byte of the client is needed: its application may speak first.
#[tokio::test]
async fn an_application_that_speaks_first_is_told_who_the_client_is() -> Result<()> {
    let (listener, _) = raw().await?;
    let port = free_port().await?;
    let mut route = file_route(port, listener.local_addr()?);
    route.send_proxy = Announce::ProxyV2;
    let host = behind_balancer(|config| config.routes = vec![route]).await?;
    let mut client = host.client(port).await?;
    client.write_all(&announcement()?).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    ensure!(is_the_client(told(&mut server).await?));
    server.write_all(b"welcome\n").await?;
    ensure!(read_line(&mut client).await? == "welcome");
    client.write_all(b"x").await?;
    ensure!(timeout(LIMIT, server.read_u8()).await?? == b'x');
    let seen = one(&host).await?;
    // The header is nobody's traffic.
    ensure!((seen.bytes_in, seen.bytes_out) == (1, 8), "{seen:?}");

    // A client of its own is announced by its own address.
    let socket = TcpSocket::new_v4()?;
    socket.bind((host.address, 0).into())?;
    let client = socket.connect((host.address, port).into()).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    let own = Announced::Client {
        client: client.local_addr()?,
        destination: client.peer_addr()?,
    };
    ensure!(told(&mut server).await? == own);
    Ok(())
}

#[tokio::test]
async fn who_is_listed_and_announces_nobody_is_refused_and_counted() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = behind_balancer(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let mut plain = host.client(port).await?;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    is_turned_away(&mut plain).await?;
    until_metrics_say(&host, "result=\"proxy_header\"} 1").await?;
    until_metrics_say(&host, "proxy_shed_total{reason=\"proxy_header\"} 1").await?;
    // In the middle of a header, and before one: a look at the port is no fault.
    let mut half = host.client(port).await?;
    half.write_all(b"PROXY TCP4 192.").await?;
    half.shutdown().await?;
    is_turned_away(&mut half).await?;
    drop(host.client(port).await?);
    until_metrics_say(&host, "result=\"client_gone\"} 2").await?;
    ensure!(app.accepted.load(std::sync::atomic::Ordering::Relaxed) == 0);
    // Whoever is not listed is a client, whatever it says.
    let socket = TcpSocket::new_v4()?;
    socket.bind((host.address, 0).into())?;
    let mut other = socket.connect((host.address, port).into()).await?;
    ensure!(ask(&mut other, "PROXY UNKNOWN").await? == "a: PROXY UNKNOWN");
    ensure!(host.proxy.connections(None).total == 1);
    Ok(())
}

#[tokio::test]
async fn a_header_that_does_not_come_in_time_ends_the_connection() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = behind_balancer(|config| {
        config.proxy_protocol.header_timeout = Duration::from_millis(200);
        config.routes = vec![file_route(port, app.addr)];
    })
    .await?;
    let mut silent = host.client(port).await?;
    let mut half = host.client(port).await?;
    half.write_all(&announcement()?[..20]).await?;
    for client in [&mut silent, &mut half] {
        is_turned_away(client).await?;
    }
    until_metrics_say(&host, "result=\"proxy_header_timeout\"} 2").await?;
    Ok(())
}

#[tokio::test]
async fn a_route_that_expects_no_header_passes_one_on() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let mut route = file_route(port, app.addr);
    route.accept_proxy = AcceptProxy::Off;
    let host = behind_balancer(|config| config.routes = vec![route]).await?;
    let mut client = host.client(port).await?;
    ensure!(
        ask(&mut client, "PROXY UNKNOWN\r")
            .await?
            .starts_with("a: PROXY")
    );
    ensure!(one(&host).await?.client == client.local_addr()?);
    Ok(())
}

#[tokio::test]
async fn who_announces_nobody_is_the_client_itself() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = behind_balancer(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".as_slice();
    for header in [local, b"PROXY UNKNOWN\r\n"] {
        let mut client = host.client(port).await?;
        client.write_all(header).await?;
        ensure!(ask(&mut client, "x").await? == "a: x");
        ensure!(one(&host).await?.client == client.local_addr()?);
        drop(client);
    }
    Ok(())
}

#[tokio::test]
async fn places_of_addresses_are_those_of_the_announced_ones() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = behind_balancer(|config| {
        config.limits.per_source = NonZeroU32::new(1);
        config.routes = vec![file_route(port, app.addr)];
    })
    .await?;
    let announced = async |client: &str| {
        let mut stream = host.client(port).await?;
        let header = header(client.parse()?, SocketAddr::from((host.address, port)));
        stream.write_all(&header).await?;
        anyhow::Ok(stream)
    };
    let mut first = announced("192.0.2.1:1").await?;
    let mut second = announced("192.0.2.2:1").await?;
    ensure!(ask(&mut first, "1").await? == "a: 1" && ask(&mut second, "2").await? == "a: 2");
    let mut third = announced("192.0.2.2:2").await?;
    is_turned_away(&mut third).await?;
    until_metrics_say(&host, "reason=\"source\"").await?;
    Ok(())
}

#[tokio::test]
async fn who_is_not_announced_yet_has_a_place_of_those_that_are_held() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = behind_balancer(|_| {}).await?;
    let limits = ParkLimits {
        park_limit: 2,
        park_timeout: LIMIT,
    };
    let open = RouteIntent::Open(app.target());
    host.set_limited(&[], tcp(port)?, version(1, 0), open, limits)
        .await?;
    let (silent, mut late) = (host.client(port).await?, host.client(port).await?);
    let mut beyond = host.client(port).await?;
    beyond.write_all(&announcement()?).await?;
    beyond.write_all(b"x\n").await?;
    until_metrics_say(&host, "reason=\"route_parked\"").await?;
    ensure!(host.proxy.connections(None).total == 0);
    late.write_all(&announcement()?).await?;
    ensure!(ask(&mut late, "y").await? == "a: y");
    ensure!(read_line(&mut beyond).await? == "a: x");
    drop(silent);
    Ok(())
}

#[tokio::test]
async fn a_parked_client_and_its_application_know_the_announced_address() -> Result<()> {
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    let key = tcp(port)?;
    let mut host = behind_balancer(|_| {}).await?;
    host.announce = Announce::ProxyV2;
    host.set(&[], key, version(1, 0), RouteIntent::Park).await?;
    let mut client = host.client(port).await?;
    client.write_all(&announcement()?).await?;
    client.write_all(b"question").await?;
    host.wait(key, |status| status.parked == 1).await?;
    let parked = one(&host).await?;
    ensure!(parked.client.to_string() == CLIENT && parked.state == "parked");
    host.proxy
        .commit(commit_verb(key, version(1, 1), target))
        .await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    ensure!(is_the_client(told(&mut server).await?));
    let mut question = [0; 8];
    timeout(LIMIT, server.read_exact(&mut question)).await??;
    ensure!(&question == b"question");
    Ok(())
}

#[tokio::test]
pub(crate) async fn the_owner_tells_its_application_who_the_client_of_another_host_is() -> Result<()>
{
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    let key = tcp(port)?;
    let here = behind_balancer(|_| {}).await?;
    let mut owner = Host::start().await?;
    owner.announce = Announce::ProxyV2;
    owner.open(&[&here], key, version(1, 0), target).await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    let mut client = here.client(port).await?;
    client.write_all(&announcement()?).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    ensure!(is_the_client(told(&mut server).await?));
    ensure!(one(&owner).await?.client.to_string() == CLIENT);
    // And one of its own address.
    let socket = TcpSocket::new_v4()?;
    socket.bind((here.address, 0).into())?;
    let client = socket.connect((here.address, port).into()).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    let own = Announced::Client {
        client: client.local_addr()?,
        destination: client.peer_addr()?,
    };
    ensure!(told(&mut server).await? == own);
    Ok(())
}

#[tokio::test]
async fn every_connection_for_requests_of_a_client_is_announced() -> Result<()> {
    let ((old, to_old), (new, to_new)) = (raw().await?, raw().await?);
    let port = free_port().await?;
    let key = tcp(port)?;
    let mut host = Host::start_http().await?;
    host.announce = Announce::ProxyV2;
    host.open(&[], key, version(1, 0), to_old).await?;
    let mut client = host.client(port).await?;
    for listener in [&old, &new] {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await?;
        let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
        let Announced::Client { client: who, .. } = told(&mut server).await? else {
            anyhow::bail!("nobody");
        };
        ensure!(who == client.local_addr()?);
        let mut request = [0; 27];
        timeout(LIMIT, server.read_exact(&mut request)).await??;
        ensure!(request.starts_with(b"GET / "));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        server.write_all(answer).await?;
        let mut got = vec![0; answer.len()];
        timeout(LIMIT, client.read_exact(&mut got)).await??;
        host.wait(key, |status| status.resting == 1).await?;
        host.open(&[], key, version(1, 1), to_new.clone()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn clients_whose_requests_are_followed_are_announced_too() -> Result<()> {
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    let mut host = behind_balancer(|_| {}).await?;
    host.content = Content::Http;
    host.open(&[], tcp(port)?, version(1, 0), target).await?;
    let mut client = host.client(port).await?;
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    client.write_all(&announcement()?).await?;
    client.write_all(request).await?;
    let (mut server, _) = timeout(LIMIT, listener.accept()).await??;
    let mut got = vec![0; request.len()];
    timeout(LIMIT, server.read_exact(&mut got)).await??;
    ensure!(got == request);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    server.write_all(answer).await?;
    let mut got = vec![0; answer.len()];
    timeout(LIMIT, client.read_exact(&mut got)).await??;
    let seen = one(&host).await?;
    ensure!(got == answer && seen.client.to_string() == CLIENT);
    Ok(())
}

#[tokio::test]
async fn a_reload_changes_who_is_believed() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = Host::start_with(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let mut before = host.client(port).await?;
    ensure!(ask(&mut before, "x").await? == "a: x");
    let mut config = host.config.clone();
    config.proxy_protocol.accept_from = vec!["127.0.0.0/8".parse()?];
    config.proxy_protocol.header_timeout = LIMIT;
    host.proxy.configure(&config).await?;
    ensure!(ask(&mut before, "y").await? == "a: y");
    let mut announced = host.client(port).await?;
    announced.write_all(&announcement()?).await?;
    ensure!(ask(&mut announced, "z").await? == "a: z");
    let shown = host.proxy.connections(None).connections;
    ensure!(shown.iter().any(|seen| seen.client.to_string() == CLIENT));
    host.proxy.configure(&host.config).await?;
    let mut after = host.client(port).await?;
    ensure!(ask(&mut after, "w").await? == "a: w");
    Ok(())
}

#[tokio::test]
async fn a_proxy_stops_though_clients_are_not_announced() -> Result<()> {
    let (app, port) = (App::start("a").await?, free_port().await?);
    let host = behind_balancer(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let mut client = host.client(port).await?;
    client.write_all(b"PROXY ").await?;
    host.stop().await?;
    is_turned_away(&mut client).await
}
