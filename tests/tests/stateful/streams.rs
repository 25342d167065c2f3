//! The link between two hosts, which is cut, narrow, or shared: streams of volumes go on, and are
//! compressed and held to their rates.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rehome_tests::cluster::Migration;
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Host, Lab, Runtime, with_lab};
use rehome_tests::load::Load;
use rehome_tests::store::{Redis, Store};
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::{Value, json};

use crate::scene::{NAME, PORT, Scene, on_stage};

const PATIENCE: Duration = Duration::from_mins(3);

const MIB: u64 = 1 << 20;

/// Longer than TCP takes to try again soon, and far shorter than the destination's grace.
const SHORT: Duration = Duration::from_secs(7);

/// Longer than both sides wait.
const LONG: Duration = Duration::from_mins(1);

#[test]
fn a_cut_of_seconds_costs_a_move_neither_the_round_nor_the_window() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&Deployment::new().with(NAME, 1, &slow_body()))?;
        fill(scene.door(), 32, Filling::Noise)?;
        // A client beside the cut; it writes all the time.
        let load = Load::start(scene.store, &scene.doors[..1], 2)?;
        load.wait_served(10)?;

        let (from, to) = (scene.lab.host(1)?, scene.lab.host(2)?);
        let resumes = resumes(from)?;
        let command = scene.lab.begin_move(NAME, 2)?;
        wait_streamed(scene.lab, "precopy", 4 * MIB)?;
        cut(from, to, SHORT)?;
        command.wait()?.ok()?;
        scene.lab.wait_running(NAME, 2)?;
        load.wait_served(10)?;
        let there = scene.lab.last_migration()?;
        ensure!(resumed(from, resumes)?, "no stream went on: {there:?}");
        // What was lost is what was on its way, far from all that had been sent.
        let first = round_bytes(&there, 0)?;
        ensure!((32 * MIB..44 * MIB).contains(&first), "{first}: {there:?}");

        let resumes = self::resumes(to)?;
        let back = in_the_window(scene, to, from)?;
        ensure!(resumed(to, resumes)?, "no stream went on: {back:?}");
        let tally = load.stop_and_verify(&scene.doors)?;
        ensure!(tally.unanswered == 0, "{tally:?}");
        ensure!(tally.failures.is_empty(), "{:#?}", tally.failures);
        nothing_is_half_received(scene.lab)
    })
}

/// Moves the store back to the first host and cuts the link in the middle of the final
/// difference, which is large because the store writes when it is told to stop.
fn in_the_window(scene: &Scene<'_, Redis>, from: &Host, to: &Host) -> anyhow::Result<Migration> {
    let command = scene.lab.begin_move(NAME, 1)?;
    wait_streamed(scene.lab, "final_delta", MIB)?;
    cut(from, to, SHORT)?;
    command.wait()?.ok()?;
    scene.lab.wait_running(NAME, 1)?;
    let back = scene.lab.last_migration()?;
    ensure!(back.state() == "done", "{back:?}");
    // The rounds before were small; sent twice it would be more than 28 MiB.
    let bytes = back.bytes()?;
    ensure!((24 * MIB..36 * MIB).contains(&bytes), "{bytes}: {back:?}");
    // What was written last is there as the source has it in its common base.
    let sum = |host: &Host, below: &str| {
        let line = format!("cd /var/lib/rehome/pool/{below}; cat $(find . -name late) | sha256sum");
        host.shell(&line)
    };
    let (here, there) = (sum(to, "live")?, sum(from, "snap")?);
    ensure!(here == there, "{here} is not {there}");
    Ok(back)
}

