//! What people see of a run: a line when a case ends, and a table of all in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::case::{BLOWS, Blow, Case};

/// How a case ended.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) case: Case,
    /// The end of the move, or what was wrong.
    pub(crate) result: Result<String, String>,
    pub(crate) took: Duration,
}

impl Ending {
    fn cell(&self) -> String {
        let word = self.result.as_ref().map_or("FAILED", String::as_str);
        format!("{word} {:.1}", self.took.as_secs_f64())
    }
}

/// A table with a row for each write and a column for each blow: how the move ended, and seconds.
pub(crate) fn table(endings: &[Ending]) -> String {
    let hit = |blow: &Blow| endings.iter().any(|ending| ending.case.blow == *blow);
    let columns: Vec<String> = BLOWS.into_iter().filter(hit).map(heading).collect();
    let mut rows: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for ending in endings {
        let column = heading(ending.case.blow);
        let row = ending.case.row();
        match rows.iter_mut().find(|(name, _)| *name == row) {
            Some((_, cells)) => drop(cells.insert(column, ending.cell())),
            None => rows.push((row, BTreeMap::from([(column, ending.cell())]))),
        }
    }
    let first = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.map(|cell| format!("  {cell:>16}"));
        format!("{name:first$}{}", padded.collect::<String>())
    };
    let mut lines = vec![line("", &mut columns.iter().map(String::as_str))];
    lines.extend(rows.iter().map(|(name, cells)| {
        let mut in_order = columns
            .iter()
            .map(|column| cells.get(column).map_or("", String::as_str));
        line(name, &mut in_order)
    }));
    lines.join("\n")
}

fn heading(blow: Blow) -> String {
    blow.to_string().replace("destination", "dest.")
}
