use super::{Bounds, DESTINATION, Mutation, SOURCE, Violation, World};
use crate::explorer::{Found, explore};

/// The source goes away, for certain or cut off, and comes back at any moment; an operator lets
/// one of the others take over.
const CLAIM: Bounds = Bounds {
    going: &[SOURCE],
    absences: 1,
    cuts: true,
    operators: 1,
    crashes: 1,
    hosts_fall: true,
    returns_early: true,
    redeploys_early: false,
    rivals: false,
    reversed: false,
};

/// The same with two operators at once, who want the same host or different ones.
const TWO_OPERATORS: Bounds = Bounds {
    operators: 2,
    crashes: 0,
    ..CLAIM
};

/// The destination goes away, and the source takes it back or the third host takes over.
const DESTINATION_GOES: Bounds = Bounds {
    going: &[DESTINATION],
    ..CLAIM
};

/// Both are off for certain until the third host has taken over.
const TWO_AWAY: Bounds = Bounds {
    going: &[SOURCE, DESTINATION],
    absences: 2,
    cuts: false,
    crashes: 0,
    returns_early: false,
    rivals: true,
    ..CLAIM
};

/// The same, and a daemon falls.
const TWO_AWAY_AND_A_CRASH: Bounds = Bounds {
    crashes: 1,
    hosts_fall: false,
    ..TWO_AWAY
};

fn is_well(found: &Found<World>, bounds: Bounds, outcomes: &[&str]) {
    println!(
        "all {} states, {} journals, within {bounds:?}",
        found.states, found.journals
    );
    assert_eq!(found.violation, None, "{}", found.trace());
    assert_eq!(found.stuck, 0, "{}", found.trace());
    for outcome in outcomes {
        assert!(
            found.outcomes.contains(outcome),
            "no run in which it was {outcome}"
        );
    }
}

fn holds(bounds: Bounds, outcomes: &[&str]) {
    is_well(&explore(World::new(None, bounds)), bounds, outcomes);
}

const BOTH_CLAIM: [&str; 2] = ["claimed by the third", "claimed by the destination"];

#[test]
fn one_of_three_hosts_takes_over_whenever_the_source_comes_back() {
    let [third, destination] = BOTH_CLAIM;
    let others = ["granted by word", "moved", "given back"];
    holds(CLAIM, &[&[third, destination], &others[..]].concat());
}

#[test]
fn of_two_operators_at_once_at_most_one_takes_an_epoch() {
    holds(TWO_OPERATORS, &BOTH_CLAIM);
}

#[test]
fn of_two_operators_at_once_at_most_one_takes_an_epoch_whichever_deployment_wins() {
    let reversed = Bounds {
        reversed: true,
        ..TWO_OPERATORS
    };
    holds(reversed, &BOTH_CLAIM);
}

#[test]
fn the_source_or_the_third_takes_over_from_a_destination() {
    holds(DESTINATION_GOES, &["claimed by the third", "given back"]);
}

#[test]
fn the_third_host_takes_over_while_two_are_away() {
    holds(TWO_AWAY, &["claimed by the third"]);
}

#[test]
fn the_third_host_takes_over_while_two_are_away_and_a_daemon_falls() {
    holds(TWO_AWAY_AND_A_CRASH, &["claimed by the third"]);
}

fn breaks(mutation: Option<Mutation>, bounds: Bounds, by: Violation) {
    let found = explore(World::new(mutation, bounds));
    println!("{mutation:?}: {} states, {}", found.states, found.trace());
    assert_eq!(found.violation, Some(by), "{}", found.trace());
}

#[test]
fn a_host_that_agrees_without_following_makes_two_owners() {
    let mutation = Mutation::AgreesUnfollowing;
    breaks(Some(mutation), TWO_OPERATORS, Violation::TwoOwners);
}

#[test]
fn a_claim_that_ignores_what_others_heard_makes_two_owners() {
    let mutation = Mutation::IgnoresHeard;
    breaks(Some(mutation), TWO_OPERATORS, Violation::TwoOwners);
}

#[test]
fn a_claim_under_another_deployment_makes_two_owners() {
    let mutation = Mutation::ClaimsUnfollowing;
    breaks(Some(mutation), TWO_OPERATORS, Violation::TwoOwners);
}

#[test]
fn a_grant_of_a_fenced_host_makes_two_owners() {
    let mutation = Mutation::TakesVoidGrant;
    breaks(Some(mutation), CLAIM, Violation::TwoOwners);
}

/// A second operator names the destination after it has agreed to the first one's claim.
#[test]
fn a_grant_of_a_fenced_host_to_the_one_that_is_named_makes_two_owners_of_two_operators() {
    let mutation = Mutation::TakesGrantWhereNamed;
    breaks(Some(mutation), TWO_OPERATORS, Violation::TwoOwners);
}

#[test]
fn a_claim_at_an_epoch_that_is_not_the_newest_makes_two_owners() {
    let mutation = Mutation::ClaimsOldEpoch;
    breaks(Some(mutation), CLAIM, Violation::TwoOwners);
}

#[test]
fn a_host_that_comes_back_and_does_not_ask_runs_beside_the_new_owner() {
    let mutation = Mutation::NoAsking;
    breaks(Some(mutation), CLAIM, Violation::TwoInstances);
}

#[test]
fn a_fence_that_is_lifted_from_who_has_not_heard_of_the_claim_makes_two_owners() {
    let mutation = Mutation::LiftsUnaware;
    breaks(Some(mutation), CLAIM, Violation::TwoOwners);
}

#[test]
fn a_host_that_forgets_what_it_heard_runs_beside_the_new_owner() {
    let mutation = Mutation::ForgetsWhatItHeard;
    breaks(
        Some(mutation),
        TWO_AWAY_AND_A_CRASH,
        Violation::TwoInstances,
    );
}

#[test]
fn a_host_that_believes_what_is_denied_leaves_nobody_to_serve() {
    let mutation = Mutation::BelievesWhatIsDenied;
    let found = explore(World::new(Some(mutation), TWO_AWAY_AND_A_CRASH));
    println!(
        "{mutation:?}: {} states, {} stuck, {}",
        found.states,
        found.stuck,
        found.trace()
    );
    assert_eq!(found.violation, None, "{}", found.trace());
    assert!(
        found.stuck > 0,
        "service can still be restored from everywhere"
    );
}

/// The limit of an agreement that is not renewed: who agreed follows a deployment that calls the
/// source not fenced any more, while the one that it agreed with has not heard of it.
#[test]
fn a_deployment_that_lifts_the_fence_before_the_claim_is_known_makes_two_owners() {
    let early = Bounds {
        redeploys_early: true,
        ..CLAIM
    };
    breaks(None, early, Violation::TwoOwners);
}
