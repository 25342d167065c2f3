use proptest::prelude::*;
use rehome_shared::config::model::OnStall;

use super::*;

const MIB: u64 = 1 << 20;

fn outlook(first: u64, dirty: u64, bandwidth: u64) -> Outlook {
    Outlook {
        first: Bytes(first * MIB),
        whole: Bytes(10_000 * MIB),
        dirty: Bytes(dirty * MIB),
        bandwidth: Bytes(bandwidth * MIB),
        fixed: Duration::from_secs(1),
        running: true,
        throttles: true,
    }
}

fn limits(on_stall: OnStall) -> MigrationLimits {
    MigrationLimits {
        on_stall,
        drain: Duration::ZERO,
        ..MigrationLimits::default()
    }
}

#[test]
fn a_quiet_application_takes_one_full_round_and_an_empty_one() {
    let seen = forecast(&outlook(1000, 0, 100), &limits(OnStall::Cutover));
    assert_eq!(seen.gives_up, None);
    assert_eq!(seen.rounds.len(), 2);
    assert!((seen.seconds() - 10.0).abs() < 1e-6, "{seen:?}");
    assert_eq!(seen.window, Duration::from_secs(1));
}

#[test]
fn one_that_stands_still_is_taken_in_one_round() {
    let stopped = Outlook {
        running: false,
        ..outlook(1000, 50, 100)
    };
    let seen = forecast(&stopped, &limits(OnStall::Abort));
    assert_eq!((seen.rounds.len(), seen.gives_up), (1, None));
}

#[test]
fn the_rounds_shrink_as_the_writes_leave_room() {
    // Half of what the wire takes: each round is half of the one before.
    let seen = forecast(&outlook(1000, 50, 100), &limits(OnStall::Abort));
    assert_eq!(seen.gives_up, None);
    let bytes: Vec<u64> = seen.rounds.iter().map(|r| r.bytes.0 / MIB).collect();
    assert_eq!(bytes, [1000, 500, 250]);
    // 250 MiB were 2.5 s: 125 MiB more are 1.25 s, and 1 s fixed.
    assert!((seen.window.as_secs_f64() - 2.25).abs() < 1e-6, "{seen:?}");
}

#[test]
fn each_answer_to_a_stall_ends_as_it_does_in_a_move() {
    let hopeless = outlook(1000, 150, 100);
    let end = |on_stall| forecast(&hopeless, &limits(on_stall));
    let abort = end(OnStall::Abort).gives_up.unwrap();
    assert!(abort.contains("on_stall is abort"), "{abort}");
    let cut = end(OnStall::Cutover).gives_up.unwrap();
    assert!(cut.contains("over the hard cap"), "{cut}");
    let wait = end(OnStall::Wait).gives_up.unwrap();
    assert!(wait.contains("did not calm down"), "{wait}");
    let throttled = end(OnStall::Throttle);
    assert_eq!(throttled.gives_up, None);
    assert!(throttled.throttle > Throttle::FREE);
    assert!(throttled.window <= limits(OnStall::Throttle).downtime_budget);
    let free = Outlook {
        throttles: false,
        ..hopeless
    };
    let waits = forecast(&free, &limits(OnStall::Throttle));
    assert!(waits.gives_up.unwrap().contains("did not calm down"));
}

#[test]
fn no_round_sends_more_than_there_is() {
    let small = Outlook {
        whole: Bytes(100 * MIB),
        ..outlook(100, 5000, 100)
    };
    let seen = forecast(&small, &limits(OnStall::Abort));
    assert!(seen.rounds.iter().all(|round| round.bytes <= small.whole));
}

fn on_stall() -> impl Strategy<Value = OnStall> {
    prop_oneof![
        Just(OnStall::Abort),
        Just(OnStall::Cutover),
        Just(OnStall::Throttle),
        Just(OnStall::Wait),
    ]
}

proptest! {
    #[test]
    fn a_forecast_ends_and_keeps_what_the_limits_promise(
        first in 0_u64..100_000, dirty in 0_u64..10_000, bandwidth in 0_u64..10_000,
        fixed in 0_u64..20_000, max_rounds in 1_u32..2000, budget in 1_u64..20_000,
        slack in 0_u64..20_000, throttles: bool, on_stall in on_stall(),
    ) {
        let limits = MigrationLimits {
            max_rounds,
            downtime_budget: Duration::from_millis(budget),
            hard_cap: Duration::from_millis(budget + slack),
            ..limits(on_stall)
        };
        let outlook = Outlook {
            fixed: Duration::from_millis(fixed),
            throttles,
            ..outlook(first, dirty, bandwidth)
        };
        let seen = forecast(&outlook, &limits);
        prop_assert!(!seen.rounds.is_empty() && seen.rounds.len() <= HORIZON);
        prop_assert!(seen.window >= outlook.fixed);
        let cuts_over = seen.gives_up.is_none();
        prop_assert!(!cuts_over || seen.window <= limits.hard_cap, "{:?}", seen);
        let to_the_budget = matches!(on_stall, OnStall::Abort | OnStall::Wait);
        prop_assert!(!(cuts_over && to_the_budget) || seen.window <= limits.downtime_budget);
        let held = seen.throttle > Throttle::FREE;
        prop_assert!(!held || (throttles && on_stall == OnStall::Throttle));
    }
}
