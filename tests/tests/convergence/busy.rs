//! A client that asks again and again is served all through the drain, and so are rounds sent: what
//! it wrote meanwhile is not left for the window.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Runtime, with_lab};
use rehome_tests::load::block_on;
use rehome_tests::store::{Redis, Store as _};
use serde_json::json;

const NAME: &str = "busy";
const PORT: u16 = 7001;

/// From an answer to the next question.
const THINK: Duration = Duration::from_millis(3);

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks until its connection ends, which must be between two answers and without a reset; returns
/// the words that were acknowledged.
fn ask(door: SocketAddr) -> anyhow::Result<BTreeSet<String>> {
    let mut stream = TcpStream::connect(door)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut words = BTreeSet::new();
    for number in 0_u32.. {
        let word = format!("w-busy-{number}");
        stream.write_all(format!("SET {word} 1\r\n").as_bytes())?;
        let mut answer = [0; 5];
        let length = stream.read(&mut answer)?;
        if length == 0 {
            break;
        }
        let (_, rest) = answer.split_at_mut(length);
        stream.read_exact(rest)?;
        ensure!(&answer == b"+OK\r\n", "{answer:?}");
        words.insert(word);
        thread::park_timeout(THINK);
    }
    Ok(words)
}

#[test]
fn rounds_go_on_while_a_busy_client_is_drained() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        // The second round is the last before the window, whatever it shows.
        let limits = json!({"migration": {
            "max_rounds": 2, "on_stall": "cutover", "drain": "4s", "hard_cap": "60s",
        }});
        let body = changed(&Redis.body(PORT), &limits);
        lab.deploy(&Deployment::new().with(NAME, 1, &body))?.ok()?;
        lab.wait_running(NAME, 1)?;
        let door = lab.host(1)?.door(PORT)?;
        let client = thread::spawn(move || ask(door));

        lab.move_to(NAME, 2)?.ok()?;

        let acknowledged = client.join().ok().context("the client panicked")??;
        lab.wait_running(NAME, 2)?;
        let migration = lab.last_migration()?;
        let rounds = migration.0["rounds"].as_array().map_or(0, Vec::len);
        ensure!(rounds > 2, "none in the drain: {migration:?}");
        let drain = migration.0["phases"]["drain"].as_f64();
        ensure!(drain > Some(2.0), "nobody was busy: {migration:?}");
        ensure!(migration.0["connections"]["drained"] == 1, "{migration:?}");
        let kept = block_on(Redis.words(door))?;
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        ensure!(lost.is_empty() && !kept.is_empty(), "lost: {lost:?}");
        Ok(())
    })
}
