//! Clients at work, each on one connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};

use crate::wait::wait_until;

/// No answer takes longer: not even one that waits for a move.
const LIMIT: Duration = Duration::from_mins(1);
/// From an answer to the next question.
const PACE: Duration = Duration::from_millis(20);

/// A connection.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn open(at: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&at, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and returns the body of the answer.
    ///
    /// # Errors
    /// When there is no whole answer, or it is an error.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: web\r\nContent-Length: {length}");
        let request = format!("{head}\r\n\r\n{body}");
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .context("ask")?;
        let (mut length, mut first) = (0, String::new());
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).context("read an answer")?;
            ensure!(read > 0, "the connection was closed");
            let line = line.trim_end();
            if first.is_empty() {
                line.clone_into(&mut first);
            } else if line.is_empty() {
                break;
            } else if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.parse()?;
            }
        }
        ensure!(first == "HTTP/1.1 200 OK", "{first}");
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).context("read a body")?;
        Ok(String::from_utf8(body)?)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    served: AtomicUsize,
    failed: AtomicUsize,
}

/// Clients that send words.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<Worked>>>,
}

/// What a client did.
#[derive(Debug)]
struct Worked {
    words: Vec<String>,
    longest: Duration,
}

impl Clients {
    /// Lets so many begin, by these doors in turn.
    #[must_use]
    pub fn start(doors: &[SocketAddr], clients: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let doors = doors.iter().cycle().take(clients).enumerate();
        let threads = doors.map(|(number, door)| {
            let (door, shared) = (*door, Arc::clone(&shared));
            thread::spawn(move || {
                let worked = work(number, door, &shared);
                if worked.is_err() {
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                }
                worked.with_context(|| format!("client {number} of {door}"))
            })
        });
        Self {
            threads: threads.collect(),
            shared,
        }
    }

    /// Waits until there were so many more answers.
    ///
    /// # Errors
    /// When a client failed.
    pub fn wait_served(&self, more: usize) -> anyhow::Result<()> {
        let goal = self.shared.served.load(Ordering::Relaxed) + more;
        wait_until("more answers", LIMIT, || {
            let failed = self.shared.failed.load(Ordering::Relaxed);
            // What went wrong is told at the end.
            Ok(failed > 0 || self.shared.served.load(Ordering::Relaxed) >= goal)
        })
    }

    /// Ends, and returns the words that were acknowledged and the longest wait for one.
    ///
    /// # Errors
    /// When a client failed.
    pub fn stop(self) -> anyhow::Result<(Vec<String>, Duration)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (mut words, mut longest) = (Vec::new(), Duration::ZERO);
        for thread in self.threads {
            let worked = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            words.extend(worked.words);
            longest = longest.max(worked.longest);
        }
        Ok((words, longest))
    }
}

fn work(number: usize, door: SocketAddr, shared: &Shared) -> anyhow::Result<Worked> {
    let mut connection = Connection::open(door)?;
    let mut worked = Worked {
        words: Vec::new(),
        longest: Duration::ZERO,
    };
    while !shared.stop.load(Ordering::Relaxed) {
        let word = format!("{number}-{}", worked.words.len());
        let began = Instant::now();
        let answer = connection.ask("POST", &format!("/{word}"), &"x".repeat(200));
        let answer = answer.with_context(|| format!("{word}, after {:?}", began.elapsed()))?;
        ensure!(answer == format!("kept {word}"), "{answer}");
        worked.longest = worked.longest.max(began.elapsed());
        worked.words.push(word);
        shared.served.fetch_add(1, Ordering::Relaxed);
        // The pace of a client, in which its connection rests.
        thread::park_timeout(PACE);
    }
    Ok(worked)
}
