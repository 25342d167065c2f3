//! One connection from its accept to its end: hold, reach the application, relay.
//!
//! Until bytes flow nothing is read from the client, so whatever fails on the way can be tried
//! again, here or elsewhere, and the client notices only time.

mod waiting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::tally::End;
use proxyd_core::way::{Redial, redial};
use rehome_shared::api::proxy::Target;
use rehome_shared::ids::RouteVersion;
use rehome_shared::trunk::{Answer, Header, Refusal};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use crate::book::active::Active;
use crate::book::connection::Upstream;
use crate::book::held::{Attempt, Held, Leave, Pause, Step};
use crate::context::Context;
use crate::course::Course;
use crate::dial::{self, DialError};
use crate::fair;
use crate::handover::{Departure, depart};
use crate::http::{Sides, converse};
use crate::leg::Leg;
use crate::metrics::Shed;
use crate::ready::Hop;
use crate::relay::{Halt, Relay, Times};
use crate::socket::acknowledge_within;
use crate::unread::Unread;
pub(crate) use waiting::Read;
use waiting::{Watched, stopped};

/// How much longer a sender waits than the owner holds, so that the owner's word arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// The most that the few bytes of an answer may take to be taken by the kernel.
const ANSWER_WRITE: Duration = Duration::from_secs(5);
/// What a try gets at least: who was let go at the last moment is let go.
const LAST_TRY: Duration = Duration::from_millis(100);
/// Between two tries that fail for a want of this machine.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Why a held connection did not get to its application.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failed {
    /// It ends like this.
    End(End),
    /// It is turned away with this answer.
    Leave(Leave),
}

/// How a try ended.
enum Tried {
    /// The application has accepted.
    Reached(Leg),
    /// It is not there yet.
    NotReached,
    /// This machine is out of something; that says nothing about the application.
    Short,
}

/// What came of a connection before bytes could flow.
pub(crate) enum Begun {
    /// The application has accepted.
    Flows(Active, Leg),
    /// It is to go on somewhere else.
    Leaves(Held),
    /// It is over.
    Ended,
}

/// Serves a connection that was taken in, to its end, or until it is to go on somewhere else.
pub(crate) fn serve(context: Context, held: Held, client: impl Into<Leg>) -> Course {
    let mut client = client.into();
    Course::of(async move {
        match begin(&context, held, &mut client).await {
            Begun::Flows(active, upstream) if active.connection().is_http() => {
                let sides = Sides::from((client, upstream));
                Some(converse(context, active, sides))
            }
            Begun::Flows(active, upstream) => {
                let relay = Relay::new(client, upstream);
                Some(carry(context, active, relay))
            }
            Begun::Leaves(held) => {
                depart(&context, Departure::held(held, client));
                None
            }
            Begun::Ended => None,
        }
    })
}

/// Reaches the application, or turns the connection away.
async fn begin(context: &Context, held: Held, client: &mut Leg) -> Begun {
    let from_trunk = held.is_from_trunk();
    let connection = Arc::clone(held.connection());
    let mut held = Some(held);
    // Whatever was begun to reach it may be dropped: the upstream has seen no byte.
    let reached = tokio::select! {
        reached = reach(context, &mut held, client, Read::Nothing) => reached,
        () = connection.orders.leaving() => return leave(held, client),
    };
    match reached {
        Ok((active, upstream)) => {
            if !from_trunk || answer(client, &Answer::Connected).await {
                return Begun::Flows(active, upstream);
            }
            active.end(End::ClientReset);
        }
        Err(failed) => {
            let (end, reply) = verdict(failed);
            if from_trunk && end != End::ClientGone {
                // A sender that is gone needs no answer.
                let _sent = answer(client, &reply).await;
            } else if end == End::Refused || end == End::ConnectFailed {
                client.reset_on_drop();
            }
            if let Some(held) = held {
                held.end(end);
            }
        }
    }
    Begun::Ended
}

/// One that waits goes on in another process. Who sent it over TLS holds the client, and comes again
/// to that one by itself.
fn leave(held: Option<Held>, client: &Leg) -> Begun {
    match held {
        Some(held) if client.plain().is_some() => Begun::Leaves(held),
        Some(held) => {
            held.end(End::Moved);
            Begun::Ended
        }
        None => Begun::Ended,
    }
}

/// Takes a connection that has reached its application before to where the route leads now.
///
/// # Cancel safety
/// Dropping it takes the connection out of the book.
pub(crate) async fn again(context: &Context, held: Held, client: &Leg, read: Read) -> Begun {
    let connection = Arc::clone(held.connection());
    let mut held = Some(held);
    // As at the first time.
    let reached = tokio::select! {
        reached = reach(context, &mut held, client, read) => reached,
        () = connection.orders.leaving() => return held.map_or(Begun::Ended, Begun::Leaves),
    };
    match reached {
        Ok((active, upstream)) => Begun::Flows(active, upstream),
        Err(failed) => {
            // It had asked something, and an end that looks right would be no answer.
            client.reset_on_drop();
            let (end, _) = verdict(failed);
            if let Some(held) = held {
                held.end(end);
            }
            Begun::Ended
        }
    }
}

