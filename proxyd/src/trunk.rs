//! Connections that other hosts' proxies send here.
//!
//! Only peers are heard, and only for a bounded time until their header is there. Then a trunk
//! connection is one like any other: the same line, gate and limits, and an answer before the
//! first byte.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::way::Arrival;
use rehome_runtime::report::Report;
use rehome_runtime::tls::PeerIdentity;
use rehome_shared::trunk::{Answer, Decoded, Header, Refusal};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

use crate::accept::accept;
use crate::book::held::Held;
use crate::book::{NotAdmitted, Origin};
use crate::context::Context;
use crate::course::Course;
use crate::dial::read_more;
use crate::fair;
use crate::leg::Leg;
use crate::metrics::Shed;
use crate::ready::KEPT;
use crate::seal::{self, NotTaken};
use crate::serve::{answer, serve};
use crate::socket::reset_on_drop;
use crate::udp;

/// The most that a header may take to arrive.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Trunk connections whose header is not there yet; more wait in the kernel.
const GREETED_AT_ONCE: usize = 1024;
/// Trunk connections that wait for a route that this host does not know; more are sent back
/// and come again.
const UNKNOWN_AT_ONCE: usize = 1024;

/// Sealed connections that other hosts keep ready here; more are closed, and opened when they are
/// needed.
const READY_AT_ONCE: usize = 4096;
/// How long each may stay so: longer than the other side keeps it.
const READY_TIME: Duration = KEPT.saturating_mul(2);

/// How many may wait for what.
#[derive(Debug)]
struct Limits {
    unknown: Semaphore,
    ready: Semaphore,
}

/// Accepts trunk connections until the stop.
///
/// # Cancel safety
/// Dropping it stops accepting; connections go on.
pub(crate) async fn run(context: Context, listener: Arc<TcpListener>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(GREETED_AT_ONCE));
    let limits = Arc::new(Limits {
        unknown: Semaphore::new(UNKNOWN_AT_ONCE),
        ready: Semaphore::new(READY_AT_ONCE),
    });
    let work = async {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let (stream, peer) = accept(&context.book.metrics, &listener).await;
            if !context.peers.contains(peer.ip()) {
                tracing::debug!(peer.addr = %peer, "a trunk connection from a stranger");
                context.book.metrics.shed(Shed::Stranger);
                reset_on_drop(&stream);
                continue;
            }
            let span = tracing::debug_span!("trunk", peer.addr = %peer);
            // From here on, not from when its task runs first: a handover waits for it.
            let arriving = context.handover.arriving();
            let limits = (permit, Arc::clone(&limits));
            let ends = (arriving, stop.clone());
            let task = greet(context.clone(), (stream, peer.ip()), limits, ends);
            let task = task.instrument(span);
            context.connections.spawn_light("trunk connection", task);
        }
    };
    stop.run_until_cancelled(work).await;
}

fn greet(
    context: Context,
    stream: (TcpStream, IpAddr),
    (permit, limits): (OwnedSemaphorePermit, Arc<Limits>),
    (arriving, stop): (TaskTrackerToken, CancellationToken),
) -> Course {
    Course::of(async move {
        // A sender whose header is not read, or not answered, comes again, to whoever listens
        // then; so does one that sends datagrams.
        let taken_in = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            taken_in = take_in(&context, stream, permit, &limits) => taken_in,
        };
        drop(arriving);
        let (held, stream) = taken_in?;
        Some(serve(context, held, stream))
    })
}

