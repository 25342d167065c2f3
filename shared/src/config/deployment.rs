//! deployment.yml: which application runs on which host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::model::Placement;
use super::read::{At, Fields, Place, Report};
use crate::ids::{AppName, HostAddr};

/// Reads the whole file. `known` holds the names in the application file; it is absent when that
/// file could not be read, and then names are not compared.
pub(super) fn read(
    root: &At<'_>,
    known: Option<&BTreeSet<AppName>>,
    report: &mut Report,
) -> Placement {
    let rule = "a mapping: the deployment configuration with version and nodes";
    let Some(mut fields) = root.mapping(report, rule) else {
        return Placement::new();
    };
    fields.version(report);
    let cure = "write 'nodes:' and below it ADDRESS: [APPLICATION, …]";
    let entries = fields
        .require(report, "nodes", cure)
        .and_then(|at| {
            at.mapping(
                report,
                "a mapping of host addresses to lists of applications",
            )
        })
        .map_or_else(Vec::new, Fields::into_entries);
    fields.ignore_extensions();
    fields.finish(report, &["version", "nodes"]);

    let mut reader = Reader {
        known,
        placed: BTreeMap::new(),
        report,
    };
    let mut hosts: BTreeMap<String, usize> = BTreeMap::new();
    let mut placement = Placement::new();
    for (name, at) in entries {
        let applications = reader.applications(&at);
        match HostAddr::try_new(name) {
            Ok(host) => {
                if let Some(line) = hosts.insert(canonical(name), at.place.line) {
                    reader.report.problem(
                        &at.place,
                        format!("the host {name:?} is a duplicate: line {line} names it too"),
                        "keep one entry per host",
                    );
                }
                placement.insert(host, applications);
            }
            Err(error) => {
                reader
                    .report
                    .problem(&at.place, error, "name the host by its address");
            }
        }
    }
    placement
}

/// One spelling per host: IPv6 addresses have several, and host names ignore case.
fn canonical(name: &str) -> String {
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => name.to_ascii_lowercase(),
    }
}

struct Reader<'r> {
    known: Option<&'r BTreeSet<AppName>>,
    placed: BTreeMap<AppName, Place>,
    report: &'r mut Report,
}

impl Reader<'_> {
    fn applications(&mut self, at: &At<'_>) -> Vec<AppName> {
        let items = at.list(self.report, "a list of application names ([] for none)");
        let mut names: Vec<AppName> = items
            .iter()
            .filter_map(|item| self.application(item))
            .collect();
        names.sort_unstable();
        names
    }

    fn application(&mut self, at: &At<'_>) -> Option<AppName> {
        let text = at.text(self.report, "a recognised application name, a text")?;
        let name = AppName::try_new(text)
            .ok()
            .filter(|name| self.known.is_none_or(|known| known.contains(name)));
        let Some(name) = name else {
            let cure = match self.known {
                Some(known) if !known.is_empty() => {
                    let names: Vec<&str> = known.iter().take(20).map(AppName::as_str).collect();
                    format!("name one of the application file: {}", names.join(", "))
                }
                Some(_) | None => "add it to the application file, or remove it here".to_owned(),
            };
            self.report.problem(
                &at.place,
                format!("unrecognised application name {text:?}"),
                cure,
            );
            return None;
        };
        if let Some(first) = self.placed.get(&name) {
            let message = format!(
                "the application {text:?} appears more than once: line {} places it too",
                first.line
            );
            self.report.problem(
                &at.place,
                message,
                "an application runs on one host: keep one of them",
            );
            return None;
        }
        self.placed.insert(name.clone(), at.place.clone());
        Some(name)
    }
}
