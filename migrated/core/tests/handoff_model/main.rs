//! All the ways a handoff can go, over the real machines.
//!
//! Two hosts, one application with a volume, two moves in either direction. The source and the
//! destination machine, the guards of the first step and the replay of the journal are the ones
//! that `migrated` runs; the world around them (instances, data, gates, network, crashes) is a
//! model. Breadth first, every state is visited in which
//!
//! - messages are lost, repeated and reordered (one that was sent can arrive at any later time,
//!   any number of times, or never),
//! - daemons and hosts crash at every record boundary, and find themselves again by replaying
//!   what was durable,
//! - clients write, through the page cache too.
//!
//! After every event the invariants of the contract are checked, and at the end that service can
//! be restored from every state without another fault. Each guard is then taken out, one by one,
//! and the explorer has to find what goes wrong: a guard that nothing needs, or an explorer that
//! sees nothing, fails here.

#[cfg(test)]
mod explorer;
#[cfg(test)]
mod machines;
#[cfg(test)]
mod values;
#[cfg(test)]
mod world;

#[cfg(test)]
mod tests {
    use crate::explorer::{Found, explore};
    use crate::world::{Bounds, Mutation, Violation};

    const FULL: Bounds = Bounds {
        writes: 2,
        crashes: 2,
        migrations: 2,
    };

    #[test]
    fn every_reachable_state_is_safe_and_service_can_be_restored_from_it() {
        let found = explore(None, FULL);
        println!("{} states, {} journals", found.states, found.journals);
        assert_eq!(found.violation, None, "{}", found.trace());
        assert_eq!(found.stuck, 0, "{}", found.trace());
        assert!(
            found.states > 10_000,
            "only {} states: the world does not move",
            found.states
        );
        for outcome in ["done", "aborted", "returned", "moved back"] {
            assert!(
                found.outcomes.contains(outcome),
                "no run in which a move was {outcome}"
            );
        }
    }

    fn caught(mutation: Mutation) -> Found {
        explore(Some(mutation), FULL)
    }

    #[test]
    fn without_a_flush_an_acknowledged_write_is_lost() {
        let found = caught(Mutation::NoFlush);
        assert_eq!(
            found.violation,
            Some(Violation::WriteLost),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn a_final_snapshot_under_a_straggler_makes_two_instances() {
        let found = caught(Mutation::Straggler);
        assert_eq!(
            found.violation,
            Some(Violation::TwoInstances),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn messages_of_another_migration_lose_a_write_or_the_owner() {
        let found = caught(Mutation::AnyMigration);
        assert_eq!(
            found.violation,
            Some(Violation::WriteLost),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn an_abort_after_the_release_serves_without_owning() {
        let found = caught(Mutation::AbortAfterRelease);
        assert_eq!(
            found.violation,
            Some(Violation::GateWithoutOwner),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn a_start_before_the_adoption_makes_two_instances() {
        let found = caught(Mutation::EarlyStart);
        assert_eq!(
            found.violation,
            Some(Violation::TwoInstances),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn a_restart_policy_of_the_runtime_makes_two_instances() {
        let found = caught(Mutation::RestartPolicy);
        assert_eq!(
            found.violation,
            Some(Violation::TwoInstances),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn a_return_after_serving_loses_a_write_or_makes_two_owners() {
        let found = caught(Mutation::ReturnAfterServing);
        assert!(
            matches!(
                found.violation,
                Some(Violation::TwoOwners | Violation::WriteLost)
            ),
            "{:?} {}",
            found.violation,
            found.trace()
        );
    }

    #[test]
    fn a_grant_before_the_release_is_durable_makes_two_owners() {
        let found = caught(Mutation::GrantBeforeRecord);
        assert_eq!(
            found.violation,
            Some(Violation::TwoOwners),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn a_reclaim_that_rolls_back_again_loses_a_write() {
        let found = caught(Mutation::ReclaimRollsBack);
        assert_eq!(
            found.violation,
            Some(Violation::WriteLost),
            "{}",
            found.trace()
        );
    }

    #[test]
    fn a_destination_that_forgets_what_it_returned_leaves_nobody_to_serve() {
        let found = caught(Mutation::ForgetsReturned);
        assert_eq!(found.violation, None, "{}", found.trace());
        assert!(
            found.stuck > 0,
            "service can still be restored from everywhere"
        );
    }

    #[test]
    fn a_promise_that_expires_leaves_nobody_to_serve() {
        let found = caught(Mutation::PromiseExpires);
        assert_eq!(found.violation, None, "{}", found.trace());
        assert!(
            found.stuck > 0,
            "service can still be restored from everywhere"
        );
    }
}
