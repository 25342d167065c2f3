//! A lab's record of itself: what it is meant to be, and the first process of each host. It is
//! written before a thing is made, so that what a killed command leaves behind can be found.

use std::net::Ipv4Addr;

use rehome_shared::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::lab::process::Process;
use crate::lab::site::{LabName, Site};
use crate::lab::subnet::Subnet;
use crate::lab::{Backend, Runtime};
use crate::paths::{self, PathError};

const VERSION: u32 = 1;

/// A record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// It was written by another version, or is damaged.
    #[error("the record of lab {name} is not one of this version: `rehome lab down --name {name}`")]
    Format {
        /// The lab.
        name: LabName,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("the record of lab {name} has version {version}, and this program knows {VERSION}")]
    Version {
        /// The lab.
        name: LabName,
        /// The version found.
        version: u32,
    },
    /// There is no such lab.
    #[error("there is no lab {0}: `rehome lab up --name {0}` makes it")]
    NoLab(LabName),
    /// The lab has no such host.
    #[error("lab {lab} has no host {host}: it has {known}")]
    NoHost {
        /// The lab.
        lab: LabName,
        /// The host asked for.
        host: String,
        /// Those that are there.
        known: String,
    },
}

/// What a lab is meant to be and what is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LabState {
    version: u32,
    /// The lab's name.
    pub(crate) name: LabName,
    /// Its network.
    pub(crate) subnet: Subnet,
    /// What its hosts are like.
    pub(crate) settings: Settings,
    /// Its hosts.
    pub(crate) hosts: Vec<HostRecord>,
}

/// What the hosts of a lab are like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// What holds the volumes.
    pub(crate) backend: Backend,
    /// What runs the applications.
    pub(crate) runtime: Runtime,
    /// The size of each host's pool.
    pub(crate) pool_size: Bytes,
    /// Whether their disks are in memory.
    #[serde(default)]
    pub(crate) in_memory: bool,
    /// Whether proxyd and migrated run.
    pub(crate) daemons: Daemons,
}

/// Whether the hosts run Rehome's daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Daemons {
    /// They do.
    Run,
    /// They do, in the builds with fail points that the tests of crashes use.
    Faulty,
    /// They do not: the hosts are bare.
    Absent,
}

/// One host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    /// `h1`, `h2`, …
    pub(crate) name: String,
    /// Its address in the lab's network.
    pub(crate) address: Ipv4Addr,
    /// Its first process, once it was started.
    pub(crate) process: Option<Process>,
}

impl HostRecord {
    /// The first process, if it is alive.
    pub(crate) fn alive(&self) -> Option<&Process> {
        self.process
            .as_ref()
            .filter(|process| process.can_be_entered())
    }
}

impl LabState {
    /// A lab of which nothing has been made.
    pub(crate) fn new(name: LabName, subnet: Subnet, settings: Settings, hosts: u8) -> Self {
        let hosts = (1..=hosts)
            .map(|number| HostRecord {
                name: format!("h{number}"),
                address: subnet.host(number),
                process: None,
            })
            .collect();
        Self {
            version: VERSION,
            name,
            subnet,
            settings,
            hosts,
        }
    }

    /// The record of a lab, if there is one.
    pub(crate) fn load(site: &Site) -> Result<Option<Self>, StateError> {
        let text = match paths::read(&site.state_file()) {
            Ok(text) => text,
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = || site.name().clone();
        let state: Self = serde_json::from_str(&text).map_err(|source| StateError::Format {
            name: name(),
            source,
        })?;
        if state.version == VERSION {
            Ok(Some(state))
        } else {
            Err(StateError::Version {
                name: name(),
                version: state.version,
            })
        }
    }

    /// The record of a lab that must be there.
    pub(crate) fn require(site: &Site) -> Result<Self, StateError> {
        Self::load(site)?.ok_or_else(|| StateError::NoLab(site.name().clone()))
    }

    /// Writes the record.
    pub(crate) fn save(&self, site: &Site) -> Result<(), StateError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| StateError::Format {
            name: self.name.clone(),
            source,
        })?;
        Ok(paths::replace(&site.state_file(), 0o600, &text)?)
    }

    /// A host by its name.
    pub(crate) fn host(&self, name: &str) -> Result<&HostRecord, StateError> {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .ok_or_else(|| StateError::NoHost {
                lab: self.name.clone(),
                host: name.to_owned(),
                known: self
                    .hosts
                    .iter()
                    .map(|h| h.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// Notes the first process of a host, or that it has none.
    pub(crate) fn set_process(&mut self, name: &str, process: Option<&Process>) {
        for host in self.hosts.iter_mut().filter(|host| host.name == name) {
            host.process = process.cloned();
        }
    }
}
