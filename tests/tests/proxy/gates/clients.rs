//! Clients that ask all the time, each question over a connection of its own, and the instances
//! that answer them.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rehome_tests::proxy::PATIENCE;
use rehome_tests::wait::wait_until;

/// A client tries for so long to have its answer.
const BUDGET: Duration = Duration::from_secs(30);
/// Between two of its tries.
const PAUSE: Duration = Duration::from_millis(5);

/// An instance: answers each byte.
pub(crate) struct Application {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
}

impl Application {
    pub(crate) fn start(number: u8) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 9, number), 8080))?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&accepted);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || answer(client));
            }
        });
        Ok(Self { address, accepted })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Answers every question mark.
fn answer(mut client: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while client.read(&mut byte)? == 1 {
        if byte == *b"?" {
            client.write_all(b"!")?;
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    /// The longest that one waited for its answer, in milliseconds.
    longest: AtomicU64,
}

/// The clients.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Clients {
    pub(crate) fn begin(door: SocketAddr, count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let client = |_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.ask_all_the_time(door))
        };
        Self {
            threads: (0..count).map(client).collect(),
            shared,
        }
    }

    /// Waits until every client may have had another answer.
    pub(crate) fn make_progress(&self) -> anyhow::Result<()> {
        let count = u64::try_from(self.threads.len())?;
        let wanted = self.shared.answers.load(Ordering::Relaxed) + 3 * count;
        wait_until("clients have answers", PATIENCE, || {
            let ended = self.threads.iter().any(JoinHandle::is_finished);
            ensure!(!ended, "a client had no answer within its budget");
            Ok(self.shared.answers.load(Ordering::Relaxed) >= wanted)
        })
    }

    /// Sends them home; what they saw.
    pub(crate) fn stop(&mut self) -> anyhow::Result<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.threads.drain(..) {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        let Shared {
            answers,
            refused,
            cut,
            longest,
            ..
        } = &*self.shared;
        Ok(format!(
            "{} answers; {} tries were refused and {} cut while there was no proxy; the longest \
             wait was {} ms",
            answers.load(Ordering::Relaxed),
            refused.load(Ordering::Relaxed),
            cut.load(Ordering::Relaxed),
            longest.load(Ordering::Relaxed)
        ))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn ask_all_the_time(&self, door: SocketAddr) -> anyhow::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            while let Err(error) = ask(door) {
                ensure!(
                    begin.elapsed() < BUDGET,
                    "no answer within the budget: {error}"
                );
                let of = match error.kind() {
                    io::ErrorKind::ConnectionRefused => &self.refused,
                    _ => &self.cut,
                };
                of.fetch_add(1, Ordering::Relaxed);
                thread::park_timeout(PAUSE);
            }
            let waited = u64::try_from(begin.elapsed().as_millis())?;
            self.longest.fetch_max(waited, Ordering::Relaxed);
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// One question over one connection.
fn ask(door: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&door, BUDGET)?;
    stream.set_read_timeout(Some(BUDGET))?;
    stream.write_all(b"?")?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer != *b"!" {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(())
}
