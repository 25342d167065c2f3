//! The files that the daemons read at their start: the journals of both, and the older form of the
//! routes. Checks hide what is behind them, so the lines of the bytes are also framed as they should
//! be, as if a newer version had written them.

use migrated_core::record::Record as OfMigrated;
use proxyd_core::saved::{KIND, Record, Saved};
use proxyd_core::table::RouteTable;
use rehome_shared::journal::{self, End, Kind, Position};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The journal of `migrated`.
const MIGRATED: Kind = Kind::new(migrated_core::journal::MAGIC);

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    file::<Record>(KIND, bytes);
    file::<OfMigrated>(MIGRATED, bytes);
    if let Ok(saved) = serde_json::from_slice::<Saved>(bytes)
        && let Ok(table) = RouteTable::try_from(saved)
    {
        let again = RouteTable::try_from(Saved::from(&table));
        assert_eq!(again, Ok(table));
    }
    let lines = || {
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
    };
    replayed(lines().filter_map(|line| serde_json::from_slice(line).ok()));
    whole::<Record>(KIND, lines());
    whole::<OfMigrated>(MIGRATED, lines());
}

/// Reads a file, and goes on with it where it may.
fn file<R: Serialize + DeserializeOwned>(kind: Kind, bytes: &[u8]) {
    let mut records: Vec<R> = Vec::new();
    let end = match journal::read(kind, bytes, |record| records.push(record)) {
        Ok(end) => end,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "no reason");
            return;
        }
    };
    let believed = bytes.get(..end.believed).unwrap_or_default();
    assert!(end.believed <= bytes.len(), "it believes what is not there");
    let again = journal::read(kind, believed, |_: R| {});
    let wanted = End { torn: false, ..end };
    assert_eq!(again, Ok(wanted), "what is believed is not read alone");
    if let Some(record) = records.last() {
        append(kind, believed, end.position, record, records.len());
    }
}

/// A record is appended and found.
fn append<R: Serialize + DeserializeOwned>(
    kind: Kind,
    believed: &[u8],
    at: Position,
    record: &R,
    count: usize,
) {
    let Ok((frame, _)) = journal::encode(at, record) else {
        return;
    };
    let longer = [believed, &frame].concat();
    let mut found = 0;
    let end = journal::read(kind, &longer, |_: R| found += 1);
    assert!(
        end.is_ok_and(|end| !end.torn && end.believed == longer.len()) && found == count + 1,
        "what is appended is not found"
    );
}

/// A journal of lines, where they are records.
fn whole<'a, R: Serialize + DeserializeOwned>(
    kind: Kind,
    lines: impl Iterator<Item = &'a [u8]>,
) -> Option<()> {
    let (mut bytes, mut position) = (kind.magic().to_vec(), Position::start(kind));
    for line in lines {
        let record: R = serde_json::from_slice(line).ok()?;
        let (frame, next) = journal::encode(position, &record).ok()?;
        bytes.extend_from_slice(&frame);
        position = next;
    }
    file::<R>(kind, &bytes);
    // Cut anywhere, it is torn and never corrupt.
    let cut = bytes.len().saturating_sub(bytes.len() % 13 + 1);
    let cut = bytes.get(..cut).unwrap_or_default();
    assert!(
        journal::read(kind, cut, |_: R| {}).is_ok(),
        "a cut is a damage"
    );
    Some(())
}

/// A table is what its records say, however it came to be.
fn replayed(records: impl Iterator<Item = Record>) {
    let mut table = RouteTable::default();
    records.for_each(|record| table.replay(record));
    let mut again = RouteTable::default();
    table.records().for_each(|record| again.replay(record));
    assert!(table == again, "{table:?} is written as {again:?}");
}
