//! What was read from one side of an HTTP connection and not yet passed on.

use std::io;
use std::task::{Context, Poll, ready};

use crate::leg::Leg;
use crate::relay::{Buffer, Rest, Stores};
use proxyd_core::http::HEAD_CAP;

/// Bytes in hand. Without any it holds nothing.
#[derive(Default)]
pub(super) struct Hand {
    buffer: Option<Buffer>,
    /// What is in hand is between these.
    from: usize,
    to: usize,
}

impl Hand {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let buffer = self.buffer.as_ref();
        buffer.map_or(&[], |buffer| buffer.part(self.from, self.to))
    }

    /// So many bytes were passed on.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.from = self.from.saturating_add(bytes).min(self.to);
        self.tidy();
    }

    /// Gives the buffer back when it holds nothing.
    fn tidy(&mut self) {
        if self.from == self.to {
            self.buffer = None;
            (self.from, self.to) = (0, 0);
        }
    }

    /// Reads behind what is in hand; zero is the end. Where there is no room, nothing is read: what
    /// is in hand has to be passed on first.
    pub(super) fn poll_read(
        &mut self,
        source: &Leg,
        stores: &Stores,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(source.poll_read_ready(cx))?;
            let room = self.room(stores);
            if room.is_empty() {
                return Poll::Pending;
            }
            match source.try_read(room) {
                Ok(length) => {
                    self.to = self.to.saturating_add(length);
                    self.tidy();
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tidy(),
                Err(error) => {
                    self.tidy();
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Room behind what is in hand, which goes to the begin of a buffer for it, of a larger one if
    /// it fills a tiny one: a head is looked at as a whole.
    fn room(&mut self, stores: &Stores) -> &mut [u8] {
        let in_hand = self.from..self.to;
        let mut buffer = self.buffer.take().unwrap_or_else(|| stores.small());
        if in_hand.len() == buffer.space().len() && in_hand.len() < HEAD_CAP {
            let mut larger = stores.small_for_certain();
            let whole = buffer.part(in_hand.start, in_hand.end);
            for (space, byte) in larger.space().iter_mut().zip(whole) {
                *space = *byte;
            }
            buffer = larger;
        } else if in_hand.start > 0 {
            buffer.space().copy_within(in_hand.clone(), 0);
        }
        (self.from, self.to) = (0, in_hand.len());
        let space = self.buffer.insert(buffer).space();
        space.get_mut(self.to..).unwrap_or_default()
    }

    /// Takes back what was passed on in vain, before what is in hand.
    pub(super) fn put_back(&mut self, bytes: &[u8], stores: &Stores) {
        if bytes.is_empty() {
            return;
        }
        let all = [bytes, self.bytes()].concat();
        self.buffer = Some(stores.buffer_of(&all));
        (self.from, self.to) = (0, all.len());
    }

    /// For a relay that goes on with it.
    pub(super) fn into_rest(self) -> Option<Rest> {
        let (taken, length) = (self.from, self.to);
        let buffer = self.buffer.filter(|_| taken < length)?;
        Some(Rest {
            buffer,
            taken,
            length,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use prometheus_client::registry::Registry;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::metrics::Metrics;

    async fn pair() -> (Leg, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, connected) = tokio::join!(listener.accept(), connecting);
        (accepted.unwrap().0.into(), connected.unwrap())
    }

    #[tokio::test]
    async fn what_was_read_is_passed_on_piece_by_piece_and_nothing_is_held_then() {
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let stores = Stores::new(1 << 20, 1 << 20, &metrics);
        let (source, mut peer) = pair().await;
        let mut hand = Hand::default();
        peer.write_all(b"first ").await.unwrap();
        let read = poll_fn(|cx| hand.poll_read(&source, &stores, cx)).await;
        assert_eq!(read.unwrap(), 6);
        hand.passed(2);
        peer.write_all(b"second").await.unwrap();
        let read = poll_fn(|cx| hand.poll_read(&source, &stores, cx)).await;
        assert_eq!((read.unwrap(), hand.bytes()), (6, b"rst second".as_slice()));
        assert!(metrics.relay_bytes.get() > 0);
        hand.passed(10);
        assert!(hand.is_empty() && metrics.relay_bytes.get() == 0);
        peer.write_all(&vec![1; 20_000]).await.unwrap();
        drop(peer);
        // Without memory there is room for a head all the same.
        let none = Stores::new(0, 0, &metrics);
        while hand.bytes().len() < HEAD_CAP {
            let read = poll_fn(|cx| hand.poll_read(&source, &none, cx)).await;
            assert!(read.unwrap() > 0);
        }
        assert!(hand.bytes().iter().all(|byte| *byte == 1));
        while !hand.is_empty() {
            hand.passed(HEAD_CAP);
            let read = poll_fn(|cx| hand.poll_read(&source, &none, cx)).await;
            read.unwrap();
        }
        let read = poll_fn(|cx| hand.poll_read(&source, &stores, cx)).await;
        assert_eq!(read.unwrap(), 0);
        assert_eq!(metrics.relay_bytes.get(), 0);
    }

    #[tokio::test]
    async fn what_is_put_back_is_before_the_rest_and_paid_for() {
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let stores = Stores::new(0, 0, &metrics);
        let (source, mut peer) = pair().await;
        let mut hand = Hand::default();
        peer.write_all(b"next").await.unwrap();
        let read = poll_fn(|cx| hand.poll_read(&source, &stores, cx)).await;
        assert_eq!(read.unwrap(), 4);
        hand.put_back(b"again ", &stores);
        assert_eq!(hand.bytes(), b"again next");
        assert_eq!(metrics.relay_bytes.get(), 4096);
        hand.put_back(&vec![b'-'; 20_000], &stores);
        assert_eq!(hand.bytes().len(), 20_010);
        assert!(hand.bytes().ends_with(b"-again next"));
        assert_eq!(metrics.relay_bytes.get(), 65_536);
        hand.passed(20_010);
        assert_eq!(metrics.relay_bytes.get(), 0);
    }
}
