//! A connection whose requests are followed: it outlives its application's move.
//!
//! Between two requests it *rests*: its upstream connection may then be closed and made anew, to
//! wherever the route leads by then, and the client notices only time. What is not understood, and
//! every end, is relayed as it is from that byte on.
//!
//! Invariants: bytes are never changed; no request begins where the route does not lead (the book
//! says so, under its lock); nobody hears of the end of an upstream connection to which the route
//! does not lead any more.

mod air;
mod hand;
mod rest;
mod still;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;

use proxyd_core::http::{After, Flight, Request};
use proxyd_core::tally::End;
use tokio::task::yield_now;

use crate::book::active::Active;
use crate::book::connection::Stage;
use crate::book::news::News;
use crate::book::orders::Order;
use crate::context::Context;
use crate::course::Course;
use crate::fair;
use crate::handover::{Departure, depart};
use crate::leg::Leg;
use crate::relay::{Relay, Times, sent};
use crate::serve::{Begun, Read, again, carry, times};
use air::Landed;
use hand::Hand;
pub(crate) use still::{Sides, Still};

/// A connection whose requests are followed.
struct Talk {
    context: Context,
    client: Leg,
    /// What the client has sent and nobody has got.
    inbox: Hand,
    /// Absent while the route leads nowhere, or elsewhere.
    upstream: Option<Upstream>,
    news: News,
    times: Times,
}

/// A connection to the application, or to the next proxy on the way to it.
struct Upstream {
    stream: Leg,
    /// What it has sent and the client has not got.
    outbox: Hand,
    /// Whether a response came by it.
    served: bool,
}

/// What a connection does next.
enum Turn {
    /// It rests.
    Rest,
    /// Its next request waits for its turn.
    Gate,
    /// What comes from either side is passed on as it is.
    Plain,
    /// It goes on in another process.
    Leave,
    /// Its client is told that it is over.
    Goodbye(End),
    /// It is over.
    End(End),
}

/// Serves a connection that has reached its application, until its end, or until it is to go on
/// somewhere else.
pub(crate) fn converse(context: Context, mut active: Active, sides: Sides) -> Course {
    if sides.client.plain().is_none() {
        // Nobody else can go on with that.
        active.connection().orders.bind();
    }
    let mut talk = Talk::new(context, &active, sides);
    Course::of(async move {
        loop {
            match talk.turn(&active).await {
                Turn::Rest => {}
                Turn::Gate => active = talk.pass_gate(active).await?,
                Turn::Plain => return Some(talk.into_relay(active)),
                Turn::Leave => {
                    let context = talk.context.clone();
                    depart(&context, Departure::rest(active, talk.stand_still()));
                    return None;
                }
                Turn::Goodbye(end) => return Some(talk.into_goodbye(active, end)),
                Turn::End(end) => {
                    Box::pin(talk.end(active, end)).await;
                    return None;
                }
            }
        }
    })
}

impl Upstream {
    fn new(stream: Leg) -> Self {
        Self {
            stream,
            outbox: Hand::default(),
            served: false,
        }
    }
}

impl Talk {
    fn new(context: Context, active: &Active, sides: Sides) -> Self {
        let Sides {
            client,
            upstream,
            begun,
        } = sides;
        let mut inbox = Hand::default();
        inbox.put_back(&begun, &context.stores);
        let mut talk = Self {
            client,
            inbox,
            upstream: upstream.map(Upstream::new),
            news: context.book.news(active.connection().route),
            times: times(&context),
            context,
        };
        // What has changed since it was reached is no news any more.
        if !active.leads_on() {
            talk.let_go(active);
        }
        talk
    }

    /// From one boundary to the next.
    async fn turn(&mut self, active: &Active) -> Turn {
        let (length, request) = match self.rest(active).await {
            Ok(asked) => asked,
            Err(turn) => return turn,
        };
        if !active.begin(Stage::Answering) {
            return Turn::Gate;
        }
        // Boxed: it is large, and there is none while the connection rests.
        let turn = Box::pin(self.fly(active, length, &request)).await;
        match turn {
            // It begins anew.
            Turn::Gate | Turn::Leave => {}
            Turn::Rest | Turn::Plain | Turn::Goodbye(_) | Turn::End(_) => {
                active.connection().note_request();
            }
        }
        turn
    }

