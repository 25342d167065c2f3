//! Ends that come while somebody does not read: what was said is not lost, and nobody waits for
//! ever. How connections end otherwise, by every way, is in `tests/tests/proxy/ends`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rehome_shared::api::proxy::RouteIntent;
use rehome_shared::config::daemon::ProxydConfig;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::app::raw;
use crate::host::{Host, LIMIT, drain_verb, free_port, prepare_verb, seal_hosts, tcp, version};

/// The way of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through a buffer, directly.
    Copied,
    /// Through pipes, directly.
    Spliced,
    /// Through buffers, over another host.
    Trunk,
    /// Through pipes, over another host.
    SplicedTrunk,
    /// Through buffers and TLS, over another host.
    SealedTrunk,
}

const WAYS: [Way; 5] = [
    Way::Copied,
    Way::Spliced,
    Way::Trunk,
    Way::SplicedTrunk,
    Way::SealedTrunk,
];

/// Enough that both directions take to pipes.
const BULK: usize = 4 << 20;

/// Hosts with one route, and the application behind it.
struct Stage {
    here: Host,
    owner: Option<Host>,
    application: TcpListener,
    port: u16,
    way: Way,
}

impl Stage {
    async fn set(way: Way) -> Result<Self> {
        Self::set_with(way, |_| {}).await
    }

    async fn set_with(way: Way, adjust: impl Fn(&mut ProxydConfig)) -> Result<Self> {
        if way == Way::SealedTrunk {
            seal_hosts()?;
        }
        let (here, port) = (Host::start_with(&adjust).await?, free_port().await?);
        let (application, target) = raw().await?;
        let open = |target| RouteIntent::Open(target);
        let owner = match way {
            Way::Copied | Way::Spliced => {
                here.set(&[], tcp(port)?, version(1, 0), open(target))
                    .await?;
                None
            }
            Way::Trunk | Way::SplicedTrunk | Way::SealedTrunk => {
                let owner = Host::start_with(&adjust).await?;
                let all = [&here, &owner];
                owner
                    .set(&all, tcp(port)?, version(1, 0), open(target))
                    .await?;
                let to = owner.as_target()?;
                here.set(&all, tcp(port)?, version(1, 0), open(to)).await?;
                Some(owner)
            }
        };
        Ok(Self {
            here,
            owner,
            application,
            port,
            way,
        })
    }

    /// Waits until nothing is relayed any more.
    async fn is_idle(&self) -> Result<()> {
        for host in [Some(&self.here), self.owner.as_ref()]
            .into_iter()
            .flatten()
        {
            host.wait(tcp(self.port)?, |route| route.active == 0)
                .await?;
        }
        Ok(())
    }

    /// A client and the application's side of its connection.
    async fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let mut client = self.here.client(self.port).await?;
        let (mut server, _) = timeout(LIMIT, self.application.accept()).await??;
        // An application that resets at once was not reached, and is tried again.
        carry(&mut client, &mut server, 1).await?;
        if self.way == Way::SealedTrunk {
            carry(&mut client, &mut server, BULK).await?;
            carry(&mut server, &mut client, BULK).await?;
        }
        if matches!(self.way, Way::Spliced | Way::SplicedTrunk) {
            carry(&mut client, &mut server, BULK).await?;
            carry(&mut server, &mut client, BULK).await?;
            let metrics = self.here.metrics().await?;
            let pipes = "rehome_proxy_pipe_bytes ";
            let held = metrics.lines().find_map(|line| line.strip_prefix(pipes));
            ensure!(
                held.is_some_and(|bytes| bytes != "0"),
                "nothing was spliced"
            );
        }
        Ok((client, server))
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(bytes).collect()
}

