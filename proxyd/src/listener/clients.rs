//! Clients as they come to a port.

use std::net::SocketAddr;

use rehome_runtime::supervise::Criticality;
use rehome_shared::api::proxy::RouteKey;
use tokio::net::{TcpListener, TcpStream};
use tracing::Instrument;

use crate::accept::accept;
use crate::book::held::Held;
use crate::book::{NotAdmitted, Origin};
use crate::context::Context;
use crate::metrics::Shed;
use crate::serve::serve;
use crate::socket::{accept_now, reset_on_drop};
use crate::sources::Place;

/// The most that a queue holds: who comes while it is taken waits for nobody.
const QUEUE: usize = 8192;

/// A client that was accepted.
struct Client {
    stream: TcpStream,
    address: SocketAddr,
    destination: SocketAddr,
    key: RouteKey,
    /// Among those of its address.
    place: Place,
}

/// What became of a client.
enum Taken {
    In,
    /// Its route is gone.
    NoRoute,
}

/// Accepts connections of one socket.
pub(super) async fn listen(context: Context, listener: &TcpListener, key: RouteKey) {
    let mut room = context.book.room();
    loop {
        // Beyond a limit nothing is accepted: the kernel's backlog holds what comes.
        room.borrow_and_update();
        match context.book.may_admit(key) {
            Ok(()) => {}
            Err(NotAdmitted::NoRoute) => return,
            Err(NotAdmitted::Full(full)) => {
                context.book.metrics.shed(Shed::Limit(full));
                if room.changed().await.is_err() {
                    return;
                }
                continue;
            }
        }
        let (stream, address) = accept(&context.book.metrics, listener).await;
        match take_in(&context, key, stream, address) {
            Taken::In => {}
            Taken::NoRoute => return,
        }
    }
}

/// Takes in whom the kernel has completed.
pub(super) fn take_queue(context: &Context, listener: &TcpListener, key: RouteKey) {
    for _ in 0..QUEUE {
        match accept_now(listener) {
            Ok(Some((stream, address))) => match take_in(context, key, stream, address) {
                Taken::In => {}
                Taken::NoRoute => return,
            },
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "clients of a closing port are refused");
                return;
            }
        }
    }
}

fn take_in(context: &Context, key: RouteKey, stream: TcpStream, address: SocketAddr) -> Taken {
    let Some(place) = context.sources.take(address.ip()) else {
        context.book.metrics.shed(Shed::Source);
        tracing::debug!(client.addr = %address, "an address with too many connections");
        reset_on_drop(&stream);
        return Taken::In;
    };
    let Ok(destination) = stream.local_addr() else {
        return Taken::In;
    };
    let client = Client {
        stream,
        address,
        destination,
        key,
        place,
    };
    match client.admit(context) {
        Ok(held) => spawn(context, held, client),
        // Between the look and the accept another listener took the last place.
        Err(NotAdmitted::Full(_)) => wait_for_room(context, client),
        Err(NotAdmitted::NoRoute) => {
            reset_on_drop(&client.stream);
            return Taken::NoRoute;
        }
    }
    Taken::In
}

impl Client {
    fn admit(&self, context: &Context) -> Result<Held, NotAdmitted> {
        let origin = Origin::Client;
        context
            .book
            .admit(self.key, self.address, self.destination, origin)
    }
}

/// Waits for a place with a client in hand, on a task of its own: its listener may close
/// meanwhile, and another one of the route take it up again. Each time that places run out, a
/// listener accepts at most one client too many.
fn wait_for_room(context: &Context, client: Client) {
    let (inner, stop) = (context.clone(), context.connections.token().clone());
    let waits = async move {
        let mut room = inner.book.room();
        loop {
            room.borrow_and_update();
            match client.admit(&inner) {
                Ok(held) => return spawn(&inner, held, client),
                Err(NotAdmitted::Full(_)) if room.changed().await.is_ok() => {}
                Err(NotAdmitted::NoRoute | NotAdmitted::Full(_)) => {
                    return reset_on_drop(&client.stream);
                }
            }
        }
    };
    let task = async move {
        stop.run_until_cancelled(waits).await;
    };
    context
        .connections
        .spawn("waiting client", Criticality::Ordinary, task);
}

fn spawn(context: &Context, held: Held, client: Client) {
    let connection = held.connection();
    let span = tracing::debug_span!(
        "connection",
        connection.id = connection.id,
        route = %client.key,
        client.addr = %connection.client
    );
    let Client { stream, place, .. } = client;
    let task = serve(context.clone(), held, stream, Some(place)).instrument(span);
    context.connections.spawn_light("connection", task);
}
