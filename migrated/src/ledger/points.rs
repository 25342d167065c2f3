//! The fail points of the journal: `journal/source/released/before`, `journal/host/born/after`, …

use migrated_core::record::Record;
use rehome_runtime::failpoint;
use serde_json::Value;

/// Passes the points of records that are about to be appended, or just were.
pub(super) fn hit(records: &[Record], when: &str) {
    for record in records {
        failpoint::hit(|| format!("journal/{}/{when}", name(record)));
    }
}

/// A record as its form in the journal names it.
fn name(record: &Record) -> String {
    let form = serde_json::to_value(record).unwrap_or_default();
    match tag(&form) {
        Some((side @ ("source" | "destination"), Some(body))) => {
            let step = body.get("step").and_then(tag);
            format!("{side}/{}", step.map_or("unknown", |(step, _)| step))
        }
        Some((record, _)) => format!("host/{record}"),
        None => "host/unknown".to_owned(),
    }
}

/// The name of a variant and what is in it.
fn tag(form: &Value) -> Option<(&str, Option<&Value>)> {
    match form {
        Value::String(name) => Some((name, None)),
        Value::Object(fields) => {
            let (name, body) = fields.iter().next()?;
            Some((name, Some(body)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use migrated_core::record::{DestinationRecord, SourceRecord};
    use rehome_shared::ids::{Attempt, MigrationId};

    use super::*;
    use crate::fixtures::app;

    #[test]
    fn every_kind_of_record_has_a_name_of_its_own() {
        let made = Record::VolumesMade {
            application: app("db"),
        };
        let released = Record::Source {
            migration: MigrationId::generate(),
            step: SourceRecord::Released {
                attempt: Attempt(1),
            },
        };
        let adopted = Record::Destination {
            migration: MigrationId::generate(),
            step: DestinationRecord::Adopted,
        };
        assert_eq!(name(&made), "host/volumes_made");
        assert_eq!(name(&released), "source/released");
        assert_eq!(name(&adopted), "destination/adopted");
    }
}
