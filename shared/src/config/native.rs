//! The native format: `version: 1` and `applications:`.

use super::draft::{Draft, Drafts, drafts};
use super::environment;
use super::healthcheck;
use super::image::image;
use super::model::{Application, DEFAULT_STOP_GRACE};
use super::network::{links, ports};
use super::policy::{migration, restart_policy, stop_signal};
use super::quantity::duration;
use super::read::{At, Fields, Report};
use super::volume::volumes;
use crate::units::Bytes;

const TOP: [&str; 2] = ["version", "applications"];
const KEYS: [&str; 14] = [
    "image",
    "ports",
    "links",
    "volume",
    "volumes",
    "environment",
    "mem_limit",
    "cpu_shares",
    "restart_policy",
    "command",
    "healthcheck",
    "stop_grace",
    "stop_signal",
    "migration",
];

/// What the kernel takes as a CPU weight at most.
const MAX_CPU_SHARES: i128 = 1 << 18;

/// Reads the whole file.
pub(super) fn read(mut fields: Fields<'_>, report: &mut Report) -> Drafts {
    fields.version(report);
    let cure = "write 'applications:' and below it NAME: {image: …}";
    let entries = fields
        .require(report, "applications", cure)
        .and_then(|at| at.mapping(report, "a mapping of names to applications"))
        .map_or_else(Vec::new, Fields::into_entries);
    fields.ignore_extensions();
    fields.finish(report, &TOP);
    drafts(entries, report, |_, at, report| application(at, report))
}

fn application(at: &At<'_>, report: &mut Report) -> Draft {
    let mut draft = Draft::new(at.place.clone());
    let rule = "a mapping: the application body with at least an image";
    let Some(mut fields) = at.mapping(report, rule) else {
        return draft;
    };
    let image = fields
        .require(
            report,
            "image",
            "write image: REPOSITORY or image: REPOSITORY:TAG",
        )
        .and_then(|v| image(&v, report));
    draft.ports = fields
        .take("ports")
        .map_or_else(Vec::new, |v| ports(&v, report));
    draft.links = fields
        .take("links")
        .map_or_else(Vec::new, |v| links(&v, report));
    draft.volumes = volumes(&mut fields, report);
    let fill = settings(&mut fields, report);
    let build = (
        "build",
        "build the image, push it, and name it: image: NAME",
    );
    fields.refuse(report, "key", &[build]);
    fields.finish(report, &KEYS);
    draft.set(image, fill);
    draft
}

/// The keys that concern the application alone; gives what sets them.
fn settings(fields: &mut Fields<'_>, report: &mut Report) -> impl FnOnce(&mut Application) + use<> {
    let environment = fields
        .take("environment")
        .map(|v| environment::native(&v, report));
    let mem_limit = mem_limit(fields, report);
    let cpu_shares = cpu_shares(fields, report);
    let restart_policy = fields
        .take("restart_policy")
        .map(|v| restart_policy(&v, report));
    let rule = "a list of words, for example [redis-server, --port, \"6379\"]";
    let command = fields.take("command").and_then(|v| v.texts(report, rule));
    let healthcheck = fields
        .take("healthcheck")
        .map(|v| healthcheck::native(&v, report));
    let stop_grace = fields.take("stop_grace").and_then(|v| duration(&v, report));
    let stop_signal = fields
        .take("stop_signal")
        .and_then(|v| stop_signal(&v, report));
    let migration = fields.take("migration").map(|v| migration(&v, report));
    move |application| {
        application.environment = environment.unwrap_or_default();
        application.mem_limit = mem_limit;
        application.cpu_shares = cpu_shares;
        application.restart_policy = restart_policy.unwrap_or_default();
        application.command = command;
        application.healthcheck = healthcheck.unwrap_or_default();
        application.stop_grace = stop_grace.unwrap_or(DEFAULT_STOP_GRACE);
        application.stop_signal = stop_signal;
        application.migration = migration.unwrap_or_default();
    }
}

/// The key `mem_limit`: a number of bytes.
pub(super) fn mem_limit(fields: &mut Fields<'_>, report: &mut Report) -> Option<Bytes> {
    let at = fields.take("mem_limit")?;
    at.integer(report, 1..=i128::from(i64::MAX), "mem_limit")
        .and_then(|n| u64::try_from(n).ok())
        .map(Bytes)
}

/// The key `cpu_shares`: a weight, 1024 being that of an application that says nothing.
pub(super) fn cpu_shares(fields: &mut Fields<'_>, report: &mut Report) -> Option<u64> {
    let at = fields.take("cpu_shares")?;
    at.integer(report, 1..=MAX_CPU_SHARES, "cpu_shares")
        .and_then(|n| u64::try_from(n).ok())
}
