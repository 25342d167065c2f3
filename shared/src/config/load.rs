//! From the two files to what they mean, or to every problem of both.

use std::collections::BTreeSet;

use super::draft::Drafts;
use super::model::{Applications, Placement};
use super::problem::{Problem, Source};
use super::read::{At, Fields, Report};
use super::yaml::{Node, Value};
use super::{cluster, compose, deployment, fig, native, yaml};
use crate::ids::AppName;

/// The form in which an application file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `version: 1` and `applications:`.
    Native,
    /// Services at the top level.
    Fig,
    /// `services:`.
    Compose,
}

impl Format {
    /// The word that people see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fig => "fig",
            Self::Compose => "compose",
        }
    }
}

/// What the files mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The form of the application file.
    pub format: Format,
    /// The applications.
    pub applications: Applications,
    /// Where they run; absent when no deployment file was given.
    pub placement: Option<Placement>,
    /// What is allowed and looks like a mistake, in the order of the files.
    pub warnings: Vec<Problem>,
}

/// Reads an application file and, where there is one, the deployment file.
///
/// # Errors
/// Every problem of both files, by file and line; then nothing of them is usable.
pub fn load(application: &Source, deployment: Option<&Source>) -> Result<Loaded, Vec<Problem>> {
    let mut report = Report::new(application);
    let (root, problems) = yaml::parse(application);
    report.problems = problems;
    let read = root.and_then(|root| applications(root, &mut report));
    if let Some((_, drafts)) = &read {
        cluster::check(drafts, &mut report);
    }
    let placement = deployment.map(|source| {
        let drafts = read.as_ref().map(|(_, drafts)| drafts);
        let (placement, second) = place(source, drafts);
        if let (Some(drafts), true) = (drafts, second.problems.is_empty()) {
            cluster::check_placement(drafts, &placement, &mut report);
        }
        report.problems.extend(second.problems);
        report.warnings.extend(second.warnings);
        placement
    });
    match read {
        Some((format, drafts)) if report.problems.is_empty() => {
            report.warnings.sort();
            let applications = drafts
                .into_iter()
                .filter_map(|(name, draft)| Some((name, draft.finish()?)))
                .collect();
            Ok(Loaded {
                format,
                applications,
                placement,
                warnings: report.warnings,
            })
        }
        Some(_) | None => {
            report.problems.sort();
            report.problems.dedup();
            Err(report.problems)
        }
    }
}

fn place(source: &Source, drafts: Option<&Drafts>) -> (Placement, Report) {
    let mut report = Report::new(source);
    let (root, problems) = yaml::parse(source);
    report.problems = problems;
    let known: Option<BTreeSet<AppName>> = drafts.map(|drafts| drafts.keys().cloned().collect());
    let placement = root
        .map(|root| deployment::read(&At::root(&root), known.as_ref(), &mut report))
        .unwrap_or_default();
    (placement, report)
}

/// Tells the format and reads the file in it. Absent when it has none of them.
fn applications(mut root: Node, report: &mut Report) -> Option<(Format, Drafts)> {
    let rule = "a mapping: the application configuration";
    let format = format(&root.value);
    if format == Some(Format::Compose) {
        compose::settle(&mut root, report);
    }
    let at = At::root(&root);
    let fields: Fields<'_> = at.mapping(report, rule)?;
    let drafts = match format {
        Some(Format::Native) => native::read(fields, report),
        Some(Format::Fig) => fig::read(fields, report),
        Some(Format::Compose) => compose::read(fields, report),
        None => {
            report.problem(
                &at.place,
                "the file is in neither the native nor the Fig nor the Compose format",
                "write 'version: 1' and 'applications:' with NAME: {image: …} below it",
            );
            return None;
        }
    };
    format.map(|format| (format, drafts))
}

/// A Fig file has any names at its top, `applications` and `services` among them: what tells is
/// that a service holds a text under `image` or `build`, and a mapping of services a mapping.
fn format(root: &Value) -> Option<Format> {
    let Value::Map(entries) = root else {
        return None;
    };
    let get = |key: &str| {
        entries
            .iter()
            .find(|e| matches!(&e.key.value, Value::Text(k) if k == key))
            .map(|e| &e.value.value)
    };
    let (applications, services) = (get("applications"), get("services"));
    let versioned = get("version").is_some();
    if let Some(value) = applications
        && (versioned || !is_service(value))
    {
        return Some(Format::Native);
    }
    if services.is_some_and(|value| !is_service(value)) {
        return Some(Format::Compose);
    }
    let holds_image = |value: &Value| match value {
        Value::Map(body) => body
            .iter()
            .any(|e| matches!(e.key.value.scalar_text(), Some("image" | "build"))),
        _ => false,
    };
    if entries.iter().any(|e| holds_image(&e.value.value)) {
        return Some(Format::Fig);
    }
    versioned.then_some(Format::Native)
}

/// Whether a value is a service rather than a mapping of services.
fn is_service(value: &Value) -> bool {
    let Value::Map(body) = value else {
        return false;
    };
    body.iter().any(|e| {
        matches!(e.key.value.scalar_text(), Some("image" | "build"))
            && !matches!(e.value.value, Value::Map(_))
    })
}

#[cfg(test)]
mod tests;