/// Relays to the end, or until the connection is to go on somewhere else.
pub(crate) fn carry(context: Context, active: Active, mut relay: Relay) -> Course {
    Course::of(async move {
        let times = times(&context);
        if !relay.may_leave() {
            active.connection().orders.bind();
        }
        match relay.run(active.connection(), &context.stores, times).await {
            Halt::Ended(end) => {
                // Asked for again: it is not held meanwhile.
                let limit = context.settings().timeouts.half_close;
                let orders = &active.connection().orders;
                relay.settle(end, limit, orders).await;
                drop(relay);
                active.end(end);
            }
            Halt::Leaves => depart(&context, Departure::relay(active, relay)),
        }
        None
    })
}

/// How long a connection may last that begins now.
pub(crate) fn times(context: &Context) -> Times {
    let timeouts = context.settings().timeouts;
    Times {
        half_close: timeouts.half_close,
        idle: timeouts.idle,
        lifetime: timeouts.lifetime,
    }
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
                | End::Lifetime
                | End::HalfCloseTimeout
                | End::Cut
                | End::ClientGone
                | End::Moved
                | End::ConnectFailed
                | End::BadHeader
                | End::HeaderTimeout
                | End::Stopped => Refusal::Stopping,
            };
            (end, Answer::Refused(refusal))
        }
    }
}

/// Tells a trunk; false when it could not be told.
pub(crate) async fn answer(stream: &mut Leg, answer: &Answer) -> bool {
    let bytes = answer.encode();
    let said = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    let written = fair::within(ANSWER_WRITE, said).await;
    matches!(written, Some(Ok(())))
}

/// Tries until the application is reached, the client is gone or the time is up. `held` is
/// empty afterwards only on success.
async fn reach(
    context: &Context,
    slot: &mut Option<Held>,
    client: &Leg,
    read: Read,
) -> Result<(Active, Leg), Failed> {
    let mut unread = match slot {
        Some(held) => Unread::new(held.book(), &held.connection().meters),
        None => return Err(Failed::End(End::Stopped)),
    };
    // What a route that never moves may take.
    let mut patience = context.settings().timeouts.connect;
    loop {
        let Some(held) = slot.as_mut() else {
            return Err(Failed::End(End::Stopped));
        };
        let step = held.step();
        let deadline = held.deadline(patience);
        let mut watched = Watched {
            client,
            unread: &mut unread,
            read,
            deadline,
        };
        let attempt = match step {
            Step::Try(attempt) => attempt,
            Step::Leave(leave) => return Err(Failed::Leave(*leave)),
            Step::Wait(called) => {
                let called = async { drop(called.await) };
                watched.wait(held, called).await?;
                continue;
            }
            Step::WaitForNews(mut news) => {
                let news = async { drop(news.changed().await) };
                watched.wait(held, news).await?;
                continue;
            }
        };
        match try_once(context, held, &mut watched, &attempt).await? {
            Tried::Reached(upstream) => {
                let Some(ready) = slot.take() else {
                    return Err(Failed::End(End::Stopped));
                };
                match ready.activate(&attempt) {
                    Ok(active) => return Ok((active, upstream)),
                    // The gate changed meanwhile; the upstream has seen no byte of the client.
                    Err(still_held) => {
                        upstream.reset_on_drop();
                        *slot = Some(still_held);
                    }
                }
            }
            Tried::NotReached => pause(held, &mut watched).await?,
            Tried::Short => {
                // The fault is this machine's: the client may wait as for a parked gate.
                patience = patience.max(attempt.by.limits.park_timeout);
                watched.deadline = held.deadline(patience);
                watched.wait(held, sleep(SHORTAGE)).await?;
            }
        }
    }
}

/// After a failed try: waits for the next one. A change of the route ends the pause early.
async fn pause(held: &mut Held, watched: &mut Watched<'_>) -> Result<(), Failed> {
    match held.failed() {
        Pause::For(pause, mut news) => {
            let over = async {
                // Both only wait.
                tokio::select! {
                    () = sleep(pause) => {}
                    changed = news.changed() => drop(changed),
                }
            };
            watched.wait(held, over).await
        }
        Pause::UntilCalled(called) => watched.wait(held, async { drop(called.await) }).await,
    }
}

