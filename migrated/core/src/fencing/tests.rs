use std::collections::BTreeSet;

use rehome_shared::ids::{Attempt, Epoch};

use super::{Standing, Word, before_start, stand, void_promises};
use crate::fixtures::{
    NOW, application, born, destination, host, id, plan, reserved, source, verified,
};
use crate::record::{DestinationRecord, Record, SourceRecord};
use crate::registry::{Registry, Role};

fn word(speaker: &str, epoch: u64, owner: &str) -> Word {
    Word {
        speaker: host(speaker),
        epoch: Epoch(epoch),
        owner: host(owner),
    }
}

fn judged(here: &str, records: &[Record], words: &[Word], fenced: &[&str]) -> Standing {
    let fenced: BTreeSet<_> = fenced.iter().map(|name| host(name)).collect();
    let registry = Registry::replay(records);
    stand(&registry, &host(here), &application(), words, &fenced)
}

fn fenced_by(owner: &str, epoch: u64) -> Standing {
    Standing::Fenced {
        epoch: Epoch(epoch),
        owner: host(owner),
    }
}

/// `h1` owns it and has given it to `h2` at epoch 2, as far as it could.
fn released() -> Vec<Record> {
    let mut records = born();
    records.push(source(1, SourceRecord::Planned(plan())));
    records.push(source(
        1,
        SourceRecord::CutOver {
            attempt: Attempt(1),
            deadline: NOW,
        },
    ));
    records.push(source(
        1,
        SourceRecord::Released {
            attempt: Attempt(1),
        },
    ));
    records
}

/// `h2` owns it at epoch 2.
fn taken() -> Vec<Record> {
    vec![
        reserved(1),
        verified(1),
        destination(1, DestinationRecord::Adopted),
    ]
}

#[test]
fn an_owner_that_nobody_contradicts_is_the_owner() {
    for words in [
        vec![],
        vec![word("h2", 1, "h1")],
        vec![word("h2", 0, "h2"), word("h3", 1, "h1")],
    ] {
        assert_eq!(judged("h1", &born(), &words, &[]), Standing::Clear);
    }
    let stranger = Registry::default();
    let words = [word("h2", 9, "h2")];
    assert_eq!(
        stand(
            &stranger,
            &host("h1"),
            &application(),
            &words,
            &BTreeSet::new()
        ),
        Standing::Clear,
        "what this host never had"
    );
}

#[test]
fn a_larger_epoch_fences_whoever_tells_of_it() {
    assert_eq!(
        judged("h1", &born(), &[word("h2", 2, "h2")], &[]),
        fenced_by("h2", 2)
    );
    let told = [
        word("h2", 2, "h2"),
        word("h3", 4, "h2"),
        word("h4", 3, "h3"),
    ];
    assert_eq!(
        judged("h1", &born(), &told, &[]),
        fenced_by("h2", 4),
        "the newest"
    );
    assert_eq!(
        judged("h2", &taken(), &[word("h1", 3, "h1")], &[]),
        fenced_by("h1", 3),
        "its source took it back"
    );
}

#[test]
fn of_two_equal_epochs_the_fenced_host_gives_way_and_no_other() {
    let words = [word("h3", 2, "h3")];
    assert_eq!(judged("h2", &taken(), &words, &["h2"]), fenced_by("h3", 2));
    assert_eq!(judged("h2", &taken(), &words, &["h3"]), Standing::Clear);
    let contested = Standing::Contested {
        epoch: Epoch(2),
        owner: host("h3"),
    };
    for fenced in [&[][..], &["h1"]] {
        assert_eq!(judged("h2", &taken(), &words, fenced), contested);
    }
    assert_eq!(
        judged("h2", &taken(), &[word("h1", 2, "h3")], &[]),
        Standing::Clear,
        "hearsay"
    );
}

#[test]
fn a_journal_that_is_older_than_what_others_know_is_not_acted_upon() {
    let words = [word("h2", 3, "h1"), word("h3", 2, "h2")];
    assert_eq!(
        judged("h1", &born(), &words, &[]),
        Standing::Outdated {
            epoch: Epoch(3),
            speaker: host("h2")
        }
    );
}

