//! What tells that a journal is missing. What is decided without one is the core's.

use migrated_core::stamp::{Of, Stamp};
use rehome_shared::ids::{DatasetId, Epoch};

use super::*;
use crate::fixtures::{app, deployment, host};

fn stamped(name: &str) -> Volume {
    let identity = rehome_shared::api::peer::VolumeIdentity {
        name: rehome_shared::ids::VolumeName::try_new("data").unwrap(),
        dataset: DatasetId::generate(),
    };
    let volumes = [identity];
    let application = app(name);
    let of = Of {
        application: &application,
        volumes: &volumes,
    };
    Volume {
        dataset: volumes[0].dataset.clone(),
        stamp: Some(Stamp::held(of, &volumes[0], &host("h1"), Epoch(1))),
        live: true,
    }
}

#[test]
fn a_new_host_has_no_trace_of_a_journal() {
    let unstamped = Volume {
        stamp: None,
        ..stamped("db")
    };
    assert_eq!(trace(&Desired::default(), &[unstamped]), None);
}

#[test]
fn volumes_and_deployments_tell_that_there_was_one() {
    let pool = [stamped("web"), stamped("db"), stamped("db")];
    let told = trace(&Desired::default(), &pool).unwrap();
    assert!(told.ends_with("db, web"), "{told}");
    let told = trace(&deployment(4, &[("h1", &["db"])]), &[]).unwrap();
    assert!(told.contains("deployment 4"), "{told}");
}
