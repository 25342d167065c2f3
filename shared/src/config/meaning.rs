//! The meaning of the files as JSON, as `rehome check --json` prints it.
//!
//! The form is stable: programs compare it. What a file leaves at its default adds no key beyond
//! the nine that are always there.

use serde_json::{Map, Value, json};

use super::load::Loaded;
use super::model::{
    Application, Applications, DEFAULT_STOP_GRACE, Healthcheck, MigrationPolicy, Placement, Port,
    Volume,
};
use super::volume::DEFAULT_NAME;
use crate::ids::Protocol;

/// The whole meaning: `format`, `applications`, `nodes` where a deployment was given, `warnings`.
#[must_use]
pub fn meaning(loaded: &Loaded) -> Value {
    let mut document = Map::new();
    document.insert("format".to_owned(), json!(loaded.format.as_str()));
    document.insert(
        "applications".to_owned(),
        applications(&loaded.applications),
    );
    if let Some(placement) = &loaded.placement {
        document.insert("nodes".to_owned(), nodes(placement));
    }
    document.insert("warnings".to_owned(), json!(loaded.warnings));
    Value::Object(document)
}

fn applications(applications: &Applications) -> Value {
    applications
        .iter()
        .map(|(name, body)| (name.to_string(), application(body)))
        .collect::<Map<_, _>>()
        .into()
}

fn nodes(placement: &Placement) -> Value {
    placement
        .iter()
        .map(|(host, names)| (host.to_string(), json!(names)))
        .collect::<Map<_, _>>()
        .into()
}

/// One application.
#[must_use]
pub fn application(application: &Application) -> Value {
    let single = match application.volumes.as_slice() {
        [one] => volume(one),
        [] | [_, ..] => Value::Null,
    };
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("image", json!(application.image));
    put(
        "ports",
        application.ports.iter().copied().map(port).collect(),
    );
    put("links", json!(application.links));
    put("environment", json!(application.environment));
    put("volume", single);
    put("mem_limit", json!(application.mem_limit));
    put("cpu_shares", json!(application.cpu_shares));
    put("restart_policy", json!(application.restart_policy));
    for (key, value) in extras(application) {
        put(key, value);
    }
    Value::Object(body)
}

/// What the user said beyond the usual.
fn extras(application: &Application) -> Vec<(&'static str, Value)> {
    let mut extras = Vec::new();
    let named = application
        .volumes
        .iter()
        .any(|v| v.name.as_str() != DEFAULT_NAME);
    if named || application.volumes.len() > 1 {
        extras.push((
            "volumes",
            application.volumes.iter().map(named_volume).collect(),
        ));
    }
    let lists = [
        ("command", &application.command),
        ("entrypoint", &application.entrypoint),
    ];
    extras.extend(
        lists
            .into_iter()
            .filter_map(|(key, list)| list.as_ref().map(|l| (key, json!(l)))),
    );
    let texts = [
        ("user", &application.user),
        ("working_dir", &application.working_dir),
        ("hostname", &application.hostname),
        ("stop_signal", &application.stop_signal),
    ];
    extras.extend(
        texts
            .into_iter()
            .filter_map(|(key, text)| text.as_ref().map(|t| (key, json!(t)))),
    );
    if application.healthcheck != Healthcheck::default() {
        extras.push(("healthcheck", without_nulls(json!(application.healthcheck))));
    }
    if application.stop_grace != DEFAULT_STOP_GRACE {
        extras.push(("stop_grace", json!(application.stop_grace.as_secs_f64())));
    }
    if application.migration != MigrationPolicy::default() {
        extras.push(("migration", without_nulls(json!(application.migration))));
    }
    extras
}

fn port(port: Port) -> Value {
    let mut value = Map::new();
    value.insert("internal".to_owned(), json!(port.internal));
    value.insert("external".to_owned(), json!(port.external));
    if port.protocol != Protocol::Tcp {
        value.insert("protocol".to_owned(), json!(port.protocol));
    }
    if !port.send_proxy.is_nothing() {
        value.insert("send_proxy".to_owned(), json!("v2"));
    }
    Value::Object(value)
}

fn volume(volume: &Volume) -> Value {
    json!({
        "mountpoint": volume.mountpoint,
        "maximum_size": volume.maximum_size,
        "dataset_id": volume.dataset_id,
    })
}

fn named_volume(named: &Volume) -> Value {
    let mut value = volume(named);
    if let Value::Object(map) = &mut value {
        map.insert("name".to_owned(), json!(named.name));
    }
    value
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, v)| !v.is_null())
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}
