//! Every target on its kept seeds, and for some seconds on changed ones. `REHOME_FUZZ_SECONDS` and
//! `REHOME_FUZZ_SEED` make it longer and repeat it; what fails is kept in `target/fuzz`.

#![forbid(unsafe_code)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rehome_fuzz::{TARGETS, corpus, mutate};
use rustix::time::{ClockId, clock_gettime};

/// Nothing that comes from outside may keep a processor for so long.
const SLOW: Duration = Duration::from_secs(5);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What this thread has used of a processor: others, and a machine that stands still, do not count.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[expect(clippy::print_stdout, reason = "how to repeat it is for people to see")]
fn fuzz(name: &str) -> anyhow::Result<()> {
    let mut targets = TARGETS.into_iter();
    let target = targets.find(|target| target.name == name);
    let target = target.context("no such target")?;
    let seeds = corpus::seeds(name)?;
    for seed in &seeds {
        hold(name, seed, || (target.run)(seed))?;
    }
    let seed = number("REHOME_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(number("REHOME_FUZZ_SECONDS").unwrap_or(3));
    println!("REHOME_FUZZ_SEED={seed} repeats this");
    let (mut rng, begin) = (fastrand::Rng::with_seed(seed), Instant::now());
    let mut count = 0_u64;
    while begin.elapsed() < length {
        let bytes = mutate::change(&seeds, &mut rng);
        hold(name, &bytes, || {
            let before = used();
            (target.run)(&bytes);
            let took = used().saturating_sub(before);
            assert!(took < SLOW, "it took {took:?}");
        })?;
        count += 1;
    }
    println!("{name}: {count} inputs");
    Ok(())
}

/// Keeps what fails.
fn hold(name: &str, bytes: &[u8], run: impl FnOnce()) -> anyhow::Result<()> {
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else {
        return Ok(());
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    fs::create_dir_all(&directory)?;
    let file = directory.join(format!("{name}-{}", std::process::id()));
    fs::write(&file, bytes)?;
    let why = panic.downcast_ref::<String>().map(String::as_str);
    let why = why.or_else(|| panic.downcast_ref::<&str>().copied());
    bail!("{}: {}", file.display(), why.unwrap_or("it panicked"))
}

#[test]
fn announce() -> anyhow::Result<()> {
    fuzz("announce")
}

#[test]
fn configuration() -> anyhow::Result<()> {
    fuzz("configuration")
}

#[test]
fn control() -> anyhow::Result<()> {
    fuzz("control")
}

#[test]
fn http() -> anyhow::Result<()> {
    fuzz("http")
}

#[test]
fn journals() -> anyhow::Result<()> {
    fuzz("journals")
}

#[test]
fn peer() -> anyhow::Result<()> {
    fuzz("peer")
}

#[test]
fn stream() -> anyhow::Result<()> {
    fuzz("stream")
}

#[test]
fn trunk() -> anyhow::Result<()> {
    fuzz("trunk")
}

#[test]
fn every_directory_of_seeds_has_its_target() {
    let mut found: Vec<String> = fs::read_dir(corpus::directory(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, TARGETS.map(|target| target.name));
}
