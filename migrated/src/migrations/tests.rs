//! Which moves are not tried again.

use rehome_shared::ids::DeploymentGeneration;

use super::*;
use crate::fixtures::{app, deployment, migration};

/// Whether a move that ended so, and that generation 7 began, is left alone under generation 9
/// when `asked` is the last that asked for its application.
fn is_left(state: MigrationState, asked: Option<u64>) -> bool {
    let mut desired = deployment(9, &[("h1", &["web"]), ("h2", &["db"])]);
    let asked = asked.map(|generation| (app("db"), DeploymentGeneration(generation)));
    desired.asked.extend(asked);
    let mut past = migration("db", state);
    past.generation = DeploymentGeneration(7);
    let history = [past, migration("web", MigrationState::Done)];
    failed(&history, &desired, &app("db")).is_some()
}

#[test]
fn a_move_that_ended_badly_is_left_alone_until_it_is_asked_for_again() {
    for state in [MigrationState::Aborted, MigrationState::Returned] {
        assert!(
            is_left(state, Some(7)),
            "{state:?}: the newer one is unrelated"
        );
        assert!(
            is_left(state, Some(5)),
            "{state:?}: begun under a later one"
        );
        assert!(!is_left(state, Some(8)), "{state:?}: asked for again");
        assert!(
            !is_left(state, None),
            "{state:?}: from before it was written down"
        );
    }
    assert!(!is_left(MigrationState::Done, Some(7)));
}

#[test]
fn only_the_last_move_of_an_application_counts() {
    let mut desired = deployment(1, &[("h1", &[]), ("h2", &["db"])]);
    desired.asked.insert(app("db"), DeploymentGeneration(1));
    let (bad, good) = (
        migration("db", MigrationState::Aborted),
        migration("db", MigrationState::Done),
    );
    assert!(failed(&[bad.clone(), good.clone()], &desired, &app("db")).is_none());
    assert!(failed(&[good, bad], &desired, &app("db")).is_some());
}
