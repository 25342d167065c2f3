//! A stream on its way out: counted for people, and held to a rate.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rehome_shared::units::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that went by.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// So far.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes(self.0.load(Ordering::Relaxed))
    }

    /// From zero again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A reader that counts, and reads at most so many bytes per second.
///
/// The rate holds over every stretch longer than 50 ms: a read that is ahead of its time
/// waits until the time has come.
pub struct Metered<R> {
    inner: R,
    meter: Meter,
    rate: Option<Bytes>,
    /// When the bytes that were read would all have gone at the rate.
    due: Instant,
    pause: Option<Pin<Box<Sleep>>>,
}

/// So far ahead of its time a stream may be.
const SLICE: Duration = Duration::from_millis(50);

impl<R> Metered<R> {
    /// Counts `inner` on `meter` and holds it to `rate`.
    pub fn new(inner: R, meter: Meter, rate: Option<Bytes>) -> Self {
        Self {
            inner,
            meter,
            rate,
            due: Instant::now(),
            pause: None,
        }
    }

    fn account(&mut self, bytes: u64) {
        self.meter.add(bytes);
        let Some(rate) = self.rate.filter(|rate| rate.0 > 0) else {
            return;
        };
        let now = Instant::now();
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.0);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.due = self.due.max(now) + cost;
        if self.due > now + SLICE {
            self.pause = Some(Box::pin(sleep_until(self.due)));
        }
    }
}

impl<R> std::fmt::Debug for Metered<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metered")
            .field("meter", &self.meter)
            .field("rate", &self.rate)
            .finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Metered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = self.pause.as_mut() {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = buf.filled().len().saturating_sub(before);
        self.account(u64::try_from(read).unwrap_or(u64::MAX));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_over_the_whole_stream() {
        let meter = Meter::default();
        let data = vec![7_u8; 1_000_000];
        let started = Instant::now();
        let mut reader = Metered::new(data.as_slice(), meter.clone(), Some(Bytes(100_000)));
        let mut out = Vec::new();
        reader.read_to_end(&mut out).await.unwrap();
        assert_eq!(out, data);
        assert_eq!(meter.bytes(), Bytes(1_000_000));
        let took = started.elapsed().as_secs_f64();
        assert!((9.0..11.0).contains(&took), "{took}");
    }
}
