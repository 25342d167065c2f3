use serde_json::{Value, json};

use super::*;

fn inspected(labels: &Value, state: &Value) -> ContainerInspectResponse {
    serde_json::from_value(json!({
        "Id": "c0ffee",
        "Config": {"Labels": labels},
        "State": state,
        "NetworkSettings": {"Networks": {"bridge": {
            "IPAddress": "172.18.0.2", "GlobalIPv6Address": ""
        }}},
    }))
    .unwrap()
}

fn labels() -> Value {
    json!({"rehome.application": "db", "rehome.epoch": "7", "rehome.config-hash": "abc"})
}

#[test]
fn a_running_container_has_an_address() {
    let running = json!({"Status": "running", "Running": true, "Pid": 12, "StartedAt": "2026-01-01T00:00:00Z"});
    let instance = instance(&inspected(&labels(), &running)).unwrap();
    assert_eq!(instance.application.as_str(), "db");
    assert_eq!(instance.epoch, Epoch(7));
    assert_eq!(instance.state, InstanceState::Running);
    assert_eq!(instance.address, Some("172.18.0.2".parse().unwrap()));
    assert_eq!(instance.started_at.as_deref(), Some("2026-01-01T00:00:00Z"));
}

#[test]
fn a_container_says_on_which_ports_it_is_told_of_clients() {
    let announced = |label: Option<&str>| {
        let mut labels = labels();
        if let Some(label) = label {
            labels["rehome.announced"] = json!(label);
        }
        let instance = instance(&inspected(&labels, &json!({"Status": "created"})));
        instance.map(|instance| instance.announced)
    };
    assert_eq!(announced(None), Some(BTreeSet::new()));
    assert_eq!(announced(Some("80,8443")), Some(BTreeSet::from([80, 8443])));
    // Better not known than told wrongly.
    assert_eq!(announced(Some("80,https")), None);
}

#[test]
fn a_paused_container_runs() {
    let paused = json!({"Status": "paused", "Running": true, "Paused": true, "Pid": 12});
    assert_eq!(
        instance(&inspected(&labels(), &paused)).unwrap().state,
        InstanceState::Running
    );
}

#[test]
fn an_exit_keeps_its_code_and_reason() {
    let state_of = |state: Value| instance(&inspected(&labels(), &state)).unwrap().state;
    let killed = json!({"Status": "exited", "Running": false, "Pid": 0, "ExitCode": 137, "OOMKilled": true, "Error": ""});
    assert_eq!(
        state_of(killed),
        InstanceState::Exited {
            code: Some(137),
            reason: Some("it was killed for want of memory".to_owned())
        }
    );
    let never =
        json!({"Status": "created", "Running": false, "Pid": 0, "ExitCode": 0, "Error": ""});
    assert_eq!(state_of(never), InstanceState::Created);
    let failed = json!({"Status": "created", "Running": false, "Pid": 0, "ExitCode": 127, "Error": "no such file"});
    assert_eq!(
        state_of(failed),
        InstanceState::Exited {
            code: Some(127),
            reason: Some("no such file".to_owned())
        }
    );
}

#[test]
fn a_container_of_somebody_else_is_not_ours() {
    let running = json!({"Status": "running", "Running": true, "Pid": 12});
    assert_eq!(instance(&inspected(&json!({}), &running)), None);
    let damaged =
        json!({"rehome.application": "db", "rehome.epoch": "x", "rehome.config-hash": "a"});
    assert_eq!(instance(&inspected(&damaged, &running)), None);
}
