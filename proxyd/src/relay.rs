//! Bytes both ways between a client and its application, until both have finished.
//!
//! TCP's own signals pass through as they are: an end of one direction is passed on when its
//! bytes are, the other direction goes on; a reset becomes a reset, that of an application after
//! the bytes that came before it; a slow reader stops the reading on the other side. Each direction is a [`Pump`],
//! which copies messages and splices bulk, and holds memory only while it carries bytes.
//!
//! Whatever a relay knows is in [`Relay`] between any two polls, so it can stop anywhere, be taken
//! apart ([`Apart`]) and be put together again, here or in another process, without a byte lost.

mod apart;
mod budget;
mod buffers;
mod pipes;
mod pump;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use proxyd_core::gait::{Gait, SMALL};
use proxyd_core::tally::End;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};

use crate::book::connection::{Connection, Direction};
use crate::book::orders::Order;
use crate::gate;
use crate::metrics::Metrics;
use crate::socket::{finish_sending, reset_on_drop};
pub(crate) use apart::{Apart, State as RelayState};
use budget::Budget;
pub(crate) use budget::Spent;
use buffers::Buffers;
pub(crate) use buffers::Lent as Buffer;
use pipes::Pipes;
use pump::{Ends, Pump, Stop};

/// Datagrams that wait may hold this part of what relays may, beside that.
const DATAGRAMS: usize = 4;
/// Between two looks for a pause of a connection whose lifetime is over.
const LOOK: Duration = Duration::from_millis(50);

/// What relays borrow from. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    budget: Budget,
    buffers: Buffers,
    pipes: Pipes,
    datagrams: Budget,
}

impl Stores {
    /// Stores that lend so many bytes together, and so many of them in pipes.
    pub(crate) fn new(bytes: usize, pipe_bytes: usize, metrics: &Arc<Metrics>) -> Self {
        let budget = Budget::new(bytes, &metrics.relay_bytes, metrics);
        let datagrams = bytes / DATAGRAMS;
        Self {
            buffers: Buffers::new(&budget),
            pipes: Pipes::new(pipe_bytes, metrics.pipe_bytes.clone(), &budget),
            datagrams: Budget::new(datagrams, &metrics.datagram_bytes, metrics),
            budget,
        }
    }

    /// Other limits, for what is lent from now on.
    pub(crate) fn set_limits(&self, bytes: usize, pipe_bytes: usize) {
        self.budget.set_limit(bytes);
        self.datagrams.set_limit(bytes / DATAGRAMS);
        self.pipes.set_limit(pipe_bytes);
    }

    /// A place for a datagram that waits.
    pub(crate) fn datagram(&self, bytes: usize) -> Option<Spent> {
        self.datagrams.spend(bytes)
    }

    /// A buffer for the largest datagram, to be given back before anything is waited for.
    pub(crate) fn scratch(&self) -> Buffer {
        self.buffers.scratch()
    }

    /// A small buffer, or a tiny one where there is no memory.
    pub(crate) fn small(&self) -> Buffer {
        self.buffers.take(SMALL)
    }

    /// A buffer with these bytes, which were read already.
    pub(crate) fn buffer_of(&self, bytes: &[u8]) -> Buffer {
        self.buffers.with(bytes)
    }

    /// A small buffer for what fits into nothing less.
    pub(crate) fn small_for_certain(&self) -> Buffer {
        self.buffers.small()
    }
}

/// How long a relay may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// Silent, once one side has finished or is broken.
    pub(crate) half_close: Duration,
    /// Silent otherwise.
    pub(crate) idle: Option<Duration>,
    /// In all, from the first byte that could flow; then it ends at its next pause.
    pub(crate) lifetime: Option<Duration>,
}

/// A connection whose bytes flow. Dropping it closes both sockets.
#[derive(Debug)]
pub(crate) struct Relay {
    client: TcpStream,
    upstream: TcpStream,
    progress: Progress,
    inward: Pump,
    outward: Pump,
}

/// Bytes that were read and not yet passed on.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) buffer: Buffer,
    pub(crate) taken: usize,
    pub(crate) length: usize,
}

/// Why a relay does not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// It is over.
    Ended(End),
    /// It was asked to leave: it is to go on somewhere else.
    Leaves,
}

impl Relay {
    /// One through which no byte has passed.
    pub(crate) fn new(client: TcpStream, upstream: TcpStream) -> Self {
        Self::with((client, None), (upstream, None))
    }

    /// One for which somebody else has passed on what came before, and has read the rests.
    pub(crate) fn with(
        (client, from_client): (TcpStream, Option<Rest>),
        (upstream, from_upstream): (TcpStream, Option<Rest>),
    ) -> Self {
        Self {
            client,
            upstream,
            progress: Progress::default(),
            inward: Pump::with(from_client.into(), Gait::default()),
            outward: Pump::with(from_upstream.into(), Gait::default()),
        }
    }

