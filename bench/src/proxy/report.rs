//! The tables of a run, in Markdown.

use crate::proxy::goals::{self, Bound, Goal};
use crate::proxy::plan::{Contender, Scene};
use crate::proxy::record::{Figure, Record};
use crate::stats::Spread;
use crate::table::{self, none, row, rule};

/// The tables, with where and how they were measured.
#[must_use]
pub fn markdown(record: &Record) -> String {
    let mut text = String::from("# Relays of TCP connections, beside each other\n\n");
    text += HOW;
    text += "\n![The main figures of each](proxy.svg)\n\n## What is to be reached\n\n";
    text += &goal_table(record);
    text += "\n## All beside Rehome\n\n";
    text += &ratio_table(record);
    for scene in record.scenes() {
        text = text + "\n## " + &scene.title() + "\n\n";
        text += &scene_table(record, scene);
    }
    text.push('\n');
    let command = format!("proxy {}", record.command);
    text + &table::place(&record.machine, &record.notes, &command, record.seconds)
}

const HOW: &str = "\
Every figure is a median over the rounds with the smallest and the largest in brackets; every \
ratio is a median over Rehome's.

Clients, relay and server are in three network namespaces in a row, joined by veth pairs; clients \
and server are programs of this benchmark, the same for everybody. Every relay has one backend and as many \
workers as processors (systemd's always one), and is started afresh, in fresh namespaces, for each \
scene and round, the relays by turns. *Routed* is the same path without a relay: the host between \
only forwards packets. Rehome is the release build with a file that names its sockets, told its \
route over the control socket as `migrated` tells it. HAProxy comes with `option \
splice-request` and `splice-response` and without.

- **Throughput**: clients send as fast as they can; what arrives at the server is counted. *CPU \
over routed* is the time of all processes of the trial, clients, relay and server, as the kernel \
accounts it to them (with the packets that it handles in their time), less the same of the routed \
path in the same round: what the relay adds. *Relay's CPU* is that of the relay's processes alone. \
*Machine over routed* is that of the whole machine, with the kernel's own threads, and with \
whatever else ran: *busy elsewhere*.
- **New connections**: connect, a byte there, a byte back, close.
- **Round trips**: 64 bytes there and back, one message at a time on each connection.
- **Memory**: connections that have passed a byte each way and then are silent, for each that was \
held to the end; one that fails found no descriptor left (systemd's relay has six for each). *Kernel* is the \
growth of its slabs, less that of the routed path, which has the two ends alone.
- **Away**: 500 new connections begin per second, whether others were served or not; the server \
closes its door (and serves whom it let in), and opens it a second later. A client waits for 10 s. \
*Unannounced*, HAProxy tries 10 times again, and Envoy 30 times at growing distances; nginx and \
systemd have no such setting. *Told*, Rehome is told to park, drain and freeze before, and the \
route again after; HAProxy that its server is in maintenance, or (*frontend at 0*) that its \
frontend takes nobody in. Nobody else can be told to wait. The HAProxy of Debian 12 (2.6) blocks \
itself when that limit is raised again while clients wait, and its watchdog ends it (its issue \
2726, mended in later versions).

Clients and server keep their processor busy too: where they are as busy as can be, the rate is \
theirs, and the relay's CPU is the figure to compare.\n";

/// The figures of a scene that are compared.
#[must_use]
pub fn main_figures(scene: Scene) -> &'static [Figure] {
    match scene {
        Scene::Bulk(_) => &[
            Figure::Gigabits,
            Figure::AllPerGigabit,
            Figure::OwnPerGigabit,
        ],
        Scene::Connections(_) => &[Figure::PerSecond, Figure::AllEach, Figure::OwnEach],
        Scene::RoundTrips(_) => &[
            Figure::Middle,
            Figure::Slow,
            Figure::Slowest,
            Figure::OwnEach,
        ],
        Scene::Idle(_) => &[Figure::User, Figure::Kernel],
        Scene::Away | Scene::Told => &[Figure::Failed, Figure::LongestWait],
    }
}

/// All figures of a scene, in their order.
fn figures(scene: Scene) -> &'static [Figure] {
    match scene {
        Scene::Bulk(_) => &[
            Figure::Gigabits,
            Figure::AllPerGigabit,
            Figure::OwnPerGigabit,
            Figure::MachinePerGigabit,
            Figure::RelayBusy,
            Figure::GeneratorsBusy,
            Figure::Elsewhere,
        ],
        Scene::Connections(_) => &[
            Figure::PerSecond,
            Figure::AllEach,
            Figure::OwnEach,
            Figure::MachineEach,
            Figure::Failed,
            Figure::RelayBusy,
            Figure::GeneratorsBusy,
            Figure::Elsewhere,
        ],
        Scene::RoundTrips(_) => &[
            Figure::Middle,
            Figure::Slow,
            Figure::Slowest,
            Figure::PerSecond,
            Figure::AllEach,
            Figure::OwnEach,
            Figure::MachineEach,
            Figure::Failed,
            Figure::RelayBusy,
            Figure::GeneratorsBusy,
            Figure::Elsewhere,
        ],
        Scene::Idle(_) => &[
            Figure::User,
            Figure::Kernel,
            Figure::Failed,
            Figure::Attempts,
        ],
        Scene::Away | Scene::Told => &[Figure::Failed, Figure::Attempts, Figure::LongestWait],
    }
}

