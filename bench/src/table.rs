//! Tables in Markdown.

use crate::machine::Machine;

/// One row.
#[must_use]
pub fn row(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<String> = cells
        .iter()
        .map(|cell| cell.as_ref().replace('|', "\\|").replace('\n', " "))
        .collect();
    format!("| {} |\n", cells.join(" | "))
}

/// What stands below the head.
#[must_use]
pub fn rule(columns: usize) -> String {
    format!("|{}\n", "---|".repeat(columns))
}

/// What stands where there is no figure.
#[must_use]
pub fn none() -> String {
    "–".to_owned()
}

/// Where a run was made, how it was asked for, and how many seconds it took. The notes come
/// between machine and programs.
#[must_use]
pub fn place(machine: &Machine, notes: &[String], command: &str, seconds: f64) -> String {
    let mut text = format!(
        "## Where and how\n\n- {} × {}, {} GiB of memory, {}\n",
        machine.cores,
        machine.processor,
        machine.memory / 1024,
        machine.kernel,
    );
    let built = format!(
        "Rehome's build: {}; load average before the run: {}",
        machine.build, machine.load
    );
    let run = format!(
        "`{command}`, {}, {:.0} minutes",
        machine.date,
        seconds / 60.0
    );
    let lines = notes.iter().chain([&built]);
    for line in lines.chain(&machine.versions).chain([&run]) {
        text = text + "- " + line + "\n";
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Insists that every row of every table has as many cells as its head.
    pub(crate) fn assert_even(text: &str) {
        let mut columns = None;
        for line in text.lines() {
            let cells = line.matches('|').count();
            if cells == 0 {
                columns = None;
            } else {
                assert_eq!(cells, *columns.get_or_insert(cells), "{line}");
            }
        }
    }

    #[test]
    fn a_cell_cannot_end_its_row() {
        assert_eq!(row(&["a | b\nc", "d"]), "| a \\| b c | d |\n");
        assert_eq!(rule(2), "|---|---|\n");
    }
}
