//! Clients that a proxy in front of this one announces: until its header is there, nobody knows who
//! the client is.
//!
//! The header is looked at where it lies, in the socket, until it is whole; only then exactly its
//! bytes are taken out. So whoever stops in the middle, for a handover or for good, has taken
//! nothing, and what the client itself has sent stays in the socket as ever.

use std::io;
use std::net::{SocketAddr, TcpStream as Plain};

use proxyd_core::announce::{Announced, HeaderError, LONGEST, Seen, look};
use proxyd_core::tally::End;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::book::newcomer::Newcomer;
use crate::context::Context;
use crate::listener::take_announced;
use crate::metrics::Metrics;
use crate::socket::{canonical, reset_on_drop};

/// A client that is to be announced.
#[derive(Debug)]
pub(crate) struct Guest {
    newcomer: Newcomer,
    stream: TcpStream,
    /// Of who is to announce it.
    address: SocketAddr,
}

/// The same, taken from this process's event loop.
#[derive(Debug)]
pub(crate) struct StillGuest {
    newcomer: Newcomer,
    stream: Plain,
}

/// Whether a client goes to a successor before it is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handover {
    Goes,
    /// None can have it: one was asked in vain, and it is not offered to the next one.
    Stays,
}

/// What came of a greeting.
enum Outcome {
    Announced(Announced),
    /// It is to go on in another process.
    Leaves,
    /// It is over.
    Ended(End, Option<HeaderError>),
}

/// Greets a client: serves it once it is announced.
pub(crate) fn greet(context: &Context, guest: Guest) {
    // From here on, not from when its task runs first: a handover waits for it.
    let arriving = context.handover.arriving();
    let with = context.clone();
    let task = async move {
        with_guest(&with, guest, Handover::Goes).await;
        drop(arriving);
    };
    context.connections.spawn_light("newcomer", task);
}

/// Greets one that did not get to a successor.
pub(crate) fn go_on(context: &Context, guest: StillGuest) {
    let Some(guest) = guest.wake() else { return };
    let with = context.clone();
    let task = async move { with_guest(&with, guest, Handover::Stays).await };
    context.connections.spawn_light("newcomer", task);
}

async fn with_guest(context: &Context, guest: Guest, handover: Handover) {
    match outcome(context, &guest, handover).await {
        Outcome::Announced(announced) => guest.seat(context, announced),
        Outcome::Leaves => match guest.stand_still() {
            Ok(guest) => {
                if let Some(stays) = context.handover.guest_leaves(guest) {
                    go_on(context, stays);
                }
            }
            Err((newcomer, error)) => lost(&newcomer, &error),
        },
        Outcome::Ended(end, error) => guest.turn_away(context, end, error),
    }
}

/// Waits for the header. Nothing has been taken out of the socket unless the client is announced.
async fn outcome(context: &Context, guest: &Guest, handover: Handover) -> Outcome {
    let limit = context.settings().header_timeout();
    let until = guest.newcomer.since() + limit;
    let moved = async {
        match handover {
            Handover::Goes => context.handover.moved().await,
            Handover::Stays => std::future::pending().await,
        }
    };
    // Every arm is cancel safe: the header is taken at once or not at all.
    tokio::select! {
        biased;
        () = moved => Outcome::Leaves,
        () = context.book.turns_newcomers_away() => Outcome::Ended(End::Stopped, None),
        header = timeout_at(until.into(), header(&guest.stream)) => match header {
            Ok(Ok(Ok(announced))) => Outcome::Announced(announced),
            Ok(Ok(Err(error))) => Outcome::Ended(End::BadHeader, Some(error)),
            Ok(Err(_)) => Outcome::Ended(End::ClientGone, None),
            Err(_) => Outcome::Ended(End::HeaderTimeout, None),
        },
    }
}