/// Sends so many bytes and checks that they come.
async fn carry(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> Result<()> {
    let sent = noise(bytes);
    let mut came = vec![0; bytes];
    let both = async { tokio::try_join!(from.write_all(&sent), to.read_exact(&mut came)) };
    timeout(LIMIT, both).await??;
    ensure!(came == sent, "the bytes are not those that were sent");
    Ok(())
}

fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// After a reset the other side sees an error, never a polite end.
async fn sees_reset(mut stream: TcpStream) -> Result<()> {
    let mut came = Vec::new();
    let ended = timeout(LIMIT, stream.read_to_end(&mut came)).await?;
    let kind = ended.err().map(|error| error.kind());
    ensure!(
        kind == Some(std::io::ErrorKind::ConnectionReset),
        "{kind:?}"
    );
    Ok(())
}

/// Writes until nothing is taken any more; returns how much was.
async fn fill(stream: &mut TcpStream) -> Result<usize> {
    let block = noise(1 << 16);
    let mut written = 0;
    loop {
        let next = block.get(written % block.len()..).unwrap_or_default();
        match timeout(Duration::from_millis(300), stream.write(next)).await {
            Ok(length) => written += length?,
            Err(_) => return Ok(written),
        }
    }
}

#[tokio::test]
async fn a_reset_is_noticed_though_the_other_side_does_not_read() -> Result<()> {
    for way in WAYS {
        let stage = Stage::set_with(way, |config| {
            config.timeouts.half_close = Duration::from_millis(500);
        })
        .await?;
        // The application does not read; its client resets.
        let (mut client, server) = stage.connect().await?;
        fill(&mut client).await?;
        reset(client)?;
        let broken = timeout(LIMIT, server.ready(Interest::ERROR)).await;
        broken.with_context(|| format!("{way:?}, the client's"))??;
        stage.is_idle().await?;
        // The client does not read; its application resets. What it had said is kept for a while.
        let (client, mut server) = stage.connect().await?;
        fill(&mut server).await?;
        reset(server)?;
        stage
            .is_idle()
            .await
            .with_context(|| format!("{way:?}, the application's"))?;
        sees_reset(client)
            .await
            .with_context(|| format!("{way:?}, the application's"))?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_said_before_a_reset_reaches_a_slow_reader() -> Result<()> {
    for way in [Way::Copied, Way::Spliced] {
        let stage = Stage::set(way).await?;
        let (mut client, mut server) = stage.connect().await?;
        let sent = fill(&mut server).await?;
        reset(server)?;
        // It reads after a while, for long, with pauses.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (mut came, mut piece) = (Vec::new(), vec![0; 1 << 18]);
        let end = loop {
            match timeout(LIMIT, client.read(&mut piece)).await? {
                Ok(0) => break None,
                Ok(length) => came.extend_from_slice(&piece[..length]),
                Err(error) => break Some(error.kind()),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        ensure!(
            end == Some(std::io::ErrorKind::ConnectionReset),
            "{way:?}: {end:?}"
        );
        // What the application's kernel had not sent is lost, by TCP itself; a reset may also
        // overtake what the proxy's kernel had not sent yet.
        ensure!(
            came.len() <= sent && noise_at(&came),
            "{way:?}: other bytes"
        );
        ensure!(!came.is_empty(), "{way:?}: nothing came");
    }
    Ok(())
}

/// Whether bytes are those of blocks of [`fill`], one after the other.
fn noise_at(came: &[u8]) -> bool {
    let block = noise(1 << 16);
    came.chunks(block.len())
        .all(|piece| block.starts_with(piece))
}

/// The application spoke last, and nothing has moved for long: yet the client is not idle.
#[tokio::test]
async fn a_drain_does_not_cut_off_what_a_slow_reader_has_not_read() -> Result<()> {
    for way in [Way::Copied, Way::Spliced] {
        let stage = Stage::set(way).await?;
        let (mut client, mut server) = stage.connect().await?;
        let sent = fill(&mut server).await?;
        stage
            .here
            .proxy
            .prepare(prepare_verb(version(1, 1)))
            .await?;
        let drain = drain_verb(version(1, 1), Duration::from_millis(600));
        let counts = stage.here.proxy.drain(drain).await?;
        ensure!((counts.active, counts.drained) == (1, 0), "{counts:?}");
        let mut came = vec![0; sent];
        timeout(LIMIT, client.read_exact(&mut came)).await??;
        ensure!(noise_at(&came), "{way:?}: other bytes");
        carry(&mut server, &mut client, 1).await?;
    }
    Ok(())
}