    /// Relays until the end, or until it is asked to leave. At an end the sockets are left to be
    /// dropped: as a reset, unless both sides had finished, or nothing was under way.
    ///
    /// # Cancel safety
    /// Cancel safe: what it has between a read and a write stays in the relay.
    pub(crate) async fn run(
        &mut self,
        connection: &Connection,
        stores: &Stores,
        times: Times,
    ) -> Halt {
        let halt = run(self, connection, stores, times).await;
        match halt {
            Halt::Ended(End::Idle) if !connection.has_in_hand() => {}
            Halt::Leaves | Halt::Ended(End::Finished | End::Drained | End::Lifetime) => {}
            Halt::Ended(
                End::Idle
                | End::ClientReset
                | End::UpstreamReset
                | End::HalfCloseTimeout
                | End::Cut
                | End::ParkTimeout
                | End::ClientGone
                | End::Moved
                | End::Refused
                | End::ConnectFailed
                | End::Stopped,
            ) => {
                reset_on_drop(&self.client);
                reset_on_drop(&self.upstream);
            }
        }
        halt
    }
}

/// How far a relay has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    in_done: bool,
    out_done: bool,
    /// The client was told that it is over, for this end.
    polite: Option<End>,
    /// The application broke while it was not read; what it had said still goes out.
    broken: Option<End>,
}

impl Progress {
    fn finish(self) -> Option<End> {
        match (self.in_done, self.out_done, self.broken) {
            (_, true, Some(end)) => Some(end),
            (true, true, None) => Some(self.polite.unwrap_or(End::Finished)),
            (_, _, _) => None,
        }
    }

    /// One direction has stopped: what that means for the other one, or the end.
    fn stopped(
        &mut self,
        direction: Direction,
        stop: Stop,
        (client, upstream): (&TcpStream, &TcpStream),
    ) -> Option<End> {
        match direction {
            Direction::In => {
                self.in_done = true;
                match stop {
                    Stop::Finished => finish_sending(upstream),
                    Stop::Source => return Some(End::ClientReset),
                    Stop::Sink => self.broken = Some(End::UpstreamReset),
                }
            }
            Direction::Out => {
                self.out_done = true;
                match stop {
                    Stop::Finished if self.broken.is_none() => finish_sending(client),
                    Stop::Finished => {}
                    Stop::Source => return Some(End::UpstreamReset),
                    Stop::Sink => return Some(End::ClientReset),
                }
            }
        }
        None
    }

    /// The source of a direction that does not read now has broken: the end, or none while there
    /// is somebody to hear what it had said.
    fn broke(&mut self, direction: Direction) -> Option<End> {
        match direction {
            Direction::In => Some(End::ClientReset),
            Direction::Out if self.out_done => Some(End::UpstreamReset),
            Direction::Out => {
                self.broken = Some(End::UpstreamReset);
                None
            }
        }
    }

    /// The order that it has obeyed already.
    fn told(self) -> Order {
        if self.polite.is_some() {
            Order::ClosePolitely
        } else {
            Order::Run
        }
    }

    fn say_goodbye(&mut self, end: End, client: &TcpStream, connection: &Connection) {
        self.polite = Some(end);
        connection.touch();
        finish_sending(client);
    }

    fn limit(self, times: Times) -> Option<(Duration, End)> {
        let one_side = self.in_done || self.out_done;
        let end = self.polite.or(self.broken);
        match end.or(one_side.then_some(End::HalfCloseTimeout)) {
            Some(end) => Some((times.half_close, end)),
            None => times.idle.map(|idle| (idle, End::Idle)),
        }
    }
}

/// One direction, and the watch over its source while that is not read: then nothing else would
/// tell of a reset.
struct Half<'a> {
    ends: Ends<'a>,
    pump: &'a mut Pump,
    watch: Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>,
    broken: bool,
}

/// What happened to a direction.
enum Event {
    Stopped(Stop),
    /// Its source broke, unread.
    Broken,
}

impl<'a> Half<'a> {
    fn new(ends: Ends<'a>, pump: &'a mut Pump) -> Self {
        Self {
            ends,
            pump,
            watch: None,
            broken: false,
        }
    }

    fn poll(&mut self, done: bool, cx: &mut Context<'_>) -> Poll<Event> {
        if !done && let Poll::Ready(stop) = self.pump.poll(&self.ends, cx) {
            // What it may hold has no sink any more.
            *self.pump = Pump::default();
            self.note_in_hand();
            return Poll::Ready(Event::Stopped(stop));
        }
        self.note_in_hand();
        let unread = done || self.pump.is_loaded();
        if self.broken || !unread {
            self.watch = None;
            return Poll::Pending;
        }
        let source = self.ends.from;
        let watch = self.watch.get_or_insert_with(|| Box::pin(broken(source)));
        let seen = watch.as_mut().poll(cx);
        // An error stays: once it was seen it is not waited for again.
        self.broken = seen.is_ready();
        seen.map(|()| Event::Broken)
    }

