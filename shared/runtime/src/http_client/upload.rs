//! A stream as a request's body, watched for progress. Bytes count when the connection takes
//! them, so backpressure reaches the reader, and a side that stalls is named.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::Body;

/// How long a streamed request may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Without a byte going on. Noticed after one to two times this.
    pub stall: Duration,
    /// From the last byte to the answer.
    pub answer: Duration,
}

/// What did not go on.
pub(super) struct Stall {
    pub(super) limit: Duration,
    pub(super) what: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    phase: AtomicU8,
}

/// The connection has not asked for more: the other side is slow.
const SENDING: u8 = 0;
/// The connection asked, the reader has nothing: our side is slow.
const READING: u8 = 1;
/// Everything is sent.
const SENT: u8 = 2;

pub(super) fn body<S>(stream: S) -> (Body, Arc<Progress>)
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    let progress = Arc::new(Progress::default());
    let watched = Watched {
        inner: Box::pin(stream),
        progress: Arc::clone(&progress),
    };
    let body = StreamBody::new(watched.map_ok(Frame::data)).boxed_unsync();
    (body, progress)
}

/// Returns when nothing went on for too long.
pub(super) async fn stalled(progress: &Progress, limits: StreamLimits) -> Stall {
    loop {
        let seen = progress.bytes.load(Ordering::Relaxed);
        tokio::time::sleep(limits.stall).await;
        let phase = progress.phase.load(Ordering::Relaxed);
        if phase == SENT {
            tokio::time::sleep(limits.answer).await;
            return Stall {
                limit: limits.answer,
                what: "no answer to a stream came",
            };
        }
        if progress.bytes.load(Ordering::Relaxed) == seen {
            let what = if phase == READING {
                "no byte of our own stream came to be sent; no answer came"
            } else {
                "no byte of a stream was taken; no answer came"
            };
            return Stall {
                limit: limits.stall,
                what,
            };
        }
    }
}

struct Watched<S> {
    inner: Pin<Box<S>>,
    progress: Arc<Progress>,
}

impl<S: Stream<Item = std::io::Result<Bytes>>> Stream for Watched<S> {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.progress.phase.store(READING, Ordering::Relaxed);
        let item = ready!(self.inner.as_mut().poll_next(cx));
        match &item {
            Some(Ok(chunk)) => {
                let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                self.progress.bytes.fetch_add(length, Ordering::Relaxed);
                self.progress.phase.store(SENDING, Ordering::Relaxed);
            }
            Some(Err(_)) => {}
            None => self.progress.phase.store(SENT, Ordering::Relaxed),
        }
        Poll::Ready(item)
    }
}
