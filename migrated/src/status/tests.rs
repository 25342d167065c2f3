//! One word for each application, out of what all hosts say.

use rehome_shared::ids::{DeploymentGeneration, Epoch, Generation, RouteVersion};

use super::*;
use crate::fixtures::{app, deployment, host, migration, report};

fn now() -> Desired {
    deployment(1, &[("h1", &["db"]), ("h2", &[])])
}

fn merged(reports: Vec<HostReport>, silent: &[&str], adverts: &[Advert]) -> ApplicationStatus {
    let mut all: Reports = reports
        .into_iter()
        .map(|report| (report.host.clone(), Some(report)))
        .collect();
    all.extend(silent.iter().map(|name| (host(name), None)));
    let mut merged = merge(&now(), &all, adverts);
    assert_eq!(merged.len(), 1, "{merged:?}");
    merged.remove(0)
}

#[test]
fn of_two_that_say_they_own_it_the_larger_epoch_speaks() {
    let hosts = vec![
        report("h1", &now(), &[("db", 2)]),
        report("h2", &now(), &[("db", 3)]),
    ];
    assert_eq!(merged(hosts, &[], &[]).host, Some(host("h2")));
}

#[test]
fn a_migration_under_way_is_seen_whoever_owns_it_just_now() {
    for owned in [&[("db", 1)][..], &[]] {
        let mut giving = report("h1", &now(), owned);
        giving
            .migrations
            .push(migration("db", MigrationState::Running));
        let seen = merged(vec![giving, report("h2", &now(), &[])], &[], &[]);
        assert_eq!(seen.state, ApplicationState::Migrating);
    }
}

#[test]
fn a_blocked_migration_says_why() {
    let mut giving = report("h1", &now(), &[]);
    let mut blocked = migration("db", MigrationState::Blocked);
    blocked.error = Some("h2 does not answer".to_owned());
    giving.migrations.push(blocked);
    let seen = merged(vec![giving], &["h2"], &[]);
    assert_eq!(seen.state, ApplicationState::Blocked);
    assert_eq!(seen.reason.as_deref(), Some("h2 does not answer"));
}

#[test]
fn a_migration_that_is_over_leaves_the_owners_word() {
    let mut gave = report("h1", &now(), &[]);
    gave.migrations.push(migration("db", MigrationState::Done));
    let seen = merged(vec![gave, report("h2", &now(), &[("db", 2)])], &[], &[]);
    assert_eq!(
        (seen.state, seen.epoch),
        (ApplicationState::Running, Epoch(2))
    );
}

#[test]
fn what_nobody_has_yet_is_starting() {
    let seen = merged(vec![report("h1", &now(), &[])], &[], &[]);
    assert_eq!((seen.state, seen.host), (ApplicationState::Starting, None));
}

#[test]
fn what_a_silent_host_may_run_is_blocked_and_names_the_host() {
    let seen = merged(vec![report("h2", &now(), &[])], &["h1"], &[]);
    assert_eq!(seen.state, ApplicationState::Blocked);
    assert!(seen.reason.unwrap().starts_with("h1 "));
}

#[test]
fn the_host_that_had_it_last_counts_and_not_the_one_it_is_meant_for() {
    let version = RouteVersion {
        epoch: Epoch(2),
        generation: Generation(1),
    };
    let advert = Advert {
        application: app("db"),
        version,
        host: host("h2"),
    };
    let seen = merged(vec![report("h1", &now(), &[])], &["h2"], &[advert]);
    assert_eq!(seen.state, ApplicationState::Blocked);
    assert!(seen.reason.unwrap().starts_with("h2 "));
}

