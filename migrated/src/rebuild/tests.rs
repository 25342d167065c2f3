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

fn owner_word(epoch: u64, owner: &str) -> Word {
    Word {
        host: host("h2"),
        owners: vec![(app("db"), Epoch(epoch), host(owner))],
        migrations: Vec::new(),
    }
}

fn is_kept(records: &[Record], words: &[Word]) -> bool {
    let present = Present::Journal(Box::new(Registry::replay(records)));
    aside(&present, &host("h1"), &[], words).is_err()
}

#[test]
fn the_newest_journal_is_not_made_anew() {
    let born = Record::Born {
        application: app("db"),
        volumes: Vec::new(),
    };
    let mine = std::slice::from_ref(&born);
    assert!(is_kept(mine, &[]));
    assert!(is_kept(mine, &[owner_word(1, "h1"), owner_word(2, "h2")]));
    assert!(
        !is_kept(mine, &[owner_word(3, "h1")]),
        "others know this host as the owner at a larger epoch"
    );
}

#[test]
fn a_journal_that_was_begun_anew_or_left_something_open_is_made_anew() {
    assert!(!is_kept(&[], &[]), "also where the pool has no volumes");
    let heard = Record::Heard {
        application: app("web"),
        epoch: Epoch(1),
        owner: host("h2"),
    };
    assert!(!is_kept(&[heard], &[]), "it only heard of others");
    let left = Record::Held {
        application: app("db"),
        epoch: Epoch(1),
        role: migrated_core::registry::Role::Left {
            owner: host("h1"),
            why: "because".to_owned(),
        },
        volumes: Vec::new(),
        unmade: Vec::new(),
    };
    assert!(!is_kept(&[left], &[]));
    let present = Present::Nothing;
    assert_eq!(aside(&present, &host("h1"), &[], &[]).unwrap(), None);
}

#[test]
fn a_refusal_names_the_option_that_leaves_an_application_behind() {
    let said = undecided(&[
        Undecided::Undescribed(app("db")),
        Undecided::InWindow {
            application: app("web"),
            from: host("h2"),
        },
    ])
    .to_string();
    assert!(said.contains("--leave db)"), "{said}");
    assert!(!said.contains("--leave web"), "{said}");
}
