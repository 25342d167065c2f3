//! One typed value out of the tree: each function here takes a value or reports why it cannot.
//!
//! [`Report`] gathers problems and warnings of one file; [`At`] is a value with the path that
//! leads to it; [`Fields`] hands out the keys of a mapping and reports those nobody took.

mod fields;

use std::fmt::Display;

pub(super) use fields::Fields;

use super::problem::{Problem, Source, key_path};
use super::yaml::{Entry, Node, Value};

/// What was found in one file.
#[derive(Debug)]
pub(super) struct Report {
    file: String,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Report {
    pub(super) fn new(source: &Source) -> Self {
        Self {
            file: source.name.clone(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn entry(&self, place: &Place, message: impl Display, cure: impl Display) -> Problem {
        Problem {
            file: self.file.clone(),
            line: place.line,
            path: place.path.clone(),
            message: message.to_string(),
            cure: cure.to_string(),
        }
    }

    /// Reports what makes the file unusable.
    pub(super) fn problem(&mut self, place: &Place, message: impl Display, cure: impl Display) {
        let problem = self.entry(place, message, cure);
        self.problems.push(problem);
    }

    /// Reports what is allowed and looks like a mistake.
    pub(super) fn warning(&mut self, place: &Place, message: impl Display, cure: impl Display) {
        let warning = self.entry(place, message, cure);
        self.warnings.push(warning);
    }
}

/// Where something stands, for messages; outlives the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) path: String,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<'n> {
    pub(super) place: Place,
    pub(super) value: &'n Value,
}

impl<'n> At<'n> {
    /// The whole document.
    pub(super) fn root(node: &'n Node) -> Self {
        Self {
            place: Place {
                line: node.line,
                path: String::new(),
            },
            value: &node.value,
        }
    }

    /// The value of a key of the mapping that stands at `parent`.
    pub(super) fn child(parent: &Place, entry: &'n Entry) -> Self {
        let key = entry.key.value.scalar_text().unwrap_or("?");
        Self {
            place: Place {
                line: entry.key.line,
                path: key_path(&parent.path, key),
            },
            value: &entry.value.value,
        }
    }

    /// The items of a list; `rule` says what the list holds.
    pub(super) fn list(&self, report: &mut Report, rule: &str) -> Vec<At<'n>> {
        let Value::List(items) = self.value else {
            self.wrong(report, rule);
            return Vec::new();
        };
        let item = |(index, node): (usize, &'n Node)| At {
            place: Place {
                line: node.line,
                path: format!("{}[{index}]", self.place.path),
            },
            value: &node.value,
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The keys of a mapping; `rule` says what the mapping is.
    pub(super) fn mapping(&self, report: &mut Report, rule: &str) -> Option<Fields<'n>> {
        let Value::Map(entries) = self.value else {
            self.wrong(report, rule);
            return None;
        };
        Some(Fields::new(self.place.clone(), entries, report))
    }

    /// Reports a value of the wrong kind.
    pub(super) fn wrong(&self, report: &mut Report, rule: &str) {
        let cure = match self.value {
            Value::Ambiguous(text) => format!("put it in quotes: \"{text}\""),
            Value::Null
            | Value::Bool(_)
            | Value::Int(..)
            | Value::Float(_)
            | Value::Text(_)
            | Value::Merge
            | Value::List(_)
            | Value::Map(_) => format!("write {rule}"),
        };
        let name = self.name();
        report.problem(
            &self.place,
            format!("{name} must be {rule}, found {}", self.value.kind()),
            cure,
        );
    }

    /// The last step of the path, as the subject of a message.
    fn name(&self) -> &str {
        match self.place.path.as_str() {
            "" => "the file",
            path if path.ends_with(['"', ']']) => "this",
            path => path.rsplit('.').next().unwrap_or(path),
        }
    }

    /// A text; numbers and booleans are not texts.
    pub(super) fn text(&self, report: &mut Report, rule: &str) -> Option<&'n str> {
        match self.value {
            // Texts become arguments, paths and environment variables, which end at a NUL.
            Value::Text(text) if text.contains('\0') => {
                report.problem(&self.place, "the text holds a NUL character", "remove it");
                None
            }
            Value::Text(text) => Some(text),
            Value::Merge => Some("<<"),
            Value::Null
            | Value::Bool(_)
            | Value::Int(..)
            | Value::Float(_)
            | Value::Ambiguous(_)
            | Value::List(_)
            | Value::Map(_) => {
                self.wrong(report, rule);
                None
            }
        }
    }

    /// A whole number within a range; booleans, fractions and quoted numbers are refused.
    pub(super) fn integer(
        &self,
        report: &mut Report,
        range: std::ops::RangeInclusive<i128>,
        what: &str,
    ) -> Option<i128> {
        let (least, most) = (*range.start(), *range.end());
        match self.value {
            Value::Int(number, _) if range.contains(number) => Some(*number),
            Value::Int(number, _) => {
                let message = if *number < least {
                    format!("{what} must be at least {least}, found {number}")
                } else {
                    format!("{what} must be at most {most}, found {number}")
                };
                report.problem(
                    &self.place,
                    message,
                    format!("write a number from {least} to {most}"),
                );
                None
            }
            Value::Null
            | Value::Bool(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::Ambiguous(_)
            | Value::Merge
            | Value::List(_)
            | Value::Map(_) => {
                report.problem(
                    &self.place,
                    format!("{what} must be an integer, found {}", self.value.kind()),
                    "write a whole number without quotes",
                );
                None
            }
        }
    }

    /// A port number.
    pub(super) fn port(&self, report: &mut Report, what: &str) -> Option<u16> {
        self.integer(report, 1..=65_535, what)
            .and_then(|n| u16::try_from(n).ok())
    }

    /// A count that fits 32 bits.
    pub(super) fn count(&self, report: &mut Report, least: u32, what: &str) -> Option<u32> {
        let range = i128::from(least)..=i128::from(u32::MAX);
        self.integer(report, range, what)
            .and_then(|n| u32::try_from(n).ok())
    }

    /// A list of texts that is not empty.
    pub(super) fn texts(&self, report: &mut Report, rule: &str) -> Option<Vec<String>> {
        let before = report.problems.len();
        let texts: Vec<String> = self
            .list(report, rule)
            .into_iter()
            .filter_map(|item| item.text(report, "a text").map(str::to_owned))
            .collect();
        if report.problems.len() > before {
            return None;
        }
        if texts.is_empty() {
            report.problem(
                &self.place,
                "the list is empty",
                format!("write {rule}, or leave it out"),
            );
            return None;
        }
        Some(texts)
    }

    /// A text that a parser understands; the parser's error is the message.
    pub(super) fn parsed<T, E: Display>(
        &self,
        report: &mut Report,
        rule: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(report, rule)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                report.problem(&self.place, error, format!("write {rule}"));
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &self,
        report: &mut Report,
        what: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let allowed = words.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(", ");
        let text = self.text(report, &format!("one of {allowed}"))?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            report.problem(
                &self.place,
                format!("unknown {what} {text:?}"),
                format!("write one of {allowed}"),
            );
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_quote_keys_that_hold_dots() {
        let source = Source::new("f", "nodes:\n  10.0.0.1: [5]\n");
        let (root, _) = super::super::yaml::parse(&source);
        let root = root.unwrap();
        let mut report = Report::new(&source);
        let mut top = At::root(&root).mapping(&mut report, "").unwrap();
        let nodes = top.take("nodes").unwrap().mapping(&mut report, "").unwrap();
        let (_, first) = nodes.into_entries().remove(0);
        assert_eq!(
            first.list(&mut report, "")[0].place.path,
            "nodes.\"10.0.0.1\"[0]"
        );
    }
}
