//! What a connection does between two requests.

use std::future::{pending, poll_fn};
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use proxyd_core::http::{Head, Request, head};
use proxyd_core::tally::End;

use super::{Talk, Turn};
use crate::book::active::Active;
use crate::book::connection::Stage;
use crate::book::news::News;
use crate::book::orders::Order;
use crate::fair;
use crate::leg::Leg;
use crate::relay::{Seldom, Times};

/// How long a connection may rest at an open gate without an application that could end it, where
/// nothing else is said.
const ALONE: Duration = Duration::from_mins(1);

/// What happens while a connection rests.
pub(super) enum Event {
    /// The client has sent so much, or has finished.
    Client(io::Result<usize>),
    /// The application has, though nobody has asked it anything.
    Upstream(io::Result<usize>),
    /// The route changed.
    News,
    Order(Order),
    /// Its time is over.
    Over(End),
}

impl Talk {
    /// Rests until there is a request and somebody to pass it on to, or until something else has to
    /// be done.
    pub(super) async fn rest(&mut self, active: &Active) -> Result<(usize, Request), Turn> {
        loop {
            // It may be that the client never pauses.
            let order = active.connection().orders.given();
            if order >= Order::ClosePolitely {
                self.heed(&Event::Order(order), active)?;
            }
            let asked = if self.inbox.is_empty() {
                Head::Partial
            } else {
                head::request(self.inbox.bytes())
            };
            let reaches = self.upstream.is_some();
            match asked {
                _ if self.is_told() => self.stop_following(active)?,
                _ if active.connection().orders.is_leaving() => {
                    // Another process takes over no way that leads nowhere.
                    self.heed(&Event::News, active)?;
                    return Err(Turn::Leave);
                }
                // It was asked already, unless the client has gone since: the wait goes on.
                Head::Partial if !reaches && active.connection().waited().is_some() => {
                    return Err(Turn::Gate);
                }
                Head::Partial => {
                    let event = self.event(active).await;
                    self.heed(&event, active)?;
                }
                Head::Whole { .. } | Head::Foreign if !reaches => return Err(Turn::Gate),
                Head::Foreign => self.stop_following(active)?,
                Head::Whole { length, head } => return Ok((length, head)),
            }
        }
    }

    /// Whether the application has said something that nobody has asked for.
    fn is_told(&self) -> bool {
        let upstream = self.upstream.as_ref();
        upstream.is_some_and(|upstream| !upstream.outbox.is_empty())
    }

    /// There is something that is no request. Where the route still leads there, it is passed on,
    /// with all that follows; otherwise the upstream connection has no meaning any more.
    fn stop_following(&mut self, active: &Active) -> Result<(), Turn> {
        if self.upstream.is_some() && active.begin(Stage::Relaying) {
            return Err(Turn::Plain);
        }
        self.let_go(active);
        Ok(())
    }

    async fn event(&mut self, active: &Active) -> Event {
        let Self {
            context,
            client,
            inbox,
            upstream,
            news,
            times,
        } = self;
        let orders = &active.connection().orders;
        let rests = Rests {
            alone: upstream.is_none(),
            in_hand: !inbox.is_empty(),
        };
        // Without an upstream connection nothing is read that cannot be passed on.
        let speaks = poll_fn(|cx| {
            // What was passed on before goes out; who reads or writes next hears of a failure.
            let _unsent = client.poll_flush(cx).is_pending();
            if rests.alone && !rests.in_hand {
                poll_peek(client, cx)
            } else {
                inbox.poll_read(client, &context.stores, cx)
            }
        });
        // What the application says that nobody has asked for is not taken out of the socket.
        let is_told = poll_fn(|cx| match upstream {
            Some(upstream) => {
                let _unsent = upstream.stream.poll_flush(cx).is_pending();
                poll_peek(&upstream.stream, cx)
            }
            None => Poll::Pending,
        });
        // Every arm is cancel safe: what is read is kept in the inbox, the others only wait. The
        // client comes first: what it has asked is not cut off by what comes at the same time.
        tokio::select! {
            biased;
            came = speaks => Event::Client(came),
            said = is_told => Event::Upstream(said),
            () = changes(news) => Event::News,
            // To leave is no order: it is looked at first whether there still is a way.
            order = orders.next(Order::Run) => order.map_or(Event::News, Event::Order),
            end = over(active, *times, rests) => Event::Over(end),
        }
    }

    pub(super) fn heed(&mut self, event: &Event, active: &Active) -> Result<(), Turn> {
        match event {
            Event::Client(Ok(0)) => {
                self.stop_following(active)?;
                Err(Turn::End(End::Finished))
            }
            Event::Client(Ok(_)) if self.upstream.is_some() || !self.inbox.is_empty() => Ok(()),
            Event::Client(Ok(_)) => Err(Turn::Gate),
            Event::Client(Err(_)) => Err(Turn::End(End::ClientReset)),
            Event::Upstream(Ok(_)) => self.stop_following(active),
            Event::Upstream(Err(_)) if active.leads_on() => Err(Turn::End(End::UpstreamReset)),
            Event::Upstream(Err(_)) => {
                self.let_go(active);
                Ok(())
            }
            Event::News => {
                if self.upstream.is_some() && !active.leads_on() {
                    self.let_go(active);
                }
                Ok(())
            }
            Event::Order(Order::Run) => Ok(()),
            Event::Order(Order::ClosePolitely) => Err(Turn::Goodbye(End::Drained)),
            Event::Order(Order::Cut) => Err(Turn::End(End::Cut)),
            Event::Order(Order::Stop) => Err(Turn::End(End::Stopped)),
            Event::Over(end) => Err(Turn::Goodbye(*end)),
        }
    }
}

/// Whether a side has sent something, or has finished.
fn poll_peek(side: &Leg, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    side.poll_has_byte(cx).map_ok(usize::from)
}

async fn changes(news: &mut News) {
    if news.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// How a connection rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rests {
    /// There is no upstream connection.
    alone: bool,
    /// The begin of a request is in hand.
    in_hand: bool,
}

/// Waits until a connection has rested for too long, or has lived for too long, and its client may
/// be told so: not while the gate is parked. Any change of that is news, and has this asked anew.
/// Boxed: mostly nothing limits it.
fn over(active: &Active, times: Times, rests: Rests) -> Seldom<'_, End> {
    let connection = active.connection();
    let (idle, lifetime) = (times.idle, times.lifetime);
    // The application's own patience would have ended it.
    let alone = (rests.alone && idle.is_none()).then(|| Instant::now() + ALONE);
    if idle.is_none() && lifetime.is_none() && alone.is_none() {
        return Box::pin(pending());
    }
    // Who has begun to ask gets time to go on.
    let late = if rests.in_hand {
        times.half_close
    } else {
        Duration::ZERO
    };
    Box::pin(async move {
        loop {
            let idle = idle.map(|idle| (connection.last_byte() + idle, End::Idle));
            let lifetime =
                lifetime.map(|life| (connection.flows_since() + life + late, End::Lifetime));
            let alone = alone.map(|until| (until, End::Idle));
            let all = idle.into_iter().chain(lifetime).chain(alone);
            let Some((at, end)) = all.min_by_key(|(at, _)| *at) else {
                return pending().await;
            };
            if Instant::now() < at {
                fair::sleep_until(at).await;
            } else if active.is_parked() {
                return pending().await;
            } else {
                return end;
            }
        }
    })
}
