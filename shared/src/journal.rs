//! The bytes of a journal: an append-only file of records, whatever they are.
//!
//! ```text
//! file   := magic frame*
//! frame  := length:u32le  sequence:u64le  payload[length]  check[8]
//! check  := first 8 bytes of BLAKE3(previous check ‖ length ‖ sequence ‖ payload)
//! ```
//!
//! The checks form a chain from the magic on, so a frame is believed only behind all its
//! predecessors. Three endings are told apart: the file ends with a frame; the last frame is
//! *torn* (a write that a crash cut short: it promised nothing yet, and is cut off); bytes in
//! the middle are *corrupt* (a promise may be lost: nobody may go on by himself).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest payload that is ever written or believed.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// How long a frame's head is.
pub const HEAD: usize = 4 + 8;
/// How long a frame's check is.
pub const CHECK: usize = 8;
/// What a disk writes at once.
pub const SECTOR: usize = 512;

type Check = [u8; CHECK];

/// A kind of journal, by the first bytes of its files; the last one is the format's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    magic: &'static [u8; 8],
}

impl Kind {
    /// The kind whose files begin like this.
    #[must_use]
    pub const fn new(magic: &'static [u8; 8]) -> Self {
        Self { magic }
    }

    /// The first bytes.
    #[must_use]
    pub const fn magic(self) -> &'static [u8; 8] {
        self.magic
    }

    /// Whether a file begins as one of this kind does, in any version.
    #[must_use]
    pub fn began(self, bytes: &[u8]) -> bool {
        let [family @ .., _version] = self.magic;
        bytes.starts_with(family)
    }
}

/// Where the next frame goes: behind which frame, with which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    check: Check,
    sequence: u64,
}

impl Position {
    /// Right behind the magic.
    #[must_use]
    pub fn start(kind: Kind) -> Self {
        Self {
            check: chain([0; CHECK], kind.magic, &[]),
            sequence: 1,
        }
    }

    /// The number of the next frame.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Why a record cannot be framed.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It does not become JSON.
    #[error("the record cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// Its JSON cannot be read back: a journal that holds it could never be opened again.
    #[error("the record's JSON cannot be read back")]
    Unreadable(#[source] serde_json::Error),
    /// It is too long.
    #[error("the record has {0} bytes, more than a journal takes")]
    TooLong(usize),
}

/// The frame of a record and the position behind it.
///
/// # Errors
/// [`EncodeError`] when the record has no JSON form that can be read back, or is too long.
pub fn encode<R>(at: Position, record: &R) -> Result<(Vec<u8>, Position), EncodeError>
where
    R: Serialize + DeserializeOwned,
{
    let payload = serde_json::to_vec(record).map_err(EncodeError::Json)?;
    serde_json::from_slice::<R>(&payload).map_err(EncodeError::Unreadable)?;
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD)
        .ok_or(EncodeError::TooLong(payload.len()))?;
    let mut frame = Vec::with_capacity(HEAD + payload.len() + CHECK);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&at.sequence.to_le_bytes());
    let check = chain(at.check, &frame, &payload);
    frame.extend_from_slice(&payload);
    frame.extend_from_slice(&check);
    Ok((
        frame,
        Position {
            check,
            sequence: at.sequence.saturating_add(1),
        },
    ))
}

/// What a journal's bytes say.
#[derive(Debug)]
pub struct Scan<R> {
    /// The records, oldest first.
    pub records: Vec<R>,
    /// Where the next one goes.
    pub position: Position,
    /// How many bytes of the file are believed; what follows is a torn frame to cut off.
    pub believed: usize,
    /// Whether something follows.
    pub torn: bool,
}

/// How a journal's bytes end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Where the next record goes.
    pub position: Position,
    /// How many bytes of the file are believed; what follows is a torn frame to cut off.
    pub believed: usize,
    /// Whether something follows.
    pub torn: bool,
}

