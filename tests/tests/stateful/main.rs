//! An application with a volume, on the move: the same scenarios for both runtimes, each on a lab
//! of its own. Redis runs as a process, PostgreSQL in a container.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "only JSON documents are indexed, in which what is absent is null"
)]

mod ambush;
mod crash;
mod failover;
mod hold;
mod journey;
mod limits;
mod lost;
mod refusal;
mod scene;
mod streams;
mod upgrade;

/// A test of each scenario, for one store.
macro_rules! scenarios {
    ($runtime:ident, $store:expr, $($module:ident :: $scenario:ident),+ $(,)?) => {
        mod $runtime {
            $(
                #[test]
                fn $scenario() -> anyhow::Result<()> {
                    crate::scene::on_stage($store, &[], crate::$module::$scenario)
                }
            )+
        }
    };
}

macro_rules! both_runtimes {
    ($($module:ident :: $scenario:ident),+ $(,)?) => {
        scenarios!(process, rehome_tests::store::Redis, $($module::$scenario),+);
        scenarios!(docker, rehome_tests::store::Postgres, $($module::$scenario),+);
    };
}

both_runtimes! {
    journey::a_move_takes_the_data_along_and_disturbs_no_other_application,
    journey::fifty_clients_on_three_hosts_meet_a_wait_and_no_refusal,
    journey::the_way_back_sends_a_difference,
    journey::an_application_that_was_removed_finds_its_data_again,
    refusal::a_destination_that_cannot_start_it_gives_it_back,
    refusal::a_full_destination_is_refused_before_a_byte_moves,
    crash::migrated_dies_on_the_source_in_the_middle_of_the_copy,
    crash::migrated_dies_on_the_destination_in_the_middle_of_the_copy,
    crash::a_move_that_is_called_off_leaves_the_application_untouched,
    crash::the_owner_crashes_and_comes_back_with_its_data,
    limits::a_volume_keeps_its_limit_when_it_moves,
}
