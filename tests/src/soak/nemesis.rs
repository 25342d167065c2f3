//! What breaks the cluster, and heals it. A fault that was begun is healed after its time, or at
//! once when the time of faults is over; [`heal_all`] heals what could not be healed then.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;

use super::diary::Stop;
use super::schedule::{Fault, Moment, Program, Step};
use super::stage::{Application, Stage};
use crate::cluster::Migration;
use crate::lab::Host;

/// A saying that does not come within this does not come at all.
const AMBUSH: Duration = Duration::from_secs(8);

/// From one look at the logs to the next.
const GLANCE: Duration = Duration::from_millis(3);

/// Rules, limits and files carry this name and the number of their lane.
const NAME: &str = "soak";

/// Takes the steps of a lane, one after the other, until it is over.
pub(super) fn lane(stage: &Stage<'_>, number: usize, steps: &[Step], stop: &Stop) {
    for step in steps {
        if stop.rest(step.pause) {
            return;
        }
        if let Err(error) = take(stage, number, step, stop) {
            stage
                .diary
                .note(&format!("  {}: {}", step.fault, brief(&error)));
        }
    }
}

/// The first line of an error is enough: a fault that hits a host that is down is no news.
fn brief(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let ends = [lines.first(), lines.get(lines.len().saturating_sub(2))];
    let ends: Vec<&str> = ends.into_iter().flatten().copied().collect();
    ends.join(" … ")
}

fn take(stage: &Stage<'_>, lane: usize, step: &Step, stop: &Stop) -> anyhow::Result<()> {
    let why = match step.moment {
        Moment::Now => String::new(),
        Moment::Said(words) => match ambush(stage, words, stop)? {
            Some(host) => format!(", as {host} said {words:?}"),
            None => String::new(),
        },
    };
    if stop.is_over() {
        return Ok(());
    }
    let application = stage.application(step.of)?;
    let host = stage.host(step.place, application)?;
    let blow = Blow {
        stage,
        host,
        application,
        name: format!("{NAME}{lane}"),
        stop,
        hold: step.hold,
    };
    let of = match step.fault {
        Fault::Kill(Program::Application) | Fault::Pause(Program::Application) => application.name,
        _ => "",
    };
    stage.diary.note(&format!(
        "{} {of} on {} for {:.1} s{why}",
        step.fault,
        host.name(),
        step.hold.as_secs_f64()
    ));
    let done = blow.strike(step.fault);
    if !step.hold.is_zero() {
        stage
            .diary
            .note(&format!("  {} on {} is over", step.fault, host.name()));
    }
    done
}

/// Waits until some `migrated` says the words, and tells which.
fn ambush<'a>(stage: &'a Stage<'_>, words: &str, stop: &Stop) -> anyhow::Result<Option<&'a str>> {
    let mut logs = Vec::new();
    for host in stage.lab.hosts() {
        let mut log = File::open(stage.disk(host).join("log/migrated.log"))?;
        log.seek(SeekFrom::End(0))?;
        logs.push((host, log, String::new()));
    }
    let deadline = Instant::now() + AMBUSH;
    while Instant::now() < deadline && !stop.rest(GLANCE) {
        for (host, log, line) in &mut logs {
            if says(log, line, words)? {
                return Ok(Some(host.name()));
            }
        }
    }
    Ok(None)
}

/// Whether a log has said the words since the last look. `line` is what it began to say.
fn says(log: &mut File, line: &mut String, words: &str) -> io::Result<bool> {
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    line.push_str(&String::from_utf8_lossy(&bytes));
    let said = line.contains(words);
    let begun = line.rfind('\n').map_or(0, |end| end + 1);
    line.drain(..begun);
    Ok(said)
}

/// A fault that is about to be.
struct Blow<'a> {
    stage: &'a Stage<'a>,
    host: &'a Host,
    application: &'a Application,
    /// What it leaves is called so.
    name: String,
    stop: &'a Stop,
    hold: Duration,
}