    fn note_in_hand(&self) {
        let Ends {
            connection,
            direction,
            ..
        } = self.ends;
        connection.set_in_hand(direction, self.pump.is_loaded());
    }
}

fn halves<'a>(
    (client, upstream): (&'a TcpStream, &'a TcpStream),
    (inward, outward): (&'a mut Pump, &'a mut Pump),
    connection: &'a Connection,
    stores: &'a Stores,
) -> (Half<'a>, Half<'a>) {
    let ends = |from, to, direction| Ends {
        from,
        to,
        direction,
        connection,
        stores,
    };
    (
        Half::new(ends(client, upstream, Direction::In), inward),
        Half::new(ends(upstream, client, Direction::Out), outward),
    )
}

/// What a direction comes to that had not.
async fn next_event(halves: [(&mut Half<'_>, bool); 2]) -> (Direction, Event) {
    let mut halves = halves;
    poll_fn(|cx| {
        for (half, done) in &mut halves {
            if let Poll::Ready(event) = half.poll(*done, cx) {
                return Poll::Ready((half.ends.direction, event));
            }
        }
        Poll::Pending
    })
    .await
}

async fn run(relay: &mut Relay, connection: &Connection, stores: &Stores, times: Times) -> Halt {
    let Relay {
        client,
        upstream,
        progress,
        inward,
        outward,
    } = relay;
    let (client, upstream) = (&*client, &*upstream);
    let (mut inward, mut outward) =
        halves((client, upstream), (inward, outward), connection, stores);
    let mut seen = progress.told();
    loop {
        if let Some(end) = progress.finish() {
            return Halt::Ended(end);
        }
        let limit = progress.limit(times);
        let event = next_event([
            (&mut inward, progress.in_done),
            (&mut outward, progress.out_done),
        ]);
        // Every arm is cancel safe: what the halves hold is kept outside, the others only wait.
        tokio::select! {
            (direction, event) = event => {
                let end = match event {
                    Event::Stopped(stop) => progress.stopped(direction, stop, (client, upstream)),
                    Event::Broken => progress.broke(direction),
                };
                if let Some(end) = end {
                    return Halt::Ended(end);
                }
                connection.touch();
            }
            order = connection.orders.next(seen) => match order {
                None => return Halt::Leaves,
                Some(Order::Run) => {}
                Some(Order::ClosePolitely) => {
                    seen = Order::ClosePolitely;
                    progress.say_goodbye(End::Drained, client, connection);
                }
                Some(Order::Cut) => return Halt::Ended(End::Cut),
                Some(Order::Stop) => return Halt::Ended(End::Stopped),
            },
            end = silent(connection, limit) => return Halt::Ended(end),
            over = outlived(connection, times), if progress.polite.is_none() => match over {
                Over::Pause => {
                    seen = Order::ClosePolitely;
                    connection.orders.give(seen);
                    progress.say_goodbye(End::Lifetime, client, connection);
                }
                Over::Late => {
                    reset_on_drop(client);
                    reset_on_drop(upstream);
                    return Halt::Ended(End::Lifetime);
                }
            },
        }
    }
}

/// Waits until the socket has an error, which is how a reset shows on a side that is not read.
async fn broken(stream: &TcpStream) {
    if stream.ready(Interest::ERROR).await.is_err() {
        // The runtime stops; so does this task.
        std::future::pending::<()>().await;
    }
}

/// Waits until no byte has passed for the limit. Boxed where there is one: most connections have
/// none while they rest.
pub(crate) async fn silent(connection: &Connection, limit: Option<(Duration, End)>) -> End {
    let Some((limit, end)) = limit else {
        return std::future::pending().await;
    };
    let silence = async {
        loop {
            let until = connection.last_byte() + limit;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until.into()).await;
        }
    };
    Box::pin(silence).await;
    end
}

/// How a lifetime ends.
enum Over {
    /// Nobody speaks.
    Pause,
    /// There was no pause.
    Late,
}

/// Waits until the lifetime is over and nobody speaks, or until that does not happen for as long
/// as a half-closed connection may be silent.
async fn outlived(connection: &Connection, times: Times) -> Over {
    let Some(lifetime) = times.lifetime else {
        return std::future::pending().await;
    };
    let waits = async {
        let over = connection.flows_since() + lifetime;
        sleep_until(over.into()).await;
        loop {
            // Who asked last may wait for an answer.
            let pause = if connection.was_answered() {
                gate::IDLE_AFTER
            } else {
                times.half_close
            };
            if connection.quiet_for() >= pause && !connection.has_in_hand() {
                return Over::Pause;
            }
            if Instant::now() >= over + times.half_close {
                return Over::Late;
            }
            sleep(LOOK).await;
        }
    };
    Box::pin(waits).await
}
