//! Bytes both ways between a client and its application, until both have finished.
//!
//! TCP's own signals pass through as they are: an end of one direction is passed on when its
//! bytes are, the other direction goes on; a reset becomes a reset, that of an application after
//! the bytes that came before it; a slow reader stops the reading on the other side. Each direction
//! is a [`Pump`], which copies messages and splices bulk, and holds memory only while it carries bytes.
//!
//! Whatever a relay knows is in [`Relay`] between any two polls, so it can stop anywhere, be taken
//! apart ([`Apart`]) and be put together again, here or in another process, without a byte lost.

mod apart;
mod budget;
mod buffers;
mod pipes;
mod pump;
mod run;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use proxyd_core::gait::{Gait, SMALL};
use proxyd_core::tally::End;

use crate::book::connection::{Connection, Direction};
use crate::book::orders::{Order, Orders};
use crate::fair;
use crate::leg::Leg;
use crate::metrics::Metrics;
pub(crate) use apart::{Apart, State as RelayState};
use budget::Budget;
pub(crate) use budget::Spent;
use buffers::Buffers;
pub(crate) use buffers::Lent as Buffer;
use pipes::Pipes;
use pump::{Pump, Stop};
pub(crate) use run::{Run, Seldom, silent};

/// Datagrams that wait may hold this part of what relays may, beside that.
const DATAGRAMS: usize = 4;

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
    client: Leg,
    upstream: Leg,
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
    pub(crate) fn new(client: impl Into<Leg>, upstream: impl Into<Leg>) -> Self {
        Self::with((client.into(), None), (upstream.into(), None))
    }

    /// One for which somebody else has passed on what came before, and has read the rests.
    pub(crate) fn with(
        (client, from_client): (Leg, Option<Rest>),
        (upstream, from_upstream): (Leg, Option<Rest>),
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
    pub(crate) fn run<'a>(
        &'a mut self,
        connection: &'a Connection,
        stores: &'a Stores,
        times: Times,
    ) -> Run<'a> {
        Run::new(self, connection, stores, times)
    }

    /// Has the ends reach the kernel that were said, where that takes something, before it is
    /// dropped.
    ///
    /// # Cancel safety
    /// Cancel safe: an end that is not there is a reset.
    pub(crate) async fn settle(&self, end: End, limit: Duration, orders: &Orders) {
        if !self.may_leave() && matches!(end, End::Finished | End::Drained | End::Lifetime) {
            // Boxed: few do.
            Box::pin(sent(&[&self.client, &self.upstream], limit, orders)).await;
        }
    }

    /// Whether it can go on in another process: not over TLS.
    pub(crate) fn may_leave(&self) -> bool {
        self.client.plain().is_some() && self.upstream.plain().is_some()
    }
}

/// Waits until everything is with the kernel that these sides were given, for as long as the limit.
/// Once the connection is to be cut they are to be reset instead.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn sent(legs: &[&Leg], limit: Duration, orders: &Orders) {
    let all = poll_fn(|cx| {
        // Each is asked: it waits for room by that. What fails is over.
        let waiting = legs.iter().filter(|leg| leg.poll_flush(cx).is_pending());
        if waiting.count() == 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    // Every arm only waits.
    tokio::select! {
        biased;
        () = all => {}
        () = orders.at_least(Order::Cut) => legs.iter().for_each(|leg| leg.reset_on_drop()),
        () = fair::sleep(limit) => {}
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
        (client, upstream): (&Leg, &Leg),
    ) -> Option<End> {
        match direction {
            Direction::In => {
                self.in_done = true;
                match stop {
                    Stop::Finished => upstream.finish_sending(),
                    Stop::Source => return Some(End::ClientReset),
                    Stop::Sink => self.broken = Some(End::UpstreamReset),
                }
            }
            Direction::Out => {
                self.out_done = true;
                match stop {
                    Stop::Finished if self.broken.is_none() => client.finish_sending(),
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

    fn limit(self, times: Times) -> Option<(Duration, End)> {
        let one_side = self.in_done || self.out_done;
        let end = self.polite.or(self.broken);
        match end.or(one_side.then_some(End::HalfCloseTimeout)) {
            Some(end) => Some((times.half_close, end)),
            None => times.idle.map(|idle| (idle, End::Idle)),
        }
    }
}
