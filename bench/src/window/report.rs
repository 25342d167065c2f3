//! The tables of a run, in Markdown.

use crate::stats::Spread;
use crate::table::{self, none, row, rule};
use crate::window::plan::{Contender, Kind, REHOME, Scene};
use crate::window::record::{Part, Record, Round, Trial};

/// The tables, with where and how they were measured.
#[must_use]
pub fn markdown(record: &Record) -> String {
    let mut text = String::from("# The window of a move, part by part\n\n");
    text += HOW;
    text += "\n![The windows, part by part](window.svg)\n\n";
    for store in record.stores() {
        text = text + "## " + store.title() + "\n\n### What clients saw\n\n";
        text += &seen_table(record, store);
        text += "\n### The parts of the window, in seconds\n\n";
        text += &parts_table(record, store);
        text += "\n### What Rehome did before the stop\n\n";
        text += &rounds_table(record, store);
        text.push('\n');
    }
    text + &place(record)
}

/// Seconds.
const DEFAULT_HARD_CAP: f64 = 10.0;

/// So many rounds are listed one by one.
const ROUNDS: usize = 6;

const HOW: &str = "\
Every figure is a median with the smallest and the largest in brackets; every ratio is a median \
over Rehome's. A move that was called off is left out of the medians and counted.

The same store with the same settings and as much data moves under the same load from one lab \
host to another, behind a front on a third one, in one run, the contenders by turns, each on fresh \
hosts. *Gap* is the \
longest time in which no small write of any client was acknowledged, seen from the client's side \
of the front; new requests begin every 20 ms on connections of their own, whether earlier ones \
were answered or not, and two busy clients keep their connections. *New connections* and *kept \
connections* are the gaps of these alone. After each move every acknowledged write was looked for.

A drain makes these differ: while it lasts (2 s, when clients are busy) kept connections are \
served, and new ones wait. So the gap begins with the last answer on a kept connection, near the \
end of the drain, and the gap of new connections with the drain. Without a drain both begin with \
the stop.

- **Rehome**: `rehome move` with the default budget of 3 s, behind `proxyd`. The hard cap is \
raised from 10 s to 60 s, to have a window to compare; the moves that the default would have \
called off are marked.
- **Rehome, drain 0 s**: the same with `drain: 0s`: clients are cut as soon as the window begins, \
as they are by hand. Window beside window this is the one to compare; the other one spares kept \
connections a reset in the middle of a request.
- **Rehome, on_stall: throttle**: with the default drain, but a store that writes faster than its \
copy gets on is held back (less processor time) until what is left fits. Only where 50 MiB or more \
are overwritten per second.
- **two-phase push**: a snapshot of everything is sent while the store runs; stop, send the \
difference, start, repoint HAProxy.
- **by hand, send/receive**: stop; `btrfs send | btrfs receive` of everything over plain TCP; \
start; repoint HAProxy.
- **by hand, rsync**: stop; `rsync -a` of everything over plain TCP; start; repoint HAProxy.

What is done by hand is done by a script in shells that are logged in already, without a pause, \
without encryption, and without proof that what arrived is whole. *own* is RELEASE and ADOPT for \
Rehome, each synced to disk, and a writable snapshot by hand; *rest* is what lies between the \
parts. All hosts, clients and stores share the processors of this one machine: a copy gets on the \
more slowly the more clients write, and encryption and proof cost more than between machines.\n";

fn seen_table(record: &Record, store: Kind) -> String {
    let mut text = row(&[
        "volume",
        "overwritten per second (achieved)",
        "contender",
        "gap",
        "× Rehome",
        "new connections",
        "kept connections",
        "failed requests: new, kept",
        "lost",
        "before the stop",
        "longest gap without a move",
    ]);
    text += &rule(11);
    for (scene, contender) in lines(record, store) {
        let gap = |trial: &Trial| trial.seen.gap;
        let of = |figure: fn(&Trial) -> f64| seconds(record.spread(scene, contender, figure));
        let failed = |figure: fn(&Trial) -> f64| plain(record.spread(scene, contender, figure));
        let lost: u64 = record
            .trials_of(scene, contender)
            .map(|trial| trial.seen.lost)
            .sum();
        text += &row(&[
            &format!("{} MiB", scene.size),
            &format!(
                "{} MiB ({})",
                scene.rate,
                plain(record.spread(scene, contender, |trial| trial.seen.achieved))
            ),
            &name(record, scene, contender),
            &of(|trial| trial.seen.gap),
            &times(record, scene, contender, gap),
            &of(|trial| trial.seen.gap_fresh),
            &of(|trial| trial.seen.gap_kept),
            &format!(
                "{}, {}",
                failed(|trial| count(trial.seen.failed_fresh)),
                failed(|trial| count(trial.seen.failed_kept))
            ),
            &lost.to_string(),
            &of(|trial| trial.moved.before),
            &of(|trial| trial.seen.gap_before),
        ]);
    }
    text
}

