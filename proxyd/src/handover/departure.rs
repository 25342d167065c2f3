//! A connection that stands still: on its way to another process, or back to work.

use std::io;
use std::net::TcpStream as Plain;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::handover::{self, Identity, Part};
use proxyd_core::tally::End;
use tokio::net::TcpStream;

use crate::book::Origin;
use crate::book::active::Active;
use crate::book::connection::Connection;
use crate::book::held::Held;
use crate::context::Context;
use crate::greet::{StillGuest, go_on, greet};
use crate::http::{Sides, Still, converse};
use crate::leg::Leg;
use crate::relay::{Apart, Relay, RelayState};
use crate::serve::{carry, serve};
use crate::sources::Place;

/// A connection that has stopped. It is in the book until it departs.
#[derive(Debug)]
pub(crate) enum Departure {
    /// It is not announced yet.
    Guest(StillGuest),
    /// It waits for its application.
    Held(Held, io::Result<Plain>),
    /// Its bytes flow.
    Relay(Active, Box<io::Result<Apart>>),
    /// Its requests are followed, and none is in flight.
    Rest(Active, Box<io::Result<Still>>),
}

impl Departure {
    /// Stops a client that waits.
    pub(crate) fn held(held: Held, client: Leg) -> Self {
        Self::Held(held, client.into_std())
    }

    /// Stops a relay that does not run any more.
    pub(crate) fn relay(active: Active, relay: Relay) -> Self {
        Self::Relay(active, Box::new(relay.take_apart()))
    }

    /// Stops a connection between two requests.
    pub(crate) fn rest(active: Active, still: io::Result<Still>) -> Self {
        Self::Rest(active, Box::new(still))
    }

    /// The connection, once it is one.
    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Guest(_) => None,
            Self::Held(held, _) => Some(held.connection()),
            Self::Relay(active, _) | Self::Rest(active, _) => Some(active.connection()),
        }
    }

    /// What another process has to know, with the bytes that belong to it. `None` when its
    /// sockets are lost.
    pub(super) fn part(&self) -> Option<(Part, Vec<u8>)> {
        match self {
            Self::Guest(guest) => {
                let part = handover::Newcomer {
                    route: guest.newcomer().route(),
                    age: guest.waited(),
                };
                Some((Part::Newcomer(part), Vec::new()))
            }
            Self::Held(held, client) => {
                client.as_ref().ok()?;
                let part = handover::Held {
                    identity: held.connection().identity(held.origin()),
                    parked: held.is_parked(),
                };
                Some((Part::Held(part), Vec::new()))
            }
            Self::Relay(active, apart) => {
                let apart = apart.as_ref().as_ref().ok()?;
                let state = apart.state();
                let part = handover::Relay {
                    identity: active.connection().identity(active.origin()),
                    inward: state.inward,
                    outward: state.outward,
                    goodbye: state.goodbye,
                    broken: state.broken,
                };
                Some((Part::Relay(part), apart.bytes()))
            }
            Self::Rest(active, still) => {
                let still = still.as_ref().as_ref().ok()?;
                let part = handover::Rest {
                    identity: active.connection().identity(active.origin()),
                    reaches: still.reaches(),
                    begun: u32::try_from(still.begun().len()).ok()?,
                    waited: active.connection().waited(),
                };
                Some((Part::Rest(part), still.begun().to_vec()))
            }
        }
    }

    /// The descriptors that belong to it.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Guest(guest) => vec![guest.stream().as_fd()],
            Self::Held(_, client) => client.as_ref().map(AsFd::as_fd).into_iter().collect(),
            Self::Relay(_, apart) => match apart.as_ref() {
                Ok(apart) => apart.descriptors(),
                Err(_) => Vec::new(),
            },
            Self::Rest(_, still) => match still.as_ref() {
                Ok(still) => still.descriptors(),
                Err(_) => Vec::new(),
            },
        }
    }

    /// It is another process's from now on. Only descriptors are closed here.
    pub(super) fn depart(self) {
        match self {
            Self::Guest(guest) => drop(guest),
            Self::Held(held, client) => {
                drop(client);
                held.depart();
            }
            Self::Relay(active, apart) => {
                drop(apart);
                active.depart();
            }
            Self::Rest(active, still) => {
                drop(still);
                active.depart();
            }
        }
    }

    /// It goes on here.
    pub(crate) fn resume(self, context: &Context) {
        if let Some(connection) = self.connection() {
            connection.orders.stay();
        }
        match self {
            Self::Guest(guest) => go_on(context, guest),
            Self::Held(held, client) => match client.and_then(TcpStream::from_std) {
                Ok(client) => start_held(context, held, client),
                Err(error) => {
                    tracing::warn!(%error, "a held client is lost");
                    held.end(End::Stopped);
                }
            },
            Self::Relay(active, apart) => match apart.and_then(Apart::put_together) {
                Ok(relay) => start_relay(context, active, relay),
                Err(error) => {
                    tracing::warn!(%error, "a connection is lost");
                    active.end(End::Stopped);
                }
            },
            Self::Rest(active, still) => match still.and_then(Still::wake) {
                Ok(sides) => start_talk(context, active, sides),
                Err(error) => {
                    tracing::warn!(%error, "a connection is lost");
                    active.end(End::Stopped);
                }
            },
        }
    }
}

