//! A cluster for a test: made by `rehome lab`, and removed when the test ends, however it ends.
//!
//! The name of a lab carries the process that made it, so that a lab whose test was killed is
//! recognised and removed by the next one.

mod host;
mod images;
mod owner;

pub use host::Host;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Application, Migration};
use crate::deployment::Deployment;
use crate::program::{self, Outcome, Running};
use crate::wait::wait_for;

/// No command of a test takes longer, on however busy a machine.
const LIMIT: Duration = Duration::from_mins(3);

/// What runs the applications of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// A Docker Engine in every host, with the image of busybox.
    Docker,
    /// Plain commands of this machine.
    Process,
}

/// A lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    runtime: Runtime,
    hosts: Vec<Host>,
    files: TempDir,
}

/// Makes a lab of three hosts, runs a test on it and removes it. When the test fails, the error
/// ends with what the daemons said.
///
/// # Errors
/// Those of the test; also when the lab cannot be made or removed.
pub fn with_lab(
    runtime: Runtime,
    options: &[&str],
    test: impl FnOnce(&Lab) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    owner::remove_orphans()?;
    let lab = Lab::up(runtime, options)?;
    match test(&lab) {
        Ok(()) => lab.down(),
        Err(error) => Err(anyhow!("{error:#}\n\n{}", lab.last_words())),
    }
}

/// A name for a lab of this process that no other lab has.
///
/// # Errors
/// When this process cannot be told from others.
pub fn new_name() -> anyhow::Result<String> {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    owner::lab_name(COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Lab {
    /// Makes a lab of three hosts.
    fn up(runtime: Runtime, options: &[&str]) -> anyhow::Result<Self> {
        let name = new_name()?;
        let mut lab = Self {
            name,
            runtime,
            hosts: Vec::new(),
            files: tempfile::tempdir()?,
        };
        let kind = match runtime {
            Runtime::Docker => "docker",
            Runtime::Process => "process",
        };
        let mut arguments = vec!["up", "--hosts", "3", "--runtime", kind, "--json"];
        arguments.extend(options);
        let made = lab.command(&arguments)?.ok()?.json()?;
        let hosts = made["hosts"].as_array().context("a lab without hosts")?;
        lab.hosts = hosts
            .iter()
            .map(|entry| Host::read(&lab.name, entry))
            .collect::<anyhow::Result<_>>()?;
        ensure!(lab.hosts.len() == 3, "not three hosts: {made}");
        if runtime == Runtime::Docker {
            images::load_busybox(&lab).context("the image of busybox")?;
        }
        Ok(lab)
    }

    /// Gives every host the image of PostgreSQL.
    ///
    /// # Errors
    /// When it cannot be built or loaded.
    pub fn load_postgres(&self) -> anyhow::Result<()> {
        images::load_postgres(self).context("the image of PostgreSQL")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What runs its applications.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// A host, counted from 1.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn host(&self, number: usize) -> anyhow::Result<&Host> {
        let index = number.checked_sub(1);
        let host = index.and_then(|index| self.hosts.get(index));
        host.with_context(|| format!("there is no h{number}"))
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The addresses of the hosts.
    #[must_use]
    pub fn addresses(&self) -> Vec<&str> {
        self.hosts.iter().map(Host::address).collect()
    }

    /// The first process of a host, as this machine numbers it.
    ///
    /// # Errors
    /// When the host is down.
    pub fn first_process(&self, host: &Host) -> anyhow::Result<u32> {
        let status = self.command(&["status", "--json"])?.ok()?.json()?;
        let mut hosts = status["hosts"].as_array().into_iter().flatten();
        let entry = hosts.find(|entry| entry["name"] == host.name());
        let pid = entry.and_then(|entry| entry["pid"].as_u64());
        Ok(u32::try_from(
            pid.with_context(|| format!("no process in {status}"))?,
        )?)
    }

    /// An external port on every host.
    ///
    /// # Errors
    /// When an address is none.
    pub fn doors(&self, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
        self.hosts.iter().map(|host| host.door(port)).collect()
    }

    /// A file of the test, which is gone when the lab is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Runs `rehome lab …` for this lab.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        command(&self.name, arguments)
    }

    /// Runs `rehome …` in the first host.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn rehome(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        self.host(1)?.rehome(arguments)
    }

    /// The arguments of `rehome deploy` for a deployment, whose files are written.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn deploy_arguments(&self, deployment: &Deployment) -> anyhow::Result<Vec<String>> {
        let (placed, described) = deployment.write(self.files.path(), &self.addresses())?;
        let path = |path: PathBuf| path.display().to_string();
        Ok(vec![
            "deploy".to_owned(),
            path(placed),
            path(described),
            "--json".to_owned(),
        ])
    }

    /// Runs `rehome deploy` in the first host.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn deploy(&self, deployment: &Deployment) -> anyhow::Result<Outcome> {
        let arguments = self.deploy_arguments(deployment)?;
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.rehome(&words)
    }

    /// Runs `rehome move` in the first host; the destination is counted from 1.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub fn move_to(&self, application: &str, host: usize) -> anyhow::Result<Outcome> {
        self.begin_move(application, host)?.wait()
    }

    /// Begins `rehome move` in the third host.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn begin_move(&self, application: &str, host: usize) -> anyhow::Result<Running> {
        let to = self.host(host)?.address();
        self.host(3)?
            .begin(&["rehome", "move", application, "--to", to, "--json"])
    }

    /// The document of `rehome status --json`.
    ///
    /// # Errors
    /// When there is none.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.rehome(&["status", "--json"])?.ok()?.json()
    }

    /// An application in it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn application(&self, name: &str) -> anyhow::Result<Application> {
        let status = self.status()?;
        let all = status["applications"]
            .as_array()
            .context("no applications")?;
        let entry = all.iter().find(|entry| entry["name"] == name);
        Application::read(entry.with_context(|| format!("no application {name} in {status}"))?)
    }

    /// Waits until an application runs on a host, counted from 1.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_running(&self, name: &str, host: usize) -> anyhow::Result<Application> {
        let address = self.host(host)?.address();
        wait_for(&format!("{name} runs on {address}"), LIMIT, || {
            let seen = self.application(name)?;
            let there = seen.state == "running" && seen.host.as_deref() == Some(address);
            Ok(there.then_some(seen))
        })
    }

    /// The migrations that the cluster remembers, oldest first.
    ///
    /// # Errors
    /// When there is no such document.
    pub fn migrations(&self) -> anyhow::Result<Vec<Migration>> {
        let document = self.rehome(&["migrations", "--json"])?.ok()?.json()?;
        let all = document.as_array().context("no list of migrations")?;
        Ok(all.iter().cloned().map(Migration).collect())
    }

    /// The newest of them.
    ///
    /// # Errors
    /// When there is none.
    pub fn last_migration(&self) -> anyhow::Result<Migration> {
        self.migrations()?.pop().context("there was no migration")
    }

    /// Removes the lab.
    fn down(self) -> anyhow::Result<()> {
        self.command(&["down"])?.ok()?;
        Ok(())
    }

    fn last_words(&self) -> String {
        let words = self.hosts.iter().map(|host| host.last_words(&self.name));
        words.collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A lab that is gone already is fine, and of one that stays the next test says so.
        drop(self.command(&["down"]));
    }
}

/// Runs `rehome lab …`.
fn command(lab: &str, arguments: &[&str]) -> anyhow::Result<Outcome> {
    let mut command = Command::new(program::built("rehome")?);
    command.args(["lab", "--name", lab]).args(arguments);
    program::run(&mut command, LIMIT)
}
