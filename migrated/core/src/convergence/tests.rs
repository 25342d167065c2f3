use std::time::Duration;

use proptest::prelude::*;
use rehome_shared::api::cluster::Round;
use rehome_shared::config::model::{MigrationLimits, OnStall};
use rehome_shared::units::Bytes;

use super::throttle::Throttle;
use super::{Decision, Observed, bandwidth, decide, pending, predict};

const MIB: u64 = 1 << 20;

fn round(mebibytes: u64, seconds: f64) -> Round {
    Round {
        bytes: Bytes(mebibytes * MIB),
        seconds,
    }
}

fn observed<'a>(rounds: &'a [Round], gaps: &'a [f64]) -> Observed<'a> {
    Observed {
        rounds,
        gaps,
        running: true,
        fixed: Duration::from_secs(1),
        throttle: Some(Throttle::FREE),
        held: 2,
    }
}

fn limits(on_stall: OnStall) -> MigrationLimits {
    MigrationLimits {
        on_stall,
        ..MigrationLimits::default()
    }
}

fn drained_in(drain: Duration) -> MigrationLimits {
    MigrationLimits {
        drain,
        ..MigrationLimits::default()
    }
}

/// Every round takes as long as the one before: writes as fast as the wire.
const STALLED: [Round; 3] = [Round {
    bytes: Bytes(1000 * MIB),
    seconds: 10.0,
}; 3];
const STALLED_GAPS: [f64; 3] = [0.0, 10.0, 10.0];

#[test]
fn a_stopped_application_cuts_over_at_once() {
    let rounds = [round(1000, 10.0)];
    let stopped = Observed {
        running: false,
        ..observed(&rounds, &[0.0])
    };
    let predicted = Duration::from_secs(1);
    assert_eq!(
        decide(&stopped, &limits(OnStall::Abort)),
        Decision::CutOver { predicted }
    );
}

#[test]
fn the_first_round_says_nothing_of_the_dirty_rate() {
    let rounds = [round(1000, 10.0)];
    assert_eq!(
        predict(&observed(&rounds, &[0.0]), &drained_in(Duration::ZERO)),
        None
    );
    let decision = decide(&observed(&rounds, &[0.0]), &MigrationLimits::default());
    assert_eq!(decision, Decision::Again { predicted: None });
}

#[test]
fn the_window_is_the_fixed_cost_and_the_difference_at_the_bandwidth() {
    // 10 MiB in 10 s is 1 MiB/s; 1000 MiB in 10 s is 100 MiB/s; the last round took 0.5 s, and
    // half of it and 0.1 s more of the drain may pass after the last snapshot: 0.85 MiB are to go.
    let rounds = [round(1000, 10.0), round(10, 0.1), round(10, 0.5)];
    let slowest = 20.0;
    let predicted = predict(
        &observed(&rounds, &[0.0, 10.0, 10.0]),
        &drained_in(Duration::from_secs(2)),
    )
    .unwrap();
    assert!(
        (predicted.as_secs_f64() - (1.0 + 0.85 / slowest)).abs() < 1e-6,
        "{predicted:?}"
    );
}

#[test]
fn the_newest_dirty_rate_weighs_half() {
    let rounds = [round(100, 1.0), round(10, 1.0), round(30, 1.0)];
    // Rates 10 and 30 MiB/s: 20. Bandwidth 10 MiB/s, exposed for 1 s.
    let predicted = predict(
        &observed(&rounds, &[0.0, 1.0, 1.0]),
        &drained_in(Duration::ZERO),
    )
    .unwrap();
    assert!(
        (predicted.as_secs_f64() - 3.0).abs() < 1e-6,
        "{predicted:?}"
    );
}

#[test]
fn a_tiny_round_does_not_measure_the_wire() {
    let tiny = Round {
        bytes: Bytes(100),
        seconds: 0.2,
    };
    let rounds = [round(1000, 10.0), tiny, tiny];
    let limits = drained_in(Duration::ZERO);
    let predicted = predict(&observed(&rounds, &[0.0, 10.0, 0.2]), &limits).unwrap();
    assert!(predicted < Duration::from_millis(1201), "{predicted:?}");
}

#[test]
fn a_small_database_that_writes_a_little_cuts_over() {
    // As measured: snapshots of a Redis that appends a few kilobytes per second. What its rounds
    // take is latency.
    let sent = |bytes, seconds| Round {
        bytes: Bytes(bytes),
        seconds,
    };
    let rounds = [sent(8301, 0.032), sent(109, 0.040), sent(2629, 0.073)];
    let decision = decide(
        &observed(&rounds, &[0.0, 0.032, 0.04]),
        &MigrationLimits::default(),
    );
    assert!(matches!(decision, Decision::CutOver { .. }), "{decision:?}");
}