fn start_held(context: &Context, held: Held, client: TcpStream) {
    let connection = Arc::clone(held.connection());
    let place = place(context, &connection, held.origin());
    serve(context.clone(), held, client).start(context, &connection, place);
}

fn start_relay(context: &Context, active: Active, relay: Relay) {
    let connection = Arc::clone(active.connection());
    let place = place(context, &connection, active.origin());
    carry(context.clone(), active, relay).start(context, &connection, place);
}

fn start_talk(context: &Context, active: Active, sides: Sides) {
    let connection = Arc::clone(active.connection());
    let place = place(context, &connection, active.origin());
    converse(context.clone(), active, sides).start(context, &connection, place);
}

/// Among the connections of its address. One that was let in before another limit stays.
fn place(context: &Context, connection: &Connection, origin: &Origin) -> Place {
    match origin {
        Origin::Client => context.sources.take(connection.client.ip()),
        Origin::Trunk(_) => None,
    }
    .unwrap_or_default()
}

/// A connection of another process: held, and not touched before it is this one's own. Dropping
/// it closes descriptors and no more.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It is not announced yet.
    Guest(handover::Newcomer, Plain),
    /// It waits for its application.
    Held(handover::Held, TcpStream),
    /// Its bytes flow.
    Relay(Identity, Box<Relay>),
    /// Its requests are followed.
    Rest(handover::Rest, Box<Sides>),
}

impl Arrival {
    /// Takes hold of a part that is a connection.
    pub(super) fn hold(
        context: &Context,
        part: Part,
        descriptors: Vec<OwnedFd>,
        bytes: &[u8],
    ) -> Result<Self, String> {
        match part {
            Part::Newcomer(newcomer) => {
                let client = descriptors.into_iter().next().ok_or("no descriptor")?;
                Ok(Self::Guest(newcomer, client.into()))
            }
            Part::Held(held) => {
                let client = descriptors.into_iter().next().ok_or("no descriptor")?;
                let client = TcpStream::from_std(client.into()).map_err(|e| e.to_string())?;
                Ok(Self::Held(held, client))
            }
            Part::Relay(part) => {
                let state = RelayState {
                    inward: part.inward,
                    outward: part.outward,
                    goodbye: part.goodbye,
                    broken: part.broken,
                };
                let apart = Apart::of(&state, descriptors, bytes, &context.stores)
                    .map_err(|error| rehome_runtime::report::Report(&error).to_string())?;
                let relay = apart.put_together().map_err(|error| error.to_string())?;
                Ok(Self::Relay(part.identity, Box::new(relay)))
            }
            Part::Rest(part) => {
                let still = Still::of(part.reaches, descriptors, bytes).ok_or("no descriptor")?;
                let sides = still.wake().map_err(|error| error.to_string())?;
                Ok(Self::Rest(part, Box::new(sides)))
            }
            Part::Table { .. } | Part::Socket(_) | Part::Counts(_) => {
                Err("this is no connection".to_owned())
            }
        }
    }

    /// It is this process's own from now on.
    pub(super) fn pass(self, context: &Context) {
        match self {
            Self::Guest(known, client) => {
                let age = Duration::from_micros(known.age);
                let newcomer = context.book.adopt_newcomer(known.route, age);
                if let Some(guest) = StillGuest::of(newcomer, client).wake() {
                    greet(context, guest);
                }
            }
            Self::Held(known, client) => {
                let held = context.book.adopt_held(&known.identity, known.parked);
                start_held(context, held, client);
            }
            Self::Relay(known, relay) => {
                let active = context.book.adopt_active(&known);
                relay.resume(active.connection());
                start_relay(context, active, *relay);
            }
            Self::Rest(known, sides) => {
                let active = context.book.adopt_resting(&known.identity, known.waited);
                start_talk(context, active, *sides);
            }
        }
    }
}

#[cfg(test)]
mod tests;
