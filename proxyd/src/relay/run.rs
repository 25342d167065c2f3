//! A relay that runs, as plain state that is polled: a connection that rests holds this and no more.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use proxyd_core::tally::End;
use tokio::task::coop::unconstrained;

use super::pump::{Ends, Pump, Stop};
use super::{Halt, Progress, Relay, Stores, Times};
use crate::book::connection::{Connection, Direction};
use crate::book::orders::Order;
use crate::fair;
use crate::gate;
use crate::leg::Leg;

/// Between two looks for a pause of a connection whose lifetime is over.
const LOOK: Duration = Duration::from_millis(50);

/// What is seldom waited for. Boxed: hardly any connection has it while it rests.
pub(crate) type Seldom<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A relay that runs, until it halts.
#[must_use]
pub(crate) struct Run<'a> {
    inward: Half<'a>,
    outward: Half<'a>,
    progress: &'a mut Progress,
    connection: &'a Connection,
    stores: &'a Stores,
    times: Times,
    /// The order that it has obeyed.
    seen: Order,
    /// Of the limits as they are since the last event, where there are any.
    clock: Option<Seldom<'a, Event>>,
}

/// One direction, and the watch over its source while that is not read: then nothing else would
/// tell of a reset.
struct Half<'a> {
    from: &'a Leg,
    pump: &'a mut Pump,
    watch: Option<Seldom<'a, ()>>,
    broken: bool,
}

/// What a relay halts at, or goes on from in another way.
#[derive(Debug, Clone, Copy)]
enum Event {
    Stopped(Direction, Stop),
    /// The source of a direction broke, unread.
    Broken(Direction),
    Order(Order),
    Leave,
    /// No byte has passed for too long.
    Silent(End),
    /// The lifetime is over, and nobody speaks.
    Pause,
    /// It is over, and there was no pause.
    Late,
}

impl<'a> Half<'a> {
    fn new(from: &'a Leg, pump: &'a mut Pump) -> Self {
        Self {
            from,
            pump,
            watch: None,
            broken: false,
        }
    }

    fn poll(&mut self, ends: &Ends<'_>, done: bool, cx: &mut Context<'_>) -> Poll<Event> {
        let Ends {
            connection,
            direction,
            ..
        } = *ends;
        if !done && let Poll::Ready(stop) = self.pump.poll(ends, cx) {
            // What it may hold has no sink any more.
            *self.pump = Pump::default();
            connection.set_in_hand(direction, false);
            return Poll::Ready(Event::Stopped(direction, stop));
        }
        // Also an end that was said.
        let unsent = ends.to.poll_flush(cx).is_pending();
        let loaded = unsent || self.pump.is_loaded();
        connection.set_in_hand(direction, loaded);
        let unread = done || loaded;
        if self.broken || !unread {
            self.watch = None;
            return Poll::Pending;
        }
        let source = self.from;
        let watch = self.watch.get_or_insert_with(|| Box::pin(source.breaks()));
        let seen = watch.as_mut().poll(cx);
        // An error stays: once it was seen it is not waited for again.
        self.broken = seen.is_ready();
        seen.map(|()| Event::Broken(direction))
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(
        relay: &'a mut Relay,
        connection: &'a Connection,
        stores: &'a Stores,
        times: Times,
    ) -> Self {
        let progress = &mut relay.progress;
        Self {
            inward: Half::new(&relay.client, &mut relay.inward),
            outward: Half::new(&relay.upstream, &mut relay.outward),
            connection,
            stores,
            times,
            seen: progress.told(),
            clock: clock(connection, *progress, times),
            progress,
        }
    }

    fn poll_half(&mut self, direction: Direction, cx: &mut Context<'_>) -> Poll<Event> {
        let (client, upstream) = (self.inward.from, self.outward.from);
        let (half, done, from, to) = match direction {
            Direction::In => (&mut self.inward, self.progress.in_done, client, upstream),
            Direction::Out => (&mut self.outward, self.progress.out_done, upstream, client),
        };
        let ends = Ends {
            from,
            to,
            direction,
            connection: self.connection,
            stores: self.stores,
        };
        half.poll(&ends, done, cx)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        // Bytes come first: what has come while this machine ran nobody was no silence.
        for direction in [Direction::In, Direction::Out] {
            if let Poll::Ready(event) = self.poll_half(direction, cx) {
                return Poll::Ready(event);
            }
        }
        if let Poll::Ready(order) = self.connection.orders.poll_next(self.seen, cx) {
            return Poll::Ready(order.map_or(Event::Leave, Event::Order));
        }
        match &mut self.clock {
            // Bytes in many small pieces may have used up all that a task may do in one turn.
            Some(clock) => pin!(unconstrained(clock)).poll(cx),
            None => Poll::Pending,
        }
    }

    /// What follows from an event: a halt, or it goes on.
    fn heed(&mut self, event: Event) -> Option<Halt> {
        let (client, upstream) = (self.inward.from, self.outward.from);
        let end = match event {
            Event::Stopped(direction, stop) => {
                self.progress.stopped(direction, stop, (client, upstream))
            }
            Event::Broken(direction) => self.progress.broke(direction),
            Event::Leave => return Some(Halt::Leaves),
            Event::Order(Order::Run) => None,
            Event::Order(Order::ClosePolitely) => self.say_goodbye(End::Drained),
            Event::Order(Order::Cut) => Some(End::Cut),
            Event::Order(Order::Stop) => Some(End::Stopped),
            Event::Silent(end) => Some(end),
            Event::Pause => {
                self.connection.orders.give(Order::ClosePolitely);
                self.say_goodbye(End::Lifetime)
            }
            Event::Late => {
                client.reset_on_drop();
                upstream.reset_on_drop();
                Some(End::Lifetime)
            }
        };
        if end.is_none() {
            self.connection.touch();
            self.clock = clock(self.connection, *self.progress, self.times);
        }
        end.map(Halt::Ended)
    }

    /// Tells the client that it is over. It may still finish.
    fn say_goodbye(&mut self, end: End) -> Option<End> {
        self.seen = Order::ClosePolitely;
        self.progress.polite = Some(end);
        self.inward.from.finish_sending();
        None
    }

    /// Has the sockets dropped as is right for this halt.
    fn settle(&self, halt: Halt) {
        match halt {
            Halt::Ended(End::Idle) if !self.connection.has_in_hand() => {}
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
                | End::BadHeader
                | End::HeaderTimeout
                | End::Stopped,
            ) => {
                self.inward.from.reset_on_drop();
                self.outward.from.reset_on_drop();
            }
        }
    }
}

