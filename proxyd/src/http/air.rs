//! A request in flight, with its response.
//!
//! The request goes up as it comes, the response down as it comes; each direction reads only when
//! what it has read is passed on, so a slow side stops the other. What follows the request is left
//! where it is until the response is whole.

use std::future::{pending, poll_fn};
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use proxyd_core::http::{After, Flight, Progress, Then};
use proxyd_core::tally::End;
use tokio::time::sleep;

use super::hand::Hand;
use crate::book::connection::{Connection, Direction};
use crate::book::orders::Order;
use crate::fair;
use crate::leg::Leg;
use crate::relay::{Stores, Times, silent};

/// Between two looks whether another host holds a request.
const LOOK: Duration = Duration::from_secs(1);

/// A request in flight, between two sockets.
pub(super) struct Air<'a> {
    client: &'a Leg,
    inbox: &'a mut Hand,
    upstream: &'a Leg,
    outbox: &'a mut Hand,
    connection: &'a Connection,
    stores: &'a Stores,
    flight: Flight,
    asks: Asks,
    /// What is in the inbox of the request.
    to_ask: usize,
    /// What has been passed on of it.
    asked: usize,
    /// What is in the outbox of the response.
    to_answer: usize,
    /// Whether a byte of it has come.
    answered: bool,
    whole: bool,
}

/// What the direction of the request does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Goes,
    /// The request has been passed on; the client is watched.
    Waits,
    /// What follows has come: nothing more can be seen of the client.
    Ahead,
    /// The request has been passed on, and it was the last one: the client has finished.
    Over,
    /// The application takes no more of it. It may still answer.
    Broken,
}

/// How a flight ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landed {
    /// The response is whole, and passed on.
    Whole,
    /// Not yet; but the client has finished.
    Over,
    /// What comes is not followed any more.
    Plain,
    /// The connection is to go on somewhere else before that.
    Hurried,
    /// The upstream connection has ended, with a reset unless it had finished.
    Lost(End),
    /// The connection is over.
    End(End),
}

impl<'a> Air<'a> {
    pub(super) fn new(
        (client, inbox): (&'a Leg, &'a mut Hand),
        (upstream, outbox): (&'a Leg, &'a mut Hand),
        connection: &'a Connection,
        stores: &'a Stores,
        flight: Flight,
    ) -> Self {
        Self {
            client,
            inbox,
            upstream,
            outbox,
            connection,
            stores,
            flight,
            asks: Asks::Goes,
            to_ask: 0,
            asked: 0,
            to_answer: 0,
            answered: false,
            whole: false,
        }
    }

    /// What follows a response that is whole. While a part of the request is still to be passed on,
    /// what is in hand of the client begins with that and is no request.
    pub(super) fn after(&self) -> After {
        match self.asks {
            Asks::Goes | Asks::Over | Asks::Broken => After::End,
            Asks::Waits | Asks::Ahead => self.flight.after(),
        }
    }

