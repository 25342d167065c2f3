//! All the ways a handoff can go, over the real machines.
//!
//! Two hosts, and applications with a volume each that move in either direction. The source and
//! the destination machine, the guards of the first step, the replay of the journal and the
//! decisions about routes are the ones that `migrated` runs; the world around them (instances,
//! data, gates, proxies, network, crashes) is a model. Breadth first, every state is visited in
//! which
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
//!
//! What is too much at once is visited in several worlds, each with bounds of its own: one
//! application with all that can happen to it, two that share journals and crashes (of two states
//! that differ only in names one is visited), one whose routes have to be told, one whose journals
//! are lost and made again, and one that an operator moves from a host that is off. Who may take
//! over among three hosts is a world of its own: `claims`.

#[cfg(test)]
mod claims;
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
    use crate::world::{Bounds, Mutation, Routing, Violation, World};

    /// One application and all that can happen to it.
    const ONE: Bounds = Bounds {
        applications: 1,
        crossing: false,
        writes: 2,
        crashes: 2,
        migrations: 2,
        losses: 0,
        failovers: 0,
        routing: Routing::AtOnce,
    };

    /// One application, on hosts that lose their journals.
    const LOSSES: Bounds = Bounds {
        writes: 1,
        crashes: 2,
        migrations: 1,
        losses: 1,
        ..ONE
    };

    /// The same there and back.
    const LOSSES_BACK: Bounds = Bounds {
        crashes: 1,
        migrations: 2,
        ..LOSSES
    };

    /// One application, and an operator who takes a host off and lets the other one take over.
    const FAILOVER: Bounds = Bounds {
        writes: 1,
        crashes: 1,
        migrations: 1,
        failovers: 1,
        ..ONE
    };

    /// Two applications of one host, which move away at the same time.
    const TWO: Bounds = Bounds {
        applications: 2,
        writes: 0,
        crashes: 1,
        migrations: 1,
        ..ONE
    };

    /// Two applications that change places.
    const CROSSING: Bounds = Bounds {
        crossing: true,
        ..TWO
    };

    /// One application whose routes are told.
    const ROUTES: Bounds = Bounds {
        writes: 0,
        crashes: 1,
        migrations: 1,
        routing: Routing::Told,
        ..ONE
    };

    /// The same, there and back without a crash.
    const ROUTES_BACK: Bounds = Bounds {
        crashes: 0,
        migrations: 2,
        ..ROUTES
    };

    const CLOCK_STANDS: Bounds = Bounds {
        routing: Routing::ClockStands,
        ..ROUTES
    };

    /// Every state is safe, and service can be restored from it.
    fn holds(bounds: Bounds, outcomes: &[&str]) {
        let found = explore(World::new(None, bounds));
        println!(
            "{} states, {} journals: {bounds:?}",
            found.states, found.journals
        );
        assert_eq!(found.violation, None, "{}", found.trace());
        assert_eq!(found.stuck, 0, "{}", found.trace());
        assert!(
            found.states > 10_000,
            "only {} states: the world does not move",
            found.states
        );
        for outcome in outcomes {
            assert!(
                found.outcomes.contains(outcome),
                "no run in which a move was {outcome}"
            );
        }
    }

    #[test]
    fn every_reachable_state_is_safe_and_service_can_be_restored_from_it() {
        holds(ONE, &["done", "aborted", "returned", "moved back"]);
    }

    #[test]
    fn a_lost_journal_is_made_again_of_stamps_and_answers() {
        holds(LOSSES, &["done", "aborted", "returned"]);
    }

    #[test]
    fn a_lost_journal_is_made_again_on_the_way_back_too() {
        holds(LOSSES_BACK, &["done", "aborted", "returned", "moved back"]);
    }

    #[test]
    fn a_truthful_failover_leaves_one_owner_and_the_fenced_host_finds_out() {
        holds(FAILOVER, &["done", "aborted", "returned"]);
    }

    #[test]
    fn two_applications_share_journals_and_crashes() {
        holds(TWO, &["done", "aborted", "returned"]);
    }

    #[test]
    fn two_applications_change_places() {
        holds(CROSSING, &["done", "aborted", "returned"]);
    }

    #[test]
    fn no_proxy_goes_back_and_all_of_them_lead_to_the_owner_in_the_end() {
        holds(ROUTES, &["done", "aborted", "returned"]);
    }

    #[test]
    fn routes_lead_there_and_back() {
        holds(ROUTES_BACK, &["done", "moved back"]);
    }

    #[test]
    fn routes_hold_over_a_clock_that_stands_still() {
        holds(CLOCK_STANDS, &["done", "aborted", "returned"]);
    }

    fn breaks(mutation: Mutation, bounds: Bounds, by: &[Violation]) -> Found<World> {
        let found = explore(World::new(Some(mutation), bounds));
        let violation = found.violation;
        assert!(
            violation.is_some_and(|violation| by.contains(&violation)),
            "{violation:?} {}",
            found.trace()
        );
        found
    }

    fn strands(mutation: Mutation, bounds: Bounds) {
        let found = explore(World::new(Some(mutation), bounds));
        assert_eq!(found.violation, None, "{}", found.trace());
        assert!(
            found.stuck > 0,
            "service can still be restored from everywhere"
        );
    }

    /// The seven mutants that the first model of the handoff was checked with, by their names
    /// there.
    #[test]
    fn the_seven_mutants_of_the_first_model_are_caught() {
        let seven = [
            ("noflush", Violation::WriteLost),
            ("nostopcheck", Violation::TwoInstances),
            ("noattempt", Violation::WriteLost),
            ("abortafter", Violation::GateWithoutOwner),
            ("earlystart", Violation::TwoInstances),
            ("restartpolicy", Violation::TwoInstances),
        ];
        for (name, by) in seven {
            let found = breaks(Mutation::named(name), ONE, &[by]);
            println!("{name}: {by:?} {}", found.trace());
        }
        let by = [Violation::TwoOwners, Violation::WriteLost];
        breaks(Mutation::named("returnserved"), ONE, &by);
    }

    #[test]
    fn a_grant_before_the_release_is_durable_makes_two_owners() {
        breaks(Mutation::GrantBeforeRecord, ONE, &[Violation::TwoOwners]);
    }

    #[test]
    fn a_reclaim_that_rolls_back_again_loses_a_write() {
        breaks(Mutation::ReclaimRollsBack, ONE, &[Violation::WriteLost]);
    }

    #[test]
    fn a_destination_that_forgets_what_it_returned_leaves_nobody_to_serve() {
        strands(Mutation::ForgetsReturned, ONE);
    }

    #[test]
    fn a_promise_that_expires_leaves_nobody_to_serve() {
        strands(Mutation::PromiseExpires, ONE);
    }

    #[test]
    fn a_gate_that_opens_before_it_is_durable_that_it_serves_loses_a_write() {
        breaks(Mutation::GateBeforeServing, ONE, &[Violation::WriteLost]);
    }

    #[test]
    fn a_gate_that_opens_on_a_promise_has_no_owner() {
        let by = [Violation::GateWithoutOwner];
        breaks(Mutation::GateBeforeAdopted, ONE, &by);
    }

    #[test]
    fn a_stamp_that_follows_the_release_makes_two_instances() {
        let by = [Violation::TwoInstances, Violation::TwoOwners];
        breaks(Mutation::StampAfterRelease, LOSSES, &by);
    }

    #[test]
    fn a_stamp_that_follows_the_way_back_loses_a_write() {
        let by = [Violation::WriteLost, Violation::GateWithoutOwner];
        breaks(Mutation::StampAfterStart, LOSSES, &by);
    }

    #[test]
    fn a_return_that_is_said_before_it_is_stamped_makes_two_owners() {
        let by = [Violation::TwoOwners];
        breaks(Mutation::SaysReturnedUnstamped, LOSSES, &by);
    }

    #[test]
    fn a_tree_that_goes_before_its_stamp_says_so_leaves_nobody_to_serve() {
        strands(Mutation::RetiresBeforeStamp, LOSSES);
    }

    /// What a full pool makes of the guard before: it holds as long as no offer of a migration
    /// that was called off wanders about for longer than its destination remembers it.
    #[test]
    fn a_stamp_that_follows_the_answer_to_an_abort_falls_to_an_older_offer() {
        let by = [Violation::WriteLost, Violation::GateWithoutOwner];
        breaks(Mutation::StampsLater, LOSSES, &by);
    }

    #[test]
    fn a_moving_stamp_that_is_trusted_makes_two_instances() {
        let by = [Violation::TwoInstances, Violation::TwoOwners];
        breaks(Mutation::TrustsMoving, LOSSES, &by);
    }

    #[test]
    fn a_journal_made_again_alone_makes_two_owners() {
        let by = [Violation::TwoInstances, Violation::TwoOwners];
        breaks(Mutation::RebuildsAlone, LOSSES, &by);
    }

    #[test]
    fn a_fenced_host_that_does_not_ask_makes_two_owners() {
        let by = [Violation::TwoOwners, Violation::TwoInstances];
        breaks(Mutation::NoAsking, FAILOVER, &by);
    }

    #[test]
    fn an_adopted_application_that_starts_unasked_makes_two_instances() {
        let by = [Violation::TwoInstances, Violation::TwoOwners];
        breaks(Mutation::StartsAdoptedUncleared, FAILOVER, &by);
    }

    #[test]
    fn a_daemon_that_is_down_taken_for_a_host_that_is_makes_two_instances() {
        let by = [Violation::TwoInstances, Violation::TwoOwners];
        breaks(Mutation::TakesRefusalForSilence, FAILOVER, &by);
    }

    /// The limit of what asking can do: a new owner that is down for longer than a fenced host
    /// waits for its answer.
    #[test]
    fn a_fenced_host_that_goes_on_alone_serves_what_is_old() {
        let by = [
            Violation::WriteLost,
            Violation::TwoOwners,
            Violation::TwoInstances,
        ];
        breaks(Mutation::GoesOnAlone, FAILOVER, &by);
    }

    #[test]
    fn a_newer_owner_that_is_heard_of_and_forgotten_makes_two_owners() {
        let by = [Violation::TwoOwners];
        breaks(Mutation::ForgetsWhatItHeard, FAILOVER, &by);
    }

    #[test]
    fn a_driver_that_goes_on_serves_without_owning() {
        let by = [Violation::GateWithoutOwner];
        breaks(Mutation::DriverGoesOn, FAILOVER, &by);
    }

    #[test]
    fn a_return_to_a_fenced_host_leaves_nobody_to_serve() {
        strands(Mutation::ReturnsToFenced, FAILOVER);
    }

    #[test]
    fn a_promise_taken_for_ownership_leaves_nobody_to_serve() {
        strands(Mutation::TakesPromiseForOwner, FAILOVER);
    }

    #[test]
    fn a_daemon_that_goes_on_with_one_of_two_migrations_leaves_nobody_to_serve() {
        strands(Mutation::ResumesOne, TWO);
    }

    #[test]
    fn a_proxy_that_takes_anything_goes_back() {
        let by = [Violation::RouteWentBack];
        breaks(Mutation::ProxyTakesAnything, ROUTES, &by);
    }

    #[test]
    fn a_lease_that_opens_leads_to_nobody() {
        let by = [Violation::GateWithoutOwner];
        breaks(Mutation::LeaseOpens, ROUTES, &by);
    }

    #[test]
    fn a_generation_that_begins_anew_leaves_the_proxy_with_an_old_route() {
        strands(Mutation::NoOvertake, CLOCK_STANDS);
    }
}