impl Future for Run<'_> {
    type Output = Halt;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Halt> {
        let halt = loop {
            if let Some(end) = self.progress.finish() {
                break Halt::Ended(end);
            }
            let event = ready!(self.poll_event(cx));
            if let Some(halt) = self.heed(event) {
                break halt;
            }
        };
        self.settle(halt);
        Poll::Ready(halt)
    }
}

/// Waits for what the limits bring, where there are any.
fn clock(connection: &Connection, progress: Progress, times: Times) -> Option<Seldom<'_, Event>> {
    let limit = progress.limit(times);
    let lifetime = times.lifetime.filter(|_| progress.polite.is_none());
    if limit.is_none() && lifetime.is_none() {
        return None;
    }
    Some(Box::pin(async move {
        // Both only wait.
        tokio::select! {
            end = silent(connection, limit) => Event::Silent(end),
            event = outlived(connection, lifetime, times.half_close) => event,
        }
    }))
}

/// Waits until no byte has passed for the limit.
pub(crate) async fn silent(connection: &Connection, limit: Option<(Duration, End)>) -> End {
    let Some((limit, end)) = limit else {
        return std::future::pending().await;
    };
    loop {
        let until = connection.last_byte() + limit;
        if Instant::now() >= until {
            return end;
        }
        fair::sleep_until(until).await;
    }
}

/// Waits until the lifetime is over and nobody speaks, or until that does not happen for as long
/// as a half-closed connection may be silent.
async fn outlived(
    connection: &Connection,
    lifetime: Option<Duration>,
    half_close: Duration,
) -> Event {
    let Some(lifetime) = lifetime else {
        return std::future::pending().await;
    };
    let over = connection.flows_since() + lifetime;
    fair::sleep_until(over).await;
    loop {
        // Who asked last may wait for an answer.
        let pause = if connection.was_answered() {
            gate::IDLE_AFTER
        } else {
            half_close
        };
        if connection.quiet_for() >= pause && !connection.has_in_hand() {
            return Event::Pause;
        }
        if Instant::now() >= over + half_close {
            return Event::Late;
        }
        fair::sleep(LOOK).await;
    }
}
