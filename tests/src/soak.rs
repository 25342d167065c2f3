//! The soak: clients append to two logs through the proxies of all hosts while the logs move from
//! host to host and a nemesis breaks whatever it can reach. In the end faults are healed, the
//! cluster has a bounded time to come to rest, and the history is checked: no acknowledged record
//! lost, doubled or moved, never two instances ([`check`]), one owner of each log that serves, and
//! the next move works.
//!
//! What is done to the cluster follows from the seed ([`schedule`]). What is not covered: a host
//! that crashes here keeps what its kernel had not written yet, because the kernel is this
//! machine's; so `fsync` and `msync` are called and waited for, but not tested by a power failure.

pub mod check;
mod clients;
pub(crate) mod diary;
mod ending;
mod evidence;
pub mod history;
mod mover;
mod nemesis;
mod processes;
pub mod schedule;
mod stage;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::bail;

use self::clients::Clients;
use self::diary::Stop;
use self::evidence::Evidence;
use self::history::{History, What};
use self::schedule::Schedule;
use self::stage::{Application, Stage};
use crate::lab::{Lab, Runtime, with_lab};
use crate::log::witness;

/// Clients of each application.
const CLIENTS: u64 = 4;

/// Of what is wrong so much is said; a lost log loses thousands of records.
const SAID: usize = 20;

/// A soak.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// What the schedule follows from.
    pub seed: u64,
    /// How long the cluster is broken for.
    pub length: Duration,
}

/// What became of one application.
#[derive(Debug)]
struct Run {
    name: &'static str,
    history: History,
    moves: BTreeMap<&'static str, u32>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |is: fn(&What) -> bool| {
            let events = self.history.events.iter();
            events.filter(|event| is(&event.what)).count()
        };
        write!(
            f,
            "{}: {} records acknowledged, {} reads, {} failed tries, {} starts, \
             {:.1} s the longest silence; moves: {:?}",
            self.name,
            count(|what| matches!(what, What::At { .. })),
            count(|what| matches!(what, What::Is { .. })),
            count(|what| matches!(what, What::Failed { .. })),
            self.history.statements.len(),
            silence(&self.history).as_secs_f64(),
            self.moves,
        )
    }
}

/// The longest time in which no client had an answer.
fn silence(history: &History) -> Duration {
    let answered = history.events.iter().filter_map(|event| {
        matches!(event.what, What::At { .. } | What::Is { .. }).then_some(event.at)
    });
    let times: Vec<u64> = answered.collect();
    let gaps = times.iter().zip(times.iter().skip(1));
    let longest = gaps.map(|(one, next)| next.saturating_sub(*one)).max();
    Duration::from_micros(longest.unwrap_or_default())
}

impl Soak {
    /// Runs it on a lab of its own and returns what there is to say of it.
    ///
    /// # Errors
    /// What was wrong, and the directory that holds the evidence.
    pub fn run(self) -> anyhow::Result<String> {
        let mut verdict = None;
        with_lab(Runtime::Process, &["--pool-size", "2GiB"], |lab| {
            verdict = Some(self.run_on(lab)?);
            Ok(())
        })?;
        match verdict {
            Some(Ok(summary)) => Ok(summary),
            Some(Err(wrong)) => bail!(wrong),
            None => bail!("the soak did not run"),
        }
    }

    /// A summary when all was well, or else what was wrong: the evidence is kept then.
    fn run_on(self, lab: &Lab) -> anyhow::Result<Result<String, String>> {
        let schedule = Schedule::new(self.seed, self.length);
        let evidence = Evidence::begin(self.seed, &schedule)?;
        let diary = evidence.diary();
        diary.note(&format!(
            "seed {}, {} s; evidence: {}",
            self.seed,
            self.length.as_secs(),
            evidence.directory().display()
        ));
        let stage = Stage::set(lab, diary)?;
        let mut wrong = Vec::new();
        let runs = self.break_and_heal(&stage, &schedule, &mut wrong)?;
        for run in &runs {
            let violations = check::check(&run.history);
            wrong.extend(
                violations
                    .iter()
                    .map(|what| format!("{}: {what}", run.name)),
            );
        }
        wrong.extend(evidence::panics(&stage)?);
        let summary: Vec<String> = runs.iter().map(Run::to_string).collect();
        let summary = format!("seed {}\n{}", self.seed, summary.join("\n"));
        if wrong.is_empty() {
            evidence.discard()?;
            return Ok(Ok(summary));
        }
        evidence.keep(&stage, &runs, &wrong)?;
        wrong.truncate(SAID);
        Ok(Err(format!(
            "{}\n{summary}\nmore in {}",
            wrong.join("\n"),
            evidence.directory().display()
        )))
    }

    fn break_and_heal(
        self,
        stage: &Stage<'_>,
        schedule: &Schedule,
        wrong: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Run>> {
        let clients = stage
            .applications
            .iter()
            .map(|one| Clients::begin(&one.doors(stage.lab)?, CLIENTS, self.seed))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let moves = self.faults(stage, schedule);
        stage.diary.note("the faults are over");
        if let Err(error) = rest(stage, &clients) {
            wrong.push(format!("not live: {error:#}"));
        }
        let mut runs = Vec::new();
        for ((application, clients), moves) in stage.applications.iter().zip(clients).zip(moves) {
            runs.push(end(stage, application, clients, moves, wrong)?);
        }
        if wrong.is_empty()
            && let Err(error) = ending::nothing_is_left(stage)
        {
            wrong.push(format!("left over: {error:#}"));
        }
        Ok(runs)
    }

    /// Breaks things for as long as the soak is; returns how the moves ended.
    fn faults(self, stage: &Stage<'_>, schedule: &Schedule) -> Vec<BTreeMap<&'static str, u32>> {
        let stop = Stop::default();
        std::thread::scope(|scope| {
            for (number, steps) in schedule.lanes.iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || nemesis::lane(stage, number, steps, stop));
            }
            let movers: Vec<_> = stage
                .applications
                .iter()
                .zip(&schedule.moves)
                .map(|(one, moves)| {
                    let stop = &stop;
                    scope.spawn(move || mover::work(stage, one, moves, stop))
                })
                .collect();
            stop.rest(self.length);
            stop.stop();
            let ended = movers
                .into_iter()
                .map(|mover| mover.join().unwrap_or_default());
            ended.collect()
        })
    }
}

/// Heals everything and waits until the cluster is as it should be.
fn rest(stage: &Stage<'_>, clients: &[Clients]) -> anyhow::Result<()> {
    nemesis::heal_all(stage)?;
    for (application, clients) in stage.applications.iter().zip(clients) {
        ending::come_to_rest(stage, application, clients)?;
    }
    stage.diary.note("all is well again");
    for application in &stage.applications {
        ending::move_once_more(stage, application)?;
    }
    for (application, clients) in stage.applications.iter().zip(clients) {
        ending::come_to_rest(stage, application, clients)?;
    }
    Ok(())
}

/// Sends the clients home and reads the log in the end.
fn end(
    stage: &Stage<'_>,
    application: &Application,
    clients: Clients,
    moves: BTreeMap<&'static str, u32>,
    wrong: &mut Vec<String>,
) -> anyhow::Result<Run> {
    let events = clients.stop();
    let logs = ending::read_all(stage, application).unwrap_or_else(|error| {
        wrong.push(format!("{}: {error:#}", application.name));
        Vec::new()
    });
    Ok(Run {
        name: application.name,
        history: History {
            events,
            statements: witness::statements(&application.witness)?,
            logs,
        },
        moves,
    })
}
