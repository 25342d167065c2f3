//! What can be tested without namespaces; the rest is in `tests/process_runtime.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rehome_shared::config::model::{Image, ImageVersion};
use rehome_shared::ids::{AppName, Epoch};

use super::program;
use crate::runtime::{InstanceSpec, Mount};

fn spec(command: &[&str]) -> InstanceSpec {
    InstanceSpec {
        application: AppName::try_new("app").unwrap(),
        epoch: Epoch(1),
        config_hash: "hash".to_owned(),
        image: Image {
            repository: "none".to_owned(),
            version: ImageVersion::Tag("latest".to_owned()),
        },
        command: Some(command.iter().map(ToString::to_string).collect()),
        entrypoint: None,
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        mem_limit: None,
        cpu_shares: None,
        user: None,
        working_dir: None,
        hostname: None,
        stop_signal: None,
        announced: BTreeSet::new(),
    }
}

#[test]
fn a_program_is_looked_for_where_the_application_would() {
    assert_eq!(program::locate(&spec(&["sh", "-c", "true"])), Ok(()));
    assert_eq!(program::locate(&spec(&["/bin/sh"])), Ok(()));
    assert!(
        program::locate(&spec(&["no-such-program"]))
            .unwrap_err()
            .contains("no program")
    );
    assert!(
        program::locate(&spec(&["/etc/passwd"]))
            .unwrap_err()
            .contains("not an executable")
    );
    assert!(
        program::locate(&spec(&["/no/such"]))
            .unwrap_err()
            .contains("does not exist")
    );
    assert!(program::locate(&spec(&[])).is_err());
    let mut elsewhere = spec(&["sh"]);
    elsewhere
        .environment
        .insert("PATH".to_owned(), "/nowhere".to_owned());
    assert!(program::locate(&elsewhere).is_err());
}

#[test]
fn a_program_on_a_volume_is_seen_at_the_start() {
    let mut spec = spec(&["/srv/volume/bin/server"]);
    assert!(program::locate(&spec).is_err());
    spec.mounts.push(Mount {
        source: PathBuf::from("/tmp"),
        target: "/srv/volume".to_owned(),
    });
    assert_eq!(program::locate(&spec), Ok(()));
}

#[test]
fn what_is_wrong_is_said_before_a_start() {
    let with = |change: fn(&mut InstanceSpec)| {
        let mut spec = spec(&["sh"]);
        change(&mut spec);
        program::check(&spec)
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert!(
        with(|spec| spec.command = None)
            .unwrap_err()
            .contains("needs a command")
    );
    assert!(
        with(|spec| spec.user = Some("no-such-user".to_owned()))
            .unwrap_err()
            .contains("no user")
    );
    assert!(
        with(|spec| spec.stop_signal = Some("SIGSTOP".to_owned()))
            .unwrap_err()
            .contains("SIGTERM")
    );
    for (source, target) in [
        ("/no/such", "/data"),
        ("/tmp", "data"),
        ("/tmp", "/"),
        ("/tmp", "/a/../.."),
    ] {
        let mut spec = spec(&["sh"]);
        spec.mounts.push(Mount {
            source: source.into(),
            target: target.to_owned(),
        });
        assert!(program::check(&spec).is_err(), "{source} {target}");
    }
}

#[test]
fn stop_signals_have_names_and_numbers() {
    let parse = |text: &str| {
        let mut spec = spec(&["sh"]);
        spec.stop_signal = Some(text.to_owned());
        program::stop_signal(&spec)
            .ok()
            .map(rustix::process::Signal::as_raw)
    };
    for (text, want) in [
        ("SIGINT", Some(2)),
        ("int", Some(2)),
        ("15", Some(15)),
        ("SIGFOO", None),
    ] {
        assert_eq!(parse(text), want, "{text}");
    }
    assert_eq!(program::stop_signal(&spec(&["sh"])).unwrap().as_raw(), 15);
}
