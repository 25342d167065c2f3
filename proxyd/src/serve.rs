//! One connection from its accept to its end: hold, reach the application, relay.
//!
//! Until bytes flow nothing is read from the client, so whatever fails on the way can be tried
//! again, here or elsewhere, and the client notices only time.

use std::time::{Duration, Instant};

use proxyd_core::tally::End;
use proxyd_core::way::{Redial, redial};
use rehome_shared::api::proxy::Target;
use rehome_shared::ids::RouteVersion;
use rehome_shared::trunk::{Answer, Header, Refusal};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};

use crate::book::active::Active;
use crate::book::connection::Upstream;
use crate::book::held::{Attempt, Held, Leave, Pause, Step};
use crate::book::orders::{Order, Orders};
use crate::context::Context;
use crate::dial;
use crate::relay::{Silence, relay};
use crate::socket::reset_on_drop;

/// How much longer a sender waits than the owner holds, so that the owner's word arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// The most that the few bytes of an answer may take to be taken by the kernel.
const ANSWER_WRITE: Duration = Duration::from_secs(5);

/// Why a held connection did not get to its application.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failed {
    /// It ends like this.
    End(End),
    /// It is turned away with this answer.
    Leave(Leave),
}

/// Serves a connection that was taken in.
///
/// # Cancel safety
/// Dropping it closes the connection and takes it out of the book.
pub(crate) async fn serve(context: Context, held: Held, mut client: TcpStream) {
    // Boxed: what it takes to reach an application is large, and not held while bytes flow.
    if let Some((active, upstream)) = Box::pin(begin(&context, held, &mut client)).await {
        let end = carry(&context, &active, client, upstream).await;
        active.end(end);
    }
}

/// Reaches the application, or turns the connection away.
async fn begin(
    context: &Context,
    held: Held,
    client: &mut TcpStream,
) -> Option<(Active, TcpStream)> {
    let from_trunk = held.is_from_trunk();
    let mut held = Some(held);
    match reach(context, &mut held, client).await {
        Ok((active, upstream)) => {
            if !from_trunk || answer(client, &Answer::Connected).await {
                return Some((active, upstream));
            }
            active.end(End::ClientReset);
        }
        Err(failed) => {
            let (end, reply) = verdict(failed);
            if from_trunk && end != End::ClientGone {
                // A sender that is gone needs no answer.
                let _sent = answer(client, &reply).await;
            } else if end == End::Refused || end == End::ConnectFailed {
                reset_on_drop(client);
            }
            if let Some(held) = held {
                held.end(end);
            }
        }
    }
    None
}

async fn carry(context: &Context, active: &Active, client: TcpStream, upstream: TcpStream) -> End {
    let timeouts = context.settings().timeouts;
    let silence = Silence {
        half_close: timeouts.half_close,
        idle: timeouts.idle,
    };
    relay(
        client,
        upstream,
        active.connection(),
        &context.stores,
        silence,
    )
    .await
}

/// How a connection ends that did not get through, and what a trunk is told about it.
fn verdict(failed: Failed) -> (End, Answer) {
    match failed {
        Failed::Leave(Leave::Moved {
            host,
            trunk,
            version,
        }) => (
            End::Moved,
            Answer::Moved {
                host,
                trunk,
                version,
            },
        ),
        Failed::Leave(Leave::Refused(refusal)) => (End::Refused, Answer::Refused(refusal)),
        Failed::End(end) => {
            let refusal = match end {
                End::Refused => Refusal::Closed,
                End::ParkTimeout => Refusal::ParkTimeout,
                End::Finished
                | End::Drained
                | End::ClientReset
                | End::UpstreamReset
                | End::Idle
                | End::HalfCloseTimeout
                | End::Cut
                | End::ClientGone
                | End::Moved
                | End::ConnectFailed
                | End::Stopped => Refusal::Stopping,
            };
            (end, Answer::Refused(refusal))
        }
    }
}

