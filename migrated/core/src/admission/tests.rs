use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{Attempt, Epoch};

use super::{Admission, CannotGive, CannotTake, may_adopt, may_give, may_take};
use crate::fixtures::{
    NOW, application, born, destination, host, id, plan, report, reservation, reserved, source,
    verified, volume,
};
use crate::record::{DestinationRecord, Plan, Record, Reservation, SourceRecord};
use crate::registry::Registry;

fn give(records: &[Record], number: u8, plan: &Plan) -> Result<(), CannotGive> {
    may_give(&Registry::replay(records), &host("h1"), &id(number), plan)
}

fn take(records: &[Record], number: u8, offer: &Reservation) -> Result<Admission, CannotTake> {
    may_take(&Registry::replay(records), &host("h2"), &id(number), offer)
}

fn fresh() -> Admission {
    Admission::Reserve {
        supersedes: Vec::new(),
    }
}

fn instead_of(number: u8) -> Admission {
    Admission::Reserve {
        supersedes: vec![id(number)],
    }
}

fn adopted() -> Vec<Record> {
    vec![
        reserved(1),
        verified(1),
        destination(1, DestinationRecord::Adopted),
    ]
}

fn with(mut records: Vec<Record>, more: Vec<Record>) -> Vec<Record> {
    records.extend(more);
    records
}

fn heard(epoch: u64, owner: &str) -> Record {
    Record::Heard {
        application: application(),
        epoch: Epoch(epoch),
        owner: host(owner),
    }
}

#[test]
fn an_old_offer_finds_who_has_heard_of_a_newer_owner() {
    let offer = reservation();
    assert_eq!(take(&[heard(1, "h1")], 1, &offer), Ok(fresh()));
    let known = CannotTake::NotTheOwner {
        owner: host("h3"),
        epoch: Epoch(2),
    };
    assert_eq!(take(&[heard(2, "h3")], 1, &offer), Err(known));
}

#[test]
fn an_epoch_that_is_another_hosts_is_not_adopted() {
    let adopts = |more: Vec<Record>| {
        let registry = Registry::replay(&with(vec![reserved(1), verified(1)], more));
        may_adopt(&registry, &host("h2"), &registry.destinations()[&id(1)])
    };
    for more in [vec![], vec![heard(1, "h1")], vec![heard(2, "h2")]] {
        assert_eq!(adopts(more), Ok(()));
    }
    for epoch in [2, 3] {
        let known = CannotTake::NotTheOwner {
            owner: host("h3"),
            epoch: Epoch(epoch),
        };
        assert_eq!(adopts(vec![heard(epoch, "h3")]), Err(known));
    }
    let late = vec![destination(1, DestinationRecord::Adopted), heard(3, "h3")];
    assert_eq!(adopts(late), Ok(()), "said again, it changes nothing");
}

#[test]
fn the_owner_may_give() {
    assert_eq!(give(&born(), 1, &plan()), Ok(()));
    assert_eq!(give(&[], 1, &plan()), Err(CannotGive::NotOwner));
    let to_self = Plan {
        to: host("h1"),
        ..plan()
    };
    assert_eq!(give(&born(), 1, &to_self), Err(CannotGive::ToSelf));
}

#[test]
fn a_plan_is_of_the_journal_as_it_is() {
    let old = Plan {
        epoch: Epoch(0),
        ..plan()
    };
    assert_eq!(give(&born(), 1, &old), Err(CannotGive::Outdated));
    let fewer = Plan {
        volumes: Vec::new(),
        ..plan()
    };
    assert_eq!(give(&born(), 1, &fewer), Err(CannotGive::Outdated));
}

#[test]
fn volumes_that_are_not_made_do_not_move() {
    assert_eq!(give(&born()[..1], 1, &plan()), Err(CannotGive::Unmade));
}

