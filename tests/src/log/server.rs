//! The server: a thread per connection, one lock around the log.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::protocol::{Answer, LINE, Question};
use super::store::{AppendError, Kind, OpenError, Store};
use super::witness::{Finding, Presence};
use super::{Digest, Record};
use crate::clock;
use crate::wait::pause;

/// More connections than any soak has; others are closed.
const CONNECTIONS: usize = 512;

/// A client that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_mins(2);

/// What a server is made of.
#[derive(Debug, Args)]
pub struct Options {
    /// How the log is written
    #[arg(long)]
    kind: Kind,
    /// The directory of the log
    #[arg(long)]
    directory: PathBuf,
    /// The port to listen on
    #[arg(long)]
    port: u16,
    /// The directory in which all servers meet
    #[arg(long)]
    witness: PathBuf,
    /// MiB of noise beside the log
    #[arg(long, default_value_t = 0)]
    ballast: u32,
    /// KiB of it that are written anew in a second
    #[arg(long, default_value_t = 0)]
    churn: u32,
}

#[derive(Debug)]
struct Server {
    store: Mutex<Store>,
    connections: AtomicUsize,
    /// Tells that the log is torn: the process ends, and its next run finds out.
    torn: SyncSender<AppendError>,
}

/// Serves until the log is torn, which is the error, or a signal ends it.
///
/// # Errors
/// When it cannot begin, or go on.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let presence = Presence::begin(&options.witness).context("the witness")?;
    let path = options.directory.join("log");
    let at = clock::now();
    let is_new = !path.exists();
    let store = match Store::open(options.kind, &path) {
        Ok(store) => store,
        Err(error @ OpenError::Damaged(_)) => {
            let reason = error.to_string();
            presence.state(at, Finding::Damage { reason })?;
            return Err(error.into());
        }
        // A disk that is full, for example: it ends, and is started again.
        Err(error @ OpenError::Io(_)) => return Err(error.into()),
    };
    let (length, digest) = (store.length(), store.digest());
    presence.state(at, Finding::Log { length, digest })?;
    let ballast = options.directory.join("ballast");
    if is_new {
        std::fs::write(&ballast, noise(1, options.ballast << 20)).context("the ballast")?;
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, options.port))?;
    let (torn, ended) = sync_channel(1);
    let server = Arc::new(Server {
        store: Mutex::new(store),
        connections: AtomicUsize::new(0),
        torn,
    });
    std::thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || accept(&listener, &server))?;
    if options.churn > 0 {
        let length = u64::from(options.ballast) << 20;
        // 20 looks in a second, see `pause`.
        let portion = options.churn * 1024 / 20;
        std::thread::Builder::new()
            .name("churn".to_owned())
            .spawn(move || churn(&ballast, length, portion))?;
    }
    wait(&ended)
}

fn wait(ended: &Receiver<AppendError>) -> anyhow::Result<()> {
    let error = ended.recv().context("the server is gone")?;
    Err(error.into())
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            pause();
            continue;
        };
        if server.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            server.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let owner = Arc::clone(server);
        let thread = std::thread::Builder::new().spawn(move || {
            // A client that goes away needs no answer.
            drop(owner.converse(&stream));
            owner.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            server.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Server {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        let mut output = BufWriter::new(stream);
        loop {
            let mut line = String::new();
            let read = input.by_ref().take(LINE).read_line(&mut line)?;
            // A line that was cut short is no question: nobody knows what it would have been.
            if read == 0 || !line.ends_with('\n') {
                return Ok(());
            }
            match line.parse() {
                Ok(Question::Append(record)) => {
                    let Some(answer) = self.append(record) else {
                        return Ok(());
                    };
                    writeln!(output, "{answer}")?;
                }
                Ok(Question::Read) => {
                    let (length, digest) = self.state();
                    writeln!(output, "{}", Answer::Is(length, digest))?;
                }
                Ok(Question::Dump) => self.dump(&mut output)?,
                Err(garbled) => writeln!(output, "{}", Answer::Not(garbled.to_string()))?,
            }
            output.flush()?;
        }
    }

    fn state(&self) -> (u64, Digest) {
        let store = self.store();
        (store.length(), store.digest())
    }

    /// The answer to a record; none when the log is torn.
    fn append(&self, record: Record) -> Option<Answer> {
        let mut store = self.store();
        let (last, place) = store.last_of(record.client).unwrap_or_default();
        if record.sequence == last && last > 0 {
            return Some(Answer::At(place));
        }
        if record.sequence < last {
            let place = store.records().iter().position(|known| *known == record);
            let place = place.and_then(|place| u64::try_from(place).ok());
            return Some(place.map_or(Answer::Gap(last), Answer::At));
        }
        if record.sequence > last + 1 {
            return Some(Answer::Gap(last));
        }
        match store.append(record) {
            Ok(place) => Some(Answer::At(place)),
            Err(AppendError::Refused(error)) => Some(Answer::Not(error.to_string())),
            Err(error @ AppendError::Torn(_)) => {
                // The first one ends the process; a second one changes nothing.
                drop(self.torn.try_send(error));
                None
            }
        }
    }

    fn dump(&self, output: &mut impl io::Write) -> io::Result<()> {
        let (records, digest) = {
            let store = self.store();
            (store.records().to_vec(), store.digest())
        };
        let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
        writeln!(output, "{}", Answer::Is(length, digest))?;
        for record in records {
            writeln!(output, "{} {}", record.client, record.sequence)?;
        }
        Ok(())
    }
}

/// Writes the ballast anew, a portion at a time. A disk that is full spares it.
fn churn(path: &Path, length: u64, portion: u32) {
    use std::os::unix::fs::FileExt as _;
    let Ok(file) = std::fs::File::options().write(true).open(path) else {
        return;
    };
    let mut at = 0;
    for round in 2.. {
        pause();
        let bytes = noise(round, portion);
        if at + u64::from(portion) > length {
            at = 0;
        }
        drop(file.write_all_at(&bytes, at));
        at += u64::from(portion);
    }
}

/// Bytes without a pattern.
fn noise(seed: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64) -> Record {
        Record {
            client: 5,
            sequence,
        }
    }

    #[test]
    fn a_repeated_record_is_told_from_a_new_one_and_a_gap_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let (torn, _ended) = sync_channel(1);
        let server = Server {
            store: Mutex::new(Store::open(Kind::Fsync, &directory.path().join("log")).unwrap()),
            connections: AtomicUsize::new(0),
            torn,
        };
        assert_eq!(server.append(record(2)), Some(Answer::Gap(0)));
        assert_eq!(server.append(record(1)), Some(Answer::At(0)));
        assert_eq!(server.append(record(1)), Some(Answer::At(0)));
        assert_eq!(server.append(record(2)), Some(Answer::At(1)));
        assert_eq!(server.append(record(1)), Some(Answer::At(0)));
        assert_eq!(server.append(record(4)), Some(Answer::Gap(2)));
        assert_eq!(server.state().0, 2);
    }
}
