//! Reaching an application: directly, or through the trunk of its host.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proxyd_core::announce;
use proxyd_core::retry;
use proxyd_core::table::Route;
use rehome_runtime::report::Report;
use rehome_shared::api::proxy::Announce;
use rehome_shared::ids::HostAddr;
use rehome_shared::trunk::{Answer, Decoded, FrameError, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};

use crate::book::Book;
use crate::book::connection::Connection;
use crate::context::Context;
use crate::fair;
use crate::leg::{Leg, Sealed};
use crate::metrics::Shed;
use crate::ready::Hop;
use crate::seal::Seal;
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
    #[error("{host} did not finish the handshake: it is down, or busy, or knows nothing of TLS")]
    Handshake {
        host: HostAddr,
        #[source]
        source: io::Error,
    },
    #[error("{host} and this host do not believe each other's certificates")]
    Certificate {
        host: HostAddr,
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

/// Connects to a trunk, sealed where it is to be, and says nothing.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn open(
    context: &Context,
    settings: &Settings,
    hop: &Hop,
) -> Result<Leg, DialError> {
    let source = own_address(context);
    let started = Instant::now();
    let patience = settings.trunk_connect;
    let attempt = async {
        let address = resolve(&hop.trunk).await?;
        let socket = connect(address, source, patience, &settings.timeouts).await?;
        Ok((address.ip(), socket))
    };
    let connected = fair::within(patience, attempt)
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    observe(&context.book, started, &connected);
    let (address, socket) = connected.map_err(|source| unreachable(hop, source))?;
    match settings.seal.as_ref().filter(|seal| seal.seals(address)) {
        None => Ok(socket.into()),
        Some(seal) => shake(seal, (socket, patience), hop).await.map(Leg::from),
    }
}

/// The same ahead of any client, which is no connect that one waited for: none, and no connect at
/// all, where it would be plain.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn open_ahead(
    context: &Context,
    settings: &Settings,
    hop: &Hop,
) -> Result<Option<Box<Sealed>>, DialError> {
    let Some(seal) = &settings.seal else {
        return Ok(None);
    };
    let source = own_address(context);
    let patience = settings.trunk_connect;
    let attempt = async {
        let address = resolve(&hop.trunk).await?;
        if !seal.seals(address.ip()) {
            return Ok(None);
        }
        let socket = connect(address, source, patience, &settings.timeouts).await?;
        Ok(Some(socket))
    };
    let connected = fair::within(patience, attempt)
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    match connected.map_err(|source| unreachable(hop, source))? {
        None => Ok(None),
        Some(socket) => shake(seal, (socket, patience), hop).await.map(Some),
    }
}

/// The other side knows its peers by address: leave from the one that it knows.
fn own_address(context: &Context) -> Option<IpAddr> {
    context.host().and_then(|own| own.as_str().parse().ok())
}

fn unreachable(hop: &Hop, source: io::Error) -> DialError {
    DialError::Connect {
        to: hop.trunk.clone(),
        source,
    }
}

async fn shake(
    seal: &Seal,
    (socket, patience): (TcpStream, Duration),
    hop: &Hop,
) -> Result<Box<Sealed>, DialError> {
    let sealed = fair::within(patience, seal.connect(socket, &hop.host)).await;
    let sealed = sealed.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    sealed.map_err(|source| {
        let host = hop.host.clone();
        if is_refusal(&source) {
            DialError::Certificate { host, source }
        } else {
            DialError::Handshake { host, source }
        }
    })
}

/// Whether it is about what one side says, and not about how it gets there.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// A trunk that broke. The owner judges this host's certificate after the handshake has ended here.
fn broken(host: &HostAddr, source: io::Error) -> DialError {
    if is_refusal(&source) {
        let host = host.clone();
        DialError::Certificate { host, source }
    } else {
        DialError::Broken(source)
    }
}

/// Connects to a trunk and sends the header. The answer comes when the owner's gate lets it.
///
/// # Cancel safety
/// Cancel safe: an unfinished header is refused by the other side.
pub(crate) async fn trunk(
    context: &Context,
    settings: &Settings,
    hop: &Hop,
    header: &Header,
) -> Result<Leg, DialError> {
    let mut leg = open(context, settings, hop).await?;
    send(settings, &mut leg, (&hop.host, header)).await?;
    Ok(leg)
}

/// Sends a header.
///
/// # Cancel safety
/// Not cancel safe: a part of it may be sent. Drop the connection with it.
pub(crate) async fn send(
    settings: &Settings,
    leg: &mut Leg,
    (host, header): (&HostAddr, &Header),
) -> Result<(), DialError> {
    let bytes = header.encode();
    let sent = async {
        leg.write_all(&bytes).await?;
        leg.flush().await
    };
    let sent = fair::within(settings.trunk_connect, sent).await;
    let sent = sent.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()));
    sent.map_err(|error| broken(host, leg.refusal().unwrap_or(error)))
}

/// Counts and logs what concerns more than one connection.
pub(crate) fn note(context: &Context, error: &DialError) {
    match error {
        DialError::Certificate { .. } => {
            let what = Report(error);
            context.book.metrics.shed_for(Shed::TrunkCertificate, &what);
        }
        DialError::Handshake { .. } => {
            let what = Report(error);
            context.book.metrics.shed_for(Shed::TrunkHandshake, &what);
        }
        DialError::Connect { .. } | DialError::Broken(_) | DialError::Answer(_) => {
            tracing::debug!(error = %Report(error), "trunk not reached");
        }
    }
}

/// Reads the answer and not one byte more.
///
/// # Cancel safety
/// Not cancel safe: what was read is lost. Drop the stream with it.
pub(crate) async fn answer(stream: &mut Leg, host: &HostAddr) -> Result<Answer, DialError> {
    let mut bytes = Vec::new();
    loop {
        match Answer::decode(&bytes).map_err(DialError::Answer)? {
            Decoded::Done(answer) => return Ok(answer),
            Decoded::Need(more) => {
                read_more(stream, &mut bytes, more)
                    .await
                    .map_err(|error| broken(host, error))?;
            }
        }
    }
}

/// Appends exactly `more` bytes. The decoders cap what they ask for.
pub(crate) async fn read_more(
    stream: &mut Leg,
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
