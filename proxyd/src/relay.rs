//! Bytes both ways between a client and its application, until both have finished.
//!
//! TCP's own signals pass through as they are: an end of one direction is passed on when its
//! bytes are, the other direction goes on; a reset becomes a reset, after the bytes that came
//! before it; a slow reader stops the reading on the other side. Each direction is a [`Pump`],
//! which copies messages and splices bulk, and holds memory only while it carries bytes.

mod buffers;
mod pipes;
mod pump;

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use proxyd_core::tally::End;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep_until;

use crate::book::connection::{Connection, Direction};
use crate::book::orders::Order;
use crate::socket::{finish_sending, reset_on_drop};
use buffers::Buffers;
use pipes::Pipes;
use pump::{Ends, Pump, Stop};

/// What relays borrow from. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    buffers: Buffers,
    pub(crate) pipes: Pipes,
}

impl Stores {
    /// Stores whose pipes hold so many bytes together, which are shown.
    pub(crate) fn new(pipe_bytes: usize, shown: Gauge) -> Self {
        Self {
            buffers: Buffers::default(),
            pipes: Pipes::new(pipe_bytes, shown),
        }
    }
}

/// How long a relay may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    /// Once one side has finished.
    pub(crate) half_close: Duration,
    /// Otherwise.
    pub(crate) idle: Option<Duration>,
}

/// Relays until the end and says how it came. Both sockets are closed then: with a reset,
/// unless both sides had finished.
///
/// # Cancel safety
/// Dropping it closes both sockets.
pub(crate) async fn relay(
    client: TcpStream,
    upstream: TcpStream,
    connection: &Connection,
    stores: &Stores,
    silence: Silence,
) -> End {
    let end = run(&client, &upstream, connection, stores, silence).await;
    match end {
        End::Finished | End::Drained | End::Idle => {}
        End::ClientReset
        | End::UpstreamReset
        | End::HalfCloseTimeout
        | End::Cut
        | End::ParkTimeout
        | End::ClientGone
        | End::Moved
        | End::Refused
        | End::ConnectFailed
        | End::Stopped => {
            reset_on_drop(&client);
            reset_on_drop(&upstream);
        }
    }
    end
}

/// How far a relay has come.
#[derive(Debug, Default)]
struct Progress {
    in_done: bool,
    out_done: bool,
    polite: bool,
    /// The application broke while it was written to; what it had said still goes out.
    broken: Option<End>,
}

impl Progress {
    fn finish(&self) -> Option<End> {
        match (self.in_done, self.out_done, self.broken) {
            (_, true, Some(end)) => Some(end),
            (true, true, None) if self.polite => Some(End::Drained),
            (true, true, None) => Some(End::Finished),
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

    fn limit(&self, silence: Silence) -> Option<(Duration, End)> {
        if self.polite {
            Some((silence.half_close, End::Drained))
        } else if self.in_done || self.out_done {
            Some((silence.half_close, End::HalfCloseTimeout))
        } else {
            silence.idle.map(|idle| (idle, End::Idle))
        }
    }
}

async fn run(
    client: &TcpStream,
    upstream: &TcpStream,
    connection: &Connection,
    stores: &Stores,
    silence: Silence,
) -> End {
    let ends = |from, to, direction| Ends {
        from,
        to,
        direction,
        connection,
        stores,
    };
    let inward = ends(client, upstream, Direction::In);
    let outward = ends(upstream, client, Direction::Out);
    let (mut pump_in, mut pump_out) = (Pump::default(), Pump::default());
    let mut seen = Order::Run;
    let mut progress = Progress::default();
    loop {
        if let Some(end) = progress.finish() {
            return end;
        }
        let limit = progress.limit(silence);
        let (in_done, out_done) = (progress.in_done, progress.out_done);
        let pumped = poll_fn(|cx| {
            if !in_done && let Poll::Ready(stop) = pump_in.poll(&inward, cx) {
                return Poll::Ready((Direction::In, stop));
            }
            if !out_done && let Poll::Ready(stop) = pump_out.poll(&outward, cx) {
                return Poll::Ready((Direction::Out, stop));
            }
            Poll::Pending
        });
        // Every arm is cancel safe: what the pumps hold is kept outside, the others only wait.
        tokio::select! {
            (direction, stop) = pumped => {
                if let Some(end) = progress.stopped(direction, stop, (client, upstream)) {
                    return end;
                }
                connection.touch();
            }
            () = broken(client), if progress.in_done => return End::ClientReset,
            () = broken(upstream), if progress.out_done => return End::UpstreamReset,
            order = connection.orders.beyond(seen) => match order {
                Order::Run => {}
                Order::ClosePolitely => {
                    seen = order;
                    progress.polite = true;
                    connection.touch();
                    finish_sending(client);
                }
                Order::Cut => return End::Cut,
                Order::Stop => return End::Stopped,
            },
            end = silent(connection, limit) => return end,
        }
    }
}

/// Waits until the socket has an error, which is how a reset shows on a side that is no longer
/// read.
async fn broken(stream: &TcpStream) {
    if stream.ready(Interest::ERROR).await.is_err() {
        // The runtime stops; so does this task.
        std::future::pending::<()>().await;
    }
}

/// Waits until no byte has passed for the limit.
async fn silent(connection: &Connection, limit: Option<(Duration, End)>) -> End {
    let Some((limit, end)) = limit else {
        return std::future::pending().await;
    };
    loop {
        let until = connection.last_byte() + limit;
        if Instant::now() >= until {
            return end;
        }
        sleep_until(until.into()).await;
    }
}