#[test]
fn a_cut_of_a_minute_sends_the_round_again() -> anyhow::Result<()> {
    on_stage(Redis, &[], |scene| {
        scene.open(&Deployment::new().with(NAME, 1, &slow_body()))?;
        fill(scene.door(), 32, Filling::Noise)?;
        let load = Load::start(scene.store, &scene.doors[..1], 2)?;
        load.wait_served(10)?;
        let before = scene.lab.application(NAME)?;

        let (from, to) = (scene.lab.host(1)?, scene.lab.host(2)?);
        let command = scene.lab.begin_move(NAME, 2)?;
        wait_streamed(scene.lab, "precopy", 4 * MIB)?;
        cut(from, to, LONG)?;
        // All that time nobody noticed.
        load.wait_served(10)?;
        let still = scene.lab.application(NAME)?;
        ensure!(still.run() == before.run(), "it was restarted: {still:?}");
        command.wait()?.ok()?;

        scene.lab.wait_running(NAME, 2)?;
        load.wait_served(10)?;
        let tally = load.stop_and_verify(&scene.doors)?;
        tally.all_served()?;
        let log = format!(
            "grep -cF 'a round did not arrive' /var/lib/rehome-lab/{}/{}/log/migrated.log",
            scene.lab.name(),
            from.name()
        );
        let mut grep = std::process::Command::new("sh");
        rehome_tests::program::run(grep.args(["-ec", &log]), PATIENCE)?
            .ok()
            .context("no round was given up")?;
        nothing_is_half_received(scene.lab)
    })
}

#[test]
fn what_can_be_compressed_is_and_noise_is_not() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("text", 1, &Redis.body(PORT)).with(
            "noise",
            1,
            &Redis.body(PORT + 1),
        );
        lab.deploy(&deployment)?.ok()?;
        let host = lab.host(1)?;
        for (name, port, filling) in [
            ("text", PORT, Filling::Text),
            ("noise", PORT + 1, Filling::Noise),
        ] {
            lab.wait_running(name, 1)?;
            fill(host.door(port)?, 24, filling)?;
            let raw = host.metric("migrated", "rehome_migration_raw_bytes_total")?;
            lab.move_to(name, 2)?.ok()?;
            let moved = lab.last_migration()?;
            let raw = wait_for("the bytes are counted", PATIENCE, || {
                let now = host.metric("migrated", "rehome_migration_raw_bytes_total")?;
                Ok((now > raw).then_some(now - raw))
            })?;
            #[expect(
                clippy::cast_precision_loss,
                clippy::as_conversions,
                reason = "a ratio"
            )]
            let share = moved.bytes()? as f64 / raw;
            ensure!(raw > 24.0 * 1024.0 * 1024.0, "{name}: {raw}");
            let right = match filling {
                Filling::Text => share < 0.3,
                Filling::Noise => (0.95..1.1).contains(&share),
            };
            ensure!(right, "{name}: {share} of {raw} bytes; {moved:?}");
        }
        Ok(())
    })
}

#[test]
fn all_moves_of_a_host_share_its_bandwidth() -> anyhow::Result<()> {
    with_lab(Runtime::Process, &[], |lab| {
        let deployment = Deployment::new().with("one", 1, &Redis.body(PORT)).with(
            "two",
            1,
            &Redis.body(PORT + 1),
        );
        lab.deploy(&deployment)?.ok()?;
        let host = lab.host(1)?;
        for (name, port) in [("one", PORT), ("two", PORT + 1)] {
            lab.wait_running(name, 1)?;
            fill(host.door(port)?, 16, Filling::Noise)?;
        }
        let applied = "rehome_config_reloads_total{result=\"applied\"}";
        let before = host.metric("migrated", applied)?;
        let pid = host.daemon("migrated")?;
        host.shell(&format!(
            "echo 'limits: {{bandwidth: 2MiB}}' >>/etc/rehome/migrated.yml; kill -HUP {pid}"
        ))?;
        wait_until("the limit is in force", PATIENCE, || {
            Ok(host.metric("migrated", applied)? > before)
        })?;

        let begun = Instant::now();
        let moved = Deployment::new().with("one", 2, &Redis.body(PORT)).with(
            "two",
            3,
            &Redis.body(PORT + 1),
        );
        lab.deploy(&moved)?.ok()?;
        let took = begun.elapsed().as_secs_f64();

        let moves = lab.migrations()?;
        ensure!(moves.len() == 2, "{moves:?}");
        let bytes = moves[0].bytes()? + moves[1].bytes()?;
        #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a rate")]
        let least = bytes as f64 / (2 * MIB) as f64;
        ensure!(took > least * 0.9, "{bytes} bytes in {took} s: {moves:?}");
        ensure!(took < least * 5.0 + 60.0, "{took} s for {bytes}: {moves:?}");
        for moved in &moves {
            // Each had its share, even if one began some seconds after the other: alone the first
            // round would have taken half of this.
            let seconds = moved.0["rounds"][0]["seconds"]
                .as_f64()
                .context("no round")?;
            ensure!(seconds > least * 0.6, "{seconds} s: {moves:?}");
        }
        Ok(())
    })
}

