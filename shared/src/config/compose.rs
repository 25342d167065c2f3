//! The Compose format: `services:`.
//!
//! What a service may say here is what Rehome can keep true while the service moves between
//! hosts. Every other key of the Compose specification is refused by name, with what to write
//! instead; nothing is silently ignored but `x-` extensions and keys without effect (`version`,
//! `name`).

mod keys;
mod ports;
#[cfg(test)]
mod tests;
mod volumes;
mod words;

use std::collections::BTreeSet;

use super::draft::{Draft, Drafts, drafts};
use super::image::image;
use super::model::{Application, DEFAULT_STOP_GRACE};
use super::native::{cpu_shares, mem_limit};
use super::policy::{compose_restart, stop_signal};
use super::quantity::duration;
use super::read::{At, Fields, Place, Report};
use super::service::{self, ServiceLinks};
use super::yaml::{Node, Value};
use super::{environment, healthcheck};
use crate::units::Bytes;

const TOP: [&str; 4] = ["services", "volumes", "version", "name"];
const KEYS: [&str; 17] = [
    "image",
    "environment",
    "ports",
    "links",
    "volumes",
    "mem_limit",
    "cpu_shares",
    "restart",
    "command",
    "entrypoint",
    "user",
    "working_dir",
    "hostname",
    "healthcheck",
    "stop_grace_period",
    "stop_signal",
    "depends_on",
];

/// Settles what Compose reads in a way of its own, before anything looks at the values: `$$` is a
/// dollar sign, other uses of `$` are problems because no shell's environment is there to fill
/// them in, and unquoted `yes` or `22:22` are texts.
pub(super) fn settle(root: &mut Node, report: &mut Report) {
    let place = Place {
        line: root.line,
        path: String::new(),
    };
    settle_value(&mut root.value, &place, report);
}

fn settle_value(value: &mut Value, place: &Place, report: &mut Report) {
    match value {
        Value::Text(text) if text.contains('$') => {
            let settled = text.replace("$$", "\0");
            if settled.contains('$') {
                report.problem(
                    place,
                    "variables are not substituted: the value holds '$'",
                    "write the value itself; for a dollar sign write '$$'",
                );
            }
            // A NUL of the file's own is refused where the text is read.
            *text = if text.contains('\0') {
                settled
            } else {
                settled.replace('\0', "$")
            };
        }
        Value::Ambiguous(text) if text.contains(':') => {
            report.warning(
                place,
                format!("{text} without quotes is a number to other YAML readers"),
                format!("put it in quotes: \"{text}\""),
            );
            *value = Value::Text(std::mem::take(text));
        }
        Value::Ambiguous(text) if text.bytes().all(|b| b.is_ascii_alphabetic()) => {
            *value = Value::Text(std::mem::take(text));
        }
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                let place = Place {
                    line: item.line,
                    path: format!("{}[{index}]", place.path),
                };
                settle_value(&mut item.value, &place, report);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let child = At::child(place, entry).place;
                settle_value(&mut entry.value.value, &child, report);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Int(..)
        | Value::Float(_)
        | Value::Text(_)
        | Value::Ambiguous(_)
        | Value::Merge => {}
    }
}

/// Reads the whole file.
pub(super) fn read(mut fields: Fields<'_>, report: &mut Report) -> Drafts {
    // Compose itself takes both for notes: the file's age and the project's name.
    fields.take("version");
    fields.take("name");
    let declared = fields
        .take("volumes")
        .map(|at| volumes::declared(&at, report))
        .unwrap_or_default();
    let entries = fields
        .take("services")
        .and_then(|at| at.mapping(report, "a mapping of names to services"))
        .map_or_else(Vec::new, Fields::into_entries);
    fields.ignore_extensions();
    fields.refuse(report, "Compose section", &keys::REFUSED_SECTIONS);
    fields.finish(report, &TOP);

    let names: BTreeSet<&str> = entries.iter().map(|(name, _)| *name).collect();
    let mut links = ServiceLinks::new();
    let mut named_volumes = volumes::Named::new(&declared);
    let mut drafts = drafts(entries, report, |name, at, report| {
        let mut draft = Draft::new(at.place.clone());
        let rule = "a mapping: the service body with at least an image";
        if let Some(mut fields) = at.mapping(report, rule) {
            if let Some(at) = fields.take("depends_on") {
                depends_on(&at, name.as_str(), &names, report);
            }
            let volumes = fields.take("volumes");
            draft.volumes = volumes.map_or_else(Vec::new, |v| named_volumes.read(&v, report));
            if let Some(v) = fields.take("links") {
                links.insert(name.clone(), service::links(&v, report));
            }
            body(fields, &mut draft, report);
        }
        draft
    });
    service::resolve(&mut drafts, links, report);
    drafts
}