#[test]
fn a_window_within_the_budget_cuts_over() {
    let rounds = [round(1000, 10.0), round(10, 0.1)];
    let decision = decide(
        &observed(&rounds, &[0.0, 10.0]),
        &MigrationLimits::default(),
    );
    assert!(matches!(decision, Decision::CutOver { .. }), "{decision:?}");
}

#[test]
fn rounds_go_on_while_they_shrink() {
    let rounds = [round(4000, 40.0), round(2000, 20.0), round(1600, 16.0)];
    let decision = decide(
        &observed(&rounds, &[0.0, 40.0, 20.0]),
        &limits(OnStall::Abort),
    );
    assert!(
        matches!(decision, Decision::Again { predicted: Some(_) }),
        "{decision:?}"
    );
}

#[test]
fn rounds_that_shrink_by_less_than_15_percent_have_stalled() {
    // 100 MiB/s go, and of these 86 are written anew, or 84.
    let decided = |second: u64, third: u64| {
        let seconds = |mebibytes: u64| f64::from(u32::try_from(mebibytes).unwrap()) / 100.0;
        let rounds = [4000, second, third].map(|size| round(size, seconds(size)));
        let gaps = [0.0, seconds(4000), seconds(second)];
        decide(&observed(&rounds, &gaps), &limits(OnStall::Abort))
    };
    let (slow, fast) = (decided(3440, 2958), decided(3360, 2822));
    assert!(matches!(slow, Decision::Abort { .. }), "{slow:?}");
    assert!(matches!(fast, Decision::Again { .. }), "{fast:?}");
}

#[test]
fn a_second_round_is_not_measured_by_the_whole_volume() {
    // As measured: 100 MiB are written per second, and 140 go. Of the whole volume that the first
    // round was, the second is no less than 86 %.
    let rounds = [round(472, 4.07), round(408, 2.89)];
    let decision = decide(&observed(&rounds, &[0.0, 4.07]), &limits(OnStall::Abort));
    assert!(matches!(decision, Decision::Again { .. }), "{decision:?}");
}

#[test]
fn no_more_than_max_rounds_even_if_they_shrink() {
    let rounds = [round(4000, 40.0), round(2000, 20.0), round(1000, 10.0)];
    let few = MigrationLimits {
        max_rounds: 3,
        ..limits(OnStall::Abort)
    };
    let decision = decide(&observed(&rounds, &[0.0, 40.0, 20.0]), &few);
    assert!(matches!(decision, Decision::Abort { .. }), "{decision:?}");
}