/// A store that is copied slowly, may have a long window, and writes 24 MiB when it is told to
/// stop: a stream goes on for 8 s at least, so that whoever sees it begin can still cut it.
fn slow_body() -> Value {
    let body = Redis.body(PORT);
    let words = body["command"].as_array().into_iter().flatten();
    let server: Vec<String> = words
        .map(|word| format!("'{}'", word.as_str().unwrap_or_default()))
        .collect();
    let script = format!(
        "trap 'dd if=/dev/urandom of=/data/late bs=1M count=24 2>/dev/null; \
         kill $p; wait $p; exit' TERM; {} & p=$!; wait $p",
        server.join(" ")
    );
    let slow = json!({
        "command": ["sh", "-c", script],
        "migration": {"bandwidth_limit": "3MiB", "downtime_budget": "60s", "hard_cap": "120s"},
    });
    changed(&body, &slow)
}

/// Lets nothing through between two hosts for a while.
fn cut(one: &Host, other: &Host, time: Duration) -> anyhow::Result<()> {
    // The host itself mends it, whatever becomes of the test.
    let rules = format!(
        "rules() {{ iptables $1 OUTPUT -d {other} -j DROP; iptables $1 INPUT -s {other} -j DROP; }}; \
         rules -I; sleep {seconds}; rules -D",
        other = other.address(),
        seconds = time.as_secs()
    );
    one.shell(&rules)?;
    Ok(())
}

fn wait_streamed(lab: &Lab, phase: &str, bytes: u64) -> anyhow::Result<Migration> {
    wait_for(&format!("{bytes} bytes in {phase}"), PATIENCE, || {
        let now = lab.migrations()?.pop();
        Ok(now.filter(|m| m.phase() == phase && m.streamed() > bytes))
    })
}

fn resumes(host: &Host) -> anyhow::Result<f64> {
    host.metric("migrated", "rehome_migration_stream_resumes_total")
}

fn resumed(host: &Host, before: f64) -> anyhow::Result<bool> {
    Ok(resumes(host)? > before)
}

fn round_bytes(migration: &Migration, round: usize) -> anyhow::Result<u64> {
    let bytes = migration.0["rounds"][round]["bytes"].as_u64();
    bytes.with_context(|| format!("no round {round}: {migration:?}"))
}

fn nothing_is_half_received(lab: &Lab) -> anyhow::Result<()> {
    for host in lab.hosts() {
        let left = host.shell("find /var/lib/rehome/pool/recv -mindepth 2 -maxdepth 2")?;
        ensure!(left.trim().is_empty(), "on {}: {left}", host.name());
    }
    Ok(())
}

/// What a store is filled with.
#[derive(Debug, Clone, Copy)]
enum Filling {
    Text,
    Noise,
}

fn fill(at: SocketAddr, mebibytes: u64, filling: Filling) -> anyhow::Result<()> {
    let mut client = Client::connect(at)?;
    for block in 0..mebibytes {
        let value = match filling {
            Filling::Text => b"all work and no play. ".repeat((1 << 20) / 22),
            Filling::Noise => noise(1 << 20, block),
        };
        client.set(&format!("fill-{block}"), &value)?;
    }
    Ok(())
}

/// Bytes without a pattern, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ (seed + 1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(u64::to_le_bytes(state));
    }
    bytes.truncate(length);
    bytes
}

/// A connection to a store that stays open.
struct Client(TcpStream);

impl Client {
    fn connect(at: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    fn request(&mut self, words: &[&[u8]]) -> anyhow::Result<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        Ok(self.0.write_all(&request)?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            self.0.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(String::from_utf8(line)?.trim_end().to_owned())
    }

    fn set(&mut self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        self.request(&[b"SET", key.as_bytes(), value])?;
        let answer = self.line()?;
        ensure!(answer == "+OK", "{answer}");
        Ok(())
    }
}
