use super::*;
use crate::machine::Machine;
use crate::proxy::record::{Figures, Trial};
use crate::table::tests::assert_even;

pub(crate) const SCENE: Scene = Scene::Bulk(8);

fn trial(contender: Contender, round: u32, figures: &[(Figure, f64)]) -> Trial {
    Trial {
        contender,
        scene: SCENE,
        round,
        figures: figures.iter().copied().collect::<Figures>(),
        failure: None,
    }
}

/// A record of three contenders, three rounds each.
pub(crate) fn record() -> Record {
    let mut trials = Vec::new();
    for (round, gigabits, own, whole) in [
        (1, 4.0, 50.0, 100.0),
        (2, 5.0, 40.0, 120.0),
        (3, 6.0, 45.0, 140.0),
    ] {
        trials.push(trial(
            Contender::Rehome,
            round,
            &[
                (Figure::Gigabits, gigabits),
                (Figure::OwnPerGigabit, own),
                (Figure::AllPerGigabit, whole),
                (Figure::RelayBusy, 100.0),
            ],
        ));
        trials.push(trial(
            Contender::Haproxy,
            round,
            &[
                (Figure::Gigabits, gigabits / 2.0),
                (Figure::OwnPerGigabit, own * 2.0),
                (Figure::AllPerGigabit, whole * 2.0),
            ],
        ));
        trials.push(trial(
            Contender::Routed,
            round,
            &[
                (Figure::Gigabits, gigabits * 2.0),
                (Figure::AllPerGigabit, 60.0 + f64::from(round) * 10.0),
            ],
        ));
    }
    Record {
        machine: Machine {
            processor: "a processor".to_owned(),
            cores: 2,
            memory: 24_576,
            kernel: "Linux".to_owned(),
            disk: String::new(),
            load: "0.10".to_owned(),
            date: "today".to_owned(),
            build: "release".to_owned(),
            versions: vec!["HAProxy".to_owned()],
        },
        command: "--rounds 3".to_owned(),
        seconds: 120.0,
        notes: vec!["Envoy is left out".to_owned()],
        trials,
    }
}

fn line<'a>(text: &'a str, table: &str, beginning: &str) -> &'a str {
    let (_, rest) = text.split_once(table).unwrap();
    rest.lines()
        .find(|line| line.starts_with(beginning))
        .unwrap()
}

#[test]
fn tables_hold_medians_with_their_spread_and_ratios_to_rehome() {
    let text = markdown(&record());
    let table = "## Throughput, 8 streams";
    let ours = line(&text, table, "| Rehome |");
    assert!(
        ours.starts_with("| Rehome | 5 [4–6] | **1.00** | 40 [30–50] | **1.00** | 45 [40–50] |"),
        "{ours}"
    );
    let theirs = line(&text, table, "| HAProxy |");
    assert!(
        theirs.starts_with("| HAProxy | 2.5 [2–3] | **0.50** | 160 [130–190] | **4.00** |"),
        "{theirs}"
    );
    let routed = line(&text, table, "| routed, no relay |");
    assert!(
        routed.starts_with("| routed, no relay | 10 [8–12] | **2.00** | 80 [70–90] | – | – | – |"),
        "{routed}"
    );
}

#[test]
fn the_table_of_ratios_has_ours_and_how_many_times_as_much_others_are() {
    let text = markdown(&record());
    let table = "## All beside Rehome";
    let cost = line(&text, table, "| Throughput, 8 streams | relay's CPU");
    assert!(cost.ends_with("| 45 [40–50] | **2.00** | – |"), "{cost}");
}

#[test]
fn a_goal_is_said_to_be_reached_or_not() {
    let mut record = record();
    let goal = |record: &Record| {
        let text = markdown(record);
        let name = "| Throughput, 8 streams: relay's CPU";
        line(&text, "## What is to be reached", name).to_owned()
    };
    assert!(goal(&record).ends_with("| at most 0.9 | 0.5 | yes |"));
    for trial in &mut record.trials {
        if trial.contender == Contender::Rehome {
            trial.figures.insert(Figure::OwnPerGigabit, 90.0);
        }
    }
    assert!(goal(&record).ends_with("| at most 0.9 | 1 | **no** |"));
}

#[test]
fn every_row_of_a_table_has_as_many_cells_as_its_head() {
    assert_even(&markdown(&record()));
}

#[test]
fn who_was_left_out_is_told() {
    let text = markdown(&record());
    assert!(text.contains("- Envoy is left out\n"), "{text}");
    assert!(text.contains("`proxy --rounds 3`, today, 2 minutes"));
}

#[test]
fn a_number_has_as_many_digits_as_it_deserves() {
    let texts = [0.0, -0.001, 0.5, 2.25, 12.34, 10.0, 100.0, 12_345.6].map(number);
    let expected = ["0", "0", "0.5", "2.25", "12.3", "10", "100", "12346"];
    assert_eq!(texts, expected);
}
