//! The Fig format: service name → body at the top level, with the keys that Flocker took.

use super::draft::{Draft, Drafts, drafts};
use super::environment;
use super::image::image;
use super::model::{Port, Volume};
use super::native::mem_limit;
use super::read::{At, Fields, Place, Report};
use super::service::{self, ServiceLinks};
use super::volume::{DEFAULT_NAME, mountpoint};
use super::yaml::Value;
use crate::api::proxy::Announce;
use crate::ids::{Protocol, VolumeName};

const KEYS: [&str; 6] = [
    "image",
    "environment",
    "ports",
    "links",
    "volumes",
    "mem_limit",
];

const COMPOSE: &str = "remove it, or write the file in the Compose format (services:)";
const NATIVE: &str =
    "remove it, or write the file in the native format (version: 1, applications:)";
const REMOVE: &str = "remove it";

/// What Fig knows and this format does not take.
const REFUSED: [(&str, &str); 16] = [
    ("working_dir", COMPOSE),
    ("entrypoint", COMPOSE),
    ("user", COMPOSE),
    ("hostname", COMPOSE),
    ("command", COMPOSE),
    ("restart", COMPOSE),
    ("cpu_shares", COMPOSE),
    ("restart_policy", NATIVE),
    ("domainname", REMOVE),
    ("privileged", REMOVE),
    ("dns", REMOVE),
    (
        "net",
        "remove it: applications reach each other through links",
    ),
    (
        "volumes_from",
        "remove it: a volume belongs to one application",
    ),
    (
        "expose",
        "write 'ports': a port that is linked to needs an external number",
    ),
    ("env_file", "write the variables under 'environment'"),
    ("cpuset", REMOVE),
];

/// Reads the whole file.
pub(super) fn read(fields: Fields<'_>, report: &mut Report) -> Drafts {
    let mut links = ServiceLinks::new();
    let mut drafts = drafts(fields.into_entries(), report, |name, at, report| {
        let mut draft = Draft::new(at.place.clone());
        let rule = "a mapping: the service body with at least an image";
        let fields = at.mapping(report, rule);
        if let Some(own) = fields.and_then(|fields| body(fields, &mut draft, report)) {
            links.insert(name.clone(), own);
        }
        draft
    });
    service::resolve(&mut drafts, links, report);
    drafts
}

fn body(
    mut fields: Fields<'_>,
    draft: &mut Draft,
    report: &mut Report,
) -> Option<Vec<service::ServiceLink>> {
    let (named, build) = (fields.take("image"), fields.take("build"));
    match (&named, &build) {
        (Some(_), Some(build)) => {
            report.problem(
                &build.place,
                "both 'image' and 'build' are there",
                "keep 'image'",
            );
        }
        (None, Some(build)) => report.problem(
            &build.place,
            "'build' is not supported",
            "build the image, push it, and name it: image: NAME",
        ),
        (None, None) => {
            report.problem(
                &fields.place,
                "missing key 'image' (needs 'image' or 'build')",
                "write image: NAME",
            );
        }
        (Some(_), None) => {}
    }
    let image = named.and_then(|v| image(&v, report));
    let environment = fields
        .take("environment")
        .map(|v| environment::fig(&v, report))
        .unwrap_or_default();
    draft.ports = fields
        .take("ports")
        .map_or_else(Vec::new, |v| ports(&v, report));
    draft.volumes = fields
        .take("volumes")
        .map_or_else(Vec::new, |v| volumes(&v, report));
    let links = fields.take("links").map(|v| service::links(&v, report));
    let mem_limit = mem_limit(&mut fields, report);
    fields.refuse(report, "Fig key", &REFUSED);
    fields.finish(report, &KEYS);
    draft.set(image, |application| {
        application.environment = environment;
        application.mem_limit = mem_limit;
    });
    links
}

fn ports(at: &At<'_>, report: &mut Report) -> Vec<(Port, Place)> {
    at.list(report, "a list of texts, for example [\"8080:80\"]")
        .into_iter()
        .filter_map(|item| port(&item, report).map(|port| (port, item.place)))
        .collect()
}

fn port(at: &At<'_>, report: &mut Report) -> Option<Port> {
    let text = at.text(report, "a port entry in quotes such as \"8080:80\", a text")?;
    let cure = "write \"EXTERNAL:INTERNAL\", for example \"8080:80\"";
    let parts: Vec<&str> = text.split(':').collect();
    let [external, internal] = parts.as_slice() else {
        report.problem(
            &at.place,
            format!("the port {text:?} must look like host:container"),
            cure,
        );
        return None;
    };
    let external = port_number(at, report, external)?;
    let internal = port_number(at, report, internal)?;
    Some(Port {
        internal,
        external,
        protocol: Protocol::Tcp,
        send_proxy: Announce::default(),
    })
}

/// A port number inside a text.
pub(super) fn port_number(at: &At<'_>, report: &mut Report, text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        report.problem(
            &at.place,
            format!("ports must be integers, {text:?} is none"),
            "write \"EXTERNAL:INTERNAL\", for example \"8080:80\"",
        );
        return None;
    }
    let number = text.parse().ok().filter(|number| *number > 0);
    if number.is_none() {
        report.problem(
            &at.place,
            format!("the port {text} is out of range"),
            "write numbers from 1 to 65535",
        );
    }
    number
}

/// Fig's `volumes`: one path inside the container. More need names, which Fig cannot give.
fn volumes(at: &At<'_>, report: &mut Report) -> Vec<(Volume, Place)> {
    let rule = "a list with one path, for example [/var/lib/mysql]";
    let items = at.list(report, rule);
    if matches!(at.value, Value::List(_)) && items.is_empty() {
        report.problem(
            &at.place,
            "the list of volumes is empty",
            format!("write {rule}, or leave it out"),
        );
    }
    if let Some(second) = items.get(1) {
        report.problem(
            &second.place,
            "only one volume is supported in the Fig format",
            "write the file in the native format, whose 'volumes' have names",
        );
    }
    items
        .iter()
        .take(1)
        .filter_map(|item| volume(item, report))
        .collect()
}

fn volume(at: &At<'_>, report: &mut Report) -> Option<(Volume, Place)> {
    let text = at.text(report, "a text with an absolute path")?;
    if text.contains(':') {
        report.problem(
            &at.place,
            format!("{text:?} names a directory of the host"),
            "write the path inside the container alone: the data lives in a volume",
        );
        return None;
    }
    let mountpoint = mountpoint(&at.place, text, report)?;
    let name = VolumeName::try_new(DEFAULT_NAME).ok()?;
    let volume = Volume {
        name,
        mountpoint,
        maximum_size: None,
        dataset_id: None,
    };
    Some((volume, at.place.clone()))
}