#[test]
fn one_move_at_a_time() {
    let open = with(born(), vec![source(1, SourceRecord::Planned(plan()))]);
    assert_eq!(give(&open, 2, &plan()), Err(CannotGive::UnderWay(id(1))));
    let onwards = Plan {
        epoch: Epoch(2),
        ..plan()
    };
    assert_eq!(
        give(&adopted(), 2, &onwards),
        Err(CannotGive::UnderWay(id(1)))
    );
    let serving = with(adopted(), vec![destination(1, DestinationRecord::Serving)]);
    assert_eq!(give(&serving, 2, &onwards), Ok(()));
}

#[test]
fn ids_of_an_application_grow() {
    let aborted = with(
        born(),
        vec![
            source(2, SourceRecord::Planned(plan())),
            source(
                2,
                SourceRecord::Aborted {
                    reason: String::new(),
                },
            ),
            source(
                2,
                SourceRecord::Closed {
                    report: report(id(2), MigrationState::Aborted),
                },
            ),
        ],
    );
    assert_eq!(give(&aborted, 3, &plan()), Ok(()));
    for number in [1, 2] {
        assert_eq!(
            give(&aborted, number, &plan()),
            Err(CannotGive::IdNotNewer(id(2)))
        );
    }
}

#[test]
fn an_offer_is_taken_once() {
    assert_eq!(take(&[], 1, &reservation()), Ok(fresh()));
    for records in [vec![reserved(1)], vec![reserved(1), verified(1)], adopted()] {
        assert_eq!(take(&records, 1, &reservation()), Ok(Admission::Known));
    }
    let other = Reservation {
        epoch: Epoch(2),
        ..reservation()
    };
    assert_eq!(take(&[reserved(1)], 1, &other), Err(CannotTake::Different));
    let mut more = reservation();
    more.volumes[0].identity = volume("logs");
    assert_eq!(take(&[reserved(1)], 1, &more), Err(CannotTake::Different));
}

#[test]
fn an_offer_from_here_is_refused() {
    let own = Reservation {
        from: host("h2"),
        ..reservation()
    };
    assert_eq!(take(&[], 1, &own), Err(CannotTake::FromSelf));
}

#[test]
fn the_owner_takes_nothing() {
    assert_eq!(
        take(&born(), 1, &reservation()),
        Err(CannotTake::OwnedHere(Epoch(1)))
    );
    let later = Reservation {
        epoch: Epoch(7),
        ..reservation()
    };
    assert_eq!(
        take(&adopted(), 2, &later),
        Err(CannotTake::OwnedHere(Epoch(2)))
    );
}

/// A former owner that knows of the outcome and has not finished to clean up.
fn given_away() -> Vec<Record> {
    with(
        born(),
        vec![
            source(1, SourceRecord::Planned(plan())),
            source(
                1,
                SourceRecord::CutOver {
                    attempt: Attempt(1),
                    deadline: NOW,
                },
            ),
            source(
                1,
                SourceRecord::Released {
                    attempt: Attempt(1),
                },
            ),
            source(1, SourceRecord::Served),
        ],
    )
}

#[test]
fn a_former_owner_takes_it_back_only_when_it_has_finished_to_give() {
    let back = Reservation {
        from: host("h2"),
        epoch: Epoch(2),
        ..reservation()
    };
    let take_back = |records: &[Record], offer: &Reservation| {
        may_take(&Registry::replay(records), &host("h1"), &id(2), offer)
    };
    assert_eq!(
        take_back(&given_away(), &back),
        Err(CannotTake::StillGiving(id(1)))
    );
    let report = report(id(1), MigrationState::Done);
    let closed = with(
        given_away(),
        vec![source(1, SourceRecord::Closed { report })],
    );
    assert_eq!(take_back(&closed, &back), Ok(fresh()));
    let not_the_owner = Err(CannotTake::NotTheOwner {
        owner: host("h2"),
        epoch: Epoch(2),
    });
    let old = Reservation {
        epoch: Epoch(1),
        ..back.clone()
    };
    assert_eq!(take_back(&closed, &old), not_the_owner);
    let liar = Reservation {
        from: host("h3"),
        ..back.clone()
    };
    assert_eq!(take_back(&closed, &liar), not_the_owner);
    let via_another = Reservation {
        from: host("h3"),
        epoch: Epoch(3),
        ..back
    };
    assert_eq!(take_back(&closed, &via_another), Ok(fresh()));
}