/// Finds out who sends, reads the header and takes the connection in. None, when it is over or was
/// served.
async fn take_in(
    context: &Context,
    stream: (TcpStream, IpAddr),
    permit: OwnedSemaphorePermit,
    limits: &Limits,
) -> Option<(Held, Leg)> {
    let (mut stream, peer) = open(context, stream).await?;
    drop(permit);
    let _idle = is_asked(&stream, limits).await?;
    let header = read_header(context, &mut stream).await?;
    if !may_speak(context, &header, peer.as_ref()) {
        stream.reset_on_drop();
        return None;
    }
    let mut waits = None;
    let until = Instant::now() + context.settings().unknown_route;
    let mut news = None;
    let arrival = Arrival {
        application: header.application.clone(),
        known: header.version,
        hops: header.hops,
    };
    if header.route.is_udp() {
        udp::from_trunk(context, stream, &header, &arrival).await;
        return None;
    }
    loop {
        let origin = Origin::Trunk(Box::new(arrival.clone()));
        let book = &context.book;
        match book.admit(header.route, header.client, header.destination, origin) {
            Ok(held) => return Some((held, stream)),
            Err(NotAdmitted::Full(full)) => {
                book.metrics.shed(Shed::Limit(full));
                let _sent = answer(&mut stream, &Answer::Refused(Refusal::Full)).await;
                return None;
            }
            // The sender may have heard of a route before this host does.
            Err(NotAdmitted::NoRoute) => {
                let Some(news) = &mut news else {
                    // It may have come before there was somebody to hear of it.
                    news = Some(book.news(header.route));
                    continue;
                };
                waits = waits.or_else(|| limits.unknown.try_acquire().ok());
                let told = waits.is_some()
                    && matches!(timeout_at(until, news.changed()).await, Ok(Ok(())));
                if !told {
                    let refusal = Answer::Refused(Refusal::UnknownRoute);
                    let _sent = answer(&mut stream, &refusal).await;
                    return None;
                }
            }
        }
    }
}

/// Takes the connection in the form in which it comes, if that is accepted here.
async fn open(
    context: &Context,
    (stream, from): (TcpStream, IpAddr),
) -> Option<(Leg, Option<PeerIdentity>)> {
    let settings = context.settings();
    let taking = seal::take(settings.seal.as_ref(), stream, from);
    let taken = fair::within(HEADER_TIME, taking).await;
    let late = || Err(NotTaken::Silent(io::ErrorKind::TimedOut.into()));
    match taken.unwrap_or_else(late) {
        Ok(taken) => Some(taken),
        Err(error) => {
            let what = Report(&error).to_string();
            let what = format_args!("a trunk connection from {from} is not taken: {what}");
            context.book.metrics.shed_for(error.shed(), &what);
            None
        }
    }
}

/// Waits until there is a header, at once or, on a connection that is kept ready, much later.
async fn is_asked<'a>(stream: &Leg, limits: &'a Limits) -> Option<Option<SemaphorePermit<'a>>> {
    if stream.plain().is_some() {
        return Some(None);
    }
    let idle = limits.ready.try_acquire().ok()?;
    let asked = fair::within(READY_TIME, stream.has_byte()).await;
    // Whoever kept it had no use for it.
    matches!(asked, Some(Ok(true))).then_some(Some(idle))
}

/// Whether the sender is who it says, and one of the cluster's.
fn may_speak(context: &Context, header: &Header, peer: Option<&PeerIdentity>) -> bool {
    let sender = &header.sender;
    let Some(peer) = peer else {
        return true;
    };
    let fault = if !peer.is(sender) {
        "its certificate is another host's"
    } else if !context.peers.has(sender) {
        "it is not of this cluster"
    } else {
        return true;
    };
    let what = format_args!("a trunk connection says that {sender} sends it: {fault}");
    context.book.metrics.shed_for(Shed::TrunkSender, &what);
    false
}

async fn read_header(context: &Context, stream: &mut Leg) -> Option<Header> {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            match Header::decode(&bytes).map_err(|error| error.to_string())? {
                Decoded::Done(header) => return Ok(header),
                Decoded::Need(more) => {
                    read_more(stream, &mut bytes, more)
                        .await
                        .map_err(|error| error.to_string())?;
                }
            }
        }
    };
    let read: Result<Header, String> = fair::within(HEADER_TIME, reading)
        .await
        .unwrap_or_else(|| Err("too slow".to_owned()));
    match read {
        Ok(header) => Some(header),
        Err(error) => {
            tracing::debug!(error, "a trunk header that is none");
            context.book.metrics.shed(Shed::Header);
            stream.reset_on_drop();
            None
        }
    }
}

#[cfg(test)]
mod tests;