/// Waits until the header is whole and takes it, and nothing that follows. An error is one of the
/// connection, or its end.
async fn header(stream: &TcpStream) -> io::Result<Result<Announced, HeaderError>> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        match stream.try_io(Interest::READABLE, || take(stream)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // All that will ever come was there when it was looked at.
                if ready.is_read_closed() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            taken => return taken,
        }
    }
}

/// Takes the header if it is whole; otherwise the next bytes have to be waited for.
fn take(stream: &TcpStream) -> io::Result<Result<Announced, HeaderError>> {
    let mut space = [0; LONGEST];
    let (bytes, _) = recv(stream, space.as_mut_slice(), RecvFlags::PEEK)?;
    let seen = space.get(..bytes).unwrap_or_default();
    let (length, announced) = match look(seen) {
        Ok(Seen::Part) => return Err(io::ErrorKind::WouldBlock.into()),
        Ok(Seen::Whole { length, announced }) => (length, announced),
        Err(error) => return Ok(Err(error)),
    };
    let mut left = length;
    while left > 0 {
        let header = space.get_mut(..left).unwrap_or_default();
        let (taken, _) = recv(stream, header, RecvFlags::DONTWAIT)?;
        if taken == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(taken);
    }
    Ok(Ok(announced))
}

impl Guest {
    pub(crate) fn new(newcomer: Newcomer, stream: TcpStream, address: SocketAddr) -> Self {
        Self {
            newcomer,
            stream,
            address,
        }
    }

    /// It is known: it is a client like any other from now on.
    fn seat(self, context: &Context, announced: Announced) {
        let (client, destination) = match announced {
            Announced::Client {
                client,
                destination,
            } => (client, destination),
            Announced::Nobody => match self.stream.local_addr() {
                Ok(destination) => (self.address, destination),
                Err(error) => return lost(&self.newcomer, &error),
            },
        };
        take_announced(context, (self.newcomer, self.stream), client, destination);
    }

    fn turn_away(self, context: &Context, end: End, error: Option<HeaderError>) {
        if end == End::BadHeader || end == End::HeaderTimeout {
            let from = (self.newcomer.route(), self.address);
            context.book.metrics.unannounced(from, error);
        }
        Metrics::newcomer_ended(&self.newcomer, Some(self.address), (end, error));
        reset_on_drop(&self.stream);
    }

    fn stand_still(self) -> Result<StillGuest, (Newcomer, io::Error)> {
        match self.stream.into_std() {
            Ok(stream) => Ok(StillGuest::of(self.newcomer, stream)),
            Err(error) => Err((self.newcomer, error)),
        }
    }
}

impl StillGuest {
    /// One of another process.
    pub(crate) fn of(newcomer: Newcomer, stream: Plain) -> Self {
        Self { newcomer, stream }
    }

    pub(crate) fn newcomer(&self) -> &Newcomer {
        &self.newcomer
    }

    pub(crate) fn stream(&self) -> &Plain {
        &self.stream
    }

    /// Microseconds since it was accepted.
    pub(crate) fn waited(&self) -> u64 {
        u64::try_from(self.newcomer.since().elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Watches its socket again. One that is reset has no address any more, and ends.
    pub(crate) fn wake(self) -> Option<Guest> {
        let woken = TcpStream::from_std(self.stream).and_then(|stream| {
            let address = canonical(stream.peer_addr()?);
            Ok((stream, address))
        });
        match woken {
            Ok((stream, address)) => Some(Guest::new(self.newcomer, stream, address)),
            Err(error) => {
                lost(&self.newcomer, &error);
                None
            }
        }
    }
}

/// Counts one whose socket is of no use any more.
fn lost(newcomer: &Newcomer, error: &io::Error) {
    let end = if error.kind() == io::ErrorKind::NotConnected {
        End::ClientGone
    } else {
        tracing::warn!(%error, "a newcomer is lost");
        End::Stopped
    };
    Metrics::newcomer_ended(newcomer, None, (end, None));
}
