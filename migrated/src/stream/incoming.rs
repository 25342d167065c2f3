//! A stream on its way in: fed by one connection after the other, read by what stores it.
//!
//! Every byte of the stream is taken once and in order, whatever connections bring twice. Only
//! the last frame, with the right length and digest, ends the stream; a connection that ends
//! leaves it waiting. Who waits in vain for [`GRACE`] gives it up.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use migrated_core::stream::{Decoder, Encoding, Frame, FrameError};
use rehome_shared::api::peer::StreamProgress;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::zstd;

/// So long a stream waits for its next byte, or for a word of its sender.
pub const GRACE: Duration = Duration::from_secs(30);

/// Frames between a connection and what stores the stream: one is stored while one comes.
const PIPE: usize = 2;

/// Read of a connection at a time.
const CHUNK: usize = 256 << 10;

/// A stream that is coming in.
#[derive(Debug)]
pub struct Intake {
    pieces: mpsc::Sender<Piece>,
    /// The digest of what was taken; who feeds has it.
    feed: tokio::sync::Mutex<blake3::Hasher>,
    /// Ends the connection that feeds now.
    feeder: Mutex<CancellationToken>,
    /// Bytes of the stream that were taken.
    taken: AtomicU64,
    /// The newest connection, and the bytes that came over it.
    connection: AtomicU32,
    wire: AtomicU64,
    /// Whether the network is waited for.
    hungry: AtomicBool,
    /// When a byte or a word came last.
    heard: Mutex<Instant>,
    /// All of it was taken: nothing is waited for but the storage.
    ended: AtomicBool,
    /// The stream is given up.
    over: CancellationToken,
    answered: AtomicBool,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End,
}

/// Why a connection does not feed a stream any more. The stream itself waits for another one,
/// unless what came was wrong.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The connection ended before the stream did.
    #[error("the connection was cut")]
    Cut(#[source] io::Error),
    /// A newer connection feeds it, or it is given up.
    #[error("the source sends it again on another connection")]
    Displaced,
    /// Something that comes begins behind what has arrived.
    #[error("the stream goes on at byte {offset}, but only {taken} bytes have arrived")]
    Gap {
        /// Where that begins.
        offset: u64,
        /// What has arrived.
        taken: u64,
    },
    /// The bytes are no frames.
    #[error("the stream is malformed")]
    Malformed(#[from] FrameError),
    /// A frame cannot be decompressed.
    #[error("a frame cannot be decompressed")]
    Compression(#[source] io::Error),
    /// The stream is not what was sent.
    #[error("the stream that arrived is not the one that was sent")]
    Altered,
}

impl FeedError {
    /// Whether no other connection can mend it.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        match self {
            Self::Cut(_) | Self::Displaced => false,
            Self::Gap { .. } | Self::Malformed(_) | Self::Compression(_) | Self::Altered => true,
        }
    }
}

impl Intake {
    /// A stream of which nothing has come, and its bytes as they will come.
    #[must_use]
    pub fn new() -> (Self, Arrivals) {
        let (pieces, receiver) = mpsc::channel(PIPE);
        let over = CancellationToken::new();
        let arrivals = Arrivals {
            pieces: receiver,
            rest: Bytes::new(),
            ended: false,
            given_up: Box::pin(over.clone().cancelled_owned()),
            over: over.clone(),
        };
        let intake = Self {
            pieces,
            feed: tokio::sync::Mutex::new(blake3::Hasher::new()),
            feeder: Mutex::new(over.child_token()),
            taken: AtomicU64::new(0),
            connection: AtomicU32::new(0),
            wire: AtomicU64::new(0),
            hungry: AtomicBool::new(true),
            heard: Mutex::new(Instant::now()),
            ended: AtomicBool::new(false),
            over,
            answered: AtomicBool::new(false),
        };
        (intake, arrivals)
    }

    /// Gives the stream up: what stores it gets an error, unless it has it all.
    pub fn give_up(&self) {
        self.over.cancel();
    }

