//! Clients of one application: each appends record after record and sometimes reads, through one
//! host after the other, and remembers what it sent and heard.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;

use super::diary::Stop;
use super::history::{Event, What};
use crate::clock;
use crate::log::Record;
use crate::log::client::Connection;
use crate::log::protocol::{Answer, Question};

/// The longest waits for an answer, in seconds: an impatient client repeats itself while its first
/// try is still held somewhere.
const PATIENCE: [u64; 4] = [2, 2, 5, 15];

/// The door of a lab without hosts.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Clients at work.
#[derive(Debug)]
pub(super) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    events: Mutex<Vec<Event>>,
    stop: Stop,
}

impl Shared {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clients {
    /// Lets `count` clients begin.
    pub(super) fn begin(doors: &[SocketAddr], count: u64, seed: u64) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut rng = Rng::with_seed(seed);
        let threads = (1..=count)
            .map(|number| {
                let client = Client {
                    number,
                    doors: doors.to_vec(),
                    rng: rng.fork(),
                    shared: Arc::clone(&shared),
                    connection: None,
                };
                std::thread::Builder::new()
                    .name(format!("client {number}"))
                    .spawn(move || client.work())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    /// How many clients had an answer since a time.
    pub(super) fn answered_since(&self, time: u64) -> usize {
        let events = self.shared.events();
        let answered: BTreeSet<u64> = events
            .iter()
            .rev()
            .take_while(|event| event.at >= time)
            .filter(|event| matches!(event.what, What::At { .. }))
            .map(|event| event.client)
            .collect();
        answered.len()
    }

    /// How many clients there are.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Lets them finish, which takes no longer than their patience, and returns what happened.
    pub(super) fn stop(self) -> Vec<Event> {
        self.shared.stop.stop();
        for thread in self.threads {
            // One that panicked has said so; what it did until then counts.
            drop(thread.join());
        }
        let mut events = std::mem::take(&mut *self.shared.events());
        events.sort_by_key(|event| event.at);
        events
    }
}

struct Client {
    number: u64,
    doors: Vec<SocketAddr>,
    rng: Rng,
    shared: Arc<Shared>,
    connection: Option<(Connection, SocketAddr)>,
}

impl Client {
    fn work(mut self) {
        let mut sequence = 0;
        while !self.shared.stop.is_over() {
            let question = if self.rng.usize(0..5) == 0 {
                self.note(What::Read);
                Question::Read
            } else {
                sequence += 1;
                self.note(What::Append { sequence });
                Question::Append(Record {
                    client: self.number,
                    sequence,
                })
            };
            if !self.insist(question) {
                return;
            }
            let pause = self.rng.u64(5..60);
            self.shared.stop.rest(Duration::from_millis(pause));
        }
    }

    /// Asks until there is an answer, or until it is over, which is `false`. A read is given up
    /// after a failure.
    fn insist(&mut self, question: Question) -> bool {
        loop {
            match self.try_once(question) {
                Ok(()) => return true,
                Err((door, reason)) => {
                    let door = door.to_string();
                    self.note(What::Failed { door, reason });
                }
            }
            let pause = self.rng.u64(50..300);
            if self.shared.stop.rest(Duration::from_millis(pause)) {
                return false;
            }
            if question == Question::Read {
                return true;
            }
        }
    }

    fn try_once(&mut self, question: Question) -> Result<(), (SocketAddr, String)> {
        // Many requests go over one connection, but none for ever.
        let kept = self.connection.take().filter(|_| self.rng.usize(0..20) > 0);
        let patience = self.rng.choice(PATIENCE).unwrap_or(1);
        let patience = Duration::from_secs(patience);
        let (mut connection, door) = if let Some(kept) = kept {
            kept
        } else {
            let door = *self.rng.choice(&self.doors).unwrap_or(&NOWHERE);
            let opened = Connection::open(door, patience);
            (opened.map_err(|error| (door, error.to_string()))?, door)
        };
        let answer = connection
            .ask(question)
            .map_err(|error| (door, format!("{error:#}")))?;
        self.connection = Some((connection, door));
        match answer {
            Answer::At(index) => self.note(What::At { index }),
            Answer::Is(length, digest) => self.note(What::Is { length, digest }),
            Answer::Gap(last) => {
                self.note(What::Gap { last });
                return Err((door, "the server forgot this client".to_owned()));
            }
            Answer::Not(reason) => return Err((door, reason)),
        }
        Ok(())
    }

    fn note(&self, what: What) {
        let (at, client) = (clock::now(), self.number);
        self.shared.events().push(Event { at, client, what });
    }
}