#[test]
fn a_migration_is_told_under_every_deployment_that_leaves_it_as_it_is() {
    let mut newer = deployment(9, &[("h1", &["web"]), ("h2", &["db"])]);
    let kept = |desired: &Desired, states: &[(u64, MigrationState)]| {
        let mut all: Vec<Migration> = states
            .iter()
            .map(|(generation, state)| {
                let mut one = migration("db", *state);
                one.generation = DeploymentGeneration(*generation);
                one.id = MigrationId::try_new(format!("01jd00000000000000000000{generation:02}"))
                    .unwrap();
                one
            })
            .collect();
        keep_asked(desired, &mut all);
        all.iter().map(|m| m.generation.0).collect::<Vec<_>>()
    };
    let (done, aborted) = (MigrationState::Done, MigrationState::Aborted);
    newer.asked.insert(app("db"), DeploymentGeneration(7));
    assert_eq!(kept(&newer, &[(3, done), (7, done)]), [7]);
    assert_eq!(kept(&newer, &[(3, done), (7, aborted)]), [7]);
    newer.asked.insert(app("db"), DeploymentGeneration(8));
    assert_eq!(kept(&newer, &[(3, done), (7, aborted)]), [0; 0]);
    assert_eq!(
        kept(&newer, &[(7, MigrationState::Running)]),
        [7],
        "named again"
    );
}

#[test]
fn an_owner_that_lost_its_journal_blocks_what_it_had_whatever_may_be_born() {
    let mut other = report("h2", &now(), &[]);
    other.known.push(crate::fixtures::known("db", 3, "h1"));
    let hosts = || vec![report("h1", &now(), &[]), other.clone()];
    let seen = merged(hosts(), &[], &[]);
    assert_eq!(seen.state, ApplicationState::Blocked);
    let reason = seen.reason.unwrap_or_default();
    assert!(reason.contains("h1 answers and knows nothing"), "{reason}");

    let nobody = vec![report("h1", &now(), &[]), report("h2", &now(), &[])];
    let seen = merged(nobody, &[], &[]);
    assert_eq!(seen.state, ApplicationState::Starting, "not born yet");

    // Deployed once and for a long time now, or deployed again after the loss.
    let mut born = now();
    born.births.insert(app("db"), born.generation);
    let mut other = report("h2", &born, &[]);
    other.known.push(crate::fixtures::known("db", 1, "h1"));
    let reports: Reports = [report("h1", &born, &[]), other]
        .into_iter()
        .map(|report| (report.host.clone(), Some(report)))
        .collect();
    let merged = merge(&born, &reports, &[]);
    assert_eq!(merged[0].state, ApplicationState::Blocked);
    let waits = silent::waiting(&born, &reports, &merged);
    assert_eq!(waits.len(), 1, "and the deployment does not wait for ever");
    assert!(waits[0].reason.contains("`rehome status`"), "{waits:?}");
}

/// What was released and not granted yet, by gossip of the former owner.
#[test]
fn what_was_merely_promised_is_the_last_owners_whom_the_destination_names() {
    let mut destination = report("h2", &now(), &[]);
    destination.incoming.push(app("db"));
    destination.promised.insert(app("db"), Epoch(4));
    destination
        .known
        .push(crate::fixtures::known("db", 3, "h1"));
    let mut third = report("h3", &now(), &[]);
    third.known.push(crate::fixtures::known("db", 4, "h2"));
    third.heard.insert(app("db"));

    let seen = merged(vec![destination.clone(), third.clone()], &["h1"], &[]);
    assert_eq!(seen.state, ApplicationState::Blocked);
    assert!(seen.reason.unwrap().starts_with("h1 does not answer"));

    let mut replaced = report("h1", &now(), &[]);
    replaced.known.push(crate::fixtures::known("db", 4, "h2"));
    replaced.heard.insert(app("db"));
    let seen = merged(vec![replaced, destination, third.clone()], &[], &[]);
    assert_eq!(seen.state, ApplicationState::Blocked);
    assert!(
        seen.reason
            .unwrap()
            .starts_with("h1 answers and knows nothing")
    );

    // It owned it, and is a new machine that an older word was told.
    let mut replaced = report("h2", &now(), &[]);
    replaced.known.push(crate::fixtures::known("db", 3, "h1"));
    replaced.heard.insert(app("db"));
    let seen = merged(vec![report("h1", &now(), &[]), replaced, third], &[], &[]);
    assert!(
        seen.reason
            .unwrap()
            .starts_with("h2 answers and knows nothing")
    );
}