    /// Whether it was given up.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.over.is_cancelled()
    }

    /// It is known what became of it.
    pub fn set_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Bytes of the stream that were taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How much has come. Who asks is alive: the grace begins anew.
    pub fn progress(&self) -> StreamProgress {
        self.hear();
        StreamProgress {
            bytes: self.taken(),
            connection: self.connection.load(Ordering::Relaxed),
            wire: self.wire.load(Ordering::Relaxed),
            hungry: self.is_hungry(),
            answered: self.answered.load(Ordering::Relaxed),
        }
    }

    /// Whether the network is waited for.
    fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed)
    }

    fn heard(&self) -> MutexGuard<'_, Instant> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self) {
        *self.heard() = Instant::now();
    }

    /// Takes what a connection brings, which begins at byte `offset` of the stream, until the
    /// stream's end. The connection before this one ends. Also returns when what stores the
    /// stream wants no more: its answer says why.
    ///
    /// # Errors
    /// [`FeedError`].
    ///
    /// # Cancel safety
    /// Cancel safe: what was taken was taken once, and another connection goes on there.
    pub async fn feed(
        &self,
        connection: u32,
        offset: u64,
        body: impl AsyncRead + Send + Unpin,
    ) -> Result<(), FeedError> {
        let turn = self.over.child_token();
        {
            let mut feeder = self.feeder.lock().unwrap_or_else(PoisonError::into_inner);
            feeder.cancel();
            *feeder = turn.clone();
        }
        let fed = turn.run_until_cancelled(self.feed_alone(connection, offset, body));
        match fed.await {
            Some(fed) => fed,
            None if self.over.is_cancelled() => Ok(()),
            None => Err(FeedError::Displaced),
        }
    }

    async fn feed_alone(
        &self,
        connection: u32,
        offset: u64,
        mut body: impl AsyncRead + Send + Unpin,
    ) -> Result<(), FeedError> {
        let mut digest = self.feed.lock().await;
        self.hear();
        self.wire.store(0, Ordering::Relaxed);
        self.connection.store(connection, Ordering::Relaxed);
        self.known_before(offset)?;
        let _hungry_again = Hunger(&self.hungry);
        let mut decoder = Decoder::default();
        while !self.ended.load(Ordering::Relaxed) {
            self.hungry.store(true, Ordering::Relaxed);
            let read = body.read_buf(decoder.room(CHUNK)).await;
            let read = read.map_err(FeedError::Cut)?;
            self.hungry.store(false, Ordering::Relaxed);
            if read == 0 {
                return Err(FeedError::Cut(io::ErrorKind::UnexpectedEof.into()));
            }
            self.hear();
            let count = u64::try_from(read).unwrap_or(u64::MAX);
            self.wire.fetch_add(count, Ordering::Relaxed);
            while let Some(frame) = decoder.next_frame()? {
                if !self.take(&mut digest, frame).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// How many bytes from `offset` on have come already.
    fn known_before(&self, offset: u64) -> Result<usize, FeedError> {
        let taken = self.taken();
        match taken.checked_sub(offset) {
            Some(known) => Ok(usize::try_from(known).unwrap_or(usize::MAX)),
            None => Err(FeedError::Gap { offset, taken }),
        }
    }

    /// Takes of a frame what has not come before. False when what stores the stream reads no
    /// more.
    async fn take(&self, taken: &mut blake3::Hasher, frame: Frame) -> Result<bool, FeedError> {
        let (offset, encoding, raw, payload) = match frame {
            Frame::Data {
                offset,
                encoding,
                raw,
                payload,
            } => (offset, encoding, raw, payload),
            Frame::End { total, digest } => {
                let ours = taken.finalize();
                if total != self.taken() || ours.as_bytes() != &digest {
                    return Err(FeedError::Altered);
                }
                let Ok(permit) = self.pieces.reserve().await else {
                    return Ok(false);
                };
                permit.send(Piece::End);
                self.ended.store(true, Ordering::Relaxed);
                return Ok(true);
            }
        };
        let known = self.known_before(offset)?;
        if known >= raw {
            return Ok(true);
        }
        let data = match encoding {
            Encoding::Plain => payload,
            Encoding::Zstd => zstd::decompress(payload, raw)
                .await
                .map_err(FeedError::Compression)?,
        };
        let new = data.slice(known..);
        let Ok(permit) = self.pieces.reserve().await else {
            return Ok(false);
        };
        // From here to the end nothing waits: taken and counted is one step.
        let count = u64::try_from(new.len()).unwrap_or(u64::MAX);
        taken.update(&new);
        permit.send(Piece::Data(new));
        self.taken.fetch_add(count, Ordering::Relaxed);
        Ok(true)
    }

    /// Runs what stores the stream. When nothing comes for [`GRACE`], or at the stop of the
    /// program, the stream is given up; what stores it still cleans up.
    ///
    /// # Cancel safety
    /// As `storing`.
    pub async fn store<T>(&self, stop: &CancellationToken, storing: impl Future<Output = T>) -> T {
        let mut storing = std::pin::pin!(storing);
        // Who loses has changed nothing: both the silence and the stop are levels.
        tokio::select! {
            stored = &mut storing => return stored,
            () = self.silence() => {}
            () = stop.cancelled() => {}
        }
        self.give_up();
        storing.await
    }

    /// Returns when the network was waited for in vain for too long.
    async fn silence(&self) {
        loop {
            let heard = *self.heard();
            tokio::time::sleep_until(heard + GRACE).await;
            if !self.is_hungry() {
                // The storage is slow; the wait for the network has not begun.
                self.hear();
            } else if *self.heard() == heard {
                return;
            }
        }
    }
}

/// Whoever feeds, when it is gone the network is waited for.
struct Hunger<'a>(&'a AtomicBool);

impl Drop for Hunger<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The bytes of a stream, in order. Its end is the stream's; a stream that was given up, or
/// whose [`Intake`] is gone, ends with an error.
pub struct Arrivals {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    ended: bool,
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
    over: CancellationToken,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Arrivals {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = ready!(self.as_mut().poll_fill_buf(cx))?;
        let length = piece.len().min(buf.remaining());
        buf.put_slice(piece.get(..length).unwrap_or_default());
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Arrivals {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        loop {
            if this.ended && this.rest.is_empty() {
                return Poll::Ready(Ok(&[]));
            }
            if this.over.is_cancelled() || this.given_up.as_mut().poll(cx).is_ready() {
                let message = "the stream broke off and did not go on";
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    message,
                )));
            }
            if !this.rest.is_empty() {
                return Poll::Ready(Ok(&this.rest));
            }
            match ready!(this.pieces.poll_recv(cx)) {
                Some(Piece::Data(data)) => this.rest = data,
                Some(Piece::End) => this.ended = true,
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    fn consume(mut self: Pin<&mut Self>, length: usize) {
        self.rest.advance(length);
    }
}