/// One try.
async fn try_once(
    context: &Context,
    held: &mut Held,
    watched: &mut Watched<'_>,
    attempt: &Attempt,
) -> Result<Tried, Failed> {
    match attempt.by.phase.target() {
        Some(Target::Local { addr }) => {
            held.connection().set_upstream(Some(Upstream::Local(*addr)));
            let settings = context.settings();
            let left = watched.deadline.saturating_duration_since(Instant::now());
            let longest = settings.timeouts.connect.min(left.max(LAST_TRY));
            // A target of the file may be far away: it gets one long try instead of short ones.
            let failures = if attempt.by.may_move() {
                attempt.failures
            } else {
                u32::MAX
            };
            match dial::local(held.book(), &settings, *addr, failures, longest).await {
                Ok(stream) if dial::introduce(held.connection(), &stream, &attempt.by) => {
                    Ok(Tried::Reached(stream.into()))
                }
                Ok(_) => {
                    tracing::debug!("application gone before it was told of its client");
                    Ok(Tried::NotReached)
                }
                Err(error) => {
                    tracing::debug!(%error, "application not reached");
                    Ok(failed(context, &error))
                }
            }
        }
        Some(Target::Remote { host, trunk }) => {
            let hop = Hop {
                host: host.clone(),
                trunk: trunk.clone(),
            };
            through_trunk(context, held, watched, (hop, attempt.by.version)).await
        }
        // Nobody is sent where nothing is.
        None => Ok(Tried::NotReached),
    }
}

/// Dials trunk after trunk until one of them is the owner's.
async fn through_trunk(
    context: &Context,
    held: &mut Held,
    watched: &mut Watched<'_>,
    (hop, version): (Hop, RouteVersion),
) -> Result<Tried, Failed> {
    let deadline = watched.deadline + ANSWER_MARGIN;
    let (mut hop, mut version) = (hop, version);
    for hops in 0_u8.. {
        let Some(header) = header(context, held, version, hops) else {
            return Ok(Tried::NotReached);
        };
        let upstream = Upstream::Trunk(hop.trunk.clone());
        held.connection().set_upstream(Some(upstream));
        let mut stream = context.ready.take(&hop, Instant::now());
        let answer = loop {
            let ready = stream.is_some();
            let answer = ask_trunk(
                context,
                (&hop, &header),
                stream.take(),
                (held, watched, deadline),
            );
            match Box::pin(answer).await? {
                // One that was ready may have died; that says nothing about the other host.
                Err(DialError::Broken(_)) if ready => context.ready.broke(&hop, Instant::now()),
                answer => {
                    if ready && answer.is_ok() {
                        context.ready.served(&hop);
                    }
                    break answer;
                }
            }
        };
        match answer {
            Ok((Answer::Connected, stream)) => return Ok(Tried::Reached(stream)),
            Ok((
                Answer::Moved {
                    host,
                    trunk,
                    version: newer,
                },
                _,
            )) if redial(version, newer, hops) == Redial::Follow => {
                (hop, version) = (Hop { host, trunk }, newer);
            }
            Ok((Answer::Refused(refusal), _)) if !refusal.may_pass() => {
                let timeout = refusal == Refusal::ParkTimeout;
                return Err(Failed::End(if timeout {
                    End::ParkTimeout
                } else {
                    End::Refused
                }));
            }
            Ok((answer, _)) => {
                tracing::debug!(?answer, "trunk not usable now");
                return Ok(Tried::NotReached);
            }
            Err(error) => return Ok(not_reached(context, &error)),
        }
    }
    Ok(Tried::NotReached)
}

/// Sends a header over a connection that is ready, or a fresh one, and waits for the answer.
async fn ask_trunk(
    context: &Context,
    (hop, header): (&Hop, &Header),
    ready: Option<Leg>,
    (held, watched, deadline): (&mut Held, &mut Watched<'_>, Instant),
) -> Result<Result<(Answer, Leg), DialError>, Failed> {
    let settings = context.settings();
    let was_ready = ready.is_some();
    let sent = match ready {
        Some(mut leg) => {
            // It is not known whether its host is there: what is not acknowledged soon is lost.
            acknowledge_within(leg.socket(), settings.trunk_connect);
            let said = (&hop.host, header);
            dial::send(&settings, &mut leg, said).await.map(|()| leg)
        }
        None => dial::trunk(context, &settings, hop, header).await,
    };
    let mut stream = match sent {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error)),
    };
    held.passed_on();
    let orders = &held.connection().orders;
    // The losing arms only wait; the stream of a lost answer is dropped with it. One that has
    // come is not late.
    let answer = tokio::select! {
        biased;
        answer = dial::answer(&mut stream, &hop.host) => answer,
        () = watched.gone() => return Err(Failed::End(End::ClientGone)),
        () = fair::sleep_until(deadline) => return Err(Failed::End(End::ParkTimeout)),
        () = stopped(orders) => return Err(Failed::End(End::Stopped)),
    };
    if was_ready {
        acknowledge_within(stream.socket(), settings.timeouts.user_timeout);
    }
    Ok(answer.map(|answer| (answer, stream)))
}

fn not_reached(context: &Context, error: &DialError) -> Tried {
    dial::note(context, error);
    match error {
        DialError::Connect { source, .. } => failed(context, source),
        DialError::Handshake { .. }
        | DialError::Certificate { .. }
        | DialError::Broken(_)
        | DialError::Answer(_) => Tried::NotReached,
    }
}

/// A connect that failed: whether that speaks of the application or of this machine, which is
/// counted.
fn failed(context: &Context, error: &std::io::Error) -> Tried {
    match Shed::shortage(error) {
        Some(shortage) => {
            context.book.metrics.shed(shortage);
            Tried::Short
        }
        None => Tried::NotReached,
    }
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