#[test]
fn who_released_it_is_told_by_the_destination_or_fenced_by_others() {
    let by_others = word("h3", 3, "h3");
    assert_eq!(
        judged("h1", &released(), std::slice::from_ref(&by_others), &[]),
        fenced_by("h3", 3)
    );
    let with_it = [by_others, word("h2", 2, "h2")];
    assert_eq!(judged("h1", &released(), &with_it, &[]), fenced_by("h3", 3));
    for outcome in [word("h2", 2, "h2"), word("h2", 3, "h1")] {
        let told = [outcome];
        assert_eq!(judged("h1", &released(), &told, &[]), Standing::Clear);
    }
    let same = [word("h3", 2, "h3")];
    assert_eq!(judged("h1", &released(), &same, &[]), Standing::Clear);
    for fenced in ["h1", "h2"] {
        assert_eq!(
            judged("h1", &released(), &same, &[fenced]),
            fenced_by("h3", 2)
        );
    }
    assert_eq!(
        judged("h1", &released(), &[word("h3", 2, "h2")], &["h1"]),
        Standing::Clear,
        "the one that it was released to"
    );
}

#[test]
fn what_was_released_and_went_on_from_there_never_comes_back() {
    // It was given back, this host was called fenced, and the other one claimed it.
    let claimed = [word("h2", 4, "h2")];
    assert_eq!(judged("h1", &released(), &claimed, &[]), fenced_by("h2", 4));
    // The same with a third host, whose claim the one that gave it back has not heard of.
    let by_a_third = [word("h2", 3, "h1"), word("h3", 4, "h3")];
    let judged_by_both = judged("h1", &released(), &by_a_third, &[]);
    assert_eq!(judged_by_both, fenced_by("h3", 4));
    let at_the_same = [word("h2", 3, "h1"), word("h3", 3, "h3")];
    let judged_by_both = judged("h1", &released(), &at_the_same, &[]);
    assert_eq!(judged_by_both, fenced_by("h3", 3));
}

#[test]
fn a_claim_ends_what_was_given_back() {
    let mut records = taken();
    let reason = "because".to_owned();
    records.push(destination(1, DestinationRecord::Returned { reason }));
    records.push(Record::Claimed {
        application: application(),
        epoch: Epoch(4),
        volumes: vec![crate::fixtures::volume("data")],
        fenced: host("h1"),
    });
    let registry = Registry::replay(&records);
    assert!(registry.destinations().is_empty());
    let owned = registry.owned(&application()).unwrap();
    assert_eq!(owned.epoch, Epoch(4));
}

#[test]
fn a_promise_is_void_when_its_epoch_is_another_hosts() {
    let registry = Registry::replay(&[reserved(1), verified(1)]);
    let void = |words: &[Word]| void_promises(&registry, &host("h2"), &application(), words);
    for words in [
        vec![],
        vec![word("h1", 1, "h1")],
        vec![word("h1", 2, "h2"), word("h3", 1, "h1")],
    ] {
        assert!(void(&words).is_empty(), "{words:?}");
    }
    for words in [
        vec![word("h1", 3, "h1")],
        vec![word("h3", 2, "h3"), word("h1", 1, "h1")],
    ] {
        assert_eq!(void(&words), [id(1)], "{words:?}");
    }
    let owned = Registry::replay(&taken());
    assert!(
        void_promises(&owned, &host("h2"), &application(), &[word("h1", 3, "h1")]).is_empty(),
        "what was adopted is no promise"
    );
}

#[test]
fn a_fenced_host_has_nothing_left_to_do_about_it() {
    let mut records = released();
    let fenced = Record::Fenced {
        application: application(),
        epoch: Epoch(3),
        owner: host("h3"),
        report: Some(crate::fixtures::report(
            id(1),
            rehome_shared::api::cluster::MigrationState::Aborted,
        )),
    };
    records.push(fenced.clone());
    let registry = Registry::replay(&records);
    assert!(registry.owned(&application()).is_none());
    assert!(registry.sources().is_empty());
    assert_eq!(registry.history().len(), 1);
    let known = &registry.applications()[&application()];
    assert_eq!(known.epoch, Epoch(3));
    assert_eq!(known.role, Role::Gone { to: host("h3") });

    let mut records = taken();
    records.push(fenced);
    let registry = Registry::replay(&records);
    assert!(registry.destinations().is_empty());
    // A record that comes too late, which only a damaged journal can hold.
    records.push(Record::Fenced {
        application: application(),
        epoch: Epoch(2),
        owner: host("h9"),
        report: None,
    });
    assert_eq!(Registry::replay(&records), registry);
}