impl Blow<'_> {
    /// Breaks, waits, heals.
    fn strike(&self, fault: Fault) -> anyhow::Result<()> {
        let whose = self.stage.whose(self.host, self.application);
        match fault {
            Fault::Kill(program) => {
                if !whose.signal(program, Signal::KILL) {
                    self.stage.diary.note("  it does not run");
                }
                Ok(())
            }
            Fault::Pause(program) => {
                whose.signal(program, Signal::STOP);
                self.stop.rest(self.hold);
                whose.signal(program, Signal::CONT);
                Ok(())
            }
            Fault::Crash => {
                whose.kill_host();
                // Returns when the last of its processes is gone.
                self.host.crash()?;
                self.stop.rest(self.hold);
                self.host.start()
            }
            Fault::CutOff => self.filter(&["input", "output"]),
            Fault::Deafen => self.filter(&["input"]),
            Fault::Slow => {
                let limit = "tbf rate 4mbit burst 32kb latency 300ms";
                self.between(
                    &format!("tc qdisc replace dev eth0 root {limit}"),
                    "tc qdisc del dev eth0 root",
                )
            }
            Fault::Fill => self.between(
                &format!(
                    "cd /var/lib/rehome/pool && \
                     fallocate -l $(($(stat -f -c '%a * %S' .) - (1 << 20))) {}",
                    self.name
                ),
                // What was freed can be used when that is on the disk.
                &format!(
                    "rm -f /var/lib/rehome/pool/{} && sync -f /var/lib/rehome/pool",
                    self.name
                ),
            ),
            Fault::Abort => self.abort(),
            Fault::Upgrade => self.upgrade(),
        }
    }

    /// It may fail when something else is broken; then the running one goes on.
    fn upgrade(&self) -> anyhow::Result<()> {
        let words = ["proxyd", "--upgrade", "--config", "/etc/rehome/proxyd.yml"];
        let outcome = self.host.exec(&words)?;
        let said = [&outcome.stdout, &outcome.stderr];
        let said = said.iter().find_map(|text| text.lines().next());
        let said = said.unwrap_or_default();
        self.stage
            .diary
            .note(&format!("  {}: {said}", outcome.status));
        Ok(())
    }

    /// Drops the packets of the other hosts; clients have their own way in.
    fn filter(&self, hooks: &[&str]) -> anyhow::Result<()> {
        let table = format!("inet {}", self.name);
        let mut rules = vec![format!("add table {table}")];
        for hook in hooks {
            let side = if *hook == "input" { "saddr" } else { "daddr" };
            rules.push(format!(
                "add chain {table} {hook} {{ type filter hook {hook} priority 0; }}"
            ));
            let hosts = self.stage.lab.hosts().iter();
            rules.extend(
                hosts
                    .filter(|other| other.name() != self.host.name())
                    .map(Host::address)
                    .map(|other| format!("add rule {table} {hook} ip {side} {other} drop")),
            );
        }
        let rules = rules.join("; ");
        self.between(
            &format!("nft '{rules}'"),
            &format!("nft delete table {table}"),
        )
    }

    fn between(&self, break_it: &str, heal_it: &str) -> anyhow::Result<()> {
        let broken = self.host.shell(break_it);
        if broken.is_ok() {
            self.stop.rest(self.hold);
        }
        // A command that failed may have done some of it.
        let healed = self.host.shell(heal_it);
        broken.and(healed).map(drop)
    }

    fn abort(&self) -> anyhow::Result<()> {
        let all = self.host.rehome(&["migrations", "--json"])?.ok()?.json()?;
        let all = all.as_array().context("no list of migrations")?;
        let running = all
            .iter()
            .cloned()
            .map(Migration)
            .rfind(|migration| migration.state() == "running");
        let Some(running) = running else {
            self.stage.diary.note("  nothing moves");
            return Ok(());
        };
        let outcome = self.host.rehome(&["abort", running.id()])?;
        let said = outcome.stderr.lines().last().unwrap_or_default();
        self.stage
            .diary
            .note(&format!("  {}: {said}", outcome.status));
        Ok(())
    }
}

/// Leaves nothing broken, whatever state the hosts are in.
pub(super) fn heal_all(stage: &Stage<'_>) -> anyhow::Result<()> {
    let application = stage.application(0)?;
    for host in stage.lab.hosts() {
        stage.whose(host, application).let_all_go_on();
        host.start()?;
        let names = [0, 1].map(|lane| format!("{NAME}{lane}"));
        for name in names {
            // Each fails when there is nothing to heal.
            drop(host.shell(&format!("nft delete table inet {name}")));
            host.shell(&format!("rm -f /var/lib/rehome/pool/{name}"))?;
        }
        drop(host.shell("tc qdisc del dev eth0 root"));
        let left = host.shell("nft list tables; tc qdisc show dev eth0")?;
        anyhow::ensure!(
            !left.contains(NAME) && !left.contains("tbf"),
            "not healed: {left}"
        );
    }
    Ok(())
}