    /// What is to be put back into the inbox so that the request can be sent again; none when it
    /// must not be. `kept` is all of a request that may be repeated.
    pub(super) fn returns(&self, kept: Option<&[u8]>) -> Option<Vec<u8>> {
        match (self.answered, self.asked, kept) {
            (true, _, _) => None,
            (false, 0, _) => Some(Vec::new()),
            (false, asked, kept) => Some(kept?.get(..asked)?.to_vec()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Landed> {
        let landed = match self.poll_ask(cx) {
            Poll::Ready(landed) => Poll::Ready(landed),
            Poll::Pending => self.poll_answer(cx),
        };
        // What was passed on goes out: after all else, because nothing else waits for room for it.
        // Who reads or writes next hears of a failure.
        let _unsent = [self.client, self.upstream].map(|leg| leg.poll_flush(cx).is_pending());
        landed
    }

    fn poll_ask(&mut self, cx: &mut Context<'_>) -> Poll<Landed> {
        loop {
            match self.asks {
                Asks::Goes if self.to_ask > 0 => ready!(self.poll_pass_on(cx)),
                Asks::Goes if self.flight.is_asked() => self.asks = Asks::Waits,
                Asks::Goes => {
                    if self.inbox.is_empty() {
                        match ready!(self.inbox.poll_read(self.client, self.stores, cx)) {
                            Ok(0) => return Poll::Ready(Landed::Plain),
                            Ok(_) => {}
                            Err(_) => return Poll::Ready(Landed::End(End::ClientReset)),
                        }
                    }
                    let eaten = self.flight.ask(self.inbox.bytes());
                    self.to_ask = eaten.bytes;
                    if eaten.progress == Progress::Foreign {
                        return Poll::Ready(Landed::Plain);
                    }
                }
                Asks::Waits if !self.inbox.is_empty() => self.asks = Asks::Ahead,
                Asks::Waits => {
                    match ready!(self.client.poll_has_byte(cx)) {
                        // Its end is passed on at once: the application may give up.
                        Ok(false) => {
                            self.upstream.finish_sending();
                            self.asks = Asks::Over;
                            return Poll::Ready(Landed::Over);
                        }
                        Ok(true) => self.asks = Asks::Ahead,
                        Err(_) => return Poll::Ready(Landed::End(End::ClientReset)),
                    }
                }
                Asks::Ahead | Asks::Over | Asks::Broken => return Poll::Pending,
            }
        }
    }

    fn poll_pass_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.upstream.poll_write_ready(cx)).is_err() {
            self.asks = Asks::Broken;
            return Poll::Ready(());
        }
        let part = self.inbox.bytes().get(..self.to_ask).unwrap_or_default();
        match self.upstream.try_write(part) {
            Ok(bytes) => {
                self.inbox.passed(bytes);
                self.to_ask = self.to_ask.saturating_sub(bytes);
                self.asked = self.asked.saturating_add(bytes);
                self.connection.passed(Direction::In, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.asks = Asks::Broken,
        }
        Poll::Ready(())
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Landed> {
        loop {
            if self.to_answer > 0 {
                if let Some(end) = ready!(self.poll_pass_down(cx)) {
                    return Poll::Ready(Landed::End(end));
                }
                continue;
            }
            if self.whole {
                return Poll::Ready(Landed::Whole);
            }
            match ready!(self.outbox.poll_read(self.upstream, self.stores, cx)) {
                Ok(0) if self.flight.end() => self.whole = true,
                Ok(0) => return Poll::Ready(Landed::Lost(End::Finished)),
                Ok(_) => {
                    self.answered = true;
                    let taken = self.flight.answer(self.outbox.bytes());
                    self.to_answer = taken.bytes;
                    match taken.then {
                        Then::More => {}
                        Then::Whole => self.whole = true,
                        Then::Plain => return Poll::Ready(Landed::Plain),
                    }
                }
                Err(_) => return Poll::Ready(Landed::Lost(End::UpstreamReset)),
            }
        }
    }

    /// How the connection ends, when the client takes no more.
    fn poll_pass_down(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if ready!(self.client.poll_write_ready(cx)).is_err() {
            return Poll::Ready(Some(End::ClientReset));
        }
        let part = self
            .outbox
            .bytes()
            .get(..self.to_answer)
            .unwrap_or_default();
        match self.client.try_write(part) {
            Ok(bytes) => {
                self.outbox.passed(bytes);
                self.to_answer = self.to_answer.saturating_sub(bytes);
                self.connection.passed(Direction::Out, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Poll::Ready(Some(End::ClientReset)),
        }
        Poll::Ready(None)
    }
}

/// Flies until it lands.
///
/// # Cancel safety
/// Cancel safe: what was read is kept in the hands.
pub(super) async fn fly(air: &mut Air<'_>, times: Times) -> Landed {
    let (connection, client) = (air.connection, air.client);
    let mut limit = times.idle.map(|idle| (idle, End::Idle));
    let mut seen = Order::Run;
    loop {
        // Every arm is cancel safe: what is read is kept outside, the others only wait. Bytes come
        // first: what has come while this machine ran nobody is not late.
        tokio::select! {
            biased;
            landed = poll_fn(|cx| air.poll(cx)) => match landed {
                Landed::Over => limit = Some((times.half_close, End::HalfCloseTimeout)),
                Landed::Whole
                | Landed::Plain
                | Landed::Hurried
                | Landed::Lost(_)
                | Landed::End(_) => return landed,
            },
            order = connection.orders.beyond(seen) => match order {
                // After the response.
                Order::Run | Order::ClosePolitely => seen = order,
                // Where it may be sent again, that is no worse than an end.
                Order::Cut => return Landed::Lost(End::Cut),
                Order::Stop => return Landed::End(End::Stopped),
            },
            // What travels can go on anywhere, as a relay, at any byte.
            () = connection.orders.hurried() => return Landed::Hurried,
            () = client.breaks() => return Landed::End(End::ClientReset),
            end = over(connection, limit, times) => return Landed::End(end),
        }
    }
}

/// Waits until the time of a flight is over. Behind a trunk the owner's gate may hold the request;
/// its own limits say how long. Boxed where there is a limit: mostly there is none.
async fn over(connection: &Connection, limit: Option<(Duration, End)>, times: Times) -> End {
    if limit.is_none() && times.lifetime.is_none() {
        return pending().await;
    }
    let waits = async {
        loop {
            // Both only wait.
            let end = tokio::select! {
                end = silent(connection, limit) => end,
                end = outlived(connection, times) => end,
            };
            if connection.is_local() || connection.was_answered() {
                return end;
            }
            sleep(LOOK).await;
        }
    };
    Box::pin(waits).await
}

/// Waits until the lifetime is over and there was no pause for as long as a half-closed connection
/// may be silent.
async fn outlived(connection: &Connection, times: Times) -> End {
    let Some(lifetime) = times.lifetime else {
        return pending().await;
    };
    let late = connection.flows_since() + lifetime + times.half_close;
    // Not before a request that begins late had as much.
    let least = std::time::Instant::now() + times.half_close;
    fair::sleep_until(late.max(least)).await;
    End::Lifetime
}
