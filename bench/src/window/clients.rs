//! The clients of a trial. Probes write small words, on connections of their own and on kept ones,
//! and note when each was acknowledged; a writer overwrites large values at a given rate.
//!
//! New requests begin at a steady pace whether the earlier ones were answered or not, so a front
//! that makes some of them wait for a second does not hide when the store is back.

mod log;
mod noise;
mod probe;
mod writer;

pub use log::{Log, Way};

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rehome_tests::wait::wait_until;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use self::noise::Noise;
use crate::window::plan::{Kind, Scene};
use crate::window::session::Session;

/// Connections that are kept.
const KEPT: u32 = 2;
/// Connections that large values are written on.
const WRITERS: u32 = 2;
/// MiB in a large value.
const VALUE: u32 = 1;
/// The part of the volume that is overwritten.
const HOT: u32 = 4;
/// How long a client waits for an answer: as long as a front holds it by default.
const PATIENCE: Duration = Duration::from_mins(1);
/// Nothing is waited for longer.
const LIMIT: Duration = Duration::from_mins(5);

/// Where clients connect, and to what.
#[derive(Debug, Clone)]
struct Target {
    kind: Kind,
    front: SocketAddr,
    log: Arc<Log>,
    stop: Arc<AtomicBool>,
}

impl Target {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn open(&self) -> anyhow::Result<Session> {
        let open = Session::open(self.kind, self.front);
        tokio::time::timeout(PATIENCE, open)
            .await
            .context("no answer")?
    }
}

/// Fills an empty store: large values of `scene.size` MiB in all.
///
/// # Errors
/// Those of the store.
pub fn fill(runtime: &Runtime, scene: Scene, front: SocketAddr) -> anyhow::Result<()> {
    let noise = Noise::new();
    let load = async {
        let mut session = Session::open(scene.store, front).await?;
        session.prepare().await?;
        session.be_bulk().await?;
        for slot in 0..scene.size / VALUE {
            session.put(slot, noise.value(slot)).await?;
        }
        session.close().await;
        anyhow::Ok(())
    };
    let filled = runtime.block_on(async { tokio::time::timeout(LIMIT, load).await });
    filled.context("the store takes no data")?
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    target: Target,
    begin: Instant,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Lets them begin.
    #[must_use]
    pub fn start(runtime: &Runtime, scene: Scene, front: SocketAddr) -> Self {
        let begin = Instant::now();
        let target = Target {
            kind: scene.store,
            front,
            log: Arc::new(Log::new(begin)),
            stop: Arc::default(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn_on(probe::fresh(target.clone()), runtime.handle());
        for number in 0..KEPT {
            tasks.spawn_on(probe::kept(target.clone(), number), runtime.handle());
        }
        if scene.rate > 0 {
            let noise = Arc::new(Noise::new());
            for number in 0..WRITERS {
                let work = writer::Work {
                    number,
                    slots: (scene.size / VALUE / HOT / WRITERS).max(1),
                    every: Duration::from_secs(u64::from(VALUE * WRITERS)) / scene.rate,
                    noise: Arc::clone(&noise),
                };
                tasks.spawn_on(writer::write(target.clone(), work), runtime.handle());
            }
        }
        Self {
            target,
            begin,
            tasks,
        }
    }

    /// The time since they began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Waits until both kinds of probes were served more often, and some time has passed.
    ///
    /// # Errors
    /// When they are not served.
    pub fn wait_served(&self, more: usize, time: Duration) -> anyhow::Result<()> {
        let served = || Way::ALL.map(|way| self.target.log.served(way));
        let (before, began) = (served(), Instant::now());
        wait_until(&format!("{more} more acknowledgements"), LIMIT, || {
            let enough = served()
                .iter()
                .zip(&before)
                .all(|(now, then)| *now >= then + more);
            Ok(enough && began.elapsed() >= time)
        })
        .map_err(|error| anyhow!("{error}: {:?}", self.target.log.failures()))
    }

    /// Lets them finish, and hands over what they noted.
    pub fn stop(mut self, runtime: &Runtime) -> Arc<Log> {
        self.target.stop.store(true, Ordering::Relaxed);
        runtime.block_on(async { while self.tasks.join_next().await.is_some() {} });
        self.target.log
    }
}
