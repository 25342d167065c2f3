//! Frames.
//!
//! ```text
//! | kind 1 | offset 8 | raw 4 | payload 4 | payload … |      numbers in network order
//!   1 plain    the payload is the data
//!   2 zstd     the payload is one zstd frame of the data, and smaller
//!   3 end      offset is the stream's length, raw is 0, the payload is its BLAKE3 digest
//! ```
//!
//! `offset` is where in the stream the data begins, and `raw` its length there.
//!
//! Every length is checked before it is believed, and nothing is allocated by a length that
//! came over the wire: the decoder holds what has arrived of one frame and no more.

use bytes::{BufMut, Bytes, BytesMut};

/// The most bytes of a stream that one frame carries.
pub const RAW_CAP: usize = 1 << 20;

/// The bytes before a payload.
pub const HEAD: usize = 17;

/// The bytes of a digest.
pub const DIGEST: usize = 32;

const PLAIN_KIND: u8 = 1;
const ZSTD_KIND: u8 = 2;
const END_KIND: u8 = 3;

/// How a frame's payload stands for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// It is the data.
    Plain,
    /// It is one zstd frame of the data.
    Zstd,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A piece of the stream.
    Data {
        /// Where in the stream it begins.
        offset: u64,
        /// How it is written.
        encoding: Encoding,
        /// How many bytes of the stream it holds: 1 to [`RAW_CAP`].
        raw: usize,
        /// The bytes on the wire.
        payload: Bytes,
    },
    /// The stream is whole.
    End {
        /// Its length.
        total: u64,
        /// BLAKE3 of all of it.
        digest: [u8; DIGEST],
    },
}

/// Bytes that are no stream of frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An unknown kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// Lengths that a frame of its kind cannot have.
    #[error("a frame of kind {kind} with {raw} bytes of data in {payload} bytes")]
    Length {
        /// The kind.
        kind: u8,
        /// Bytes of data, as it says.
        raw: u32,
        /// Bytes of payload, as it says.
        payload: u32,
    },
    /// Something follows the last frame.
    #[error("bytes after the end of the stream")]
    AfterEnd,
}

impl Frame {
    /// A piece of the stream as it is.
    #[must_use]
    pub fn plain(offset: u64, data: Bytes) -> Self {
        Self::Data {
            offset,
            encoding: Encoding::Plain,
            raw: data.len(),
            payload: data,
        }
    }

    /// How many bytes of the stream it holds.
    #[must_use]
    pub fn raw(&self) -> usize {
        match self {
            Self::Data { raw, .. } => *raw,
            Self::End { .. } => 0,
        }
    }

    /// The frame's bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Data {
                offset,
                encoding,
                raw,
                payload,
            } => {
                let kind = match encoding {
                    Encoding::Plain => PLAIN_KIND,
                    Encoding::Zstd => ZSTD_KIND,
                };
                put_head(&mut out, kind, *offset, (*raw, payload.len()));
                out.put_slice(payload);
            }
            Self::End { total, digest } => {
                put_head(&mut out, END_KIND, *total, (0, DIGEST));
                out.put_slice(digest);
            }
        }
        out.freeze()
    }
}

/// A length beyond the field is written as the largest, which no decoder believes.
fn put_head(out: &mut BytesMut, kind: u8, offset: u64, (raw, payload): (usize, usize)) {
    out.reserve(HEAD.saturating_add(payload));
    out.put_u8(kind);
    out.put_u64(offset);
    out.put_u32(u32::try_from(raw).unwrap_or(u32::MAX));
    out.put_u32(u32::try_from(payload).unwrap_or(u32::MAX));
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    ended: bool,
}

impl Decoder {
    /// Where bytes go that come, with room for so many: append them, and touch nothing else. Take
    /// the frames before more come: then what is held stays below one frame and what came last.
    pub fn room(&mut self, bytes: usize) -> &mut BytesMut {
        self.buffer.reserve(bytes);
        &mut self.buffer
    }

    /// The next frame that is here whole.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the bytes can no longer become a frame; the stream is over then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.ended && !self.buffer.is_empty() {
            return Err(FrameError::AfterEnd);
        }
        let Some(head) = Head::read(&self.buffer)? else {
            return Ok(None);
        };
        let whole = HEAD.saturating_add(head.payload);
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let payload = self.buffer.split_to(whole).freeze().split_off(HEAD);
        let encoding = match head.kind {
            Kind::Plain => Encoding::Plain,
            Kind::Zstd => Encoding::Zstd,
            Kind::End => {
                self.ended = true;
                // Its length was checked with the head.
                let digest = payload.first_chunk().copied().unwrap_or_default();
                let total = head.offset;
                return Ok(Some(Frame::End { total, digest }));
            }
        };
        Ok(Some(Frame::Data {
            offset: head.offset,
            encoding,
            raw: head.raw,
            payload,
        }))
    }

    /// How many bytes wait for the rest of their frame.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Zstd,
    End,
}

struct Head {
    kind: Kind,
    offset: u64,
    raw: usize,
    payload: usize,
}

impl Head {
    /// `None` while it is not here whole.
    fn read(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some((&number, lengths)) = bytes.split_first() else {
            return Ok(None);
        };
        let kind = match number {
            PLAIN_KIND => Kind::Plain,
            ZSTD_KIND => Kind::Zstd,
            END_KIND => Kind::End,
            other => return Err(FrameError::Kind(other)),
        };
        let Some((offset, lengths)) = lengths.split_first_chunk::<8>() else {
            return Ok(None);
        };
        let Some((raw, rest)) = lengths.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let Some(payload) = rest.first_chunk::<4>() else {
            return Ok(None);
        };
        let (raw, payload) = (u32::from_be_bytes(*raw), u32::from_be_bytes(*payload));
        let wrong = || FrameError::Length {
            kind: number,
            raw,
            payload,
        };
        let head = Self {
            kind,
            offset: u64::from_be_bytes(*offset),
            raw: usize::try_from(raw).map_err(|_| wrong())?,
            payload: usize::try_from(payload).map_err(|_| wrong())?,
        };
        if head.is_possible() {
            Ok(Some(head))
        } else {
            Err(wrong())
        }
    }

    fn is_possible(&self) -> bool {
        let data = (1..=RAW_CAP).contains(&self.raw);
        match self.kind {
            Kind::Plain => data && self.payload == self.raw,
            Kind::Zstd => data && (1..self.raw).contains(&self.payload),
            Kind::End => self.raw == 0 && self.payload == DIGEST,
        }
    }
}

#[cfg(test)]
mod tests;
