//! `command` and `entrypoint`: a list of words, or a text that is split as a shell splits it.

use super::super::read::{At, Report};
use super::super::yaml::Value;

/// The value of `command` or `entrypoint`. An empty one is kept: it clears what the image says.
pub(super) fn command(at: &At<'_>, report: &mut Report) -> Option<Vec<String>> {
    match at.value {
        Value::Null => None,
        Value::List(items) if items.is_empty() => Some(Vec::new()),
        Value::List(_) => at.texts(report, "a list of texts (put numbers in quotes)"),
        _ => {
            let text = at.text(report, "a text or a list of texts")?;
            match split(text) {
                Ok(words) => Some(words),
                Err(why) => {
                    report.problem(
                        &at.place,
                        format!("the command cannot be split: {why}"),
                        "close the quote, or write a list of words",
                    );
                    None
                }
            }
        }
    }
}

/// Splits at white space outside quotes. Single quotes keep everything, double quotes keep all
/// but a backslash before `"`, `\` and the end of a line, and a backslash outside quotes keeps
/// the next character. No variables, no globs, no operators.
fn split(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a single quote is not closed"),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("it ends with a backslash"),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    loop {
        match chars.next() {
            Some('"') => return Ok(()),
            Some('\\') => match chars.next() {
                Some('\n') => {}
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some(c) => word.extend(['\\', c]),
                None => return Err("a double quote is not closed"),
            },
            Some(c) => word.push(c),
            None => return Err("a double quote is not closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        for (text, want) in [
            ("", vec![]),
            (
                "  redis-server --port 6379\n",
                vec!["redis-server", "--port", "6379"],
            ),
            (
                "sh -c 'echo \"a b\" $x'",
                vec!["sh", "-c", "echo \"a b\" $x"],
            ),
            (r#"a"b c"d '' e\ f"#, vec!["ab cd", "", "e f"]),
            (r#""x\"y\n""#, vec!["x\"y\\n"]),
        ] {
            assert_eq!(split(text).unwrap(), want, "{text}");
        }
        for bad in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