    /// Passes a request on, and its response.
    async fn fly(&mut self, active: &Active, length: usize, request: &Request) -> Turn {
        let Some(upstream) = &mut self.upstream else {
            return Turn::Gate;
        };
        let repeatable = request.repeatable && upstream.served;
        let kept = if repeatable {
            self.inbox.bytes().get(..length).map(<[u8]>::to_vec)
        } else {
            None
        };
        let mut air = air::Air::new(
            (&self.client, &mut self.inbox),
            (&upstream.stream, &mut upstream.outbox),
            active.connection(),
            &self.context.stores,
            Flight::new(length, request),
        );
        let landed = air::fly(&mut air, self.times).await;
        let (after, returns) = (air.after(), air.returns(kept.as_deref()));
        match landed {
            Landed::Whole if after == After::Boundary => {
                upstream.served = true;
                if !active.rest() {
                    self.let_go(active);
                }
                Turn::Rest
            }
            Landed::Lost(_) | Landed::Hurried if returns.is_some() && !active.leads_on() => {
                upstream.stream.reset_on_drop();
                let stores = &self.context.stores;
                self.inbox.put_back(&returns.unwrap_or_default(), stores);
                Turn::Gate
            }
            // What follows must not begin where the route does not lead.
            Landed::Whole | Landed::Lost(End::Finished) if !active.leads_on() => {
                Turn::Goodbye(End::Finished)
            }
            // An end is seen again and passed on; a reset cannot be seen twice.
            Landed::Whole
            | Landed::Over
            | Landed::Plain
            | Landed::Hurried
            | Landed::Lost(End::Finished) => Turn::Plain,
            Landed::Lost(end) | Landed::End(end) => Turn::End(end),
        }
    }

    /// Closes the upstream connection, which nothing is on its way by.
    fn let_go(&mut self, active: &Active) {
        self.upstream = None;
        active.connection().set_upstream(None);
    }

    /// Waits until the application is reached, wherever it is by then, or until it is to rest again
    /// so that it can leave. None, when the connection is over.
    async fn pass_gate(&mut self, active: Active) -> Option<Active> {
        self.let_go(&active);
        let read = if self.inbox.is_empty() {
            Read::Nothing
        } else {
            Read::Something
        };
        let held = active.wait();
        // Boxed: most connections never come here.
        let reached = Box::pin(again(&self.context, held, &self.client, read));
        match reached.await {
            Begun::Flows(active, stream) => {
                self.upstream = Some(Upstream::new(stream));
                Some(active)
            }
            Begun::Leaves(held) => Some(held.back()),
            Begun::Ended => None,
        }
    }

    /// Passes on what comes from either side, as it is.
    fn into_relay(self, active: Active) -> Course {
        let Some(upstream) = self.upstream else {
            return Course::of(async move {
                self.says(&active).await;
                active.end(End::Finished);
                None
            });
        };
        active.become_plain();
        let client = (self.client, self.inbox.into_rest());
        let upstream = (upstream.stream, upstream.outbox.into_rest());
        let relay = Relay::with(client, upstream);
        relay.resume(active.connection());
        carry(self.context, active, relay)
    }

    /// Tells the client that it is over and lets it finish. What it still asks reaches nobody, so
    /// that it may ask it again, elsewhere.
    fn into_goodbye(mut self, active: Active, end: End) -> Course {
        // Another process would not know that it was told.
        active.connection().orders.bind();
        // Nothing of it is in flight any more.
        active.rest();
        self.let_go(&active);
        self.client.finish_sending();
        Course::of(async move {
            let orders = &active.connection().orders;
            let over = async {
                finished(&self.client).await;
                // It may have finished before it had all of its answer.
                self.client.flushed().await;
            };
            // Every arm only waits, or throws away what comes.
            tokio::select! {
                () = over => {}
                () = self.client.flushes() => {}
                () = fair::sleep(self.times.half_close) => {}
                () = orders.at_least(Order::Cut) => self.client.reset_on_drop(),
            }
            active.end(end);
            None
        })
    }

    /// Closes both sockets, politely where nothing was on its way.
    async fn end(self, active: Active, end: End) {
        if end == End::Finished && active.connection().stage() == Stage::Resting {
            self.says(&active).await;
        } else {
            self.client.reset_on_drop();
            if let Some(upstream) = &self.upstream {
                upstream.stream.reset_on_drop();
            }
        }
        active.end(end);
    }

    /// Has the client get what it was answered, and the end: a part of that may not be with the
    /// kernel.
    async fn says(&self, active: &Active) {
        if self.client.plain().is_none() {
            self.client.finish_sending();
            let orders = &active.connection().orders;
            sent(&[&self.client], self.times.half_close, orders).await;
        }
    }
}

/// Waits until the client has finished. What comes before that is thrown away.
async fn finished(client: &Leg) {
    loop {
        let ready = poll_fn(|cx| client.poll_read_ready(cx)).await;
        let read = {
            let mut thrown_away = [0; 2048];
            ready.and_then(|()| client.try_read(&mut thrown_away))
        };
        match read {
            Ok(0) => return,
            // However much it sends, others run too.
            Ok(_) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