/// Tells a trunk; false when it could not be told.
pub(crate) async fn answer(stream: &mut TcpStream, answer: &Answer) -> bool {
    let bytes = answer.encode();
    let written = tokio::time::timeout(ANSWER_WRITE, stream.write_all(&bytes)).await;
    matches!(written, Ok(Ok(())))
}

/// Tries until the application is reached, the client is gone or the time is up. `held` is
/// empty afterwards only on success.
async fn reach(
    context: &Context,
    slot: &mut Option<Held>,
    client: &TcpStream,
) -> Result<(Active, TcpStream), Failed> {
    loop {
        let Some(held) = slot.as_mut() else {
            return Err(Failed::End(End::Stopped));
        };
        let step = held.step();
        let deadline = held.deadline(context.settings().timeouts.connect);
        let attempt = match step {
            Step::Try(attempt) => attempt,
            Step::Leave(leave) => return Err(Failed::Leave(leave)),
            Step::Wait(called) => {
                let called = async { drop(called.await) };
                waited(held, client, deadline, called).await?;
                continue;
            }
            Step::WaitForNews(mut news) => {
                let news = async { drop(news.changed().await) };
                waited(held, client, deadline, news).await?;
                continue;
            }
        };
        match try_once(context, held, client, &attempt, deadline).await? {
            Some(upstream) => {
                let Some(ready) = slot.take() else {
                    return Err(Failed::End(End::Stopped));
                };
                match ready.activate(&attempt) {
                    Ok(active) => return Ok((active, upstream)),
                    // The gate changed meanwhile; the upstream has seen no byte.
                    Err(still_held) => {
                        reset_on_drop(&upstream);
                        *slot = Some(still_held);
                    }
                }
            }
            None => pause(held, client, deadline).await?,
        }
    }
}

/// After a failed try: waits for the next one. A change of the route ends the pause early.
async fn pause(held: &mut Held, client: &TcpStream, deadline: Instant) -> Result<(), Failed> {
    match held.failed() {
        Pause::For(pause, mut news) => {
            let over = async {
                // Both only wait.
                tokio::select! {
                    () = sleep(pause) => {}
                    changed = news.changed() => drop(changed),
                }
            };
            waited(held, client, deadline, over).await
        }
        Pause::UntilCalled(called) => {
            waited(held, client, deadline, async { drop(called.await) }).await
        }
    }
}

/// Waits for `what`, watching the client, the deadline and orders.
async fn waited(
    held: &Held,
    client: &TcpStream,
    deadline: Instant,
    what: impl Future<Output = ()>,
) -> Result<(), Failed> {
    let orders = &held.connection().orders;
    // Every arm only waits.
    tokio::select! {
        () = what => Ok(()),
        () = gone(client) => Err(Failed::End(End::ClientGone)),
        () = sleep_until(deadline.into()) => Err(Failed::End(timed_out(held))),
        () = stopped(orders) => Err(Failed::End(End::Stopped)),
    }
}

fn timed_out(held: &Held) -> End {
    if held.connection().application().is_some() {
        End::ParkTimeout
    } else {
        End::ConnectFailed
    }
}

/// A freeze cuts relays; what is held stays held.
async fn stopped(orders: &Orders) {
    orders.at_least(Order::Stop).await;
}

/// Waits until the client is certainly gone: a reset, or an end without any byte before it. An
/// end after bytes is a legal half-close; those bytes stay in the socket for the application.
async fn gone(client: &TcpStream) {
    let mut byte = [0_u8; 1];
    // Both only wait; nothing is taken out of the socket.
    tokio::select! {
        peeked = client.peek(&mut byte) => {
            if matches!(peeked, Ok(0) | Err(_)) {
                return;
            }
        }
        broken = client.ready(Interest::ERROR) => return drop(broken),
    }
    drop(client.ready(Interest::ERROR).await);
}

