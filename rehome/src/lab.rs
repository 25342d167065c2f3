//! `rehome lab`: a cluster of hosts on this one machine.
//!
//! A host is a set of namespaces with a first process of its own ([`init`]) that runs the real
//! daemons. The hosts of a lab meet on a bridge in a network namespace ([`fabric`]); one veth
//! leads from there to this machine. What a lab needs of this machine is named after the lab
//! ([`site`]), so that several live side by side and [`down`] finds everything of one lab, however
//! far [`up`] came before it was killed.
//!
//! Invariants: whatever is made is written down first ([`state`]); nothing of another lab is
//! touched; a lab's disks are removed by `down` only, or by an `up` that made them and failed.

mod cgroups;
mod control;
mod down;
pub(crate) mod exec;
mod fabric;
mod files;
mod host;
pub(crate) mod init;
mod labs;
mod load;
mod lock;
mod loop_devices;
mod memory;
mod mount_points;
pub(crate) mod probe;
mod process;
mod site;
mod state;
mod status;
mod subnet;
mod tools;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use rehome_shared::units::{Bytes, InvalidQuantity};
use serde::{Deserialize, Serialize};

use crate::console::Console;
pub(crate) use crate::lab::site::LabName;
use crate::lab::site::Site;
use crate::lab::subnet::Subnet;
use crate::stop::interruptible;

/// The arguments of `rehome lab`.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// Which lab
    #[arg(
        id = "lab",
        long = "name",
        value_name = "NAME",
        default_value = "rehome",
        global = true
    )]
    name: LabName,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make a lab, or bring up what is down of one
    Up(UpArgs),
    /// Remove a lab: its hosts, its network and its disks
    Down,
    /// Run a command inside a host
    Exec(ExecArgs),
    /// Show the hosts
    Status,
    /// Import an image into the container engine of every host
    Load(LoadArgs),
    /// Kill a host at once, as a power failure would; its disk stays
    Crash(HostArgs),
    /// Start a host that is down, with the disk it had
    Start(HostArgs),
}

/// The arguments of `lab up`. What is left out comes from the lab when it is there already.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// How many hosts [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    hosts: Option<u8>,
    /// The hosts' network [default: the first free one of 10.77.0.0/24, 10.77.1.0/24, …]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Subnet>,
    /// What holds the volumes [default: btrfs]
    #[arg(long)]
    backend: Option<Backend>,
    /// What runs the applications [default: docker]
    #[arg(long)]
    runtime: Option<Runtime>,
    /// The size of each host's pool; the file is sparse [default: 8GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pool_size: Option<Bytes>,
    /// Keep the hosts' disks in memory: as fast as disks of their own, and gone with this machine
    #[arg(long)]
    in_memory: bool,
    /// Hosts without proxyd and migrated
    #[arg(long, hide = true)]
    no_daemons: bool,
    /// Hosts with the builds of proxyd and migrated that have fail points
    #[arg(long, hide = true, conflicts_with = "no_daemons")]
    faulty: bool,
}

/// The arguments of `lab exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The host, for example h1
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// The arguments of `lab load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The name that the image gets, for example demo/postgres:latest
    image: String,
    /// The file system of the image as a tar archive, or an archive of `docker save`
    tar: PathBuf,
    /// A Dockerfile instruction for the image of a file system, for example `CMD ["/bin/db"]`
    #[arg(long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
}

/// The arguments of `lab crash` and `lab start`.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// The host, for example h1
    name: String,
}

/// What holds the volumes of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// A btrfs file system in a file.
    Btrfs,
    /// A ZFS pool.
    Zfs,
    /// Plain directories.
    Directory,
}

/// What runs the applications of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Runtime {
    /// A Docker Engine of its own in every host.
    Docker,
    /// Plain commands of this machine.
    Process,
}

/// Whether there is anything of a lab with this name.
pub(crate) fn exists(name: &LabName) -> bool {
    let site = Site::new(name.clone());
    site.run_dir().exists() || site.disk_dir().exists()
}

fn parse_size(text: &str) -> Result<Bytes, InvalidQuantity> {
    Bytes::parse(text)
}

/// Runs `rehome lab …`.
pub(crate) fn run(args: LabArgs, console: Console) -> anyhow::Result<ExitCode> {
    let site = Site::new(args.name);
    match args.command {
        LabCommand::Status => status::run(&site, console)?,
        LabCommand::Exec(exec) => return exec::run(&site, &exec),
        LabCommand::Up(options) => {
            let state = interruptible(move |stop| up::run(&site, &options, console, stop))??;
            status::show(&state, console)?;
        }
        LabCommand::Down => interruptible(move |_| down::run(&site, console))??,
        LabCommand::Load(load) => interruptible(move |stop| load::run(&site, &load, stop))??,
        LabCommand::Crash(host) => {
            interruptible(move |_| control::crash(&site, &host.name, console))??;
        }
        LabCommand::Start(host) => {
            interruptible(move |stop| control::start(&site, &host.name, console, stop))??;
        }
    }
    Ok(ExitCode::SUCCESS)
}
