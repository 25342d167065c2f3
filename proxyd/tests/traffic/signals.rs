//! Timeouts, early answers, backpressure. How connections end is in `tests/tests/proxy/ends`.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::config::daemon::ProxydTimeouts;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::app::raw;
use crate::host::{Host, LIMIT, free_port, tcp, version};

/// A client and its application's side.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    key: RouteKey,
    _listener: TcpListener,
    here: Host,
}

async fn pair() -> Result<Pair> {
    let here = Host::start().await?;
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    let key = tcp(port)?;
    here.open(&[], key, version(1, 0), target).await?;
    let client = here.client(port).await?;
    let (server, _) = timeout(LIMIT, listener.accept()).await??;
    // A server that resets before the proxy has seen the connect is one that is not there yet.
    here.wait(key, |status| status.active == 1).await?;
    Ok(Pair {
        client,
        server,
        key,
        _listener: listener,
        here,
    })
}

async fn read_all(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut got = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut got)).await??;
    Ok(got)
}

async fn next_error(stream: &mut TcpStream) -> Result<ErrorKind> {
    let read = timeout(LIMIT, stream.read_u8()).await?;
    Ok(read.err().context("a byte instead of an error")?.kind())
}

#[tokio::test]
async fn what_a_server_said_before_it_hung_up_still_arrives() -> Result<()> {
    let Pair {
        mut client,
        server,
        here,
        key,
        ..
    } = pair().await?;
    // The server answers early and closes without reading what the client sent.
    client.write_all(&[7; 4096]).await?;
    let mut server = server;
    timeout(LIMIT, server.readable()).await??;
    server.write_all(b"413 too large").await?;
    drop(server);
    let mut got = vec![0; 13];
    timeout(LIMIT, client.read_exact(&mut got)).await??;
    ensure!(got == b"413 too large");
    here.wait(key, |status| status.active == 0).await?;
    Ok(())
}

#[tokio::test]
async fn a_silent_half_closed_connection_ends_with_a_reset() -> Result<()> {
    let host = Host::start_with(|config| {
        config.timeouts = ProxydTimeouts {
            half_close: Duration::from_millis(150),
            ..ProxydTimeouts::default()
        };
    })
    .await?;
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    host.open(&[], tcp(port)?, version(1, 0), target).await?;
    let mut client = host.client(port).await?;
    let (_server, _) = listener.accept().await?;
    client.shutdown().await?;
    let error = next_error(&mut client).await?;
    ensure!(error == ErrorKind::ConnectionReset, "{error:?}");
    let metrics = host.metrics().await?;
    ensure!(
        metrics.contains("result=\"half_close_timeout\"} 1"),
        "{metrics}"
    );
    Ok(())
}

#[tokio::test]
async fn an_idle_connection_ends_when_an_idle_timeout_is_set() -> Result<()> {
    let host = Host::start_with(|config| {
        config.timeouts.idle = Some(Duration::from_millis(150));
    })
    .await?;
    let (listener, target) = raw().await?;
    let port = free_port().await?;
    host.open(&[], tcp(port)?, version(1, 0), target).await?;
    let mut client = host.client(port).await?;
    let (_server, _) = listener.accept().await?;
    ensure!(read_all(&mut client).await?.is_empty());
    Ok(())
}

/// Far more than the kernel buffers on two legs for somebody who does not read.
const SENT: usize = 64 << 20;

#[tokio::test]
async fn a_slow_reader_stops_the_writer_instead_of_growing_memory() -> Result<()> {
    let Pair {
        mut client,
        mut server,
        here,
        key,
        ..
    } = pair().await?;
    let block = vec![42_u8; 1 << 16];
    let mut written = 0;
    // Write until nothing is taken any more.
    while let Ok(length) = timeout(Duration::from_millis(500), server.write(&block)).await {
        written += length?;
        ensure!(
            written < SENT / 2,
            "{written} bytes were taken and nobody reads"
        );
    }
    ensure!(here.proxy.connections(Some(key)).connections[0].bytes_out < u64::try_from(SENT / 2)?);
    // Then everything arrives all the same.
    let writer = async {
        let mut left = SENT - written;
        while left > 0 {
            let length = left.min(block.len());
            server.write_all(&block[..length]).await?;
            left -= length;
        }
        server.shutdown().await?;
        anyhow::Ok(())
    };
    let reader = async {
        let mut got = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match client.read(&mut buffer).await? {
                0 => return anyhow::Ok(got),
                length => {
                    ensure!(buffer[..length].iter().all(|byte| *byte == 42));
                    got += length;
                }
            }
        }
    };
    let ((), got) = timeout(LIMIT, async { tokio::try_join!(writer, reader) }).await??;
    ensure!(got == SENT, "{got}");
    Ok(())
}
