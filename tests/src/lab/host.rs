//! One host of a lab, as a person with a shell on it has it.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::LIMIT;
use crate::program::{self, Outcome, Running};
use crate::wait::{wait_for, wait_until};

/// How much of a daemon's log an error repeats.
const LOG_LINES: &str = "40";

/// A host.
#[derive(Debug, Clone)]
pub struct Host {
    lab: String,
    name: String,
    address: String,
}

impl Host {
    pub(super) fn read(lab: &str, entry: &Value) -> anyhow::Result<Self> {
        let text = |key: &str| entry[key].as_str().map(str::to_owned);
        Ok(Self {
            lab: lab.to_owned(),
            name: text("name").context("a host without a name")?,
            address: text("address").context("a host without an address")?,
        })
    }

    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the deployment.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// One of its ports, as clients reach it.
    ///
    /// # Errors
    /// When the address is none.
    pub fn door(&self, port: u16) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(self.address.parse()?, port))
    }

    /// Begins a command inside of it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn begin(&self, words: &[&str]) -> anyhow::Result<Running> {
        let mut command = Command::new(program::built("rehome")?);
        command
            .args(["lab", "--name", &self.lab, "exec", &self.name, "--"])
            .args(words);
        program::start(&mut command, LIMIT)
    }

    /// Runs a command inside of it.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn exec(&self, words: &[&str]) -> anyhow::Result<Outcome> {
        self.begin(words)?.wait()
    }

    /// Runs a line of shell inside of it, which must succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn shell(&self, line: &str) -> anyhow::Result<String> {
        Ok(self.exec(&["sh", "-ec", line])?.ok()?.stdout)
    }

    /// Runs the `rehome` command inside of it.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn rehome(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        let mut words = vec!["rehome"];
        words.extend(arguments);
        self.exec(&words)
    }

    /// The PID of a daemon, inside.
    ///
    /// # Errors
    /// When it does not run.
    pub fn daemon(&self, name: &str) -> anyhow::Result<u32> {
        let text = self.shell(&format!("cat /run/rehome/{name}.pid"))?;
        text.trim()
            .parse()
            .with_context(|| format!("{name} of {} has no PID", self.name))
    }

    /// Kills a daemon, as a crash would; init starts it again unless it is held down.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_daemon(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.daemon(name)?;
        self.shell(&format!("kill -KILL {pid}"))?;
        Ok(())
    }

    /// Waits until a daemon runs as another process than `before`, and answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_daemon(&self, name: &str, before: u32) -> anyhow::Result<()> {
        let port = metrics_port(name);
        let line = format!("curl -sf http://127.0.0.1:{port}/readyz");
        wait_for(&format!("{name} of {} is back", self.name), LIMIT, || {
            let new = self.daemon(name).is_ok_and(|pid| pid != before);
            Ok((new && self.shell(&line).is_ok()).then_some(()))
        })
    }

    /// Keeps a daemon down from its next end until it is let go.
    ///
    /// # Errors
    /// When the host is down.
    pub fn hold(&self, name: &str) -> anyhow::Result<()> {
        self.shell(&format!("touch /run/rehome/hold/{name}"))?;
        Ok(())
    }

    /// Lets a daemon start again.
    ///
    /// # Errors
    /// When the host is down.
    pub fn let_go(&self, name: &str) -> anyhow::Result<()> {
        self.shell(&format!("rm -f /run/rehome/hold/{name}"))?;
        Ok(())
    }

    /// What a daemon tells Prometheus.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, daemon: &str) -> anyhow::Result<String> {
        let port = metrics_port(daemon);
        self.shell(&format!("curl -sf http://127.0.0.1:{port}/metrics"))
    }

    /// The value of one series of a daemon.
    ///
    /// # Errors
    /// When there is no such series.
    pub fn metric(&self, daemon: &str, series: &str) -> anyhow::Result<f64> {
        let metrics = self.metrics(daemon)?;
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.with_context(|| format!("no {series} in:\n{metrics}"))?;
        Ok(value.trim().parse()?)
    }

    /// The command lines of all that runs inside, one per line.
    ///
    /// # Errors
    /// When the host is down.
    pub fn processes(&self) -> anyhow::Result<String> {
        self.shell("ps -eo args")
    }

    /// Kills it, as a power failure would.
    ///
    /// # Errors
    /// When that fails.
    pub fn crash(&self) -> anyhow::Result<()> {
        super::command(&self.lab, &["crash", &self.name])?.ok()?;
        Ok(())
    }

    /// Starts it with the disk it had.
    ///
    /// # Errors
    /// When that fails.
    pub fn start(&self) -> anyhow::Result<()> {
        super::command(&self.lab, &["start", &self.name])?.ok()?;
        Ok(())
    }

    /// Insists that no volume's live tree is here.
    ///
    /// # Errors
    /// When there is one.
    pub fn has_no_live_volume(&self) -> anyhow::Result<()> {
        let live = self.shell("ls /var/lib/rehome/pool/live")?;
        ensure!(
            live.trim().is_empty(),
            "{} still has live {live}",
            self.name
        );
        Ok(())
    }

    /// Waits until no volume's live tree is here: one that was given back goes after its owner has
    /// heard of that.
    ///
    /// # Errors
    /// When one stays.
    pub fn wait_no_live_volume(&self) -> anyhow::Result<()> {
        wait_until(&format!("{} has no live volume", self.name), LIMIT, || {
            Ok(self.has_no_live_volume().is_ok())
        })
    }

    /// The ends of the daemons' logs.
    pub(super) fn last_words(&self, lab: &str) -> String {
        let mut text = String::new();
        for daemon in ["migrated", "proxyd", "init"] {
            let log = format!("/var/lib/rehome-lab/{lab}/{}/log/{daemon}.log", self.name);
            let mut tail = Command::new("tail");
            let tail = program::run(tail.args(["-n", LOG_LINES, &log]), LIMIT);
            let end = tail.map_or_else(|error| error.to_string(), |tail| tail.stdout);
            text = format!("{text}--- {} {daemon}\n{end}\n", self.name);
        }
        text
    }
}

fn metrics_port(daemon: &str) -> u16 {
    if daemon == "proxyd" { 9421 } else { 9420 }
}