/// Bytes that cannot be believed and are not a torn tail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Another kind of file.
    #[error("this is not a journal")]
    Magic,
    /// A journal of another version.
    #[error("this is a journal of a version that this program does not read")]
    Version,
    /// Bytes in the middle changed.
    #[error("record {sequence} at byte {offset} is damaged and others follow it")]
    Frame {
        /// Which record.
        sequence: u64,
        /// Where it begins.
        offset: usize,
    },
    /// The bytes are as they were written, but say nothing that this program understands.
    #[error("record {sequence} at byte {offset} is unknown to this version: {reason}")]
    Unknown {
        /// Which record.
        sequence: u64,
        /// Where it begins.
        offset: usize,
        /// What is not understood.
        reason: String,
    },
}

impl Corrupt {
    /// Whether the bytes may be as somebody meant them: a newer program may read them.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::Version | Self::Unknown { .. } => true,
            Self::Magic | Self::Frame { .. } => false,
        }
    }
}

/// Reads a journal.
///
/// # Errors
/// [`Corrupt`] when a record that others follow cannot be believed or understood.
pub fn scan<R: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<Scan<R>, Corrupt> {
    let mut records = Vec::new();
    let End {
        position,
        believed,
        torn,
    } = read(kind, bytes, |record| records.push(record))?;
    Ok(Scan {
        records,
        position,
        believed,
        torn,
    })
}

