//! The keys of a mapping: each is taken once, and those that nobody took are reported.

use super::{At, Place, Report};
use crate::config::yaml::{Entry, Value};

/// The longest list of alternatives in a message.
const MAX_LISTED: usize = 40;

struct Field<'n> {
    key: &'n str,
    at: At<'n>,
    taken: bool,
}

/// The keys of a mapping, each to be taken once.
pub(in crate::config) struct Fields<'n> {
    /// Where the mapping stands.
    pub(in crate::config) place: Place,
    fields: Vec<Field<'n>>,
}

impl<'n> Fields<'n> {
    /// Reports keys that are not texts.
    pub(super) fn new(place: Place, entries: &'n [Entry], report: &mut Report) -> Self {
        let mut fields = Vec::with_capacity(entries.len());
        for entry in entries {
            let at = At::child(&place, entry);
            match &entry.key.value {
                Value::Text(key) => fields.push(Field {
                    key,
                    at,
                    taken: false,
                }),
                Value::Merge => fields.push(Field {
                    key: "<<",
                    at,
                    taken: false,
                }),
                other @ (Value::Null
                | Value::Bool(_)
                | Value::Int(..)
                | Value::Float(_)
                | Value::Ambiguous(_)
                | Value::List(_)
                | Value::Map(_)) => report.problem(
                    &at.place,
                    format!("the name must be a text, this key is {}", other.kind()),
                    "put the name in quotes, or choose another",
                ),
            }
        }
        Self { place, fields }
    }

    /// The value of a key, where the key is there.
    pub(in crate::config) fn take(&mut self, key: &str) -> Option<At<'n>> {
        let field = self.fields.iter_mut().find(|field| field.key == key)?;
        field.taken = true;
        Some(field.at.clone())
    }

    /// The value of a key, not taken.
    pub(in crate::config) fn value(&self, key: &str) -> Option<&'n Value> {
        self.fields
            .iter()
            .find(|field| field.key == key)
            .map(|field| field.at.value)
    }

    /// The value of a key that must be there.
    pub(in crate::config) fn require(
        &mut self,
        report: &mut Report,
        key: &str,
        cure: &str,
    ) -> Option<At<'n>> {
        let found = self.take(key);
        if found.is_none() {
            report.problem(&self.place, format!("missing key '{key}'"), cure);
        }
        found
    }

    /// Checks that `version` is there and is 1.
    pub(in crate::config) fn version(&mut self, report: &mut Report) {
        let Some(at) = self.require(report, "version", "write 'version: 1' at the top") else {
            return;
        };
        let one = match at.value {
            Value::Int(number, _) => *number == 1,
            Value::Float(text) => text.parse() == Ok(1.0_f64),
            Value::Null
            | Value::Bool(_)
            | Value::Text(_)
            | Value::Ambiguous(_)
            | Value::Merge
            | Value::List(_)
            | Value::Map(_) => {
                let message = format!(
                    "unsupported version: the version is the number 1, found {}",
                    at.value.kind()
                );
                report.problem(&at.place, message, "write 'version: 1' without quotes");
                return;
            }
        };
        if !one {
            report.problem(&at.place, "unsupported version", "write 'version: 1'");
        }
    }

    /// Every key with its value, for a mapping whose keys are names.
    pub(in crate::config) fn into_entries(self) -> Vec<(&'n str, At<'n>)> {
        self.fields
            .into_iter()
            .map(|field| (field.key, field.at))
            .collect()
    }

    /// Drops the keys that begin with `x-`, which are the user's own.
    pub(in crate::config) fn ignore_extensions(&mut self) {
        for field in self
            .fields
            .iter_mut()
            .filter(|field| field.key.starts_with("x-"))
        {
            field.taken = true;
        }
    }

    /// Refuses known keys by name: each with what to write instead.
    pub(in crate::config) fn refuse(
        &mut self,
        report: &mut Report,
        what: &str,
        keys: &[(&str, &str)],
    ) {
        for (key, cure) in keys {
            if let Some(at) = self.take(key) {
                report.problem(&at.place, format!("unsupported {what} '{key}'"), cure);
            }
        }
    }

    /// Reports the keys that nobody took.
    pub(in crate::config) fn finish(self, report: &mut Report, known: &[&str]) {
        for field in self.fields.iter().filter(|field| !field.taken) {
            report.problem(
                &field.at.place,
                format!("unrecognised key '{}'", field.key.escape_debug()),
                cure_for_unknown(field.key, known),
            );
        }
    }
}

fn cure_for_unknown(key: &str, known: &[&str]) -> String {
    if let Some(near) = known.iter().find(|candidate| is_near(key, candidate)) {
        return format!("did you mean '{near}'?");
    }
    let listed = known
        .iter()
        .take(MAX_LISTED)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    format!("the keys here are {listed}")
}

/// Whether two words differ by one letter, by neighbours swapped, or in case and separators.
fn is_near(word: &str, other: &str) -> bool {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let (a, b) = (plain(word), plain(other));
    if a == b {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 1 || a.len().min(b.len()) < 3 {
        return false;
    }
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let tail = a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let longest = a.len().max(b.len());
    let swapped = a.len() == b.len()
        && head.saturating_add(tail).saturating_add(2) >= longest
        && a.get(head) == b.get(head.saturating_add(1))
        && a.get(head.saturating_add(1)) == b.get(head);
    head.saturating_add(tail).saturating_add(1) >= longest || swapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        for (word, known) in [
            ("imgae", "image"),
            ("port", "ports"),
            ("mem-limit", "mem_limit"),
            ("lnks", "links"),
        ] {
            assert!(is_near(word, known), "{word}");
        }
        for (word, known) in [("foo", "ports"), ("a", "b"), ("volume", "command")] {
            assert!(!is_near(word, known), "{word}");
        }
    }
}
