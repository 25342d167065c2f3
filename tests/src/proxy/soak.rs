//! The soak of proxies: clients of two applications come through the proxies of three hosts, while
//! the applications move, as `migrated` has them move, and the proxies are reloaded, stopped and
//! killed. Every answer is right and comes within its budget, nobody is refused by a proxy that
//! runs or cut without a reason, and in the end nothing is left: no connection, descriptor, pipe or
//! tracking entry, and no more memory than before.
//!
//! What is done follows from the seed; what a machine makes of it differs.

mod chaos;
mod instance;
mod mover;
mod visitors;
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use self::visitors::Visitors;
use self::world::{HOSTS, World};
use super::{PATIENCE, Used};
use crate::soak::diary::Diary;
use crate::wait::wait_until;
use crate::{network, program, project};

/// Of what is wrong so much is said.
const SAID: usize = 20;
/// What caches of a proxy may take, in KiB.
const CACHES: u64 = 48 << 10;

/// A soak.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// What is done follows from it.
    pub seed: u64,
    /// For so long.
    pub length: Duration,
}

impl Soak {
    /// Runs it in a network of its own and returns what there is to say of it.
    ///
    /// # Errors
    /// What was wrong, and the directory that holds the evidence.
    pub fn run(self) -> anyhow::Result<String> {
        network::own()?;
        let directory = project()?.join("target/soak-proxy").join(format!(
            "{}-{}",
            self.seed,
            std::process::id()
        ));
        std::fs::create_dir_all(&directory)?;
        let diary = Diary::begin(&directory.join("diary.txt"))?;
        diary.note(&format!(
            "seed {}, {} s; evidence: {}",
            self.seed,
            self.length.as_secs(),
            directory.display()
        ));
        let world = Arc::new(World::begin(diary)?);
        let summary = self.run_in(&world);
        let mut wrong = world.wrong();
        let summary = match summary {
            Ok(summary) => summary,
            Err(error) => {
                wrong.push(format!("{error:#}"));
                String::new()
            }
        };
        if wrong.is_empty() {
            std::fs::remove_dir_all(directory)?;
            return Ok(format!("seed {}\n{summary}", self.seed));
        }
        keep(&world, &directory, &wrong)?;
        wrong.truncate(SAID);
        bail!(
            "{}\n{summary}\nmore in {}",
            wrong.join("\n"),
            directory.display()
        )
    }

    fn run_in(self, world: &Arc<World>) -> anyhow::Result<String> {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let visitors = Visitors::begin(world, &mut rng);
        wait_until("clients have answers", PATIENCE, || {
            Ok(visitors.answers() > 100)
        })?;
        let base = usage(world)?;
        let movers: Vec<_> = (0..world.applications.len())
            .map(|number| {
                let (world, rng) = (Arc::clone(world), rng.fork());
                thread::spawn(move || mover::work(&world, number, rng))
            })
            .collect();
        // On this thread: a proxy ends with the thread that started it.
        let early = chaos::work(world, rng.fork(), self.length);
        world.stop.stop();
        let mut moves = 0;
        for mover in movers {
            moves += mover
                .join()
                .map_err(|_| anyhow::anyhow!("a mover panicked"))?;
        }
        let early = early?;
        world.diary.note("the end begins");
        chaos::calm_down(world)?;
        let before = visitors.answers();
        let progress = wait_until("clients have answers in the end", PATIENCE, || {
            Ok(visitors.answers() > before + 100)
        });
        let told = visitors.stop();
        progress?;
        nothing_is_left(world, &base, early)?;
        Ok(format!("{moves} moves, {}; {told}", world.counts()))
    }
}

/// What every proxy uses once it has nothing else to do than serve.
fn usage(world: &World) -> anyhow::Result<Vec<Used>> {
    (0..HOSTS).map(|host| world.proxy(host).used()).collect()
}

fn nothing_is_left(world: &World, base: &[Used], early: Option<u64>) -> anyhow::Result<()> {
    for (host, base) in base.iter().enumerate() {
        let proxy = world.proxy(host);
        let live = || proxy.send(("GET", "/v1/connections"), None)?.ok();
        wait_until("connections have ended", PATIENCE, || {
            Ok(live()?["total"] == 0)
        })
        .with_context(|| format!("host {host}: {}", live().unwrap_or_default()))?;
        for gauge in [
            "relay_bytes",
            "parked_bytes",
            "connections_parked",
            "udp_sessions",
        ] {
            let left = proxy.metric(&format!("rehome_proxy_{gauge}"), &[])?;
            ensure!(left == 0, "host {host}: {left} {gauge}");
        }
        let calm = world.descriptors[host].load(Ordering::Relaxed);
        let mut now = proxy.used()?;
        wait_until("descriptors are closed", PATIENCE, || {
            now = proxy.used()?;
            Ok(now.descriptors <= calm)
        })
        .with_context(|| format!("host {host}: {now:?}; {calm} descriptors when it was new"))?;
        ensure!(
            now.memory <= base.memory + CACHES,
            "host {host}: {now:?}, at first {base:?}"
        );
        let state = std::fs::read_dir(proxy.directory().join("state"))?.count();
        ensure!(state == 1, "host {host}: {state} files are kept");
        let log = proxy.log()?;
        let loud = log.lines().find(|line| is_loud(line));
        ensure!(loud.is_none(), "host {host}: {loud:?}");
    }
    // The last host is only ever reloaded: what it lost it would still miss.
    let last = world.proxy(HOSTS - 1).memory()?;
    let grown = early.map(|early| last.saturating_sub(early));
    ensure!(
        grown.is_none_or(|grown| grown < 16 << 10),
        "{last} KiB of memory, and {early:?} after a quarter of the time"
    );
    let tracked = network::tracked()?;
    ensure!(tracked == 0, "{tracked} connections are tracked");
    Ok(())
}

/// Whether a line of a log tells of something that must not happen. Wrong files do: on purpose.
fn is_loud(line: &str) -> bool {
    let error = line.contains(" ERROR ") && !line.contains("configuration not reloaded");
    error || line.contains("panicked at")
}

/// Keeps what the proxies wrote.
fn keep(world: &World, directory: &Path, wrong: &[String]) -> anyhow::Result<()> {
    std::fs::write(directory.join("wrong.txt"), wrong.join("\n"))?;
    for host in 0..HOSTS {
        let to: PathBuf = directory.join(format!("host-{host}"));
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(world.proxy(host).directory()).arg(to);
        program::run(&mut copy, PATIENCE)?.ok()?;
    }
    Ok(())
}
