//! A log that clients append to: an application that is as small as one can be and still has all
//! that a move could lose. The soak runs its server on the hosts of a lab.
//!
//! A client numbers its records from 1 and sends the next one only after the last one was
//! acknowledged; until then it repeats it. The server tells a repeated record from a new one by
//! that number. An acknowledgement names the record's place in the log and is given after the
//! record is on the disk.
//!
//! Every record is chained to its predecessor by a [`Digest`], on the disk and in the answers: two
//! logs with the same digest at a place are the same up to there.

pub mod client;
pub mod protocol;
pub mod server;
mod store;
pub mod witness;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use store::Kind;

/// The length of a record on the disk.
pub const RECORD: usize = 64;

const HEAD: usize = 32;

/// What a client appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Who sent it.
    pub client: u64,
    /// Which of the client's records it is, from 1.
    pub sequence: u64,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client, self.sequence)
    }
}

/// What a log is up to some place: everything before it in its order.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest([u8; RECORD - HEAD]);

impl Digest {
    /// The digest after one more record, which is at place `index`.
    #[must_use]
    pub fn then(self, index: u64, record: Record) -> Self {
        self.then_head(&head(index, record))
    }

    fn then_head(self, head: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(head);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.to_string();
        f.write_str(whole.get(..12).unwrap_or_default())
    }
}

/// A text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: 64 hexadecimal digits are one")]
pub struct InvalidDigest;

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| InvalidDigest)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A record as it is on the disk: place, client, sequence, nothing, and the digest after it.
fn encode(index: u64, record: Record, after: Digest) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let (first, second) = bytes.split_at_mut(HEAD);
    first.copy_from_slice(&head(index, record));
    second.copy_from_slice(&after.0);
    bytes
}

fn head(index: u64, record: Record) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    let numbers = [index, record.client, record.sequence];
    for (field, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        field.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// The record at place `index` behind `before`, with the digest after it; `None` when these bytes
/// are not that.
fn decode(index: u64, before: Digest, bytes: &[u8]) -> Option<(Record, Digest)> {
    let (first, second) = bytes.split_at_checked(HEAD)?;
    let after = before.then_head(first);
    let mut fields = first
        .chunks_exact(8)
        .filter_map(|field| Some(u64::from_le_bytes(field.try_into().ok()?)));
    let place = fields.next()?;
    let record = Record {
        client: fields.next()?,
        sequence: fields.next()?,
    };
    (place == index && second == after.0).then_some((record, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD_3: Record = Record {
        client: 7,
        sequence: 3,
    };

    #[test]
    fn a_record_is_read_back_only_at_its_place_behind_its_predecessor() {
        let before = Digest::default().then(0, RECORD_3);
        let after = before.then(1, RECORD_3);
        let bytes = encode(1, RECORD_3, after);
        assert_eq!(decode(1, before, &bytes), Some((RECORD_3, after)));
        assert_eq!(decode(2, before, &bytes), None);
        assert_eq!(decode(1, Digest::default(), &bytes), None);
        assert_eq!(decode(0, Digest::default(), &[0; RECORD]), None);
        for at in 0..RECORD {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert_eq!(decode(1, before, &changed), None, "byte {at}");
        }
    }

    #[test]
    fn a_digest_is_read_back_from_its_text() {
        let digest = Digest::default().then(0, RECORD_3);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("00".parse::<Digest>(), Err(InvalidDigest));
    }
}
