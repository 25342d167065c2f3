//! Who owns what, as a deployment finds it.

use rehome_shared::api::cluster::MigrationState;

use super::*;
use crate::fixtures::{app, deployment, host, migration, report};

fn owners_of(hosts: Vec<HostReport>) -> Result<BTreeMap<AppName, HostAddr>, DeployError> {
    owners(
        &hosts
            .into_iter()
            .map(|report| (report.host.clone(), report))
            .collect(),
        &BTreeSet::new(),
    )
}

fn request(placement: &[(&str, &[&str])]) -> DeployRequest {
    let Desired {
        applications,
        placement,
        ..
    } = deployment(1, placement);
    DeployRequest {
        applications,
        placement,
        dry_run: false,
    }
}

#[test]
fn two_owners_of_one_application_are_refused() {
    let now = deployment(1, &[("h1", &["db"])]);
    let twice = vec![
        report("h1", &now, &[("db", 1)]),
        report("h2", &now, &[("db", 2)]),
    ];
    assert!(matches!(owners_of(twice), Err(DeployError::Refused(_))));
}

#[test]
fn an_application_between_two_owners_is_the_next_ones() {
    let now = deployment(1, &[("h1", &["db"])]);
    for state in [MigrationState::Running, MigrationState::Blocked] {
        let mut giving = report("h1", &now, &[]);
        giving.migrations.push(migration("db", state));
        let owners = owners_of(vec![giving, report("h2", &now, &[])]).unwrap();
        assert_eq!(owners.get(&app("db")), Some(&host("h2")), "{state:?}");
    }
}

#[test]
fn a_migration_that_is_under_way_or_over_does_not_change_who_owns() {
    let now = deployment(1, &[("h1", &["db"])]);
    let mut giving = report("h1", &now, &[("db", 1)]);
    giving
        .migrations
        .push(migration("db", MigrationState::Running));
    let owners = owners_of(vec![giving]).unwrap();
    assert_eq!(owners.get(&app("db")), Some(&host("h1")));
    let mut idle = report("h1", &now, &[]);
    idle.migrations.push(migration("db", MigrationState::Done));
    assert_eq!(owners_of(vec![idle]).unwrap().get(&app("db")), None);
}

#[test]
fn only_what_nobody_has_may_be_born() {
    let now = deployment(3, &[("h1", &["db"]), ("h2", &[])]);
    let owners = owners_of(vec![report("h1", &now, &[("db", 1)])]).unwrap();
    let born = births(
        &now,
        &request(&[("h1", &[]), ("h2", &["db", "web"])]),
        &owners,
    );
    assert_eq!(born.keys().collect::<Vec<_>>(), [&app("web")]);
}

#[test]
fn a_move_is_only_of_what_is_placed_to_a_host_that_is_known() {
    let now = deployment(1, &[("h1", &["db"]), ("h2", &[])]);
    let check = |application: &str, to: &str| {
        check_move(
            &now,
            &MoveRequest {
                application: app(application),
                to: host(to),
            },
        )
        .is_ok()
    };
    assert!(check("db", "h2"));
    assert!(!check("db", "h3"));
    assert!(!check("web", "h2"));
}

#[test]
fn what_is_submitted_as_it_is_in_force_asks_for_what_is_left_to_do() {
    let now = deployment(3, &[("h1", &["web"]), ("h2", &["db"])]);
    let mut next = now.clone();
    next.generation = now.generation.next();
    let left = [Change {
        application: app("db"),
        kind: rehome_shared::api::cluster::ChangeKind::Move {
            from: host("h1"),
            to: host("h2"),
            volumes: true,
        },
    }];
    let of = |same, named| {
        let asked = asked(&now, &next, same, &left, named);
        ["db", "web"].map(|name| asked[&app(name)].0)
    };
    assert_eq!(of(true, None), [4, 3], "submitted once more");
    assert_eq!(of(false, None), [3, 3], "something else has changed");
    assert_eq!(of(true, Some(app("web"))), [3, 4], "one of them is named");
}