#[test]
fn a_stall_cuts_over_within_the_hard_cap_and_aborts_beyond_it() {
    // 10 s since the last snapshot and 2 s of drain at full speed: 13 s.
    let seen = observed(&STALLED, &STALLED_GAPS);
    let wide = MigrationLimits {
        hard_cap: Duration::from_secs(14),
        ..limits(OnStall::Cutover)
    };
    assert!(matches!(decide(&seen, &wide), Decision::CutOver { .. }));
    let narrow = MigrationLimits {
        hard_cap: Duration::from_secs(12),
        ..wide
    };
    match decide(&seen, &narrow) {
        Decision::Abort { reason } => assert!(reason.contains("13.0 s"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn waiting_goes_on_but_not_for_ever() {
    // What cannot be held back is waited for.
    for on_stall in [OnStall::Wait, OnStall::Throttle] {
        let few = MigrationLimits {
            max_rounds: 3,
            ..limits(on_stall)
        };
        let mut rounds = STALLED.to_vec();
        let mut gaps = STALLED_GAPS.to_vec();
        let seen = |rounds: &[Round], gaps: &[f64]| {
            let seen = Observed {
                throttle: None,
                ..observed(rounds, gaps)
            };
            decide(&seen, &few)
        };
        while let Decision::Again { predicted } = seen(&rounds, &gaps) {
            assert!(predicted.is_some());
            assert!(rounds.len() <= 24, "{on_stall:?} never ends");
            rounds.push(STALLED[0]);
            gaps.push(10.0);
        }
        assert_eq!(rounds.len(), 24, "{on_stall:?}");
        match seen(&rounds, &gaps) {
            Decision::Abort { reason } => {
                assert!(reason.contains("over the budget of 3.0 s"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_writer_is_held_back_harder_with_each_round_that_does_not_help() {
    let mut throttle = Throttle::FREE;
    let mut steps = Vec::new();
    let last = loop {
        let seen = Observed {
            throttle: Some(throttle),
            ..observed(&STALLED, &STALLED_GAPS)
        };
        match decide(&seen, &limits(OnStall::Throttle)) {
            Decision::Throttle { throttle: next, .. } => throttle = next,
            other => break other,
        }
        steps.push(throttle.percent());
    };
    assert_eq!(steps, [20, 30, 40, 50, 60, 70, 80, 90, 99]);
    match last {
        Decision::Abort { reason } => {
            assert!(
                reason.contains("though it was held back by 99 %"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_step_is_judged_by_the_second_round_after_it() {
    let step = Throttle::FREE.harder();
    for (held, judged) in [(0, false), (1, false), (2, true), (3, true)] {
        let seen = Observed {
            throttle: step,
            held,
            ..observed(&STALLED, &STALLED_GAPS)
        };
        let decision = decide(&seen, &limits(OnStall::Throttle));
        let harder = matches!(decision, Decision::Throttle { .. });
        assert_eq!(harder, judged, "{held}: {decision:?}");
    }
    // Nobody waits before the first step.
    let free = Observed {
        held: 0,
        ..observed(&STALLED, &STALLED_GAPS)
    };
    let decision = decide(&free, &limits(OnStall::Throttle));
    assert!(matches!(decision, Decision::Throttle { .. }));
}

#[test]
fn one_that_was_held_back_to_the_end_cuts_over_within_the_hard_cap() {
    let mut most = Throttle::FREE;
    while let Some(harder) = most.harder() {
        most = harder;
    }
    let seen = Observed {
        throttle: Some(most),
        ..observed(&STALLED, &STALLED_GAPS)
    };
    let wide = MigrationLimits {
        hard_cap: Duration::from_secs(14),
        ..limits(OnStall::Throttle)
    };
    assert!(matches!(decide(&seen, &wide), Decision::CutOver { .. }));
}

#[test]
fn while_the_rounds_shrink_nobody_is_held_back() {
    let rounds = [round(4000, 40.0), round(2000, 20.0), round(1600, 16.0)];
    let decision = decide(
        &observed(&rounds, &[0.0, 40.0, 20.0]),
        &limits(OnStall::Throttle),
    );
    assert!(matches!(decision, Decision::Again { .. }), "{decision:?}");
}

#[test]
fn holding_back_is_not_tried_against_what_it_cannot_shorten() {
    // Stop and start take longer than the budget: only the hard cap can be kept.
    let slow = |fixed| Observed {
        fixed: Duration::from_secs(fixed),
        ..observed(&STALLED, &STALLED_GAPS)
    };
    let wide = MigrationLimits {
        hard_cap: Duration::from_secs(17),
        ..limits(OnStall::Throttle)
    };
    let fits = decide(&slow(4), &wide);
    assert!(matches!(fits, Decision::CutOver { .. }), "{fits:?}");
    let helps = decide(&slow(6), &wide);
    assert!(matches!(helps, Decision::Throttle { .. }), "{helps:?}");
    match decide(&slow(18), &wide) {
        Decision::Abort { reason } => {
            assert!(reason.contains("raise migration.hard_cap"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_left_to_send_grows_with_the_time_since_the_last_snapshot() {
    // 10 MiB in 10 s, twice: 1 MiB/s.
    let rounds = [round(1000, 10.0), round(10, 0.1), round(10, 0.1)];
    let gaps = [0.0, 10.0, 10.0];
    assert_eq!(pending(&rounds, &gaps, Duration::ZERO), Bytes(0));
    assert_eq!(
        pending(&rounds, &gaps, Duration::from_secs(7)),
        Bytes(7 * MIB)
    );
    assert_eq!(
        pending(&rounds[..1], &gaps[..1], Duration::from_secs(7)),
        Bytes(0)
    );
    assert_eq!(
        bandwidth(&rounds, &MigrationLimits::default()),
        Bytes(100 * MIB)
    );
}

#[test]
fn a_drain_counts_as_a_whole_only_while_no_round_fits_into_it() {
    // 5 MiB/s at 100 MiB/s.
    let predicted = |last: f64, drain| {
        let rounds = [round(1000, 10.0), round(50, 0.5), round(50, last)];
        let seen = observed(&rounds, &[0.0, 10.0, 10.0]);
        let least_rate = 50.0 / last.max(0.5);
        let window = predict(&seen, &drained_in(drain)).unwrap();
        (window.as_secs_f64() - 1.0) * least_rate / 5.0
    };
    for (last, drain, exposed) in [
        (0.5, 0, 0.5),
        (0.5, 100, 0.6),
        (0.5, 350, 0.85),
        (0.5, 2000, 0.85),
        (4.0, 2000, 6.0),
    ] {
        let seen = predicted(last, Duration::from_millis(drain));
        assert!((seen - exposed).abs() < 1e-6, "{last} {drain}: {seen}");
    }
}

#[test]
fn many_small_rounds_do_not_make_the_wire_slow() {
    let mut rounds = vec![round(400, 4.0)];
    rounds.extend([round(2, 0.1); 20]);
    let limits = MigrationLimits::default();
    assert_eq!(bandwidth(&rounds, &limits), Bytes(100 * MIB));
    // A third of the bytes went so slowly: that is no latency.
    rounds.extend([round(20, 1.0); 10]);
    assert_eq!(bandwidth(&rounds, &limits), Bytes(20 * MIB));
}

#[test]
fn measurements_that_make_no_sense_are_survived() {
    for seconds in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let rounds = [round(1, seconds), round(1, seconds), round(0, seconds)];
        let gaps = [seconds; 3];
        drop(decide(
            &observed(&rounds, &gaps),
            &MigrationLimits::default(),
        ));
    }
}

#[test]
fn an_application_that_starts_slower_than_the_cap_is_told_apart_from_one_that_writes_a_lot() {
    let quiet = [round(1000, 10.0), round(1, 0.1), round(1, 0.1)];
    let slow = Observed {
        fixed: Duration::from_secs(20),
        ..observed(&quiet, &[10.0, 10.0, 10.0])
    };
    let enough = MigrationLimits {
        max_rounds: 3,
        ..limits(OnStall::Cutover)
    };
    match decide(&slow, &enough) {
        Decision::Abort { reason } => {
            assert!(reason.contains("raise migration.hard_cap"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

fn any_on_stall() -> impl Strategy<Value = OnStall> {
    prop_oneof![
        Just(OnStall::Abort),
        Just(OnStall::Cutover),
        Just(OnStall::Throttle),
        Just(OnStall::Wait),
    ]
}

proptest! {
    /// Whatever is observed: nobody is cut over past the hard cap, or past the budget where the
    /// user does not want that; nobody is held back who did not ask for it; every end has a reason.
    #[test]
    fn every_answer_keeps_the_limits(
        seen in prop::collection::vec((0_u64..10_000, 0.0_f64..100.0, 0.0_f64..100.0), 1..40),
        fixed in 0_u64..20_000, budget in 1_u64..20_000, slack in 0_u64..20_000,
        step in prop::option::of(0_usize..10), held in 0_usize..4,
        on_stall in any_on_stall(), max_rounds in 1_u32..20,
    ) {
        let rounds: Vec<Round> = seen.iter().map(|(size, time, _)| round(*size, *time)).collect();
        let gaps: Vec<f64> = seen.iter().map(|(_, _, gap)| *gap).collect();
        let steps: Vec<Throttle> =
            std::iter::successors(Some(Throttle::FREE), |now| now.harder()).collect();
        let observed = Observed {
            rounds: &rounds,
            gaps: &gaps,
            running: true,
            fixed: Duration::from_millis(fixed),
            throttle: step.map(|step| steps[step]),
            held,
        };
        let limits = MigrationLimits {
            max_rounds,
            downtime_budget: Duration::from_millis(budget),
            hard_cap: Duration::from_millis(budget + slack),
            ..limits(on_stall)
        };
        match decide(&observed, &limits) {
            Decision::CutOver { predicted } => {
                prop_assert!(predicted <= limits.hard_cap);
                let patient = matches!(on_stall, OnStall::Abort | OnStall::Wait);
                prop_assert!(!patient || predicted <= limits.downtime_budget);
            }
            Decision::Throttle { throttle, predicted } => {
                prop_assert_eq!(on_stall, OnStall::Throttle);
                prop_assert!(observed.throttle < Some(throttle) && observed.throttle.is_some());
                prop_assert!(predicted > limits.downtime_budget);
            }
            Decision::Abort { reason } => {
                prop_assert!(!reason.is_empty());
                let count = u32::try_from(rounds.len()).unwrap();
                let stalled = count >= max_rounds || rounds.len() >= 2;
                prop_assert!(stalled, "given up after {} rounds", count);
            }
            Decision::Again { .. } => {
                let count = u32::try_from(rounds.len()).unwrap();
                let tells = on_stall == OnStall::Throttle && step > Some(0) && held < 2;
                prop_assert!(count < max_rounds * 8 || count == 1 || tells);
            }
        }
    }
}
