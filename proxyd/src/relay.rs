//! Bytes both ways between a client and its application, until both have finished.
//!
//! TCP's own signals pass through as they are: an end of one direction is passed on when its
//! bytes are, the other direction goes on; a reset becomes a reset; a slow reader stops the
//! reading on the other side, because one buffer per direction is all there is, and it is held
//! only while it carries bytes. [`relay`] is the one door: other ways of moving bytes (splice)
//! go behind it.

mod buffers;

use std::io;
use std::time::{Duration, Instant};

use proxyd_core::tally::End;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep_until;

use crate::book::connection::{Connection, Direction, Order};
use crate::socket::{finish_sending, reset_on_drop};
pub(crate) use buffers::Buffers;

/// After so many bytes without a pause a relay lets others run.
const TURN: usize = 1 << 20;

/// How long a relay may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    /// Once one side has finished.
    pub(crate) half_close: Duration,
    /// Otherwise.
    pub(crate) idle: Option<Duration>,
}

/// Why one direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Its source has finished and everything is passed on.
    Finished,
    /// Its source is broken.
    Source,
    /// Its sink is broken.
    Sink,
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
    buffers: &Buffers,
    silence: Silence,
) -> End {
    let end = run(&client, &upstream, connection, buffers, silence).await;
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
    buffers: &Buffers,
    silence: Silence,
) -> End {
    let pipe = |from, to, direction| Pipe {
        from,
        to,
        direction,
        connection,
        buffers,
    };
    let mut inward = std::pin::pin!(pipe(client, upstream, Direction::In).run());
    let mut outward = std::pin::pin!(pipe(upstream, client, Direction::Out).run());
    let mut orders = connection.orders();
    let mut progress = Progress::default();
    loop {
        if let Some(end) = progress.finish() {
            return end;
        }
        let limit = progress.limit(silence);
        // Every arm is cancel safe: the pipes are pinned outside, the others only wait.
        tokio::select! {
            stop = &mut inward, if !progress.in_done => {
                progress.in_done = true;
                match stop {
                    Stop::Finished => finish_sending(upstream),
                    Stop::Source => return End::ClientReset,
                    Stop::Sink => progress.broken = Some(End::UpstreamReset),
                }
                connection.touch();
            }
            stop = &mut outward, if !progress.out_done => {
                progress.out_done = true;
                match stop {
                    Stop::Finished if progress.broken.is_none() => finish_sending(client),
                    Stop::Finished => {}
                    Stop::Source => return End::UpstreamReset,
                    Stop::Sink => return End::ClientReset,
                }
                connection.touch();
            }
            () = broken(client), if progress.in_done => return End::ClientReset,
            () = broken(upstream), if progress.out_done => return End::UpstreamReset,
            order = next_order(&mut orders) => match order {
                Order::Run => {}
                Order::ClosePolitely => {
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

async fn next_order(orders: &mut watch::Receiver<Order>) -> Order {
    if orders.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    *orders.borrow_and_update()
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

/// One direction.
struct Pipe<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    direction: Direction,
    connection: &'a Connection,
    buffers: &'a Buffers,
}

impl Pipe<'_> {
    async fn run(self) -> Stop {
        loop {
            // No buffer is held during this wait, which is where idle connections are.
            if self.from.readable().await.is_err() {
                return Stop::Source;
            }
            match self.burst().await {
                Ok(()) => {}
                Err(stop) => return stop,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Passes on what is there, then gives the buffer back.
    async fn burst(&self) -> Result<(), Stop> {
        let mut buffer = self.buffers.take();
        let mut passed = 0_usize;
        while passed < TURN {
            match self.from.try_read(buffer.space()) {
                Ok(0) => return Err(Stop::Finished),
                Ok(length) => {
                    self.write(buffer.filled(length))
                        .await
                        .map_err(|_| Stop::Sink)?;
                    passed = passed.saturating_add(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Stop::Source),
            }
        }
        Ok(())
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.direction == Direction::Out && self.is_told_goodbye() {
                // The client was told that nothing comes any more: what an application says to
                // a goodbye has no reader.
                return Ok(());
            }
            match self.to.try_write(bytes) {
                Ok(length) => {
                    bytes = bytes.get(length..).unwrap_or_default();
                    self.connection.passed(self.direction, length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.to.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_told_goodbye(&self) -> bool {
        self.connection.was_ordered() == Order::ClosePolitely
    }
}
