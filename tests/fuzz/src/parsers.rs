//! The targets, one module for each.

pub mod announce;
pub mod configuration;
pub mod control;
pub mod http;
pub mod journals;
pub mod peer;
pub mod stream;
pub mod trunk;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A document of a type, when the bytes are one. Then what is written of it is read as the same.
fn document<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let document: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&document);
    let again = written
        .as_ref()
        .ok()
        .map(|text| serde_json::from_slice::<T>(text));
    let twice = again.map(|again| again.and_then(|again| serde_json::to_vec(&again)));
    let twice = twice.and_then(Result::ok);
    assert!(
        twice.is_some() && twice == written.ok(),
        "a document is not read as it was written: {}",
        String::from_utf8_lossy(bytes)
    );
    Some(document)
}
