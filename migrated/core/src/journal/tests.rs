use rehome_shared::api::cluster::Round;
use rehome_shared::ids::{AppName, Attempt, MigrationId};
use rehome_shared::journal::{self, CHECK, HEAD, SECTOR};
use rehome_shared::units::Bytes;
use serde_json::json;

use super::{Corrupt, EncodeError, MAGIC, MAX_PAYLOAD, encode, scan, start};
use crate::record::{DestinationRecord, Record, SourceRecord};

fn records() -> Vec<Record> {
    let migration = MigrationId::try_new("01hf0000000000000000000001").unwrap();
    let source = |step| Record::Source {
        migration: migration.clone(),
        step,
    };
    vec![
        Record::Born {
            application: AppName::try_new("db").unwrap(),
            volumes: Vec::new(),
        },
        source(SourceRecord::Round(Round {
            bytes: Bytes(1 << 20),
            seconds: 0.25,
        })),
        source(SourceRecord::Released {
            attempt: Attempt(1),
        }),
        source(SourceRecord::Adopted),
        Record::Destination {
            migration: migration.clone(),
            step: DestinationRecord::Serving,
        },
    ]
}

/// The bytes of a journal, and where each record's frame ends.
fn write(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = MAGIC.to_vec();
    let mut ends = Vec::new();
    let mut position = start();
    for record in records {
        let (frame, next) = encode(position, record).unwrap();
        bytes.extend(frame);
        ends.push(bytes.len());
        position = next;
    }
    (bytes, ends)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] * 16 + pair[1])
        .collect()
}

#[test]
fn the_bytes_never_change() {
    let (bytes, _) = write(&records()[..1]);
    let payload = br#"{"born":{"application":"db","volumes":[]}}"#;
    let mut golden = b"rehomeJ\x01\x2a\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    golden.extend(payload);
    assert_eq!(&bytes[..bytes.len() - CHECK], golden);
    assert_eq!(hex(&bytes[bytes.len() - CHECK..]), "f08dc758becd363f");
}

/// The frames of a journal with a record of every kind, one in hex on each line: what was once
/// written must always be read. New kinds are added at the end; the failure shows their lines.
const GOLDEN: &str = include_str!("golden.hex");

#[test]
fn a_journal_of_every_record_is_written_and_read_as_it_always_was() {
    let records = crate::record::tests::all();
    let (bytes, ends) = write(&records);
    let begins = std::iter::once(MAGIC.len()).chain(ends.iter().copied());
    let frames: Vec<String> = begins
        .zip(&ends)
        .map(|(begin, end)| hex(&bytes[begin..*end]))
        .collect();
    assert_eq!(GOLDEN.lines().collect::<Vec<_>>(), frames);
    let golden: Vec<u8> = MAGIC.iter().copied().chain(unhex(GOLDEN)).collect();
    let read = scan(&golden).unwrap();
    assert_eq!((read.records, read.torn), (records, false));
}

#[test]
fn a_journal_reads_back_and_goes_on_where_it_ended() {
    let records = records();
    let (bytes, _) = write(&records);
    let read = scan(&bytes).unwrap();
    assert_eq!(read.records, records);
    assert_eq!((read.believed, read.torn), (bytes.len(), false));
    assert_eq!(read.position.sequence(), 6);
    let (frame, _) = encode(read.position, &records[0]).unwrap();
    let longer = scan(&[bytes, frame].concat()).unwrap();
    assert_eq!((longer.records.len(), longer.torn), (6, false));
}

#[test]
fn an_empty_file_is_an_empty_journal() {
    let read = scan(&[]).unwrap();
    assert_eq!(
        (read.records.len(), read.believed, read.torn),
        (0, 0, false)
    );
    assert_eq!(read.position, start());
}

#[test]
fn a_cut_at_any_byte_leaves_the_whole_records_before_it() {
    let records = records();
    let (bytes, ends) = write(&records);
    for cut in 0..bytes.len() {
        let read = scan(&bytes[..cut]).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(read.records, records[..whole], "cut at {cut}");
        let believed = match whole {
            0 if cut < MAGIC.len() => 0,
            0 => MAGIC.len(),
            _ => ends[whole - 1],
        };
        assert_eq!(read.believed, believed, "cut at {cut}");
        assert_eq!(read.torn, cut != believed, "cut at {cut}");
    }
}

