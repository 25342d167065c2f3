//! Clients of the soak: each visit is to one application through one host, and what it says must
//! come back unchanged.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::world::{HOSTS, World};

/// Clients at once.
const CLIENTS: usize = 12;
/// A visit succeeds within it, with as many tries as it takes.
const BUDGET: Duration = Duration::from_secs(30);
/// No single wait of a visit is longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// What a visit does.
#[derive(Debug, Clone, Copy)]
enum Visit {
    /// Says so much, then goodbye, and hears it all.
    Once(usize),
    /// Says so much again and again, and hears each before the next.
    Talk { words: usize, turns: usize },
}

#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    answers: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    longest: AtomicU64,
}

/// The clients.
#[derive(Debug)]
pub(super) struct Visitors {
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Visitors {
    pub(super) fn begin(world: &Arc<World>, rng: &mut Rng) -> Self {
        let counts = Arc::new(Counts::default());
        let threads = (0..CLIENTS).map(|_| {
            let (world, counts, rng) = (Arc::clone(world), Arc::clone(&counts), rng.fork());
            thread::spawn(move || counts.visit_all_the_time(&world, rng))
        });
        Self {
            threads: threads.collect(),
            counts,
        }
    }

    pub(super) fn answers(&self) -> u64 {
        self.counts.answers.load(Ordering::Relaxed)
    }

    /// Sends them home; what they saw.
    pub(super) fn stop(self) -> String {
        self.counts.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // What it has to say it has said.
            drop(thread.join());
        }
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        format!(
            "{} visits, {} MiB; tries refused while a proxy was away: {}, cut with a reason: {}; \
             the longest visit took {} ms",
            count(&self.counts.answers),
            count(&self.counts.bytes) >> 20,
            count(&self.counts.refused),
            count(&self.counts.cut),
            count(&self.counts.longest)
        )
    }
}

impl Counts {
    fn visit_all_the_time(&self, world: &World, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let visit = match rng.u8(0..10) {
                0 => Visit::Once(rng.usize(1..8 << 20)),
                1..4 => Visit::Talk {
                    words: rng.usize(1..2000),
                    turns: rng.usize(1..20),
                },
                _ => Visit::Once(rng.usize(1..20_000)),
            };
            let (host, application) = (rng.usize(0..HOSTS), rng.usize(0..world.applications.len()));
            let begin = Instant::now();
            while let Err(error) = self.try_visit(world, (host, application), visit, &mut rng) {
                if begin.elapsed() > BUDGET {
                    world.complain(format!(
                        "{visit:?} of application {application} through host {host} was not over \
                         within its budget: {error}"
                    ));
                    break;
                }
                thread::park_timeout(PAUSE);
            }
            let took = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.longest.fetch_max(took, Ordering::Relaxed);
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One try. An error that nothing explains is told.
    fn try_visit(
        &self,
        world: &World,
        (host, application): (usize, usize),
        visit: Visit,
        rng: &mut Rng,
    ) -> io::Result<()> {
        let (since, there) = (world.since(), world.there(host));
        let door = world.proxy_door(host, application);
        let result = TcpStream::connect_timeout(&door, PATIENCE);
        let refused = result.is_err();
        let result = result.and_then(|stream| self.talk(&stream, visit, rng));
        if let Err(error) = &result {
            let why =
                format!("{visit:?} of application {application} through host {host}: {error}");
            if error.kind() == io::ErrorKind::InvalidData {
                world.complain(format!("{why}: other bytes came back"));
            } else if refused {
                self.refused.fetch_add(1, Ordering::Relaxed);
                if there.is_some() && there == world.there(host) {
                    world.complain(format!("{why}: refused by a proxy that runs"));
                }
            } else {
                self.cut.fetch_add(1, Ordering::Relaxed);
                if world.was_calm(since) {
                    world.complain(format!("{why}: cut without a reason"));
                }
            }
        }
        result
    }

    fn talk(&self, stream: &TcpStream, visit: Visit, rng: &mut Rng) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        match visit {
            Visit::Once(length) => self.exchange(stream, &noise(rng, length), Goodbye::Say),
            Visit::Talk { words, turns } => {
                for _ in 0..turns {
                    self.exchange(stream, &noise(rng, words), Goodbye::Wait)?;
                    thread::park_timeout(Duration::from_millis(rng.u64(0..30)));
                }
                Ok(())
            }
        }
    }

    /// Says something and hears it again.
    fn exchange(&self, stream: &TcpStream, said: &[u8], goodbye: Goodbye) -> io::Result<()> {
        let heard = thread::scope(|scope| {
            let speaks = scope.spawn(|| {
                let mut stream = stream;
                stream.write_all(said)?;
                match goodbye {
                    Goodbye::Say => stream.shutdown(Shutdown::Write),
                    Goodbye::Wait => Ok(()),
                }
            });
            let (mut heard, mut stream) = (vec![0; said.len()], stream);
            let read = stream.read_exact(&mut heard);
            let spoke = speaks.join().unwrap_or(Err(io::ErrorKind::Other.into()));
            read.and(spoke).map(|()| heard)
        })?;
        if heard != said {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let bytes = u64::try_from(said.len()).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match goodbye {
            Goodbye::Wait => Ok(()),
            Goodbye::Say => match (&*stream).read(&mut [0])? {
                0 => Ok(()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            },
        }
    }
}

/// Whether what is said is the last.
#[derive(Debug, Clone, Copy)]
enum Goodbye {
    Say,
    Wait,
}

fn noise(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}
