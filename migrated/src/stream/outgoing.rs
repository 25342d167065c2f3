//! A stream on its way out: from the backend's bytes to frames, over as many connections as it
//! takes.

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use migrated_core::stream::{
    At, Attempt, Compression, Encoding, Frame, RAW_CAP, RING, Replay, Sample,
};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::{Meter, zstd};

/// A stream that is being sent. It knows nothing of connections: each takes frames from where
/// the receiver is.
pub struct Outgoing<R> {
    source: R,
    /// Counts bytes of the stream itself.
    meter: Meter,
    /// What was read of the next frame.
    gathered: BytesMut,
    /// The next frame's data, read whole and not in the ring yet.
    next: Option<Bytes>,
    source_ended: bool,
    digest: blake3::Hasher,
    replay: Replay,
    compression: Compression,
    /// When the frame before was sent.
    before: Instant,
    /// What is known of the newest frame for the next judgement.
    newest: Option<Made>,
}

/// How the newest frame was made.
#[derive(Debug, Clone, Copy)]
struct Made {
    raw: usize,
    compressed: Option<(usize, Duration)>,
}

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The backend's stream broke off.
    #[error("the volume cannot be read")]
    Source(#[source] io::Error),
    /// The receiver is where no frame that is kept begins.
    #[error("byte {0} of the stream is not kept any more")]
    Gone(u64),
}

impl<R> fmt::Debug for Outgoing<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("replay", &self.replay)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Send + Unpin> Outgoing<R> {
    /// A stream of what `source` gives, whose bytes count on `meter`.
    pub fn new(source: R, meter: Meter, compression: Compression) -> Self {
        Self {
            source,
            meter,
            gathered: BytesMut::new(),
            next: None,
            source_ended: false,
            digest: blake3::Hasher::new(),
            replay: Replay::new(RING),
            compression,
            before: Instant::now(),
            newest: None,
        }
    }

    /// Keeps less for a cut than usual.
    #[cfg(test)]
    pub(super) fn with_ring(mut self, bytes: usize) -> Self {
        self.replay = Replay::new(bytes);
        self
    }

    /// Whether the stream can go on at byte `offset`.
    #[must_use]
    pub fn reaches(&self, offset: u64) -> bool {
        self.replay.at(offset) != At::Gone
    }

    /// Puts frames into a connection's pipe, from byte `offset` of the stream to its last frame.
    /// When the pipe's reader goes away, it returns: what becomes of the connection is known
    /// elsewhere.
    ///
    /// # Errors
    /// [`FillError`]. The pipe ends without the last frame then.
    ///
    /// # Cancel safety
    /// Cancel safe: no byte of the source is lost, the next call goes on.
    pub async fn fill(
        &mut self,
        mut offset: u64,
        pipe: mpsc::Sender<Bytes>,
    ) -> Result<(), FillError> {
        loop {
            let frame = match self.replay.at(offset) {
                At::Gone => return Err(FillError::Gone(offset)),
                At::Next => {
                    self.make().await.map_err(FillError::Source)?;
                    continue;
                }
                At::Frame(frame) => frame,
            };
            offset = frame.next();
            let begun = Instant::now();
            if pipe.send(frame.wire).await.is_err() {
                return Ok(());
            }
            self.sent(begun.elapsed());
            if frame.last {
                return Ok(());
            }
        }
    }

    /// Makes the next frame and keeps it.
    async fn make(&mut self) -> io::Result<()> {
        let Some(data) = self.read().await? else {
            let end = Frame::End {
                total: self.replay.end(),
                digest: *self.digest.finalize().as_bytes(),
            };
            self.replay.finish(end.encode());
            return Ok(());
        };
        // Until the frame is in the ring, a dropped call leaves the data where it was.
        let (offset, raw) = (self.replay.end(), data.len());
        let mut compressed = None;
        let mut frame = Frame::plain(offset, data.clone());
        if self.compression.next() == Attempt::Compress {
            let begun = Instant::now();
            let payload = zstd::compress(data.clone()).await?;
            compressed = Some((payload.len(), begun.elapsed()));
            if payload.len() < raw {
                frame = Frame::Data {
                    offset,
                    encoding: Encoding::Zstd,
                    raw,
                    payload,
                };
            }
        }
        self.digest.update(&data);
        self.replay.push(raw, frame.encode());
        self.meter.add(u64::try_from(raw).unwrap_or(u64::MAX));
        self.newest = Some(Made { raw, compressed });
        self.next = None;
        Ok(())
    }

    /// The next frame's data; `None` at the end of the source.
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(next) = &self.next {
            return Ok(Some(next.clone()));
        }
        self.gathered
            .reserve(RAW_CAP.saturating_sub(self.gathered.len()));
        while !self.source_ended && self.gathered.len() < RAW_CAP {
            let room = RAW_CAP.saturating_sub(self.gathered.len());
            let mut part = (&mut self.source).take(u64::try_from(room).unwrap_or(u64::MAX));
            // What was read is in the buffer or was not read.
            self.source_ended = part.read_buf(&mut self.gathered).await? == 0;
        }
        if self.gathered.is_empty() {
            return Ok(None);
        }
        let data = self.gathered.split().freeze();
        self.next = Some(data.clone());
        Ok(Some(data))
    }

    /// A frame was put into the pipe after so long. One that is sent again tells nothing new.
    fn sent(&mut self, waiting: Duration) {
        let total = self.before.elapsed();
        self.before = Instant::now();
        if let Some(Made { raw, compressed }) = self.newest.take() {
            self.compression.observe(&Sample {
                raw,
                compressed,
                waiting,
                total,
            });
        }
    }
}