/// One try. `None` means: failed, try again.
async fn try_once(
    context: &Context,
    held: &mut Held,
    client: &TcpStream,
    attempt: &Attempt,
    deadline: Instant,
) -> Result<Option<TcpStream>, Failed> {
    match attempt.by.phase.target() {
        Some(Target::Local { addr }) => {
            held.connection().set_upstream(Upstream::Local(*addr));
            let settings = context.settings();
            let left = deadline.saturating_duration_since(Instant::now());
            let longest = settings.timeouts.connect.min(left);
            // A target of the file may be far away: it gets one long try instead of short ones.
            let failures = if attempt.by.may_move() {
                attempt.failures
            } else {
                u32::MAX
            };
            let result = dial::local(held.book(), &settings, *addr, failures, longest).await;
            Ok(result
                .inspect_err(|error| tracing::debug!(%error, "application not reached"))
                .ok())
        }
        Some(Target::Remote { trunk, .. }) => {
            let deadline = deadline + ANSWER_MARGIN;
            let by = (trunk.as_str(), attempt.by.version);
            through_trunk(context, held, client, by, deadline).await
        }
        // Nobody is sent where nothing is.
        None => Ok(None),
    }
}

/// Dials trunk after trunk until one of them is the owner's.
async fn through_trunk(
    context: &Context,
    held: &mut Held,
    client: &TcpStream,
    (trunk, version): (&str, RouteVersion),
    deadline: Instant,
) -> Result<Option<TcpStream>, Failed> {
    let (mut trunk, mut version) = (trunk.to_owned(), version);
    for hops in 0_u8.. {
        let Some(header) = header(context, held, version, hops) else {
            return Ok(None);
        };
        held.connection()
            .set_upstream(Upstream::Trunk(trunk.clone()));
        let settings = context.settings();
        let mut stream = match dial::trunk(held.book(), &settings, &trunk, &header).await {
            Ok(stream) => stream,
            Err(error) => return Ok(not_reached(&error)),
        };
        held.passed_on();
        let orders = &held.connection().orders;
        // The losing arms only wait; the stream of a lost answer is dropped with it.
        let answer = tokio::select! {
            answer = dial::answer(&mut stream) => answer,
            () = gone(client) => return Err(Failed::End(End::ClientGone)),
            () = sleep_until(deadline.into()) => return Err(Failed::End(End::ParkTimeout)),
            () = stopped(orders) => return Err(Failed::End(End::Stopped)),
        };
        match answer {
            Ok(Answer::Connected) => return Ok(Some(stream)),
            Ok(Answer::Moved {
                trunk: next,
                version: newer,
                ..
            }) if redial(version, newer, hops) == Redial::Follow => {
                (trunk, version) = (next, newer);
            }
            Ok(Answer::Refused(refusal)) if !refusal.may_pass() => {
                let timeout = refusal == Refusal::ParkTimeout;
                return Err(Failed::End(if timeout {
                    End::ParkTimeout
                } else {
                    End::Refused
                }));
            }
            Ok(answer) => {
                tracing::debug!(?answer, "trunk not usable now");
                return Ok(None);
            }
            Err(error) => return Ok(not_reached(&error)),
        }
    }
    Ok(None)
}

fn not_reached(error: &dial::DialError) -> Option<TcpStream> {
    tracing::debug!(error = %rehome_runtime::report::Report(error), "trunk not reached");
    None
}

/// The header of a trunk connection; `None` while this host does not know its own name.
fn header(context: &Context, held: &Held, version: RouteVersion, hops: u8) -> Option<Header> {
    let connection = held.connection();
    let Some(sender) = context.host() else {
        tracing::warn!("a route leads to another host, but this host's own name is not known");
        return None;
    };
    Some(Header {
        client: connection.client,
        destination: connection.destination,
        route: connection.route,
        application: connection.application()?.clone(),
        hops,
        sender,
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::connection::Connection;

    /// What a connection holds for as long as it lives: its task, and what the book knows of it.
    #[test]
    fn an_idle_connection_holds_little() {
        fn size<F: Future>(_: fn(Context, Held, TcpStream) -> F) -> usize {
            size_of::<F>()
        }
        let (task, book) = (size(serve), size_of::<Connection>());
        assert!(task <= 1600 && book <= 256, "{task}, {book}");
    }
}
