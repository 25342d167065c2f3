//! Connections that other hosts' proxies send here.
//!
//! Only peers are heard, and only for a bounded time until their header is there. Then a trunk
//! connection is one like any other: the same line, gate and limits, and an answer before the
//! first byte.

mod greeting;
mod places;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use proxyd_core::way::Arrival;
use rehome_shared::trunk::{Answer, Refusal};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

use crate::accept::accept;
use crate::book::held::Held;
use crate::book::{NotAdmitted, Origin};
use crate::context::Context;
use crate::course::Course;
use crate::fair;
use crate::leg::Leg;
use crate::metrics::Shed;
use crate::serve::{answer, serve};
use crate::socket::reset_on_drop;
use crate::udp;
use places::Places;

/// Trunk connections whose header is not there yet; more wait in the kernel.
const GREETED_AT_ONCE: usize = 1024;
/// Trunk connections that wait for a route that this host does not know; more are sent back
/// and come again.
const UNKNOWN_AT_ONCE: usize = 1024;

/// How many may wait for what.
#[derive(Debug)]
struct Limits {
    unknown: Semaphore,
    ready: Places,
}

/// Accepts trunk connections until the stop.
///
/// # Cancel safety
/// Dropping it stops accepting; connections go on.
pub(crate) async fn run(context: Context, listener: Arc<TcpListener>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(GREETED_AT_ONCE));
    let limits = Arc::new(Limits {
        unknown: Semaphore::new(UNKNOWN_AT_ONCE),
        ready: Places::new(context.settings().ready_places),
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

/// Hears what a connection is and takes it in. None, when it is over or was served.
async fn take_in(
    context: &Context,
    stream: (TcpStream, IpAddr),
    permit: OwnedSemaphorePermit,
    limits: &Limits,
) -> Option<(Held, Leg)> {
    let (mut stream, header) = greeting::hear(context, stream, permit, &limits.ready).await?;
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
                let left = until.saturating_duration_since(Instant::now());
                let told = waits.is_some()
                    && matches!(fair::within(left, news.changed()).await, Some(Ok(())));
                if !told {
                    let refusal = Answer::Refused(Refusal::UnknownRoute);
                    let _sent = answer(&mut stream, &refusal).await;
                    return None;
                }
            }
        }
    }
}
