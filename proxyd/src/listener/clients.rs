//! Clients as they come to a port.

use std::net::SocketAddr;
use std::sync::Arc;

use rehome_shared::api::proxy::RouteKey;
use tokio::net::{TcpListener, TcpStream};

use crate::accept::accept;
use crate::book::NotAdmitted;
use crate::book::held::Held;
use crate::book::newcomer::Newcomer;
use crate::context::Context;
use crate::greet::{Guest, greet};
use crate::metrics::Shed;
use crate::serve::serve;
use crate::socket::{accept_now, reset_on_drop};

/// The most that a queue holds: who comes while it is taken waits for nobody.
const QUEUE: usize = 8192;

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

/// Takes a client in. A listener looks for room before it accepts; who gets in between takes a
/// place all the same, at most one for each listener.
fn take_in(context: &Context, key: RouteKey, stream: TcpStream, address: SocketAddr) -> Taken {
    if context.settings().announces(key, address.ip()) {
        let Ok(newcomer) = context.book.expect(key) else {
            reset_on_drop(&stream);
            return Taken::NoRoute;
        };
        greet(context, Guest::new(newcomer, stream, address));
        return Taken::In;
    }
    let Ok(destination) = stream.local_addr() else {
        return Taken::In;
    };
    let enter = || context.book.admit_accepted(key, address, destination);
    seat(context, stream, address, enter)
}

/// Serves a client that is known, unless its address has too many connections or `enter` finds no
/// route.
fn seat(
    context: &Context,
    stream: TcpStream,
    client: SocketAddr,
    enter: impl FnOnce() -> Result<Held, NotAdmitted>,
) -> Taken {
    let Some(place) = context.sources.take(client.ip()) else {
        context.book.metrics.shed(Shed::Source);
        tracing::debug!(client.addr = %client, "an address with too many connections");
        reset_on_drop(&stream);
        return Taken::In;
    };
    let Ok(held) = enter() else {
        reset_on_drop(&stream);
        return Taken::NoRoute;
    };
    let connection = Arc::clone(held.connection());
    serve(context.clone(), held, stream).start(context, &connection, place);
    Taken::In
}

/// Serves a client that was announced.
pub(crate) fn take_announced(
    context: &Context,
    (newcomer, stream): (Newcomer, TcpStream),
    client: SocketAddr,
    destination: SocketAddr,
) {
    // Whatever became of it, the listener knows of its route by itself.
    let _taken = seat(context, stream, client, || {
        newcomer.admit(client, destination)
    });
}