/// Whether a ratio of it says something: not of how busy anybody was, nor of what should be none.
fn is_compared(figure: Figure) -> bool {
    !matches!(
        figure,
        Figure::Failed
            | Figure::Attempts
            | Figure::RelayBusy
            | Figure::GeneratorsBusy
            | Figure::Elsewhere
    )
}

fn goal_table(record: &Record) -> String {
    let mut text = row(&["goal", "wanted", "found", "reached"]) + &rule(4);
    for goal in goals::of(record) {
        let reached = if goal.is_reached() { "yes" } else { "**no**" };
        text += &row(&[&goal.name, &wanted(&goal), &number(goal.found), reached]);
    }
    text
}

fn wanted(goal: &Goal) -> String {
    match goal.bound {
        Bound::Least(least) => format!("at least {}", number(least)),
        Bound::Most(most) => format!("at most {}", number(most)),
    }
}

fn ratio_table(record: &Record) -> String {
    let contenders = record.all_contenders();
    let mut head = vec!["scene".to_owned(), "figure".to_owned(), "Rehome".to_owned()];
    let others: Vec<Contender> = contenders
        .into_iter()
        .filter(|contender| *contender != Contender::Rehome)
        .collect();
    head.extend(others.iter().map(|contender| contender.title().to_owned()));
    let mut text = row(&head) + &rule(head.len());
    for scene in record.scenes() {
        for figure in main_figures(scene) {
            let ours = record.spread(scene, Contender::Rehome, *figure);
            let mut cells = vec![scene.title(), figure.title().to_owned(), ranged(ours)];
            cells.extend(others.iter().map(|other| {
                if is_compared(*figure) {
                    times(record, scene, *other, *figure)
                } else {
                    ranged(record.spread(scene, *other, *figure))
                }
            }));
            text += &row(&cells);
        }
    }
    text
}

fn scene_table(record: &Record, scene: Scene) -> String {
    let mut head = vec!["relay"];
    for figure in figures(scene) {
        head.push(figure.title());
        if is_compared(*figure) {
            head.push("× Rehome");
        }
    }
    let mut text = row(&head) + &rule(head.len());
    for contender in record.contenders(scene) {
        let mut cells = vec![contender.title().to_owned()];
        for figure in figures(scene) {
            cells.push(ranged(record.spread(scene, contender, *figure)));
            if is_compared(*figure) {
                cells.push(times(record, scene, contender, *figure));
            }
        }
        text += &row(&cells);
    }
    text
}

/// How many times as large a figure is as Rehome's.
#[must_use]
pub fn times(record: &Record, scene: Scene, contender: Contender, figure: Figure) -> String {
    // The whole cost of the plain path is no addition to itself.
    if figure.is_over_routed() && contender == Contender::Routed {
        return none();
    }
    let own = record.spread(scene, contender, figure);
    let rehome = record.spread(scene, Contender::Rehome, figure);
    let times = own.zip(rehome).and_then(|(own, rehome)| own.times(&rehome));
    times.map_or_else(none, |times| format!("**{times:.2}**"))
}

fn ranged(spread: Option<Spread>) -> String {
    spread.map_or_else(none, |spread| {
        let middle = number(spread.median);
        if spread.least < spread.most {
            let (least, most) = (number(spread.least), number(spread.most));
            format!("{middle} [{least}–{most}]")
        } else {
            middle
        }
    })
}

/// A figure with as many digits as it deserves.
#[must_use]
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if digits == 0 {
        return text;
    }
    // A whole number has no point, and zero no sign.
    match text.trim_end_matches('0').trim_end_matches('.') {
        "-0" => "0".to_owned(),
        short => short.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
