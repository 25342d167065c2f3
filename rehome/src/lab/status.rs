//! `rehome lab status`: the hosts of a lab, and which of them are up.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::console::Console;
use crate::lab::process::Process;
use crate::lab::site::{LabName, Site};
use crate::lab::state::{HostRecord, LabState};

#[derive(Serialize)]
struct Lab<'a> {
    name: &'a LabName,
    hosts: Vec<Host<'a>>,
}

#[derive(Serialize)]
struct Host<'a> {
    name: &'a str,
    address: Ipv4Addr,
    pid: Option<u32>,
    state: &'static str,
}

impl<'a> Host<'a> {
    fn of(record: &'a HostRecord) -> Self {
        let pid = record.alive().map(Process::pid);
        let state = if pid.is_some() { "up" } else { "down" };
        Self {
            name: &record.name,
            address: record.address,
            pid,
            state,
        }
    }
}

/// Shows a lab.
pub(crate) fn run(site: &Site, console: Console) -> anyhow::Result<()> {
    show(&LabState::require(site)?, console)
}

/// Shows a lab whose state is known.
pub(crate) fn show(state: &LabState, console: Console) -> anyhow::Result<()> {
    let hosts = state.hosts.iter().map(Host::of).collect();
    let lab = Lab {
        name: &state.name,
        hosts,
    };
    console.line(&format!("lab {}, network {}", lab.name, state.subnet));
    for host in &lab.hosts {
        let pid = host
            .pid
            .map(|pid| format!(" (PID {pid})"))
            .unwrap_or_default();
        console.line(&format!(
            "  {:<5} {:<15} {}{pid}",
            host.name, host.address, host.state
        ));
    }
    console.document(&lab)
}
