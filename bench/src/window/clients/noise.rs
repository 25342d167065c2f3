//! Bytes that cannot be compressed.

use std::hash::{BuildHasher as _, RandomState};

use super::VALUE;

/// Bytes of a MiB.
const MEBIBYTE: usize = 1 << 20;
/// Bytes to cut values from.
const STORE: usize = 16 * MEBIBYTE;
/// From the beginning of a value to that of the next one: a prime, so that they differ for long.
const STEP: usize = 65_537;

/// Values that differ from each other.
#[derive(Debug)]
pub(super) struct Noise(Vec<u8>);

impl Noise {
    /// Bytes that differ from run to run.
    pub(super) fn new() -> Self {
        let mut state = RandomState::new().hash_one(0) | 1;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes()
        });
        Self(words.take(STORE / 8).flatten().collect())
    }

    /// A value of [`VALUE`] MiB.
    pub(super) fn value(&self, number: u32) -> &[u8] {
        let length = usize::try_from(VALUE).unwrap_or(1) * MEBIBYTE;
        let room = STORE - length;
        let begin = usize::try_from(number)
            .unwrap_or_default()
            .wrapping_mul(STEP)
            % room;
        self.0.get(begin..begin + length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_whole_and_differs_from_the_one_before() {
        let noise = Noise::new();
        for number in [0, 1, 239, 240, 4_000_000] {
            let value = noise.value(number);
            assert_eq!(value.len(), MEBIBYTE);
            assert_ne!(value, noise.value(number + 1));
        }
    }
}
