use rehome_shared::ids::{Attempt, Epoch, VolumeName};

use super::{CannotTakeOver, Way, Wish, choose, way};
use crate::fixtures::{
    NOW, application, born, destination, host, id, plan, report, reserved, source, verified, volume,
};
use crate::record::{DestinationRecord, Record, SourceRecord};
use crate::registry::{Registry, Role};

fn wanted(records: &[Record], here: &str, fenced: &str, epoch: u64) -> Result<Way, CannotTakeOver> {
    with_volumes(records, here, fenced, epoch, &["data"])
}

fn with_volumes(
    records: &[Record],
    here: &str,
    fenced: &str,
    epoch: u64,
    volumes: &[&str],
) -> Result<Way, CannotTakeOver> {
    let names: Vec<VolumeName> = volumes.iter().map(|name| volume(name).name).collect();
    let registry = Registry::replay(records);
    way(
        &registry,
        &host(here),
        Wish {
            application: &application(),
            fenced: &host(fenced),
            epoch: Epoch(epoch),
            volumes: &names,
        },
    )
}

/// `h1`, which was born with it, has released it to `h2` at epoch 2.
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

fn then(mut records: Vec<Record>, steps: Vec<SourceRecord>) -> Vec<Record> {
    records.extend(steps.into_iter().map(|step| source(1, step)));
    records
}

fn done() -> SourceRecord {
    SourceRecord::Closed {
        report: report(id(1), rehome_shared::api::cluster::MigrationState::Done),
    }
}

#[test]
fn a_promise_from_the_fenced_host_is_granted_by_its_epoch() {
    let promised = [reserved(1), verified(1)];
    assert_eq!(
        wanted(&promised, "h2", "h1", 1),
        Ok(Way::Grant {
            migration: id(1),
            attempt: Attempt(1),
            epoch: Epoch(2)
        })
    );
    assert!(matches!(
        wanted(&promised, "h2", "h3", 1),
        Err(CannotTakeOver::NothingOf(_))
    ));
    assert!(matches!(
        wanted(&promised, "h2", "h1", 0),
        Err(CannotTakeOver::NotTheOwner { .. })
    ));
}

#[test]
fn what_was_released_is_taken_back_only_from_whom_it_was_released_to() {
    let take_back = |taken| {
        Ok(Way::TakeBack {
            migration: id(1),
            taken,
        })
    };
    assert_eq!(wanted(&released(), "h1", "h2", 2), take_back(false));
    let handed = then(released(), vec![SourceRecord::Adopted]);
    assert_eq!(wanted(&handed, "h1", "h2", 2), take_back(true));
    for (fenced, epoch) in [("h3", 2), ("h2", 1), ("h2", 3)] {
        assert!(matches!(
            wanted(&released(), "h1", fenced, epoch),
            Err(CannotTakeOver::NotTheOwner { .. })
        ));
    }
    let finishing = then(released(), vec![SourceRecord::Served]);
    assert_eq!(
        wanted(&finishing, "h1", "h2", 2),
        Err(CannotTakeOver::StillGiving(id(1)))
    );
}

#[test]
fn a_former_owner_claims_with_the_volumes_that_it_had() {
    let gone = then(released(), vec![SourceRecord::Served, done()]);
    assert_eq!(
        wanted(&gone, "h1", "h2", 2),
        Ok(Way::Claim {
            volumes: vec![volume("data")]
        })
    );
    // It went on from there, as this host knows by what others said.
    assert!(matches!(
        wanted(&gone, "h1", "h3", 5),
        Ok(Way::Claim { .. })
    ));
    assert_eq!(
        wanted(&gone, "h1", "h3", 2),
        Err(CannotTakeOver::NotTheOwner {
            owner: host("h2"),
            epoch: Epoch(2)
        })
    );
    assert_eq!(
        with_volumes(&gone, "h1", "h2", 2, &["data", "logs"]),
        Err(CannotTakeOver::NothingOf(volume("logs").name))
    );
}

#[test]
fn rounds_of_a_copy_and_no_volumes_at_all_are_enough_to_claim() {
    assert_eq!(
        wanted(&[reserved(1)], "h2", "h1", 1),
        Ok(Way::Claim {
            volumes: vec![volume("data")]
        })
    );
    assert_eq!(
        with_volumes(&[], "h2", "h1", 4, &[]),
        Ok(Way::Claim {
            volumes: Vec::new()
        })
    );
    assert!(matches!(
        wanted(&[], "h2", "h1", 1),
        Err(CannotTakeOver::NothingOf(_))
    ));
}

