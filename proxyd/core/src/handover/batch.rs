//! The records of a batch: what a successor reads of each part, with its descriptors and bytes.
//!
//! A part of a kind that the successor does not know is an error of that part alone: it stays
//! with the predecessor, and the others go.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::message::Batch;
use super::part::{Part, PartId};

/// The most descriptors of a batch: the kernel takes 253 in one message, one is the file's.
pub const MOST_DESCRIPTORS: usize = 250;

/// The most bytes of the parts of a batch, but for one part that has more by itself.
pub const MOST_BYTES: usize = 8 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    id: PartId,
    #[serde(default)]
    descriptors: usize,
    #[serde(default)]
    bytes: usize,
    part: Box<RawValue>,
}

/// A batch that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not records.
    #[error("the records of a batch cannot be read: {0}")]
    Records(String),
    /// They are not those that were announced.
    #[error("a batch is not what was announced: {0}")]
    Other(&'static str),
}

/// Collects the parts of a batch.
#[derive(Debug, Default)]
pub struct Packer {
    records: Vec<Record>,
    bytes: Vec<u8>,
    descriptors: usize,
}

/// A batch that is ready: the message, and what the file holds that travels with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The message.
    pub batch: Batch,
    /// The records, and then the bytes.
    pub content: Vec<u8>,
}

impl Packer {
    /// Whether a part with so many descriptors and bytes still fits. The first one always does.
    #[must_use]
    pub fn fits(&self, descriptors: usize, bytes: usize) -> bool {
        self.records.is_empty()
            || (self.descriptors.saturating_add(descriptors) <= MOST_DESCRIPTORS
                && self.bytes.len().saturating_add(bytes) <= MOST_BYTES)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds a part.
    ///
    /// # Errors
    /// [`BatchError::Records`]; it does not happen.
    pub fn add(
        &mut self,
        id: PartId,
        part: &Part,
        descriptors: usize,
        bytes: &[u8],
    ) -> Result<(), BatchError> {
        let part = to_raw_value(part).map_err(|error| BatchError::Records(error.to_string()))?;
        self.records.push(Record {
            id,
            descriptors,
            bytes: bytes.len(),
            part,
        });
        self.bytes.extend_from_slice(bytes);
        self.descriptors = self.descriptors.saturating_add(descriptors);
        Ok(())
    }

    /// The batch.
    ///
    /// # Errors
    /// [`BatchError::Records`]; it does not happen.
    pub fn finish(self) -> Result<Packed, BatchError> {
        let mut content = serde_json::to_vec(&self.records)
            .map_err(|error| BatchError::Records(error.to_string()))?;
        let batch = Batch {
            ids: self.records.iter().map(|record| record.id).collect(),
            records: length(content.len()),
            bytes: length(self.bytes.len()),
        };
        content.extend_from_slice(&self.bytes);
        Ok(Packed { batch, content })
    }
}

/// A part of a batch that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Its number.
    pub id: PartId,
    /// What it is, or why this version cannot take it.
    pub part: Result<Part, String>,
    /// Its descriptors, among those of the batch.
    pub descriptors: Range<usize>,
    /// Its bytes, within the content.
    pub bytes: Range<usize>,
}

/// Takes a batch apart. `descriptors` is how many came with it, without the file's.
///
/// # Errors
/// [`BatchError`] when it is not what the message says.
pub fn unpack(
    batch: &Batch,
    content: &[u8],
    descriptors: usize,
) -> Result<Vec<Unpacked>, BatchError> {
    let records = usize::try_from(batch.records).unwrap_or(usize::MAX);
    let text = content
        .get(..records)
        .ok_or(BatchError::Other("the records are cut off"))?;
    if length(content.len()) != batch.records.saturating_add(batch.bytes) {
        return Err(BatchError::Other("the bytes are not so many"));
    }
    let records: Vec<Record> =
        serde_json::from_slice(text).map_err(|error| BatchError::Records(error.to_string()))?;
    let (mut descriptor, mut byte) = (0_usize, text.len());
    let mut seen = BTreeSet::new();
    let mut parts = Vec::with_capacity(records.len());
    for record in records {
        let (last_descriptor, last_byte) = (
            descriptor.saturating_add(record.descriptors),
            byte.saturating_add(record.bytes),
        );
        if !seen.insert(record.id) {
            return Err(BatchError::Other("a part is there twice"));
        }
        parts.push(Unpacked {
            id: record.id,
            part: read(&record),
            descriptors: descriptor..last_descriptor,
            bytes: byte..last_byte,
        });
        (descriptor, byte) = (last_descriptor, last_byte);
    }
    if descriptor != descriptors || byte != content.len() {
        return Err(BatchError::Other(
            "the parts need other descriptors or bytes",
        ));
    }
    if !batch.ids.iter().eq(parts.iter().map(|part| &part.id)) {
        return Err(BatchError::Other("the parts are others"));
    }
    Ok(parts)
}

fn read(record: &Record) -> Result<Part, String> {
    let part: Part = serde_json::from_str(record.part.get()).map_err(|error| error.to_string())?;
    let (descriptors, bytes) = part.shape();
    let fits = descriptors == record.descriptors
        && bytes.is_none_or(|bytes| bytes == length(record.bytes));
    if fits {
        Ok(part)
    } else {
        Err("its descriptors or bytes are not those of such a part".to_owned())
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
