//! The command line: the list of commands, and nothing of what they do.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::console::Console;
use crate::{
    abort, ca, check, connections, demo, deploy, drain, failover, gc, lab, migrations, moves,
    status,
};

/// Moves running stateful applications, their data and their traffic between hosts.
#[derive(Debug, Parser)]
#[command(name = "rehome", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// The host whose daemon is asked; without it, this machine's own
    #[arg(id = "target", long = "host", value_name = "ADDR", global = true)]
    pub(crate) target: Option<String>,
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate the files of an application and say what they mean
    Check(check::CheckArgs),
    /// Make the cluster what the files say
    Deploy(deploy::DeployArgs),
    /// Show hosts and applications
    Status(status::StatusArgs),
    /// Move an application to another host
    Move(moves::MoveArgs),
    /// Move everything off a host
    Drain(drain::DrainArgs),
    /// Show the history of moves, or one of them
    Migrations(migrations::MigrationsArgs),
    /// Give up a move while it is still possible
    Abort(abort::AbortArgs),
    /// Have another host take over from an owner that is gone for good
    Failover(failover::FailoverArgs),
    /// Show live connections of this host's proxyd
    Connections(connections::ConnectionsArgs),
    /// Remove what accidents left on the hosts, and nothing that anybody needs
    Gc(gc::GcArgs),
    /// Make a cluster of hosts on this one machine
    Lab(lab::LabArgs),
    /// Make a certificate authority and the certificates of hosts
    Ca(ca::CaArgs),
    /// Show a database move between hosts under load, on this one machine
    Demo(demo::DemoArgs),
    /// Build the images of the demo and print where they are
    #[command(hide = true)]
    DemoImages(demo::images::ImagesArgs),
    /// The first process of a lab host
    #[command(hide = true)]
    LabInit(lab::init::InitArgs),
    /// Wait inside a lab host until its daemons are ready
    #[command(hide = true)]
    LabProbe(lab::probe::ProbeArgs),
    /// The last step of `lab exec`, inside the host
    #[command(hide = true)]
    LabEnter(lab::exec::EnterArgs),
}

impl Cli {
    /// Runs the command; the exit status is its own where it has one.
    pub(crate) fn run(self, console: Console) -> anyhow::Result<ExitCode> {
        let target = self.target.as_deref();
        match self.command {
            Command::Check(args) => check::run(&args, console),
            Command::Deploy(args) => deploy::run(&args, target, console),
            Command::Status(args) => status::run(&args, target, console),
            Command::Move(args) => moves::run(args, target, console),
            Command::Drain(args) => drain::run(args, target, console),
            Command::Migrations(args) => migrations::run(&args, target, console),
            Command::Abort(args) => abort::run(&args, target, console),
            Command::Failover(args) => failover::run(args, target, console),
            Command::Connections(args) => connections::run(&args, target, console),
            Command::Gc(args) => gc::run(&args, target, console),
            Command::Lab(args) => lab::run(args, console),
            Command::Ca(args) => ca::run(args, console),
            Command::Demo(args) => demo::run(&args, console),
            Command::DemoImages(args) => demo::images::run(&args, console),
            Command::LabInit(args) => lab::init::run(&args),
            Command::LabProbe(args) => Ok(lab::probe::run(&args, console)),
            Command::LabEnter(args) => lab::exec::enter(&args),
        }
    }
}
