//! Clients at work while something happens to the cluster: each request is a connection of its
//! own, through one host after the other, and every acknowledged word is remembered.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::store::{Failure, Store};
use crate::wait::wait_until;

/// The park timeout that a deployment has unless it says otherwise: no client waits longer.
pub const PARK_TIMEOUT: Duration = Duration::from_mins(1);

/// From the end of a client's request to its next one.
const PACE: Duration = Duration::from_millis(250);

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Words that a store acknowledged.
    pub acknowledged: BTreeSet<String>,
    /// All words that were sent: of those without an answer nothing is known.
    pub sent: BTreeSet<String>,
    /// Requests that failed, with the time since the load began.
    pub failures: Vec<(Duration, SocketAddr, Failure)>,
    /// Requests without any answer within the park timeout.
    pub unanswered: u32,
    /// The longest wait for an answer.
    pub longest: Duration,
}

impl Tally {
    /// Insists that every request was answered rightly, and that there were some.
    ///
    /// # Errors
    /// When one was not.
    pub fn all_served(&self) -> anyhow::Result<()> {
        ensure!(
            self.failures.is_empty(),
            "requests failed: {:#?}",
            self.failures
        );
        ensure!(
            self.unanswered == 0,
            "{} requests had no answer",
            self.unanswered
        );
        ensure!(!self.acknowledged.is_empty(), "there were no requests");
        Ok(())
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load<S> {
    store: S,
    runtime: Runtime,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tally: Mutex<Tally>,
    stop: AtomicBool,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Store> Load<S> {
    /// Lets `clients` begin; they go through `doors` in turn.
    ///
    /// # Errors
    /// When this machine has no threads left.
    pub fn start(store: S, doors: &[SocketAddr], clients: usize) -> anyhow::Result<Self> {
        Self::start_at(store, doors, clients, PACE)
    }

    /// As [`Load::start`], with another pause between the requests of a client.
    ///
    /// # Errors
    /// When this machine has no threads left.
    pub fn start_at(
        store: S,
        doors: &[SocketAddr],
        clients: usize,
        pace: Duration,
    ) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let shared = Arc::new(Shared::default());
        let mut set = JoinSet::new();
        for number in 0..clients {
            let client = Client {
                store,
                number,
                doors: doors.to_vec(),
                shared: Arc::clone(&shared),
                begin: Instant::now(),
                pace,
            };
            set.spawn_on(client.work(), runtime.handle());
        }
        Ok(Self {
            store,
            runtime,
            clients: set,
            shared,
        })
    }

    /// Waits until there were so many more good answers.
    ///
    /// # Errors
    /// When there are not.
    pub fn wait_served(&self, more: usize) -> anyhow::Result<()> {
        let served = || self.shared.tally().acknowledged.len();
        let goal = served() + more;
        let limit = PARK_TIMEOUT + Duration::from_secs(30);
        wait_until(&format!("{more} more answers"), limit, || {
            Ok(served() >= goal)
        })
        .with_context(|| format!("failures: {:#?}", self.shared.tally().failures))
    }

    /// How many requests have failed or had no answer.
    #[must_use]
    pub fn failures(&self) -> usize {
        let tally = self.shared.tally();
        let unanswered = usize::try_from(tally.unanswered).unwrap_or(usize::MAX);
        tally.failures.len().saturating_add(unanswered)
    }

    /// The requests that failed after the first `known` ones.
    #[must_use]
    pub fn newest_failures(&self, known: usize) -> Vec<(Duration, SocketAddr, Failure)> {
        self.shared
            .tally()
            .failures
            .iter()
            .skip(known)
            .cloned()
            .collect()
    }

    /// While the clients go on, insists that a store has all the words that it acknowledged
    /// until now.
    ///
    /// # Errors
    /// When it has not.
    pub fn verify_so_far(&self, door: SocketAddr) -> anyhow::Result<()> {
        let acknowledged = self.shared.tally().acknowledged.clone();
        let words = block_on(self.store.words(door))?;
        let lost: Vec<_> = acknowledged.difference(&words).collect();
        ensure!(lost.is_empty(), "behind {door} are not: {lost:?}");
        Ok(())
    }

    /// Lets the clients finish and tells what became of all requests.
    #[must_use]
    pub fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.runtime
            .block_on(async { while self.clients.join_next().await.is_some() {} });
        self.shared.tally().clone()
    }

    /// As [`Load::stop`], and insists that behind every door the store has all the words that it
    /// acknowledged and none that was never sent.
    ///
    /// # Errors
    /// When it has not.
    pub fn stop_and_verify(self, doors: &[SocketAddr]) -> anyhow::Result<Tally> {
        let store = self.store;
        let tally = self.stop();
        verify(store, doors, &tally)?;
        Ok(tally)
    }
}

/// Insists that behind every door the store has all the words that it acknowledged and none that
/// was never sent.
///
/// # Errors
/// When it has not.
pub fn verify<S: Store>(store: S, doors: &[SocketAddr], tally: &Tally) -> anyhow::Result<()> {
    for door in doors {
        let words = block_on(store.words(*door))?;
        let lost: Vec<_> = tally.acknowledged.difference(&words).collect();
        ensure!(lost.is_empty(), "behind {door} are not: {lost:?}");
        let strange: Vec<_> = words.difference(&tally.sent).collect();
        ensure!(strange.is_empty(), "behind {door} are as well: {strange:?}");
    }
    Ok(())
}

/// Runs a request of a store.
///
/// # Errors
/// Those of the request.
pub fn block_on<T>(request: impl Future<Output = Result<T, Failure>>) -> anyhow::Result<T> {
    let limit = PARK_TIMEOUT.saturating_mul(2);
    let answer = runtime()?.block_on(async { tokio::time::timeout(limit, request).await });
    Ok(answer.context("no answer")??)
}

fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

struct Client<S> {
    store: S,
    number: usize,
    doors: Vec<SocketAddr>,
    shared: Arc<Shared>,
    begin: Instant,
    pace: Duration,
}

impl<S: Store> Client<S> {
    async fn work(self) {
        let mut earlier = None;
        for turn in 0_usize.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let door = self
                .doors
                .iter()
                .cycle()
                .nth((self.number + turn) % self.doors.len().max(1));
            let Some(door) = door else { return };
            let word = format!("w-{}-{turn}", self.number);
            self.shared.tally().sent.insert(word.clone());
            let begin = Instant::now();
            let request = self.store.add(*door, &word, earlier.as_deref());
            let answer = tokio::time::timeout(PARK_TIMEOUT, request).await;
            {
                let mut tally = self.shared.tally();
                tally.longest = tally.longest.max(begin.elapsed());
                match answer {
                    Ok(Ok(())) => drop(tally.acknowledged.insert(word.clone())),
                    Ok(Err(failure)) => tally.failures.push((self.begin.elapsed(), *door, failure)),
                    Err(_elapsed) => tally.unanswered += 1,
                }
                if tally.acknowledged.contains(&word) {
                    earlier = Some(word);
                }
            }
            tokio::time::sleep(self.pace).await;
        }
    }
}
