//! Reaching an application: directly, or through the trunk of its host.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proxyd_core::announce;
use proxyd_core::retry;
use proxyd_core::table::Route;
use rehome_shared::api::proxy::Announce;
use rehome_shared::trunk::{Answer, Decoded, FrameError, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};

use crate::book::Book;
use crate::book::connection::Connection;
use crate::fair;
use crate::metrics::Shed;
use crate::settings::Settings;
use crate::socket::connect;

/// A trunk connection that did not come to an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot reach {to}")]
    Connect {
        to: String,
        #[source]
        source: io::Error,
    },
    #[error("the trunk broke before its answer")]
    Broken(#[source] io::Error),
    #[error("the answer is none")]
    Answer(#[source] FrameError),
}

/// Connects to an application of this host.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn local(
    book: &Book,
    settings: &Settings,
    to: SocketAddr,
    failures: u32,
    longest: Duration,
) -> io::Result<TcpStream> {
    let started = Instant::now();
    let patience = retry::patience(failures, longest);
    let result = connect(to, None, patience, &settings.timeouts).await;
    observe(book, started, &result);
    result
}

/// Tells an application of this host who its client is, where it wants to be told; false when it
/// could not be: it is gone already, and as if it had not been reached. The few bytes find room in a
/// socket that has just been connected, so this waits for nothing.
pub(crate) fn introduce(connection: &Connection, upstream: &TcpStream, by: &Route) -> bool {
    if by.announce == Announce::Nothing {
        return true;
    }
    let header = announce::header(connection.client, connection.destination);
    upstream
        .try_write(&header)
        .is_ok_and(|sent| sent == header.len())
}

/// Connects to a trunk and sends the header. The answer comes when the owner's gate lets it.
///
/// # Cancel safety
/// Cancel safe: an unfinished header is refused by the other side.
pub(crate) async fn trunk(
    book: &Book,
    settings: &Settings,
    to: &str,
    header: &Header,
) -> Result<TcpStream, DialError> {
    // The other side knows its peers by address: leave from the one that it knows.
    let source = header.sender.as_str().parse().ok();
    let started = Instant::now();
    let attempt = async {
        let address = resolve(to).await?;
        let patience = settings.trunk_connect;
        let mut stream = connect(address, source, patience, &settings.timeouts).await?;
        stream.write_all(&header.encode()).await?;
        Ok(stream)
    };
    let result = fair::within(settings.trunk_connect, attempt)
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    observe(book, started, &result);
    result.map_err(|source| DialError::Connect {
        to: to.to_owned(),
        source,
    })
}

/// Reads the answer and not one byte more.
///
/// # Cancel safety
/// Not cancel safe: what was read is lost. Drop the stream with it.
pub(crate) async fn answer(stream: &mut TcpStream) -> Result<Answer, DialError> {
    let mut bytes = Vec::new();
    loop {
        match Answer::decode(&bytes).map_err(DialError::Answer)? {
            Decoded::Done(answer) => return Ok(answer),
            Decoded::Need(more) => {
                read_more(stream, &mut bytes, more)
                    .await
                    .map_err(DialError::Broken)?;
            }
        }
    }
}

/// Appends exactly `more` bytes. The decoders cap what they ask for.
pub(crate) async fn read_more(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    more: usize,
) -> io::Result<()> {
    let have = bytes.len();
    bytes.resize(have.saturating_add(more), 0);
    let space = bytes.get_mut(have..).unwrap_or_default();
    stream.read_exact(space).await.map(|_| ())
}

async fn resolve(to: &str) -> io::Result<SocketAddr> {
    if let Ok(address) = to.parse() {
        return Ok(address);
    }
    let mut found = lookup_host(to).await?;
    found.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn observe<T>(book: &Book, started: Instant, result: &io::Result<T>) {
    match result {
        Ok(_) => book
            .metrics
            .connect_seconds
            .observe(started.elapsed().as_secs_f64()),
        // A want of this machine is counted as such.
        Err(error) if Shed::shortage(error).is_some() => {}
        Err(_) => {
            book.metrics.connect_failures.inc();
        }
    }
}