fn body(mut fields: Fields<'_>, draft: &mut Draft, report: &mut Report) {
    let image = if let Some(at) = fields.take("image") {
        image(&at, report)
    } else {
        // Where `build` stands instead, its own problem below says what to do.
        if fields.value("build").is_none() {
            report.problem(&fields.place, "missing key 'image'", "write image: NAME");
        }
        None
    };
    draft.ports = fields
        .take("ports")
        .map_or_else(Vec::new, |v| ports::ports(&v, report));
    let fill = settings(&mut fields, report);
    fields.ignore_extensions();
    fields.refuse(report, "Compose key", &keys::REFUSED);
    fields.finish(report, &KEYS);
    draft.set(image, fill);
}

/// The keys that concern the service alone; gives what sets them.
fn settings(fields: &mut Fields<'_>, report: &mut Report) -> impl FnOnce(&mut Application) + use<> {
    let environment = fields
        .take("environment")
        .map(|v| environment::compose(&v, report))
        .unwrap_or_default();
    let mem_limit = memory(fields, report);
    let cpu_shares = cpu_shares(fields, report);
    let restart = fields
        .take("restart")
        .map(|v| compose_restart(&v, report))
        .unwrap_or_default();
    let command = fields
        .take("command")
        .and_then(|v| words::command(&v, report));
    let entrypoint = fields
        .take("entrypoint")
        .and_then(|v| words::command(&v, report));
    let user = fields.take("user").and_then(|v| user(&v, report));
    let working_dir = fields
        .take("working_dir")
        .and_then(|v| named_text(&v, report));
    let hostname = fields.take("hostname").and_then(|v| named_text(&v, report));
    let healthcheck = fields
        .take("healthcheck")
        .map(|v| healthcheck::compose(&v, report))
        .unwrap_or_default();
    let stop_grace = fields
        .take("stop_grace_period")
        .and_then(|v| duration(&v, report))
        .unwrap_or(DEFAULT_STOP_GRACE);
    let stop_signal = fields
        .take("stop_signal")
        .and_then(|v| stop_signal(&v, report));
    move |application| {
        application.environment = environment;
        application.mem_limit = mem_limit;
        application.cpu_shares = cpu_shares;
        application.restart_policy = restart;
        application.command = command;
        application.entrypoint = entrypoint;
        application.user = user;
        application.working_dir = working_dir;
        application.hostname = hostname;
        application.healthcheck = healthcheck;
        application.stop_grace = stop_grace;
        application.stop_signal = stop_signal;
    }
}

/// `depends_on`: a list of services, or a mapping with a condition each. Rehome starts everything
/// at once and restarts what fails, so that an order would hold nothing up but a move.
fn depends_on(at: &At<'_>, own: &str, names: &BTreeSet<&str>, report: &mut Report) {
    let rule = "a list of services";
    let targets: Vec<(Place, &str)> = match at.value {
        Value::Map(_) => at
            .mapping(report, rule)
            .map_or_else(Vec::new, Fields::into_entries)
            .into_iter()
            .map(|(name, at)| (at.place, name))
            .collect(),
        _ => at
            .list(report, rule)
            .into_iter()
            .filter_map(|item| {
                item.text(report, "the name of a service")
                    .map(|name| (item.place, name))
            })
            .collect(),
    };
    for (place, name) in targets {
        if name == own {
            report.problem(&place, format!("{name:?} depends on itself"), "remove it");
        } else if !names.contains(name) {
            report.problem(
                &place,
                format!("depends_on names {name:?}, but there is no such service"),
                "name a service of this file",
            );
        }
    }
}

/// Compose's `mem_limit`: bytes as a number, or a text such as `512m` or `1gb`.
fn memory(fields: &mut Fields<'_>, report: &mut Report) -> Option<Bytes> {
    let Some(Value::Text(text)) = fields.value("mem_limit") else {
        return mem_limit(fields, report);
    };
    let at = fields.take("mem_limit")?;
    // Compose writes `kb`, `mb`, `gb` and `b` for what is `K`, `M`, `G` and nothing here.
    let lower = text.to_ascii_lowercase();
    let plain = lower
        .strip_suffix('b')
        .filter(|rest| !rest.ends_with('i'))
        .unwrap_or(&lower);
    let size = Bytes::parse(plain).ok().filter(|size| *size != Bytes(0));
    if size.is_none() {
        report.problem(
            &at.place,
            format!("{text:?} is not a memory limit"),
            "write bytes as a number, or a text such as \"512m\"; leave it out for no limit",
        );
    }
    size
}

/// `user`: a name or a number, `user:group`.
fn user(at: &At<'_>, report: &mut Report) -> Option<String> {
    match at.value {
        Value::Int(_, raw) => Some(raw.clone()),
        _ => named_text(at, report),
    }
}

/// A text that is not empty.
fn named_text(at: &At<'_>, report: &mut Report) -> Option<String> {
    let text = at.text(report, "a text")?;
    if text.is_empty() {
        report.problem(
            &at.place,
            "the text is empty",
            "write a value, or leave the key out",
        );
        return None;
    }
    Some(text.to_owned())
}
