//! Hosts among themselves: parked at the owner, moved, broken, refused.

use std::time::Duration;

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::{RouteIntent, Target};
use rehome_shared::ids::HostAddr;
use rehome_shared::trunk::{Answer, Decoded, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::App;
use crate::host::{
    Host, LIMIT, ask, commit_verb, db, drain_verb, free_port, gate_ref, prepare_verb, tcp,
    unused_address, version,
};

#[tokio::test]
pub(crate) async fn a_client_of_a_third_host_follows_the_application() -> Result<()> {
    let (here, source, destination) = (
        Host::start().await?,
        Host::start().await?,
        Host::start().await?,
    );
    let all = [&here, &source, &destination];
    let (old, new) = (App::start("old").await?, App::start("new").await?);
    let port = free_port().await?;
    let key = tcp(port)?;
    source.open(&all, key, version(1, 0), old.target()).await?;
    here.open(&all, key, version(1, 0), source.as_target()?)
        .await?;
    destination
        .open(&all, key, version(1, 0), source.as_target()?)
        .await?;
    let mut before = here.client(port).await?;
    ensure!(ask(&mut before, "x").await? == "old: x");
    drop(before);

    // Parked at the source, the owner: the client of the third host waits without knowing.
    source.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let mut waiting = JoinSet::new();
    for host in all {
        let mut client = host.client(port).await?;
        waiting.spawn(async move { ask(&mut client, "y").await });
    }
    source.wait(key, |status| status.parked == 3).await?;
    old.stop().await;
    // Only source and destination are told; the third host still leads to the source.
    destination
        .open(&all, key, version(2, 0), new.target())
        .await?;
    source
        .proxy
        .commit(commit_verb(key, version(2, 0), destination.as_target()?))
        .await?;
    while let Some(answer) = waiting.join_next().await {
        ensure!(answer?? == "new: y");
    }
    let mut straggler = here.client(port).await?;
    ensure!(ask(&mut straggler, "z").await? == "new: z");
    ensure!(
        source.status(key)?.from_trunk == 0,
        "the source relays for a third host"
    );
    let metrics = source.metrics().await?;
    ensure!(metrics.contains("result=\"moved\""), "{metrics}");
    Ok(())
}

#[tokio::test]
pub(crate) async fn a_destination_that_has_not_heard_yet_holds_instead_of_sending_back()
-> Result<()> {
    let (source, destination) = (Host::start().await?, Host::start().await?);
    let all = [&source, &destination];
    let (new, port) = (App::start("new").await?, free_port().await?);
    let key = tcp(port)?;
    destination
        .open(&all, key, version(1, 0), source.as_target()?)
        .await?;
    source
        .open(&all, key, version(2, 0), destination.as_target()?)
        .await?;
    let mut client = source.client(port).await?;
    destination.wait(key, |status| status.parked == 1).await?;
    destination
        .open(&all, key, version(2, 0), new.target())
        .await?;
    ensure!(ask(&mut client, "x").await? == "new: x");
    Ok(())
}

#[tokio::test]
pub(crate) async fn a_route_that_the_owner_learns_later_is_waited_for() -> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    let (key, other) = (tcp(port)?, tcp(free_port().await?)?);
    owner
        .set(&[&here], other, version(1, 0), RouteIntent::Park)
        .await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    let mut client = here.client(port).await?;
    owner
        .open(&[&here], key, version(1, 0), app.target())
        .await?;
    ensure!(ask(&mut client, "x").await? == "one: x");
    Ok(())
}

/// A trunk that the test speaks itself.
async fn next_header(listener: &TcpListener) -> Result<(TcpStream, Header)> {
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await??;
    let mut bytes = Vec::new();
    loop {
        match Header::decode(&bytes)? {
            Decoded::Done(header) => return Ok((stream, header)),
            Decoded::Need(more) => {
                let mut next = vec![0; more];
                timeout(LIMIT, stream.read_exact(&mut next)).await??;
                bytes.extend(next);
            }
        }
    }
}

#[tokio::test]
async fn a_trunk_that_breaks_before_its_answer_is_tried_again_without_loss() -> Result<()> {
    let (here, port) = (Host::start().await?, free_port().await?);
    let owner = TcpListener::bind((unused_address(), 0)).await?;
    let trunk = owner.local_addr()?.to_string();
    let target = Target::Remote {
        host: owner.local_addr()?.ip().to_string().parse()?,
        trunk,
    };
    here.open(&[], tcp(port)?, version(4, 2), target).await?;
    let mut client = here.client(port).await?;
    client.write_all(b"precious").await?;
    for _ in 0..3 {
        let (broken, header) = next_header(&owner).await?;
        ensure!(header.client == client.local_addr()? && header.version == version(4, 2));
        ensure!(header.sender == here.name()? && header.hops == 0);
        drop(broken);
    }
    let (mut stream, _) = next_header(&owner).await?;
    stream.write_all(&Answer::Connected.encode()).await?;
    let mut got = [0; 8];
    timeout(LIMIT, stream.read_exact(&mut got)).await??;
    ensure!(&got == b"precious");
    Ok(())
}

