use std::time::Duration;

use rehome_shared::api::cluster::Round;
use rehome_shared::config::model::{MigrationLimits, OnStall};
use rehome_shared::units::Bytes;

use super::{Decision, Observed, decide, predict};

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
    // 10 MiB in 10 s is 1 MiB/s; 1000 MiB in 10 s is 100 MiB/s; the last round took 0.5 s and
    // the drain takes 2 s, so 2.5 MiB are to go.
    let rounds = [round(1000, 10.0), round(10, 0.1), round(10, 0.5)];
    let slowest = 20.0;
    let predicted = predict(
        &observed(&rounds, &[0.0, 10.0, 10.0]),
        &drained_in(Duration::from_secs(2)),
    )
    .unwrap();
    assert!(
        (predicted.as_secs_f64() - (1.0 + 2.5 / slowest)).abs() < 1e-6,
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
    let rounds = [round(4000, 40.0), round(2000, 20.0), round(1700, 17.0)];
    let decision = decide(
        &observed(&rounds, &[0.0, 40.0, 20.0]),
        &limits(OnStall::Abort),
    );
    assert!(matches!(decision, Decision::Abort { .. }), "{decision:?}");
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
fn waiting_and_throttling_go_on_but_not_for_ever() {
    for on_stall in [OnStall::Wait, OnStall::Throttle] {
        let few = MigrationLimits {
            max_rounds: 3,
            ..limits(on_stall)
        };
        let mut rounds = STALLED.to_vec();
        let mut gaps = STALLED_GAPS.to_vec();
        while let Decision::Again { predicted } = decide(&observed(&rounds, &gaps), &few) {
            assert!(predicted.is_some());
            assert!(rounds.len() <= 24, "{on_stall:?} never ends");
            rounds.push(STALLED[0]);
            gaps.push(10.0);
        }
        assert_eq!(rounds.len(), 24, "{on_stall:?}");
        assert!(matches!(
            decide(&observed(&rounds, &gaps), &few),
            Decision::Abort { .. }
        ));
    }
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
    match decide(&slow, &limits(OnStall::Cutover)) {
        Decision::Abort { reason } => {
            assert!(reason.contains("raise migration.hard_cap"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
