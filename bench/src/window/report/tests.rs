use std::collections::BTreeMap;

use super::*;
use crate::machine::Machine;
use crate::table::tests::assert_even;
use crate::window::record::{Moved, Seen};

const SCENE: Scene = Scene {
    store: Kind::Redis,
    size: 64,
    rate: 10,
};

fn trial(contender: Contender, repetition: u32, window: f64) -> Trial {
    Trial {
        contender,
        scene: SCENE,
        repetition,
        moved: Moved {
            parts: BTreeMap::from([(Part::Stop, window / 4.0), (Part::Copy, window * 0.75)]),
            rounds: vec![Round {
                mebibytes: 64.0,
                seconds: 0.5,
            }],
            ..Moved::default()
        },
        seen: Seen {
            gap: window + 0.5,
            gap_fresh: window + 0.75,
            gap_kept: window + 0.5,
            gap_before: 0.03,
            achieved: 9.96,
            failed_kept: 2,
            ..Seen::default()
        },
    }
}

/// A record of two contenders, three times each.
pub(crate) fn record() -> Record {
    let mut trials = Vec::new();
    for (repetition, window) in [(1, 0.5), (2, 0.25), (3, 1.0)] {
        trials.push(trial(Contender::Rehome, repetition, window));
        trials.push(trial(Contender::Send, repetition, window * 4.0));
    }
    Record {
        machine: Machine {
            processor: "a processor".to_owned(),
            cores: 2,
            memory: 24_576,
            kernel: "Linux".to_owned(),
            disk: "ext4".to_owned(),
            load: "0.10".to_owned(),
            date: "today".to_owned(),
            build: "release".to_owned(),
            versions: vec!["HAProxy".to_owned(), "btrfs".to_owned()],
        },
        command: "--repetitions 3".to_owned(),
        seconds: 120.0,
        trials,
    }
}

fn line<'a>(text: &'a str, table: &str, contender: &str) -> &'a str {
    let (_, rest) = text.split_once(table).unwrap();
    rest.lines().find(|line| line.contains(contender)).unwrap()
}

#[test]
fn tables_hold_medians_with_their_spread_and_ratios_to_rehome() {
    let text = markdown(&record());
    let seen = line(&text, "### What clients saw", "| by hand, send/receive |");
    assert!(seen.contains("| 2.500 [1.500–4.500] | **2.5** |"), "{seen}");
    assert!(
        seen.contains("| 10 MiB (10) |") && seen.contains("| 0, 2 |"),
        "{seen}"
    );
    let parts = line(&text, "### The parts", "| Rehome |");
    assert!(
        parts.contains("| 0.125 [0.062–0.250] | 0 | 0.375 ["),
        "{parts}"
    );
    assert!(
        parts.ends_with("| 0.500 [0.250–1.000] | **1.0** |"),
        "{parts}"
    );
    let rounds = line(&text, "### What Rehome did", "64.0 in 0.50");
    assert!(rounds.ends_with("| done |"), "{rounds}");
    assert!(text.contains("`window --repetitions 3`, today, 2 minutes"));
}

#[test]
fn a_move_that_was_called_off_is_counted_and_not_averaged() {
    let mut record = record();
    for trial in &mut record.trials {
        if trial.contender == Contender::Rehome && trial.repetition == 3 {
            trial.moved.failure = Some("a | b\nc".to_owned());
        }
    }
    let text = markdown(&record);
    let parts = line(&text, "### The parts", "Rehome (1 of 3 called off)");
    assert!(
        parts.contains("| 0.375 [0.250–0.500] | **1.0** |"),
        "{parts}"
    );
    assert!(text.contains("| a \\| b c |"));
}

#[test]
fn the_rounds_of_both_ways_of_rehome_are_listed_and_many_are_summed_up() {
    let mut record = record();
    let mut other = trial(Contender::RehomeNoDrain, 1, 0.5);
    other.moved.rounds = vec![
        Round {
            mebibytes: 2.0,
            seconds: 0.25,
        };
        9
    ];
    record.trials.push(other);
    let text = markdown(&record);
    let (_, rounds) = text.split_once("### What Rehome did").unwrap();
    let line = |contender| rounds.lines().find(|line| line.contains(contender));
    assert!(line("| Rehome | 1 | 64.0 in 0.50 |").is_some(), "{rounds}");
    let many = line("| Rehome, drain 0 s | 1 |").unwrap();
    assert!(
        many.contains("; 2.0 in 0.25; 3 more: 6.0 in 0.75 |"),
        "{many}"
    );
}

#[test]
fn every_row_of_a_table_has_as_many_cells_as_its_head() {
    assert_even(&markdown(&record()));
}

#[test]
fn where_everything_was_called_off_there_is_no_figure() {
    let mut record = record();
    for trial in &mut record.trials {
        trial.moved.failure = Some("no".to_owned());
    }
    let text = markdown(&record);
    assert!(line(&text, "### The parts", "Rehome (3 of 3").ends_with("| – | – |"));
}

#[test]
fn a_window_beyond_the_default_hard_cap_is_marked() {
    assert_eq!(ended(&trial(Contender::Rehome, 1, 9.5)), "done");
    assert_eq!(
        ended(&trial(Contender::Rehome, 1, 10.5)),
        "done; called off by default"
    );
}