#[test]
fn a_newer_migration_ends_a_promise_that_nobody_called_off() {
    let elsewhere = Reservation {
        from: host("h3"),
        epoch: Epoch(2),
        ..reservation()
    };
    for records in [vec![reserved(2)], vec![reserved(2), verified(2)]] {
        assert_eq!(take(&records, 3, &reservation()), Ok(instead_of(2)));
        assert_eq!(
            take(&records, 1, &elsewhere),
            Ok(instead_of(2)),
            "a larger epoch decides"
        );
    }
}

#[test]
fn an_older_offer_that_wandered_about_ends_no_promise() {
    for records in [vec![reserved(2)], vec![reserved(2), verified(2)]] {
        assert_eq!(
            take(&records, 1, &reservation()),
            Err(CannotTake::Older(id(2)))
        );
        let older = Reservation {
            epoch: Epoch(0),
            ..reservation()
        };
        assert_eq!(take(&records, 3, &older), Err(CannotTake::Older(id(2))));
    }
}

#[test]
fn what_was_returned_or_dropped_is_ended_first() {
    let dropped = vec![reserved(1), destination(1, DestinationRecord::Dropped)];
    assert_eq!(take(&dropped, 2, &reservation()), Ok(instead_of(1)));
    let reason = String::new();
    let returned = with(
        adopted(),
        vec![destination(1, DestinationRecord::Returned { reason })],
    );
    let again = Reservation {
        epoch: Epoch(3),
        ..reservation()
    };
    assert_eq!(take(&returned, 2, &again), Ok(instead_of(1)));
    assert_eq!(
        take(&returned, 2, &reservation()),
        Err(CannotTake::NotTheOwner {
            owner: host("h1"),
            epoch: Epoch(3)
        })
    );
}

#[test]
fn an_unclosed_handoff_that_served_stays_for_its_source_to_ask() {
    let moved_on = Plan {
        to: host("h3"),
        epoch: Epoch(2),
        ..plan()
    };
    let records = with(
        adopted(),
        vec![
            destination(1, DestinationRecord::Serving),
            source(2, SourceRecord::Planned(moved_on)),
            source(
                2,
                SourceRecord::CutOver {
                    attempt: Attempt(1),
                    deadline: NOW,
                },
            ),
            source(
                2,
                SourceRecord::Released {
                    attempt: Attempt(1),
                },
            ),
            source(2, SourceRecord::Served),
            source(
                2,
                SourceRecord::Closed {
                    report: report(id(2), MigrationState::Done),
                },
            ),
        ],
    );
    let back = Reservation {
        from: host("h3"),
        epoch: Epoch(3),
        ..reservation()
    };
    assert_eq!(take(&records, 3, &back), Ok(fresh()));
    assert_eq!(
        Registry::replay(&records)
            .destinations_of(&application())
            .count(),
        1
    );
}

#[test]
fn what_comes_is_counted_until_it_is_served_or_over() {
    let coming = |records: &[Record], name: &str| {
        let registry = Registry::replay(records);
        super::coming(&registry, &application_named(name)).count()
    };
    assert_eq!(coming(&[], "other"), 0);
    let steps = [
        (reserved(1), 1),
        (verified(1), 1),
        (destination(1, DestinationRecord::Adopted), 1),
        (destination(1, DestinationRecord::Serving), 0),
    ];
    let mut records = Vec::new();
    for (record, want) in steps {
        records.push(record);
        assert_eq!(coming(&records, "other"), want, "{records:?}");
        // A newer move of the same application takes its place.
        assert_eq!(coming(&records, application().as_str()), 0);
    }
    let dropped = [reserved(1), destination(1, DestinationRecord::Dropped)];
    assert_eq!(coming(&dropped, "other"), 0);
}

fn application_named(name: &str) -> rehome_shared::ids::AppName {
    rehome_shared::ids::AppName::try_new(name).unwrap()
}