fn parts_table(record: &Record, store: Kind) -> String {
    let mut head = vec!["volume", "overwritten per second", "contender"];
    head.extend(Part::ALL.map(Part::title));
    head.extend(["window", "× Rehome"]);
    let mut text = row(&head) + &rule(head.len());
    for (scene, contender) in lines(record, store) {
        let mut cells = vec![
            format!("{} MiB", scene.size),
            format!("{} MiB", scene.rate),
            name(record, scene, contender),
        ];
        cells.extend(Part::ALL.map(|part| {
            let spread = record.spread(scene, contender, |trial| part_of(trial, part));
            seconds(spread)
        }));
        let window = |trial: &Trial| trial.moved.window();
        cells.push(seconds(record.spread(scene, contender, window)));
        cells.push(times(record, scene, contender, window));
        text += &row(&cells);
    }
    text
}

fn rounds_table(record: &Record, store: Kind) -> String {
    let head = [
        "volume",
        "overwritten per second",
        "contender",
        "repetition",
        "rounds, those of the drain too: MiB in seconds",
        "drain",
        "window: predicted, measured",
        "ended",
    ];
    let mut text = row(&head) + &rule(head.len());
    for scene in record.scenes(store) {
        let trials = REHOME.into_iter();
        for trial in trials.flat_map(|contender| record.trials_of(scene, contender)) {
            text += &row(&[
                format!("{} MiB", scene.size),
                format!("{} MiB", scene.rate),
                trial.contender.title().to_owned(),
                trial.repetition.to_string(),
                rounds(&trial.moved.rounds),
                format!("{:.2} s", trial.moved.drain),
                prediction(trial),
                ended(trial),
            ]);
        }
    }
    text
}

/// The first rounds one by one, and what the others came to.
fn rounds(all: &[Round]) -> String {
    let word = |round: &Round| format!("{:.1} in {:.2}", round.mebibytes, round.seconds);
    let (first, others) = all.split_at(all.len().min(ROUNDS));
    let mut words: Vec<String> = first.iter().map(word).collect();
    if !others.is_empty() {
        let sum = Round {
            mebibytes: others.iter().map(|round| round.mebibytes).sum(),
            seconds: others.iter().map(|round| round.seconds).sum(),
        };
        words.push(format!("{} more: {}", others.len(), word(&sum)));
    }
    words.join("; ")
}

/// What was foretold of a window, and what came.
fn prediction(trial: &Trial) -> String {
    let foretold = trial.moved.predicted;
    let foretold = foretold.map_or_else(none, |seconds| format!("{seconds:.2} s"));
    format!("{foretold}, {:.2} s", trial.moved.window())
}

/// How a move of Rehome ended, and how it would have with the default hard cap.
fn ended(trial: &Trial) -> String {
    match &trial.moved.failure {
        Some(failure) => failure.clone(),
        None if trial.moved.window() > DEFAULT_HARD_CAP => "done; called off by default".to_owned(),
        None => "done".to_owned(),
    }
}

fn place(record: &Record) -> String {
    let notes = [
        "hosts, clients and disks share this one machine".to_owned(),
        format!(
            "pools of all hosts: btrfs in files on {}",
            record.machine.disk
        ),
    ];
    let command = format!("window {}", record.command);
    table::place(&record.machine, &notes, &command, record.seconds)
}

/// The lines of a table: every contender of every scene.
fn lines(record: &Record, store: Kind) -> Vec<(Scene, Contender)> {
    let scenes = record.scenes(store).into_iter();
    scenes
        .flat_map(|scene| {
            let contenders = record.contenders(scene).into_iter();
            contenders.map(move |contender| (scene, contender))
        })
        .collect()
}

/// Seconds of a part; what a contender does not have takes no time.
#[must_use]
pub fn part_of(trial: &Trial, part: Part) -> f64 {
    trial.moved.parts.get(&part).copied().unwrap_or_default()
}

/// The contender's name, and how many of its moves did not end well.
fn name(record: &Record, scene: Scene, contender: Contender) -> String {
    let all = record.trials_of(scene, contender).count();
    let failed = record
        .trials_of(scene, contender)
        .filter(|trial| trial.moved.failure.is_some())
        .count();
    match failed {
        0 => contender.title().to_owned(),
        _ => format!("{} ({failed} of {all} called off)", contender.title()),
    }
}

/// How many times as large a figure is as Rehome's.
fn times(
    record: &Record,
    scene: Scene,
    contender: Contender,
    figure: impl Fn(&Trial) -> f64 + Copy,
) -> String {
    let own = record.spread(scene, contender, figure);
    let rehome = record.spread(scene, Contender::Rehome, figure);
    let times = own.zip(rehome).and_then(|(own, rehome)| own.times(&rehome));
    times.map_or_else(none, |times| format!("**{times:.1}**"))
}

fn seconds(spread: Option<Spread>) -> String {
    spread.map_or_else(none, |spread| {
        let Spread {
            median,
            least,
            most,
        } = spread;
        if most < 0.0005 {
            "0".to_owned()
        } else {
            format!("{median:.3} [{least:.3}–{most:.3}]")
        }
    })
}

fn plain(spread: Option<Spread>) -> String {
    spread.map_or_else(none, |spread| {
        let Spread {
            median,
            least,
            most,
        } = spread;
        let figure = |value: f64| {
            let text = format!("{value:.1}");
            text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
        };
        if least < most {
            format!("{} [{}–{}]", figure(median), figure(least), figure(most))
        } else {
            figure(median)
        }
    })
}

/// Requests as a figure. There are never as many as would lose a digit.
fn count(requests: u64) -> f64 {
    u32::try_from(requests).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
pub(crate) mod tests;
