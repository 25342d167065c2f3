//! Journals that real histories wrote, cut anywhere and with a bit flipped anywhere.

use migrated_core::journal::{self, Corrupt, MAGIC};
use migrated_core::record::Record;
use proptest::prelude::*;

use crate::steps::sequences;
use crate::world::World;

/// Histories of journals, with where each frame ends.
fn journals() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<Record>, Vec<usize>)>> {
    sequences().prop_map(|steps| {
        let (world, _) = World::run(None, &steps).unwrap();
        world
            .journals()
            .map(|(bytes, records)| {
                let ends = ends(records);
                assert_eq!(ends.last().copied().unwrap_or(MAGIC.len()), bytes.len());
                (bytes.to_vec(), records.to_vec(), ends)
            })
            .collect()
    })
}

fn ends(records: &[Record]) -> Vec<usize> {
    let mut position = journal::start();
    let mut length = MAGIC.len();
    records
        .iter()
        .map(|record| {
            let (frame, next) = journal::encode(position, record).unwrap();
            position = next;
            length += frame.len();
            length
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A cut is never more than the end of what was being written.
    #[test]
    fn a_cut_leaves_what_was_whole(journals in journals(), place in any::<prop::sample::Index>()) {
        for (bytes, records, ends) in journals {
            let cut = place.index(bytes.len() + 1);
            let read = journal::scan(&bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(&read.records[..], &records[..whole]);
            let believed = match whole {
                0 => MAGIC.len().min(cut / MAGIC.len() * MAGIC.len()),
                _ => ends[whole - 1],
            };
            prop_assert_eq!(read.believed, believed);
            prop_assert_eq!(read.torn, cut != believed);
            // What follows a torn frame that was cut off reads back.
            let mut file = bytes[..read.believed].to_vec();
            if file.is_empty() {
                file = MAGIC.to_vec();
            }
            for record in &records[whole..] {
                let at = journal::scan(&file).unwrap().position;
                file.extend(journal::encode(at, record).unwrap().0);
            }
            prop_assert_eq!(file, bytes);
        }
    }

    /// A frame that was whole is never taken for one that was being written: whatever bit
    /// changes, nobody goes on without a record that was durable.
    #[test]
    fn a_flipped_bit_is_never_a_cut(
        journals in journals(),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        for (bytes, _, ends) in journals {
            let at = place.index(bytes.len());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            match journal::scan(&flipped) {
                Err(Corrupt::Magic | Corrupt::Version) => prop_assert!(at < MAGIC.len()),
                Err(Corrupt::Frame { offset, .. } | Corrupt::Unknown { offset, .. }) => {
                    let frame = ends.iter().filter(|end| **end <= at).count();
                    let begins = frame.checked_sub(1).map_or(MAGIC.len(), |before| ends[before]);
                    prop_assert_eq!(offset, begins);
                }
                // The only byte of a sector cannot be told from one that never arrived.
                Ok(read) => prop_assert!(
                    at + 1 == bytes.len() && at % 512 == 0 && flipped[at] == 0,
                    "bit {bit} of byte {at} of {} is taken for a cut at {}",
                    bytes.len(),
                    read.believed
                ),
            }
        }
    }
}