#[test]
fn zeros_behind_a_cut_are_a_torn_tail() {
    let records = records();
    let (bytes, ends) = write(&records);
    for cut in MAGIC.len()..=bytes.len() {
        let mut file = bytes[..cut].to_vec();
        file.extend([0; 4096]);
        let read = scan(&file).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        // A record that ends in zeros is whole with the zeros of the tail.
        assert!(read.records.len() >= whole, "cut at {cut}");
        assert_eq!(read.records, records[..read.records.len()], "cut at {cut}");
        assert!(read.torn, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_is_damage_and_never_believed_nor_cut_off() {
    let (bytes, ends) = write(&records());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut file = bytes.clone();
            file[at] ^= 1 << bit;
            match scan(&file) {
                Err(Corrupt::Magic) => assert!(at < MAGIC.len() - 1, "byte {at} bit {bit}"),
                Err(Corrupt::Version) => assert_eq!(at, MAGIC.len() - 1, "bit {bit}"),
                Err(Corrupt::Frame { offset, .. }) => {
                    let hit = ends.iter().position(|end| at < *end).unwrap();
                    let begin = if hit == 0 { MAGIC.len() } else { ends[hit - 1] };
                    assert_eq!(offset, begin, "byte {at} bit {bit}");
                }
                Err(error) => panic!("byte {at} bit {bit}: {error}"),
                Ok(read) => panic!(
                    "byte {at} bit {bit} is taken for a cut at {}",
                    read.believed
                ),
            }
        }
    }
}

#[test]
fn a_longer_length_of_the_last_record_is_no_torn_tail() {
    let (bytes, ends) = write(&records());
    let last = ends[ends.len() - 2];
    for bit in 0..8 {
        let mut file = bytes.clone();
        file[last + 1] ^= 1 << bit;
        assert!(
            matches!(scan(&file), Err(Corrupt::Frame { sequence: 5, .. })),
            "bit {bit}: a promise that was durable is cut off"
        );
    }
}

#[test]
fn a_sector_that_never_arrived_is_a_torn_tail_and_a_zero_among_others_is_damage() {
    let migration = MigrationId::try_new("01hf0000000000000000000001").unwrap();
    let long = Record::Source {
        migration,
        step: SourceRecord::Aborted {
            reason: "x ".repeat(1000),
        },
    };
    let mut all = records();
    all.push(long);
    let (bytes, ends) = write(&all);
    let last = ends[ends.len() - 2];
    let sectors = last / SECTOR..bytes.len().div_ceil(SECTOR);
    assert!(sectors.len() > 3, "the record is in several sectors");
    for sector in sectors {
        let from = last.max(sector * SECTOR);
        let to = bytes.len().min((sector + 1) * SECTOR);
        let mut file = bytes.clone();
        file[from..to].fill(0);
        let read = scan(&file).unwrap();
        assert_eq!((read.believed, read.torn), (last, true), "sector {sector}");
        let mut file = bytes.clone();
        file[usize::midpoint(from, to)] = 0;
        assert!(
            matches!(scan(&file), Err(Corrupt::Frame { sequence: 6, .. })),
            "sector {sector}"
        );
    }
}

#[test]
fn damage_to_the_payload_of_the_last_record_is_no_torn_tail() {
    let (bytes, ends) = write(&records());
    let payload = ends[ends.len() - 2] + HEAD;
    let mut file = bytes.clone();
    file[payload + 3] ^= 1;
    assert!(matches!(
        scan(&file),
        Err(Corrupt::Frame { sequence: 5, .. })
    ));
}

#[test]
fn a_length_that_reaches_past_the_end_does_not_hide_the_records_behind_it() {
    let (bytes, ends) = write(&records());
    for frame in 0..ends.len() - 1 {
        let begin = if frame == 0 {
            MAGIC.len()
        } else {
            ends[frame - 1]
        };
        let mut file = bytes.clone();
        file[begin + 2] = 0x01;
        let expected = u64::try_from(frame).unwrap() + 1;
        assert!(
            matches!(scan(&file), Err(Corrupt::Frame { sequence, .. }) if sequence == expected),
            "frame {frame}"
        );
    }
}

#[test]
fn records_cannot_change_places_or_be_left_out() {
    let (bytes, ends) = write(&records());
    let swapped = [
        &bytes[..ends[0]],
        &bytes[ends[1]..ends[2]],
        &bytes[ends[0]..ends[1]],
        &bytes[ends[2]..],
    ];
    assert!(matches!(
        scan(&swapped.concat()),
        Err(Corrupt::Frame { sequence: 2, .. })
    ));
    let without = [&bytes[..ends[0]], &bytes[ends[1]..]];
    assert!(matches!(
        scan(&without.concat()),
        Err(Corrupt::Frame { sequence: 2, .. })
    ));
}

#[test]
fn another_file_or_version_is_refused() {
    assert_eq!(scan(b"rehomeJ\x02").unwrap_err(), Corrupt::Version);
    assert_eq!(scan(b"#!/bin/sh\n").unwrap_err(), Corrupt::Magic);
    assert_eq!(scan(&[0; 64]).unwrap_err(), Corrupt::Magic);
}

#[test]
fn a_record_of_a_later_version_is_refused_and_named() {
    let later = json!({"sealed": {"application": "db"}});
    let (frame, _) = journal::encode(start(), &later).unwrap();
    let file = [MAGIC.as_slice(), &frame].concat();
    match scan(&file) {
        Err(Corrupt::Unknown {
            sequence: 1,
            offset: 8,
            reason,
        }) => {
            assert!(reason.contains("sealed"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let migration = MigrationId::try_new("01hf0000000000000000000001").unwrap();
    let round = Round {
        bytes: Bytes(1),
        seconds: f64::NAN,
    };
    let record = Record::Source {
        migration,
        step: SourceRecord::Round(round),
    };
    assert!(matches!(
        encode(start(), &record),
        Err(EncodeError::Unreadable(_))
    ));
}

#[test]
fn a_record_that_is_too_long_is_not_written() {
    let migration = MigrationId::try_new("01hf0000000000000000000001").unwrap();
    let reason = "x".repeat(MAX_PAYLOAD);
    let record = Record::Source {
        migration,
        step: SourceRecord::Aborted { reason },
    };
    assert!(matches!(
        encode(start(), &record),
        Err(EncodeError::TooLong(_))
    ));
}
