use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::config::model::{Image, ImageVersion};
use rehome_shared::ids::Epoch;
use rehome_shared::units::Bytes;

use super::*;

fn spec() -> InstanceSpec {
    InstanceSpec {
        application: AppName::try_new("db").unwrap(),
        epoch: Epoch(3),
        config_hash: "abc".to_owned(),
        image: Image {
            repository: "registry:5000/acme/db".to_owned(),
            version: ImageVersion::Tag("1".to_owned()),
        },
        command: None,
        entrypoint: None,
        environment: BTreeMap::from([("PASSWORD".to_owned(), "se=cret".to_owned())]),
        mounts: vec![crate::runtime::Mount {
            source: "/pool/db".into(),
            target: "/data".to_owned(),
        }],
        mem_limit: Some(Bytes(1 << 20)),
        cpu_shares: Some(512),
        user: None,
        working_dir: None,
        hostname: None,
        stop_signal: None,
        announced: BTreeSet::new(),
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn nothing_is_published_restarted_or_privileged() {
    let host = body(&spec(), Init::Engine).unwrap().host_config.unwrap();
    assert_eq!(
        host.restart_policy.unwrap().name,
        Some(RestartPolicyNameEnum::NO)
    );
    assert_eq!(host.network_mode.as_deref(), Some("bridge"));
    assert_eq!(
        (host.memory, host.cpu_shares, host.init),
        (Some(1 << 20), Some(512), Some(true))
    );
    assert!(host.port_bindings.is_none() && host.publish_all_ports.is_none());
    assert!(host.privileged.is_none() && host.ulimits.is_none() && host.binds.is_none());
    let mounts = host.mounts.unwrap();
    assert_eq!(mounts[0].typ, Some(MountType::BIND));
    assert_eq!(mounts[0].source.as_deref(), Some("/pool/db"));
}

#[test]
fn the_environment_is_not_in_a_label() {
    let body = body(&spec(), Init::Engine).unwrap();
    assert_eq!(body.env, Some(words(&["PASSWORD=se=cret"])));
    let labels = body.labels.unwrap();
    assert_eq!(labels["rehome.application"], "db");
    assert_eq!(labels["rehome.epoch"], "3");
    assert_eq!(labels["rehome.config-hash"], "abc");
    assert!(labels["rehome.spec"].contains("/pool/db"));
    assert!(labels.values().all(|value| !value.contains("cret")));
    assert!(!labels.contains_key("rehome.announced"));
    let spec = InstanceSpec {
        announced: BTreeSet::from([8443, 80]),
        ..spec()
    };
    let labels = super::body(&spec, Init::Engine).unwrap().labels.unwrap();
    assert_eq!(labels["rehome.announced"], "80,8443");
}

#[test]
fn a_limit_that_the_engine_cannot_hold_is_refused() {
    let spec = InstanceSpec {
        mem_limit: Some(Bytes(u64::MAX)),
        ..spec()
    };
    assert!(body(&spec, Init::Engine).unwrap_err().contains("mem_limit"));
}

#[test]
fn a_program_that_is_an_init_stays_process_1() {
    let image = |entrypoint, cmd| ImageConfig {
        entrypoint,
        cmd,
        ..ImageConfig::default()
    };
    let plain = image(None, Some(words(&["redis-server"])));
    let tini = image(
        Some(words(&["/usr/bin/tini", "--"])),
        Some(words(&["redis-server"])),
    );
    let systemd = image(None, Some(words(&["/sbin/init"])));
    assert_eq!(init_for(&spec(), Some(&plain)), Init::Engine);
    assert_eq!(init_for(&spec(), Some(&tini)), Init::None);
    assert_eq!(init_for(&spec(), Some(&systemd)), Init::None);
    assert_eq!(init_for(&spec(), None), Init::Engine);
    let command = InstanceSpec {
        command: Some(words(&["sleep"])),
        ..spec()
    };
    assert_eq!(init_for(&command, Some(&systemd)), Init::Engine);
    assert_eq!(init_for(&command, Some(&tini)), Init::None);
    let entrypoint = InstanceSpec {
        entrypoint: Some(words(&["sleep"])),
        ..spec()
    };
    assert_eq!(init_for(&entrypoint, Some(&tini)), Init::Engine);
}