/// Reads a journal, one record after the other, the oldest first.
///
/// # Errors
/// [`Corrupt`] when a record that others follow cannot be believed or understood. What was taken
/// before it is then of no use.
pub fn read<R: DeserializeOwned>(
    kind: Kind,
    bytes: &[u8],
    mut take: impl FnMut(R),
) -> Result<End, Corrupt> {
    let mut end = End {
        position: Position::start(kind),
        believed: 0,
        torn: false,
    };
    if bytes.len() < kind.magic.len() && kind.magic.starts_with(bytes) {
        end.torn = !bytes.is_empty();
        return Ok(end);
    }
    let Some(mut rest) = bytes.strip_prefix(kind.magic) else {
        return Err(if kind.began(bytes) {
            Corrupt::Version
        } else {
            Corrupt::Magic
        });
    };
    end.believed = kind.magic.len();
    while !rest.is_empty() {
        let (sequence, offset) = (end.position.sequence, end.believed);
        let Some((payload, length, next)) = frame(end.position, rest) else {
            end.torn = ends_torn(end.position, offset, rest);
            return end
                .torn
                .then_some(end)
                .ok_or(Corrupt::Frame { sequence, offset });
        };
        take(
            serde_json::from_slice(payload).map_err(|error| Corrupt::Unknown {
                sequence,
                offset,
                reason: error.to_string(),
            })?,
        );
        end.position = next;
        end.believed += length;
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(end)
}

/// The first frame of `rest`, if it is whole and right: payload, length of the frame, position
/// behind it.
fn frame(at: Position, rest: &[u8]) -> Option<(&[u8], usize, Position)> {
    let head = rest.get(..HEAD)?;
    let payload_len = payload_length(rest)?;
    let payload = rest.get(HEAD..HEAD + payload_len)?;
    let length = HEAD + payload_len + CHECK;
    let stored = rest.get(HEAD + payload_len..length)?;
    let check = chain(at.check, head, payload);
    (stored == check).then(|| {
        (
            payload,
            length,
            Position {
                check,
                sequence: at.sequence.saturating_add(1),
            },
        )
    })
}

fn payload_length(rest: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
    usize::try_from(length).ok().filter(|n| *n <= MAX_PAYLOAD)
}

/// Whether a bad frame is the last write of a crash: cut short, or with zeros that the file
/// system left where the data never arrived, and nothing behind it. Whatever else it may be, a
/// frame that was durable once is damaged, even where its length is, and seems to reach past the
/// end of the file.
fn ends_torn(at: Position, offset: usize, rest: &[u8]) -> bool {
    if rest.iter().all(|byte| *byte == 0) {
        return true;
    }
    if begins_torn(offset, rest) {
        return !is_followed(at, rest);
    }
    let last = match payload_length(rest) {
        // The length itself is cut off, or it was never a length.
        None => rest.len() < 4,
        // The frame reaches to the end of the file or past it.
        Some(length) => {
            let end = HEAD + length + CHECK;
            rest.get(end..)
                .is_none_or(|behind| behind.iter().all(|byte| *byte == 0))
        }
    };
    last && !is_complete(offset, rest) && !has_another_length(at, rest) && !is_followed(at, rest)
}

/// The parts of a frame, from `from` bytes behind its beginning on, that arrive at once.
fn sectors(offset: usize, from: usize, frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = SECTOR - (offset + from) % SECTOR;
    let (first, others) = frame
        .get(from..)
        .and_then(|rest| rest.split_at_checked(first))
        .unwrap_or((frame.get(from..).unwrap_or_default(), &[]));
    std::iter::once(first).chain(others.chunks(SECTOR))
}

/// Whether the frame's head never arrived, and something of the sectors behind it did.
fn begins_torn(offset: usize, rest: &[u8]) -> bool {
    sectors(offset, 0, rest)
        .next()
        .is_some_and(|first| first.len() >= HEAD && first.iter().all(|byte| *byte == 0))
}

/// Whether all bytes of a frame arrived, right or wrong. What did not arrive is zero: whole
/// sectors of it, or its end together with what the file was made longer by. A single zero among
/// other bytes did arrive.
fn is_complete(offset: usize, rest: &[u8]) -> bool {
    let length = payload_length(rest).map(|length| HEAD + length + CHECK);
    let Some((frame, behind)) = length.and_then(|length| rest.split_at_checked(length)) else {
        return false;
    };
    let longer = !behind.is_empty() && frame.last() == Some(&0);
    !longer && !sectors(offset, HEAD, frame).any(|part| part.iter().all(|byte| *byte == 0))
}

/// Whether the bytes up to the end of the file are a right frame, but for its length.
fn has_another_length(at: Position, rest: &[u8]) -> bool {
    let Some(length) = rest.len().checked_sub(HEAD + CHECK) else {
        return false;
    };
    let Some((head, behind)) = rest.split_at_checked(HEAD) else {
        return false;
    };
    let (Some((payload, check)), Ok(length)) =
        (behind.split_at_checked(length), u32::try_from(length))
    else {
        return false;
    };
    let mut right = length.to_le_bytes().to_vec();
    right.extend_from_slice(head.get(4..).unwrap_or_default());
    chain(at.check, &right, payload) == check
}

/// Whether a right frame stands somewhere behind the bad one. It can be told by itself: the
/// check that it continues is in the eight bytes before it.
fn is_followed(at: Position, rest: &[u8]) -> bool {
    let after = at.sequence.saturating_add(1);
    let fits = u64::try_from(rest.len() / (HEAD + CHECK)).unwrap_or(u64::MAX);
    rest.windows(CHECK + HEAD)
        .enumerate()
        .skip(HEAD)
        .any(|(start, window)| {
            let Some((check, head)) = window.split_first_chunk::<CHECK>() else {
                return false;
            };
            let Some(sequence) = head
                .last_chunk::<8>()
                .map(|bytes| u64::from_le_bytes(*bytes))
            else {
                return false;
            };
            let near = (after..=after.saturating_add(fits)).contains(&sequence);
            near && rest.get(start + CHECK..).is_some_and(|behind| {
                frame(
                    Position {
                        check: *check,
                        sequence,
                    },
                    behind,
                )
                .is_some()
            })
        })
}

fn chain(previous: Check, head: &[u8], payload: &[u8]) -> Check {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&previous);
    hasher.update(head);
    hasher.update(payload);
    let mut check = [0; CHECK];
    check.copy_from_slice(
        hasher
            .finalize()
            .as_bytes()
            .first_chunk::<CHECK>()
            .unwrap_or(&[0; CHECK]),
    );
    check
}