#[test]
fn an_owner_takes_nothing_over_and_repeating_it_is_success() {
    assert_eq!(
        wanted(&born(), "h1", "h2", 3),
        Err(CannotTakeOver::OwnedHere(Epoch(1)))
    );
    assert_eq!(
        wanted(&born(), "h1", "h1", 1),
        Err(CannotTakeOver::FromSelf)
    );
    let claimed = claimed_after(vec![reserved(1)]);
    assert_eq!(wanted(&claimed, "h2", "h1", 1), Ok(Way::Done));
    assert_eq!(
        wanted(&claimed, "h2", "h3", 2),
        Ok(Way::Done),
        "of two owners of one epoch the other one is fenced"
    );
    assert_eq!(
        wanted(&claimed, "h2", "h1", 7),
        Err(CannotTakeOver::OwnedHere(Epoch(2)))
    );
}

fn claimed_after(mut records: Vec<Record>) -> Vec<Record> {
    records.push(Record::Claimed {
        application: application(),
        epoch: Epoch(2),
        volumes: vec![volume("data")],
        fenced: host("h1"),
    });
    records
}

#[test]
fn a_claim_makes_an_owner_and_ends_what_was_promised_to_come() {
    let registry = Registry::replay(&claimed_after(vec![reserved(1), verified(1)]));
    let owned = registry.owned(&application()).unwrap();
    assert_eq!(owned.epoch, Epoch(2));
    assert_eq!(owned.volumes, [volume("data")]);
    assert!(owned.unmade.is_empty());
    assert!(registry.destinations().is_empty());

    // One that does not fit changes no owner.
    let newer = [
        reserved(1),
        verified(1),
        destination(1, DestinationRecord::Adopted),
    ];
    assert_eq!(
        Registry::replay(&claimed_after(newer.to_vec())),
        Registry::replay(&newer)
    );
}

#[test]
fn claims_and_fences_folded_twice_are_folded_once() {
    let mut records = claimed_after(vec![reserved(1)]);
    records.push(Record::Fenced {
        application: application(),
        epoch: Epoch(3),
        owner: host("h1"),
        report: None,
    });
    for end in 0..=records.len() {
        let prefix = &records[..end];
        let twice = prefix.iter().chain(prefix);
        assert_eq!(Registry::replay(twice), Registry::replay(prefix), "{end}");
    }
}

#[test]
fn only_what_was_taken_at_one_moment_on_every_volume_is_gone_on_from() {
    let names = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let a = names("mig-1-final-1 mig-2-final-1 mig-3-round-1");
    assert_eq!(choose(std::slice::from_ref(&a)), Some("mig-2-final-1"));
    let b = names("mig-1-final-1 mig-3-round-1");
    assert_eq!(choose(&[a.clone(), b]), Some("mig-1-final-1"));
    assert_eq!(choose(&[a.clone(), names("mig-3-round-1")]), None);
    assert_eq!(choose(&[a, Vec::new()]), None);
    assert_eq!(choose(&[]), None);
}

/// The journal of `h1` was made anew, and whose it is at epoch 3 was left open.
fn left(owner: &str, volumes: &[&str]) -> Vec<Record> {
    let held = Record::Held {
        application: application(),
        epoch: Epoch(3),
        role: Role::Left {
            owner: host(owner),
            why: "because".to_owned(),
        },
        volumes: volumes.iter().map(|name| volume(name)).collect(),
        unmade: Vec::new(),
    };
    vec![held]
}

#[test]
fn what_was_left_undecided_is_claimed_as_what_was_given_away_is() {
    let here = Ok(Way::Claim {
        volumes: vec![volume("data")],
    });
    assert_eq!(wanted(&left("h2", &["data"]), "h1", "h2", 3), here);
    assert_eq!(
        wanted(&left("h1", &["data"]), "h1", "h1", 3),
        here,
        "and by the host that is said to have it"
    );
    for (fenced, epoch) in [("h3", 3), ("h2", 2)] {
        assert!(matches!(
            wanted(&left("h2", &["data"]), "h1", fenced, epoch),
            Err(CannotTakeOver::NotTheOwner { .. })
        ));
    }
    let mut twice = left("h1", &["data", "log"]);
    if let [Record::Held { volumes, .. }] = twice.as_mut_slice() {
        volumes[1].name = volume("data").name;
    }
    assert_eq!(
        wanted(&twice, "h1", "h1", 3),
        Err(CannotTakeOver::Twice(volume("data").name))
    );
}