#[tokio::test]
async fn moved_is_followed_with_a_hop_more() -> Result<()> {
    let (here, port) = (Host::start().await?, free_port().await?);
    let (first, second) = (
        TcpListener::bind((unused_address(), 0)).await?,
        TcpListener::bind((unused_address(), 0)).await?,
    );
    let host = |listener: &TcpListener| -> Result<_> {
        Ok(listener.local_addr()?.ip().to_string().parse()?)
    };
    let trunk = first.local_addr()?.to_string();
    let target = Target::Remote {
        host: host(&first)?,
        trunk,
    };
    here.open(&[], tcp(port)?, version(1, 0), target).await?;
    let _client = here.client(port).await?;
    let (mut stream, _) = next_header(&first).await?;
    let trunk = second.local_addr()?.to_string();
    let moved = Answer::Moved {
        host: host(&second)?,
        trunk,
        version: version(2, 0),
    };
    stream.write_all(&moved.encode()).await?;
    let (_stream, header) = next_header(&second).await?;
    ensure!(
        (header.hops, header.version) == (1, version(2, 0)),
        "{header:?}"
    );
    Ok(())
}

#[tokio::test]
async fn strangers_and_nonsense_are_turned_away() -> Result<()> {
    let (owner, stranger) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    owner
        .open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    stranger
        .open(&[], tcp(port)?, version(1, 0), owner.as_target()?)
        .await?;
    let _client = stranger.client(port).await?;
    timeout(LIMIT, async {
        while !owner.metrics().await?.contains("reason=\"stranger\"") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    ensure!(app.accepted.load(std::sync::atomic::Ordering::Relaxed) == 0);

    let localhost = TcpListener::bind(("127.0.0.1", 0)).await?;
    drop(localhost);
    let peer = Host::start().await?;
    owner
        .set(
            &[&peer],
            tcp(port)?,
            version(1, 0),
            RouteIntent::Open(app.target()),
        )
        .await?;
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((peer.address, 0).into())?;
    let mut nonsense = socket.connect(owner.proxy.trunk_addr()).await?;
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let end = timeout(LIMIT, nonsense.read(&mut [0; 1])).await?;
    ensure!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    ensure!(owner.metrics().await?.contains("reason=\"header\"} 1"));
    Ok(())
}

/// All that a plain sender shows is its address.
#[tokio::test]
async fn a_plain_sender_has_not_the_name_of_another_address() -> Result<()> {
    let (owner, peer) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    let key = tcp(port)?;
    owner
        .open(&[&peer], key, version(1, 0), app.target())
        .await?;
    let says = async |sender: HostAddr| {
        let header = Header {
            client: "192.0.2.1:1".parse()?,
            destination: "192.0.2.2:2".parse()?,
            route: key,
            application: db(),
            hops: 0,
            sender,
            version: version(1, 0),
        };
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((peer.address, 0).into())?;
        let mut stream = socket.connect(owner.proxy.trunk_addr()).await?;
        stream.write_all(&header.encode()).await?;
        Ok::<_, anyhow::Error>(timeout(LIMIT, stream.read_u8()).await?)
    };
    ensure!(says("127.0.0.1".parse()?).await?.is_err());
    ensure!(app.accepted.load(std::sync::atomic::Ordering::Relaxed) == 0);
    ensure!(
        owner
            .metrics()
            .await?
            .contains("reason=\"trunk_sender\"} 1")
    );
    ensure!(says(peer.name()?).await?.is_ok());
    // A name says nothing of where it is.
    ensure!(says("peer.example".parse()?).await?.is_ok());
    Ok(())
}

#[tokio::test]
pub(crate) async fn an_owner_that_is_frozen_cuts_the_clients_of_other_hosts() -> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    let key = tcp(port)?;
    owner
        .open(&[&here], key, version(1, 0), app.target())
        .await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    let mut client = here.client(port).await?;
    ensure!(ask(&mut client, "x").await? == "one: x");
    owner.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let counts = owner.proxy.freeze(gate_ref(version(1, 1))).await?;
    ensure!((counts.active, counts.cut) == (0, 1), "{counts:?}");
    let end = timeout(LIMIT, client.read_u8())
        .await?
        .err()
        .map(|error| error.kind());
    ensure!(end == Some(std::io::ErrorKind::ConnectionReset), "{end:?}");
    Ok(())
}

#[tokio::test]
pub(crate) async fn a_client_of_another_host_that_goes_away_while_parked_is_forgotten_there()
-> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    let key = tcp(port)?;
    owner
        .open(&[&here], key, version(1, 0), app.target())
        .await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    owner.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let client = here.client(port).await?;
    owner.wait(key, |status| status.parked == 1).await?;
    drop(client);
    owner.wait(key, |status| status.parked == 0).await?;
    Ok(())
}

#[tokio::test]
pub(crate) async fn an_owner_that_drains_says_goodbye_to_idle_clients_of_other_hosts() -> Result<()>
{
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("one").await?, free_port().await?);
    let key = tcp(port)?;
    owner
        .open(&[&here], key, version(1, 0), app.target())
        .await?;
    here.open(&[], key, version(1, 0), owner.as_target()?)
        .await?;
    let mut client = here.client(port).await?;
    ensure!(ask(&mut client, "x").await? == "one: x");
    owner.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let goodbye = async {
        ensure!(
            timeout(LIMIT, client.read(&mut [0; 1])).await?? == 0,
            "bytes, not an end"
        );
        drop(client);
        Ok(())
    };
    let drain = owner.proxy.drain(drain_verb(version(1, 1), LIMIT));
    let (counts, gone) = tokio::join!(drain, goodbye);
    gone?;
    let counts = counts?;
    ensure!(
        (counts.active, counts.drained, counts.cut) == (0, 1, 0),
        "{counts:?}"
    );
    Ok(())
}