#[test]
fn what_was_heard_is_known_until_something_newer_is() {
    let heard = |epoch, owner| Record::Heard {
        application: application(),
        epoch: Epoch(epoch),
        owner: host(owner),
    };
    let known = |records: &[Record]| {
        let registry = Registry::replay(records);
        assert_eq!(Registry::replay(&registry.compacted()), registry);
        let known = registry.known(&host("h1")).remove(&application());
        known.map(|(epoch, owner)| (epoch.0, owner.to_string()))
    };
    assert_eq!(known(&[]), None);
    assert_eq!(known(&[heard(3, "h3")]), Some((3, "h3".to_owned())));
    assert_eq!(
        known(&[heard(3, "h3"), heard(2, "h2")]),
        Some((3, "h3".to_owned()))
    );
    let mut owner = born();
    assert_eq!(known(&owner), Some((1, "h1".to_owned())));
    owner.push(heard(1, "h2"));
    assert_eq!(
        known(&owner),
        Some((1, "h1".to_owned())),
        "its own word first"
    );
    owner.push(heard(4, "h2"));
    assert_eq!(known(&owner), Some((4, "h2".to_owned())));
}

#[test]
fn what_was_left_undecided_is_another_hosts_when_a_newer_owner_is_known() {
    let held = Record::Held {
        application: application(),
        epoch: Epoch(3),
        role: Role::Left {
            owner: host("h1"),
            why: "because".to_owned(),
        },
        volumes: Vec::new(),
        unmade: Vec::new(),
    };
    let records = [held];
    assert_eq!(
        judged("h1", &records, &[word("h2", 4, "h2")], &[]),
        fenced_by("h2", 4)
    );
    assert_eq!(
        judged("h1", &records, &[word("h2", 3, "h1")], &[]),
        Standing::Clear
    );
    let fenced = Record::Fenced {
        application: application(),
        epoch: Epoch(4),
        owner: host("h2"),
        report: None,
    };
    let registry = Registry::replay(records.iter().chain([&fenced]));
    assert!(!registry.is_left(&application()));
}

/// The standing of a host that starts, after it asked.
fn started(here: &str, records: &[Record], told: &[Word], first_hand: &[Word]) -> Standing {
    let registry = Registry::replay(records);
    let (here, name) = (host(here), application());
    let words = before_start(&registry, &here, &name, told.to_vec(), first_hand);
    stand(&registry, &here, &name, &words, &BTreeSet::new())
}

#[test]
fn what_a_host_heard_before_it_fell_counts_when_it_starts() {
    let mut records = born();
    assert_eq!(started("h1", &records, &[], &[]), Standing::Clear);
    records.push(Record::Heard {
        application: application(),
        epoch: Epoch(2),
        owner: host("h2"),
    });
    assert_eq!(started("h1", &records, &[], &[]), fenced_by("h2", 2));
    let newer = [word("h3", 3, "h3")];
    assert_eq!(started("h1", &records, &newer, &[]), fenced_by("h3", 3));
}

/// `h1` released it to `h2`, which gave it back at epoch 3 and was away when `h3` claimed epoch 2
/// and `h1` gave way to that.
#[test]
fn what_is_said_of_a_host_that_gave_way_to_this_one_does_not_count() {
    let claimed = |heard: bool| {
        let mut records = vec![Record::Claimed {
            application: application(),
            epoch: Epoch(2),
            volumes: Vec::new(),
            fenced: host("h1"),
        }];
        records.extend(heard.then(|| Record::Heard {
            application: application(),
            epoch: Epoch(3),
            owner: host("h1"),
        }));
        records
    };
    let given_back = word("h2", 3, "h1");
    let (gave_way, owner) = (word("h1", 2, "h3"), word("h1", 3, "h1"));
    for heard in [false, true] {
        let records = claimed(heard);
        let told = [given_back.clone(), gave_way.clone()];
        let by_journal = [given_back.clone(), gave_way.clone()];
        let standing = started("h3", &records, &told, &by_journal);
        assert_eq!(standing, Standing::Clear, "heard before: {heard}");
        // Another machine in its place, which only repeats what it was told, knows nothing.
        let standing = started("h3", &records, &told, &by_journal[..1]);
        assert_eq!(standing, fenced_by("h1", 3), "hearsay");
        let silent = std::slice::from_ref(&given_back);
        let standing = started("h3", &records, silent, silent);
        assert_eq!(standing, fenced_by("h1", 3), "it does not answer");
        let took_it = [given_back.clone(), owner.clone()];
        let standing = started("h3", &records, &took_it, &took_it);
        assert_eq!(standing, fenced_by("h1", 3), "it took it back");
    }
    let older = [word("h2", 3, "h1"), word("h1", 1, "h3")];
    let standing = started("h3", &claimed(false), &older, &older);
    assert_eq!(standing, fenced_by("h1", 3), "of what was long ago");
}
