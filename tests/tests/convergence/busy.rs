//! A client that asks again and again is served all through the drain, and so are rounds sent: what
//! it wrote meanwhile is not left for the window.
//!
//! Such a client is told goodbye as soon as it pauses, as a machine that stands still makes it do. So
//! another one keeps the drain going, until it is over or the test has seen enough: it does not read
//! what it asked for, and nobody takes that for idleness.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rehome_tests::cluster::Migration;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Lab, Runtime, with_lab};
use rehome_tests::load::block_on;
use rehome_tests::program::Running;
use rehome_tests::store::{Redis, Store as _};
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::json;

const NAME: &str = "busy";
const PORT: u16 = 7001;

/// From an answer to the next question.
const THINK: Duration = Duration::from_millis(3);

/// Much less than the store has, and much more than is written in some seconds.
const SMALL: u64 = 8 << 20;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks the store to keep a word; whether it did. A connection may end between two answers, and
/// without a reset.
fn set(stream: &mut TcpStream, word: &str) -> anyhow::Result<bool> {
    stream.write_all(format!("SET {word} 1\r\n").as_bytes())?;
    let mut answer = [0; 5];
    let length = stream.read(&mut answer)?;
    if length == 0 {
        return Ok(false);
    }
    let (_, rest) = answer.split_at_mut(length);
    stream.read_exact(rest)?;
    ensure!(&answer == b"+OK\r\n", "{answer:?}");
    Ok(true)
}

/// Connects, and is served.
fn connect(door: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(door)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ensure!(set(&mut stream, "w-busy")?, "it was not served");
    Ok(stream)
}

/// Asks until it has `enough` or its connection ends; returns the words that were acknowledged.
fn ask(mut stream: TcpStream, enough: &AtomicBool) -> anyhow::Result<BTreeSet<String>> {
    let mut words = BTreeSet::from(["w-busy".to_owned()]);
    for number in 0_u32.. {
        let word = format!("w-busy-{number}");
        if !set(&mut stream, &word)? {
            break;
        }
        words.insert(word);
        if enough.load(Ordering::Relaxed) {
            break;
        }
        thread::park_timeout(THINK);
    }
    Ok(words)
}

/// Asks for more than all buffers on the way hold, and reads no more of it than that it comes.
fn ask_for_much(door: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = connect(door)?;
    let mut expect = |request: &str, answer: &[u8]| -> anyhow::Result<()> {
        stream.write_all(request.as_bytes())?;
        let mut given = vec![0; answer.len()];
        stream.read_exact(&mut given)?;
        ensure!(given == answer, "{request:?}: {given:?}");
        Ok(())
    };
    // A mebibyte, which takes none on the disk.
    expect("SETRANGE big 1048575 x\r\n", b":1048576\r\n")?;
    expect(&format!("MGET{}\r\n", " big".repeat(64)), b"*64\r\n")?;
    Ok(stream)
}

/// A store with a client that is busy until it is drained, in a move from the first host to the
/// second.
struct Stage<'a> {
    lab: &'a Lab,
    door: SocketAddr,
    client: JoinHandle<anyhow::Result<BTreeSet<String>>>,
    /// Whether the client has asked enough.
    enough: Arc<AtomicBool>,
    /// As long as this is there the drain goes on.
    unread: Option<TcpStream>,
    command: Running,
}

