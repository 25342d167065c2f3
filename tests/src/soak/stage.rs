//! What a soak works on: a lab, two applications, and the diary.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::diary::Diary;
use super::processes::Whose;
use super::schedule::{HOSTS, Place};
use crate::deployment::{Deployment, HARD_CAP};
use crate::lab::{Host, Lab};
use crate::log::Kind;
use crate::log::witness;
use crate::program;

/// The port of the server in its own network.
const INTERNAL: u16 = 7100;

/// A log server under test.
#[derive(Debug)]
pub(super) struct Application {
    /// Its name.
    pub(super) name: &'static str,
    /// How it writes.
    pub(super) kind: Kind,
    /// Its external port.
    pub(super) port: u16,
    /// Where its servers meet, outside of the lab.
    pub(super) witness: PathBuf,
    /// Where its last move went, counted from 1.
    destination: AtomicUsize,
}

impl Application {
    fn new(name: &'static str, kind: Kind, port: u16, lab: &Lab) -> anyhow::Result<Self> {
        let witness = lab.path(name);
        std::fs::create_dir(&witness)?;
        let destination = AtomicUsize::new(1);
        Ok(Self {
            name,
            kind,
            port,
            witness,
            destination,
        })
    }

    fn body(&self) -> anyhow::Result<Value> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a strange path");
        let (port, external) = (INTERNAL.to_string(), self.port);
        Ok(json!({
            "image": "unused",
            "command": [
                text(&program::built("log-server")?)?,
                "--kind", self.kind.as_str(), "--directory", "/data", "--port", port,
                "--witness", text(&self.witness)?, "--ballast", "8", "--churn", "256",
            ],
            "ports": [{"internal": INTERNAL, "external": external}],
            "volume": {"mountpoint": "/data"},
            "restart_policy": {"name": "always"},
            "stop_grace": "2s",
            "healthcheck": {"tcp": INTERNAL, "interval": "100ms", "timeout": "1s", "retries": 600},
            // Many short moves rather than a few long ones.
            "migration": {"drain": "300ms", "bandwidth_limit": "32MiB", "hard_cap": HARD_CAP},
        }))
    }

    /// Its port on every host.
    pub(super) fn doors(&self, lab: &Lab) -> anyhow::Result<Vec<SocketAddr>> {
        lab.doors(self.port)
    }

    /// It is on its way to a host.
    pub(super) fn goes_to(&self, host: usize) {
        self.destination.store(host, Ordering::Relaxed);
    }
}

/// The stage.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    pub(super) diary: &'a Diary,
    pub(super) applications: [Application; 2],
}

impl<'a> Stage<'a> {
    /// Deploys the applications on the first two hosts.
    pub(super) fn set(lab: &'a Lab, diary: &'a Diary) -> anyhow::Result<Self> {
        let applications = [
            Application::new("written", Kind::Fsync, 7000, lab)?,
            Application::new("mapped", Kind::Mmap, 7001, lab)?,
        ];
        let mut deployment = Deployment::new();
        for (host, application) in (1..).zip(&applications) {
            deployment = deployment.with(application.name, host, &application.body()?);
        }
        lab.deploy(&deployment)?.ok()?;
        for (host, application) in (1..).zip(&applications) {
            lab.wait_running(application.name, host)?;
            application.goes_to(host);
        }
        Ok(Self {
            lab,
            diary,
            applications,
        })
    }

    /// An application, counted from 0.
    pub(super) fn application(&self, number: usize) -> anyhow::Result<&Application> {
        let found = self.applications.get(number);
        found.with_context(|| format!("there is no application {number}"))
    }

    /// Where a server of an application was started last, counted from 1.
    pub(super) fn owner(&self, application: &Application) -> anyhow::Result<usize> {
        let statements = witness::statements(&application.witness)?;
        let name = statements.last().map(|statement| statement.host.as_str());
        let hosts = self.lab.hosts();
        let at = hosts.iter().position(|host| Some(host.name()) == name);
        Ok(at.context("no server has begun")? + 1)
    }

    /// The host of a place.
    pub(super) fn host(&self, place: Place, application: &Application) -> anyhow::Result<&Host> {
        self.lab.host(match place {
            Place::Owner => self.owner(application)?,
            Place::Destination => application.destination.load(Ordering::Relaxed),
            Place::Host(number) => number.min(HOSTS),
        })
    }

    /// The processes of a host.
    pub(super) fn whose<'b>(&'b self, host: &'b Host, application: &'b Application) -> Whose<'b> {
        Whose {
            lab: self.lab.name(),
            host: host.name(),
            application: application.witness.to_str().unwrap_or_default(),
        }
    }

    /// The directory of a host's disk, on this machine.
    pub(super) fn disk(&self, host: &Host) -> PathBuf {
        Path::new("/var/lib/rehome-lab")
            .join(self.lab.name())
            .join(host.name())
    }
}
