//! A crash at every durable write of a move, on real daemons: source daemon, destination daemon,
//! source host, destination host, and the link between them, each before and after each write.
//!
//! The daemons are the builds with fail points. In each case one of them waits at a point, the
//! blow falls, and when all is quiet again there is one owner, one running instance and never
//! were two, every acknowledged write, nothing left over, and the next move works.
//!
//! `REHOME_CRASH_CASES` says which cases: `dozen` (unless it is set), `all`, or a part of the
//! names of some, as in `source/released after`.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "JSON documents, in which what is absent is null, and hosts that a lab has"
)]

mod busy;
mod case;
mod play;
mod stage;
mod table;
mod watch;

use std::collections::VecDeque;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::program;

use crate::case::Case;
use crate::stage::{PATIENCE, Stage};
use crate::table::Ending;

/// Cases take so long and no longer, whatever happens to them: one minute, and this for each.
const LIMIT_FOR_EACH: Duration = Duration::from_secs(20);

/// After so many failed cases nothing more is to be learnt.
const FAILURES: usize = 12;

#[test]
fn a_crash_at_any_write_leaves_one_owner_with_all_data() -> anyhow::Result<()> {
    let wanted = std::env::var("REHOME_CRASH_CASES").unwrap_or_else(|_| "dozen".to_owned());
    let mut left: VecDeque<Case> = case::chosen(&wanted).into();
    let count = left.len();
    ensure!(count > 0, "{wanted:?} is in the name of no case");
    let limit = PATIENCE + LIMIT_FOR_EACH.saturating_mul(u32::try_from(count)?);
    let deadline = Instant::now() + limit;
    let mut endings: Vec<Ending> = Vec::new();
    let mut looks = 0;
    // A lab serves until a case fails on it: what that case left must not fail another.
    while !left.is_empty() && failures(&endings) < FAILURES && Instant::now() < deadline {
        let mut failed = None;
        let played = with_lab(Runtime::Process, &["--faulty"], |lab| {
            let mut stage = Stage::open(lab).context("before the first case")?;
            while let Some(case) = left.pop_front() {
                failed = Some((case, Instant::now()));
                if Instant::now() >= deadline {
                    bail!("the time is over");
                }
                let result = play::play(&mut stage, case);
                if result.is_err() {
                    keep_logs(lab, case)?;
                }
                tell(&mut endings, case, Ok(result?), failed);
                failed = None;
            }
            looks += stage.close()?;
            Ok(())
        });
        match (played, failed) {
            (Ok(()), _) => {}
            (Err(error), Some((case, _))) => {
                tell(&mut endings, case, Err(format!("{error:#}")), failed);
            }
            (Err(error), None) => return Err(error),
        }
    }
    println!("\n{}\n", table::table(&endings));
    println!(
        "{count} cases chosen, {} played, at most {} s; the hosts were looked at {looks} times",
        endings.len(),
        limit.as_secs()
    );
    let failed: Vec<String> = endings.iter().filter_map(complaint).collect();
    ensure!(
        failed.is_empty(),
        "{} cases failed:\n\n{}",
        failed.len(),
        failed.join("\n\n")
    );
    ensure!(left.is_empty(), "{} cases were not played", left.len());
    Ok(())
}

fn failures(endings: &[Ending]) -> usize {
    endings
        .iter()
        .filter(|ending| ending.result.is_err())
        .count()
}

fn complaint(ending: &Ending) -> Option<String> {
    let error = ending.result.as_ref().err()?;
    Some(format!("=== {}\n{error}", ending.case))
}

/// Notes how a case ended, and says so at once.
#[expect(
    clippy::print_stdout,
    reason = "a person who runs all cases waits for each"
)]
fn tell(
    endings: &mut Vec<Ending>,
    case: Case,
    result: Result<String, String>,
    began: Option<(Case, Instant)>,
) {
    let took = began.map_or(Duration::ZERO, |(_, began)| began.elapsed());
    let word = result.as_ref().map_or("FAILED", String::as_str);
    println!("{word:>8} {:5.1} s  {case}", took.as_secs_f64());
    if let Some(first) = result.as_ref().err().and_then(|error| error.lines().next()) {
        println!("                   {first}");
    }
    endings.push(Ending { case, result, took });
}

/// Copies the logs of a lab to where `REHOME_CRASH_LOGS` says.
fn keep_logs(lab: &Lab, case: Case) -> anyhow::Result<()> {
    let Some(directory) = std::env::var_os("REHOME_CRASH_LOGS") else {
        return Ok(());
    };
    let name = case.to_string().replace(['/', ' ', ':', ','], "-");
    for host in lab.hosts() {
        let from = format!("/var/lib/rehome-lab/{}/{}/log", lab.name(), host.name());
        let to = std::path::Path::new(&directory)
            .join(&name)
            .join(host.name());
        std::fs::create_dir_all(&to)?;
        let mut copy = Command::new("cp");
        program::run(copy.arg("-r").arg(from).arg(to), PATIENCE)?.ok()?;
    }
    Ok(())
}
