//! A stream on the wire: counted for people, and held to rates.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use rehome_shared::units;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Bucket;

/// Bytes that went by.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// So far.
    #[must_use]
    pub fn bytes(&self) -> units::Bytes {
        units::Bytes(self.0.load(Ordering::Relaxed))
    }

    /// From zero again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// More went by.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What the bytes of a stream on the wire are counted on, and which rates they are held to.
#[derive(Debug, Clone, Default)]
pub struct Wire {
    meters: Vec<Meter>,
    buckets: Vec<Arc<Bucket>>,
}

impl Wire {
    /// Also counted on this meter.
    #[must_use]
    pub fn counted_on(mut self, meter: &Meter) -> Self {
        self.meters.push(meter.clone());
        self
    }

    /// Also held to this rate.
    #[must_use]
    pub fn held_to(mut self, bucket: &Arc<Bucket>) -> Self {
        self.buckets.push(Arc::clone(bucket));
        self
    }

    fn allowance(&self) -> Option<usize> {
        self.buckets.iter().map(|bucket| bucket.allowance()).min()
    }

    /// Counts bytes, and says when the next may go.
    fn account(&self, bytes: u64) -> Option<Instant> {
        for meter in &self.meters {
            meter.add(bytes);
        }
        let dues = self.buckets.iter().filter_map(|bucket| bucket.take(bytes));
        dues.max()
    }
}

/// A stream of bytes that are counted and held to rates.
///
/// A rate holds over every stretch longer than 50 ms: a piece that is ahead of its time
/// waits until the time has come.
pub struct Metered<S> {
    inner: S,
    /// What came of `inner` and did not go on yet.
    rest: Bytes,
    wire: Wire,
    pause: Option<Pin<Box<Sleep>>>,
}

/// So far ahead of its time a stream may be.
const SLICE: Duration = Duration::from_millis(50);

/// The most that goes on at a time: what counts as gone must not be long on its way.
const PIECE: usize = 256 << 10;

impl<S> Metered<S> {
    /// Counts `inner` and holds it to the rates.
    pub fn new(inner: S, wire: Wire) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
            wire,
            pause: None,
        }
    }
}

impl<S> std::fmt::Debug for Metered<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metered")
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for Metered<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(pause) = self.pause.as_mut() {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                end => return Poll::Ready(end),
            }
        }
        let most = self.wire.allowance().unwrap_or(PIECE).min(PIECE);
        let length = self.rest.len().min(most);
        let piece = self.rest.split_to(length);
        let due = self.wire.account(u64::try_from(length).unwrap_or(u64::MAX));
        if let Some(due) = due.filter(|due| *due > Instant::now() + SLICE) {
            self.pause = Some(Box::pin(sleep_until(due)));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{TryStreamExt, stream};

    use super::*;

    /// Reads so many bytes at these rates and says how many seconds that took.
    async fn read<const N: usize>(bytes: usize, buckets: [Arc<Bucket>; N]) -> f64 {
        let (meter, other) = (Meter::default(), Meter::default());
        let mut wire = Wire::default().counted_on(&meter).counted_on(&other);
        for bucket in &buckets {
            wire = wire.held_to(bucket);
        }
        let data: Vec<u8> = (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let frames = data.chunks(100_000).map(Bytes::copy_from_slice);
        let frames: Vec<io::Result<Bytes>> = frames.map(Ok).collect();
        let started = Instant::now();
        let pieces = Metered::new(stream::iter(frames), wire);
        let out: Vec<Bytes> = pieces.try_collect().await.unwrap();
        assert_eq!(out.concat(), data);
        assert_eq!(meter.bytes(), units::Bytes(u64::try_from(bytes).unwrap()));
        assert_eq!(meter.bytes(), other.bytes());
        started.elapsed().as_secs_f64()
    }

    fn rate(rate: u64) -> Arc<Bucket> {
        Arc::new(Bucket::new(Some(units::Bytes(rate))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_over_the_whole_stream() {
        for bytes_per_second in [1_000, 100_000, 10_000_000] {
            let bytes = usize::try_from(bytes_per_second * 10).unwrap();
            let took = read(bytes, [rate(bytes_per_second)]).await;
            assert!((9.0..11.0).contains(&took), "{bytes_per_second}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_rates_the_lower_holds() {
        let took = read(1_000_000, [rate(1_000_000), rate(100_000)]).await;
        assert!((9.0..11.0).contains(&took), "{took}");
        let no_limit = Arc::new(Bucket::new(None));
        let took = read(1_000_000, [no_limit.clone(), rate(200_000)]).await;
        assert!((4.5..5.5).contains(&took), "{took}");
        assert!(read(1_000_000, [no_limit]).await < 0.001);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_share_a_rate_get_equal_shares_of_it() {
        let shared = rate(200_000);
        let (one, two) = tokio::join!(
            read(1_000_000, [rate(10_000_000), shared.clone()]),
            read(1_000_000, [rate(20_000_000), shared.clone()])
        );
        for took in [one, two] {
            assert!((9.0..11.0).contains(&took), "{one} and {two}");
        }
        // What one does not use is the other's. The slower one waits for turns of the faster.
        let (slow, fast) = tokio::join!(
            read(300_000, [rate(50_000), shared.clone()]),
            read(900_000, [shared])
        );
        assert!((5.5..8.0).contains(&slow), "{slow}");
        assert!((5.5..6.7).contains(&fast), "{fast}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_that_changes_holds_from_then_on() {
        let bucket = rate(10_000);
        let change = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            bucket.set_rate(Some(units::Bytes(100_000)));
        };
        // A tenth of it in ten seconds, the rest in nine.
        let (took, ()) = tokio::join!(read(1_000_000, [bucket.clone()]), change);
        assert!((18.0..20.0).contains(&took), "{took}");
        let lift = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bucket.set_rate(None);
        };
        let (took, ()) = tokio::join!(read(1_000_000, [bucket.clone()]), lift);
        assert!((0.9..1.6).contains(&took), "{took}");
    }
}
