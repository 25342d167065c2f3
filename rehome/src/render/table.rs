//! Text in columns: two spaces between them, nothing after the last.

/// Lays rows out under a header. A row may be shorter than the header.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(header, &widths);
    for row in rows {
        text.push_str(&line(row, &widths));
    }
    text
}

fn line<S: AsRef<str>>(cells: &[S], widths: &[usize]) -> String {
    // `width$` pads by characters, not by bytes.
    let padded: Vec<String> = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{:<width$}", cell.as_ref()))
        .collect();
    format!("{}\n", padded.join("  ").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["db".to_owned(), "a → b".to_owned(), "1".to_owned()],
            vec!["frontend".to_owned(), "c".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "WAY", "N"], &rows),
            "NAME      WAY    N\n\
             db        a → b  1\n\
             frontend  c\n"
        );
    }
}
