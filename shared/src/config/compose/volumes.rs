//! Compose's volumes: named ones and anonymous ones. A directory of the host cannot move with its
//! service and is refused; so is a volume that two services share.

use std::collections::{BTreeMap, BTreeSet};

use super::super::model::Volume;
use super::super::read::{At, Place, Report};
use super::super::volume::{DEFAULT_NAME, mountpoint};
use super::super::yaml::Value;
use crate::ids::VolumeName;

const BIND: &str =
    "write a volume, NAME:/path or /path: a directory of a host does not move with the service";

/// The names in the section `volumes` of the file.
pub(super) fn declared(at: &At<'_>, report: &mut Report) -> BTreeSet<String> {
    if *at.value == Value::Null {
        return BTreeSet::new();
    }
    let Some(fields) = at.mapping(report, "a mapping of volume names") else {
        return BTreeSet::new();
    };
    let mut names = BTreeSet::new();
    for (name, at) in fields.into_entries() {
        names.insert(name.to_owned());
        if *at.value == Value::Null {
            continue;
        }
        let Some(mut fields) = at.mapping(report, "empty, or a mapping of options") else {
            continue;
        };
        if let Some(driver) = fields.take("driver") {
            driver.word(report, "volume driver", &[("local", ())]);
        }
        let cure = "remove it: migrated.yml says where volumes are";
        let keys = [
            ("driver_opts", cure),
            ("external", cure),
            ("labels", cure),
            ("name", cure),
        ];
        fields.refuse(report, "volume option", &keys);
        fields.ignore_extensions();
        fields.finish(report, &["driver"]);
    }
    names
}

/// The named volumes, each of which belongs to the service that uses it first.
pub(super) struct Named<'d> {
    declared: &'d BTreeSet<String>,
    users: BTreeMap<String, usize>,
}

/// One entry of a service's list.
struct Mount<'n> {
    source: Option<&'n str>,
    target: &'n str,
}

impl<'d> Named<'d> {
    pub(super) fn new(declared: &'d BTreeSet<String>) -> Self {
        Self {
            declared,
            users: BTreeMap::new(),
        }
    }

    /// A service's `volumes`.
    pub(super) fn read(&mut self, at: &At<'_>, report: &mut Report) -> Vec<(Volume, Place)> {
        let mut volumes: Vec<(Volume, Place)> = Vec::new();
        for item in at.list(report, "a list, for example [\"data:/var/lib/db\"]") {
            let mount = match item.value {
                Value::Map(_) => long(&item, report),
                _ => short(&item, report),
            };
            let Some(mount) = mount else { continue };
            let Some(mountpoint) = mountpoint(&item.place, mount.target, report) else {
                continue;
            };
            let name = match mount.source {
                Some(source) => self.claim(source, &item.place, report),
                None => anonymous(&mountpoint, &volumes),
            };
            if let Some(name) = name {
                let volume = Volume {
                    name,
                    mountpoint,
                    maximum_size: None,
                    dataset_id: None,
                };
                volumes.push((volume, item.place));
            }
        }
        volumes
    }

    fn claim(&mut self, name: &str, place: &Place, report: &mut Report) -> Option<VolumeName> {
        if !self.declared.contains(name) {
            report.problem(
                place,
                format!("the volume {name:?} is not declared"),
                "add it to the section 'volumes:' at the end of the file",
            );
        }
        if let Some(line) = self.users.insert(name.to_owned(), place.line) {
            report.problem(
                place,
                format!("the volume {name:?} is already used in line {line}: two mounts share one volume"),
                "a volume belongs to one application: use another one here",
            );
        }
        match VolumeName::try_new(name) {
            Ok(name) => Some(name),
            Err(error) => {
                report.problem(place, error, "rename the volume");
                None
            }
        }
    }
}

/// The first volume without a name is `data`, as in the other formats; further ones are called
/// after their mountpoint, so that adding one renames none.
fn anonymous(mountpoint: &str, before: &[(Volume, Place)]) -> Option<VolumeName> {
    let slug: String = mountpoint
        .trim_start_matches('/')
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let slug = VolumeName::try_new(slug.trim_start_matches(['-', '.']));
    let default = VolumeName::try_new(DEFAULT_NAME).ok();
    if before
        .iter()
        .any(|(volume, _)| Some(&volume.name) == default.as_ref())
    {
        slug.ok().or(default)
    } else {
        default
    }
}

fn short<'n>(at: &At<'n>, report: &mut Report) -> Option<Mount<'n>> {
    let text = at.text(report, "a text such as \"data:/var/lib/db\"")?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => (None, *target, "rw"),
        [source, target] => (Some(*source), *target, "rw"),
        [source, target, mode] => (Some(*source), *target, *mode),
        _ => {
            report.problem(
                &at.place,
                format!("{text:?} is not a volume"),
                "write NAME:/path or /path",
            );
            return None;
        }
    };
    if source.is_some_and(is_host_path) {
        report.problem(
            &at.place,
            format!("{text:?} names a directory of the host"),
            BIND,
        );
        return None;
    }
    if mode != "rw" {
        report.problem(
            &at.place,
            format!("the volume option {mode:?} is not supported"),
            "remove it: a volume is the writable data of its application",
        );
        return None;
    }
    Some(Mount { source, target })
}

fn is_host_path(source: &str) -> bool {
    source.is_empty() || source.starts_with(['/', '.', '~']) || source.contains('/')
}

fn long<'n>(at: &At<'n>, report: &mut Report) -> Option<Mount<'n>> {
    let mut fields = at.mapping(report, "a mapping with type, source and target")?;
    let kinds = [
        ("volume", true),
        ("bind", false),
        ("tmpfs", false),
        ("npipe", false),
        ("cluster", false),
        ("image", false),
    ];
    let kind = fields
        .require(report, "type", "write type: volume")
        .and_then(|v| {
            v.word(report, "type of volume", &kinds)
                .map(|known| (known, v.place))
        });
    if let Some((false, place)) = &kind {
        report.problem(place, "only volumes are supported", BIND);
    }
    let source = fields
        .take("source")
        .map(|v| v.text(report, "the name of a volume"));
    let target = fields
        .require(
            report,
            "target",
            "write the path inside the container, target: /var/lib/db",
        )
        .and_then(|v| v.text(report, "an absolute path"));
    if let Some(flag) = fields.take("read_only")
        && *flag.value != Value::Bool(false)
    {
        report.problem(
            &flag.place,
            "a volume cannot be read-only",
            "remove it: a volume is the writable data of its application",
        );
    }
    let cure = "remove it";
    let options = [
        ("volume", cure),
        ("bind", cure),
        ("tmpfs", cure),
        ("image", cure),
        ("consistency", cure),
    ];
    fields.refuse(report, "volume option", &options);
    fields.ignore_extensions();
    fields.finish(report, &["type", "source", "target", "read_only"]);
    let source = match source {
        Some(None) => return None,
        Some(text) => text,
        None => None,
    };
    kind.filter(|(known, _)| *known)?;
    Some(Mount {
        source,
        target: target?,
    })
}
