//! Clients at work during the whole demonstration. Each request is a connection of its own, and
//! new ones begin at a fixed pace whether or not earlier ones were answered, as those of many
//! independent clients do. What they send is numbered, so that it can be looked for afterwards.

mod book;
mod client;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rehome_runtime::supervise::{Criticality, Supervisor};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};

use book::Book;
pub(super) use book::{Kind, Record, Request};
pub(super) use client::{page, tokens_in};

/// Longer than a connection may be parked.
const PATIENCE: Duration = Duration::from_secs(75);

/// How many requests of a kind wait at the same time, at most. With the connections of the page
/// and of the receiver these stay below the 400 that the store takes.
const OUTSTANDING: usize = 150;

/// How long a generator takes to notice that it is to end.
const STOP_TIME: Duration = Duration::from_secs(2);

/// Where the clients connect to.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    hosts: Vec<Ipv4Addr>,
}

impl Targets {
    /// The hosts, the one where log lines enter last.
    pub(super) fn new(hosts: Vec<Ipv4Addr>) -> Self {
        Self { hosts }
    }

    /// Where a request goes: log lines to the last host, others to one host after the other.
    fn of(&self, kind: Kind, number: usize) -> SocketAddr {
        let last = self.hosts.len().saturating_sub(1);
        let place = match kind {
            Kind::Log => last,
            Kind::Write | Kind::Search | Kind::Page => {
                number.checked_rem(self.hosts.len()).unwrap_or_default()
            }
        };
        let host = self
            .hosts
            .get(place)
            .copied()
            .unwrap_or(Ipv4Addr::LOCALHOST);
        SocketAddr::from((host, kind.port()))
    }

    /// Each host's way to a kind of service.
    pub(super) fn each(&self, kind: Kind) -> impl Iterator<Item = SocketAddr> {
        self.hosts
            .iter()
            .map(move |host| SocketAddr::from((*host, kind.port())))
    }
}

/// The clients. Dropping it ends them at once.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    generators: Supervisor,
    requests: Supervisor,
    /// The last field: what it runs goes first.
    runtime: Runtime,
}

#[derive(Debug)]
struct Shared {
    targets: Targets,
    book: Book,
    began: Instant,
}

impl Load {
    /// Fills the store with lines and starts the clients.
    pub(super) fn start(targets: Targets, lines: u32) -> Result<Self, LoadError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("demo-clients")
            .enable_all()
            .build()
            .map_err(LoadError::Runtime)?;
        let store = targets.of(Kind::Write, 0);
        let filled = runtime.block_on(timeout(PATIENCE, client::fill(store, lines)));
        filled
            .map_err(|_| LoadError::Fill("no answer".to_owned()))?
            .map_err(|failure| LoadError::Fill(failure.to_string()))?;
        let load = Self {
            shared: Arc::new(Shared {
                targets,
                book: Book::new(SystemTime::now()),
                began: Instant::now(),
            }),
            generators: Supervisor::new(),
            requests: Supervisor::new(),
            runtime,
        };
        for kind in Kind::ALL {
            load.generate(kind);
        }
        Ok(load)
    }

    /// Begins requests of a kind at its pace.
    fn generate(&self, kind: Kind) {
        let _inside = self.runtime.enter();
        let (shared, requests) = (Arc::clone(&self.shared), self.requests.clone());
        let stop = self.generators.token().clone();
        let generator = async move {
            let places = Arc::new(Semaphore::new(OUTSTANDING));
            let numbers = AtomicUsize::new(1);
            let mut pace = interval(kind.pace());
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let shared = Arc::clone(&shared);
                requests.spawn("request", Criticality::Ordinary, async move {
                    shared.request(kind, number).await;
                    drop(place);
                });
            }
        };
        self.generators
            .spawn("generator", Criticality::Ordinary, async move {
                // Cancelled when the load is to end. That loses no request: each is a task.
                stop.run_until_cancelled(generator).await;
            });
    }

    /// Ends the clients: no new request begins, those under way are waited for.
    pub(super) fn stop(self) -> Record {
        self.runtime.block_on(async {
            self.generators.cancel();
            self.generators.idle(STOP_TIME).await;
            // Each request has a limit of its own, which is shorter.
            self.requests.idle(PATIENCE + STOP_TIME).await;
        });
        self.shared.book.take()
    }
}

impl Shared {
    async fn request(&self, kind: Kind, number: usize) {
        let at = self.targets.of(kind, number);
        let token = kind.token(number);
        let known = self.book.acknowledged_write();
        if let Some(token) = &token {
            self.book.sent(token);
        }
        let begun = self.began.elapsed();
        let work = client::perform(kind, at, token.as_deref(), known.as_deref());
        let failure = match timeout(PATIENCE, work).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        self.book.note(
            Request {
                kind,
                host: at.ip(),
                begun,
                ended: self.began.elapsed(),
                failure,
            },
            token,
        );
    }
}

/// Why the clients did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// There are no threads for them.
    #[error("cannot run clients")]
    Runtime(#[source] io::Error),
    /// The store did not take the first lines.
    #[error("cannot fill the store: {0}")]
    Fill(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_enter_through_the_last_host_and_the_rest_through_all() {
        let hosts = [1, 2, 3].map(|last| Ipv4Addr::new(10, 77, 0, last));
        let targets = Targets::new(hosts.to_vec());
        for number in 0..6 {
            assert_eq!(
                targets.of(Kind::Log, number),
                SocketAddr::from((hosts[2], 5000))
            );
            assert_eq!(
                targets.of(Kind::Search, number),
                SocketAddr::from((hosts[number % 3], 5432))
            );
        }
    }
}
