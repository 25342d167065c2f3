//! Environment variables in the three forms of an application file.

use std::collections::BTreeMap;

use super::read::{At, Place, Report};
use super::yaml::Value;

type Environment = BTreeMap<String, String>;

/// The native `environment`: a mapping of texts.
pub(super) fn native(at: &At<'_>, report: &mut Report) -> Environment {
    match at.value {
        Value::Null => Environment::new(),
        _ => mapping(
            at,
            report,
            "a mapping of texts, for example {PORT: \"5432\"}",
            |value, report| {
                value
                    .text(report, "a text (put numbers and booleans in quotes)")
                    .map(str::to_owned)
            },
        ),
    }
}

/// Fig's `environment`: a mapping of texts, or a list of `NAME=value` and `NAME`.
pub(super) fn fig(at: &At<'_>, report: &mut Report) -> Environment {
    match at.value {
        Value::List(_) => list(at, report)
            .into_iter()
            .map(|(name, value, _)| (name, value.unwrap_or_default()))
            .collect(),
        Value::Map(_) | Value::Null => native(at, report),
        _ => {
            at.wrong(report, "a mapping or a list of NAME=value");
            Environment::new()
        }
    }
}

/// Compose's `environment`: as Fig's, where a mapping may hold numbers and booleans too.
///
/// Compose takes a bare name's value from the shell that starts it. Here no such shell exists
/// (the hosts start applications), so the value is empty, and a warning says so.
pub(super) fn compose(at: &At<'_>, report: &mut Report) -> Environment {
    let mut bare: Vec<Place> = Vec::new();
    let environment = match at.value {
        Value::Null => Environment::new(),
        Value::List(_) => {
            let mut environment = Environment::new();
            for (name, value, place) in list(at, report) {
                if value.is_none() {
                    bare.push(place);
                }
                environment.insert(name, value.unwrap_or_default());
            }
            environment
        }
        Value::Map(_) => mapping(at, report, "a mapping", |value, report| match value.value {
            Value::Null => {
                bare.push(value.place.clone());
                Some(String::new())
            }
            Value::Int(_, raw) | Value::Float(raw) => Some(raw.clone()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => value.text(report, "a text").map(str::to_owned),
        }),
        _ => {
            at.wrong(report, "a mapping or a list of NAME=value");
            Environment::new()
        }
    };
    for place in bare {
        report.warning(
            &place,
            "the variable has no value and will be empty",
            "write the value: no shell's environment is passed on",
        );
    }
    environment
}

fn mapping(
    at: &At<'_>,
    report: &mut Report,
    rule: &str,
    mut value: impl FnMut(&At<'_>, &mut Report) -> Option<String>,
) -> Environment {
    let Some(fields) = at.mapping(report, rule) else {
        return Environment::new();
    };
    let mut environment = Environment::new();
    for (name, item) in fields.into_entries() {
        let named = check_name(&item.place, name, report);
        let value = value(&item, report);
        if let (true, Some(value)) = (named, value) {
            environment.insert(name.to_owned(), value);
        }
    }
    environment
}

/// `NAME=value` gives a value, `NAME` none. The value may hold further equals signs.
fn list(at: &At<'_>, report: &mut Report) -> Vec<(String, Option<String>, Place)> {
    let mut variables: Vec<(String, Option<String>, Place)> = Vec::new();
    for item in at.list(report, "a list of NAME=value") {
        let Some(text) = item.text(report, "a text such as NAME=value") else {
            continue;
        };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if variables.iter().any(|(known, ..)| known == name) {
            report.problem(
                &item.place,
                format!("the variable {name:?} stands twice"),
                "keep one of them",
            );
        } else if check_name(&item.place, name, report) {
            variables.push((name.to_owned(), value, item.place));
        }
    }
    variables
}

fn check_name(place: &Place, name: &str, report: &mut Report) -> bool {
    let fits = !name.is_empty() && !name.contains(['=', '\0']);
    if !fits {
        report.problem(
            place,
            format!("{name:?} is not the name of an environment variable"),
            "write a name that is not empty and holds no '='",
        );
    }
    fits
}
