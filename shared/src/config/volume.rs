//! Volumes as the native format writes them, and the rule for mountpoints.

use super::model::Volume;
use super::quantity::size;
use super::read::{At, Fields, Place, Report};
use crate::ids::{DatasetId, VolumeName};

/// The name of a volume where the file names none.
pub(super) const DEFAULT_NAME: &str = "data";

const KEYS: [&str; 3] = ["mountpoint", "maximum_size", "dataset_id"];
const NAMED_KEYS: [&str; 4] = ["name", "mountpoint", "maximum_size", "dataset_id"];
const RULE: &str = "a mapping, for example {mountpoint: /var/lib/db}";

/// The keys `volume` and `volumes` of an application.
pub(super) fn volumes(fields: &mut Fields<'_>, report: &mut Report) -> Vec<(Volume, Place)> {
    let (one, many) = (fields.take("volume"), fields.take("volumes"));
    if let (Some(_), Some(many)) = (&one, &many) {
        report.problem(
            &many.place,
            "both 'volume' and 'volumes' are there",
            "move the one volume into the list 'volumes' and give each a name",
        );
    }
    let mut volumes = Vec::new();
    if let Some(at) = one {
        volumes.extend(volume(&at, report, Naming::Default));
    }
    if let Some(at) = many {
        let items = at.list(
            report,
            "a list of mappings, for example [{name: data, mountpoint: /var/lib/db}]",
        );
        let naming = if items.len() > 1 {
            Naming::Required
        } else {
            Naming::Optional
        };
        volumes.extend(items.iter().filter_map(|item| volume(item, report, naming)));
    }
    volumes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    Default,
    Optional,
    Required,
}

fn volume(at: &At<'_>, report: &mut Report, naming: Naming) -> Option<(Volume, Place)> {
    let mut fields = at.mapping(report, RULE)?;
    let name = match naming {
        Naming::Default => None,
        Naming::Optional => fields.take("name"),
        Naming::Required => fields.require(
            report,
            "name",
            "with more than one volume each needs a name, name: data",
        ),
    };
    let name = match name {
        Some(at) => at.parsed(report, "a name, for example data", str::parse),
        None => VolumeName::try_new(DEFAULT_NAME).ok(),
    };
    let mountpoint = fields
        .require(
            report,
            "mountpoint",
            "write where the volume appears inside, mountpoint: /var/lib/db",
        )
        .and_then(|v| {
            let text = v.text(report, "a text with an absolute path")?;
            mountpoint(&v.place, text, report)
        });
    let maximum_size = fields
        .take("maximum_size")
        .map(|v| size(&v, report, "maximum_size"));
    let dataset_id = fields.take("dataset_id").map(|v| {
        let rule = "a UUID, for example 7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11";
        // One identity has one spelling, or the check for duplicates would miss it.
        v.parsed(report, rule, |text| {
            DatasetId::try_new(text.to_ascii_lowercase())
        })
    });
    fields.finish(
        report,
        if naming == Naming::Default {
            &KEYS
        } else {
            &NAMED_KEYS
        },
    );
    let volume = Volume {
        name: name?,
        mountpoint: mountpoint?,
        maximum_size: maximum_size.flatten(),
        dataset_id: dataset_id.flatten(),
    };
    Some((volume, at.place.clone()))
}

/// An absolute path inside the application, `.` and `..` and doubled slashes resolved.
pub(super) fn mountpoint(place: &Place, text: &str, report: &mut Report) -> Option<String> {
    let mut refuse = |message: &str, cure: &str| {
        report.problem(place, format!("the mountpoint {text:?} {message}"), cure);
        None
    };
    if !text.starts_with('/') {
        return refuse("is not an absolute path", "begin it with '/'");
    }
    if !text.is_ascii() || text.bytes().any(|b| b.is_ascii_control()) {
        return refuse(
            "holds other characters than printable ASCII",
            "use ASCII letters and digits",
        );
    }
    if text.len() > 1024 {
        return refuse("is longer than 1024 characters", "use a shorter path");
    }
    let mut steps: Vec<&str> = Vec::new();
    for step in text.split('/') {
        match step {
            "" | "." => {}
            ".." => {
                steps.pop();
            }
            name => steps.push(name),
        }
    }
    if steps.is_empty() {
        return refuse(
            "is the root of the file system",
            "write the directory that holds the data: a volume there would hide the whole image",
        );
    }
    Some(format!("/{}", steps.join("/")))
}