impl<'a> Stage<'a> {
    /// Begins the move of a store with so many mebibytes, whose drain lasts until it is released.
    fn begin(lab: &'a Lab, mebibytes: u32) -> anyhow::Result<Self> {
        // The second round is the last before the window, whatever it shows.
        let limits = json!({"migration": {
            "max_rounds": 2, "on_stall": "cutover", "drain": "120s", "hard_cap": "60s",
        }});
        let body = changed(&Redis.body(PORT), &limits);
        lab.deploy(&Deployment::new().with(NAME, 1, &body))?.ok()?;
        lab.wait_running(NAME, 1)?;
        let door = lab.host(1)?.door(PORT)?;
        block_on(Redis.ballast(door, mebibytes))?;
        let unread = Some(ask_for_much(door)?);
        let busy = connect(door)?;
        let enough = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&enough);
        Ok(Self {
            lab,
            door,
            client: thread::spawn(move || ask(busy, &ends)),
            enough,
            unread,
            command: lab.begin_move(NAME, 2)?,
        })
    }

    /// Waits until the drain is as `seen` wants it.
    fn wait(&self, what: &str, seen: impl Fn(&Migration) -> bool) -> anyhow::Result<()> {
        wait_for(what, PATIENCE, || {
            let last = self.lab.migrations()?.pop();
            if let Some(over) = last.as_ref().filter(|m| m.state() != "running") {
                bail!("it is over: {over:?}");
            }
            Ok(last.filter(|m| m.phase() == "drain" && seen(m)).map(drop))
        })
    }

    /// Waits until the log of the source has these words.
    fn wait_said(&self, words: &str) -> anyhow::Result<()> {
        let host = self.lab.host(1)?;
        let (lab, name) = (self.lab.name(), host.name());
        let log = format!("/var/lib/rehome-lab/{lab}/{name}/log/migrated.log");
        wait_until(&format!("it says {words:?}"), PATIENCE, || {
            Ok(fs::read_to_string(&log)?.contains(words))
        })
    }

    /// Kills the destination's `migrated` when a round of the drain has arrived, and keeps it down
    /// until another one failed: a stream waits for half a minute. Returns the process that was killed.
    fn lose_a_round(&self) -> anyhow::Result<u32> {
        self.wait("a round of the drain arrived", |m| rounds(m) > 2)?;
        let destination = self.lab.host(2)?;
        let killed = destination.daemon("migrated")?;
        destination.hold("migrated")?;
        destination.kill_daemon("migrated")?;
        self.wait_said("a round of the drain did not arrive")?;
        Ok(killed)
    }

    /// Ends the drain: both clients go.
    fn release(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        self.unread = None;
    }

    /// Waits until it arrived, with all that the client was promised.
    fn arrived(self) -> anyhow::Result<Migration> {
        self.command.wait()?.ok()?;
        let acknowledged = self.client.join().ok().context("the client panicked")??;
        self.lab.wait_running(NAME, 2)?;
        let migration = self.lab.last_migration()?;
        ensure!(migration.state() == "done", "{migration:?}");
        ensure!(migration.0["connections"]["drained"] == 2, "{migration:?}");
        let kept = block_on(Redis.words(self.door))?;
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        ensure!(lost.is_empty() && !kept.is_empty(), "lost: {lost:?}");
        Ok(migration)
    }
}

fn rounds(migration: &Migration) -> usize {
    migration.0["rounds"].as_array().map_or(0, Vec::len)
}

/// The bytes of the move that no round sent.
fn sent_in_the_window(migration: &Migration) -> Option<u64> {
    let mut all = migration.0["bytes"].as_u64()?;
    for round in migration.0["rounds"].as_array()? {
        all = all.checked_sub(round["bytes"].as_u64()?)?;
    }
    Some(all)
}

#[test]
fn rounds_go_on_while_a_busy_client_is_drained() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let mut stage = Stage::begin(lab, 0)?;
        stage.wait("two rounds of the drain arrived", |m| rounds(m) > 3)?;
        stage.release();
        let migration = stage.arrived()?;
        ensure!(rounds(&migration) > 3, "they are forgotten: {migration:?}");
        Ok(())
    })
}

#[test]
fn after_a_round_of_the_drain_that_failed_a_new_one_is_taken() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let mut stage = Stage::begin(lab, 0)?;
        let killed = stage.lose_a_round()?;
        let destination = lab.host(2)?;
        destination.let_go("migrated")?;
        destination.wait_daemon("migrated", killed)?;
        // What failed keeps its number, and with it its snapshot, which is old by now.
        stage.wait("a round with a number of its own is sent", |m| {
            let number = m.0["now"]["round"].as_u64();
            let number = number.and_then(|number| usize::try_from(number).ok());
            number.is_some_and(|number| number > rounds(m) + 1)
        })?;
        stage.release();
        stage.arrived().map(drop)
    })
}

/// Nothing is known of what the destination has when the drain is over: it is asked before the
/// store is stopped, for as long as that takes.
#[test]
fn a_destination_that_is_away_when_the_drain_ends_is_sent_a_difference() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let mut stage = Stage::begin(lab, 16)?;
        let killed = stage.lose_a_round()?;
        stage.release();
        stage.wait_said("the destination does not say what it has")?;
        let before = lab.application(NAME)?;
        ensure!(
            before.host.as_deref() == Some(lab.host(1)?.address()),
            "{before:?}"
        );
        let destination = lab.host(2)?;
        destination.let_go("migrated")?;
        destination.wait_daemon("migrated", killed)?;
        let migration = stage.arrived()?;
        let last = sent_in_the_window(&migration);
        ensure!(last.is_some_and(|bytes| bytes < SMALL), "{migration:?}");
        Ok(())
    })
}
