//! The journal of a host: one append-only file of [`Record`]s, in the form of
//! [`rehome_shared::journal`].

pub use rehome_shared::journal::{Corrupt, EncodeError, MAX_PAYLOAD, Position};

use rehome_shared::journal::{self, Kind};

use crate::record::Record;

/// The first bytes of a journal; the last one is the format's version.
pub const MAGIC: &[u8; 8] = b"rehomeJ\x01";

const KIND: Kind = Kind::new(MAGIC);

/// What a journal's bytes say.
pub type Scan = journal::Scan<Record>;

/// Where the first frame goes: right behind the magic.
#[must_use]
pub fn start() -> Position {
    Position::start(KIND)
}

/// The frame of a record and the position behind it.
///
/// # Errors
/// [`EncodeError`] when the record has no JSON form that can be read back, or is too long.
pub fn encode(at: Position, record: &Record) -> Result<(Vec<u8>, Position), EncodeError> {
    journal::encode(at, record)
}

/// Reads a journal.
///
/// # Errors
/// [`Corrupt`] when a record that others follow cannot be believed or understood.
pub fn scan(bytes: &[u8]) -> Result<Scan, Corrupt> {
    journal::scan(KIND, bytes)
}

#[cfg(test)]
mod tests;
