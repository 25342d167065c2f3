//! `migrated`: the daemon's command line.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use migrated::rebuild::Options;
use rehome_shared::ids::{AppName, HostAddr};

/// Owns the volumes and containers of its host and runs migrations.
#[derive(Debug, Parser)]
#[command(name = "migrated", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The daemon's file
    #[arg(long, value_name = "FILE", default_value = "/etc/rehome/migrated.yml")]
    config: PathBuf,
    /// Check a file and exit: 0 when it is right, 2 when it is wrong
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Make a new journal of the stamps in the pool and of what the other hosts say, and exit
    #[arg(long, conflicts_with = "check")]
    rebuild_journal: bool,
    /// A host that knows the deployment, where this one has lost it too
    #[arg(long, value_name = "HOST", requires = "rebuild_journal")]
    ask: Vec<HostAddr>,
    /// There is no other host to ask
    #[arg(long, requires = "rebuild_journal", conflicts_with = "ask")]
    alone: bool,
    /// A host that is gone for good: what it would say does not count
    #[arg(long, value_name = "HOST", requires = "rebuild_journal")]
    without: Vec<HostAddr>,
    /// An application to leave undecided where nobody can be certain who owns it: it is not
    /// started, and its volumes stay as they are
    #[arg(long, value_name = "APPLICATION", requires = "rebuild_journal")]
    leave: Vec<AppName>,
    #[command(subcommand)]
    internal: Option<Internal>,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// Keeps one application of the process runtime; started by migrated itself
    #[command(hide = true)]
    ProcessShim {
        /// What to run
        spec: PathBuf,
    },
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Internal::ProcessShim { spec }) = arguments.internal {
        // Before any thread exists: namespaces are entered by threads.
        return migrated::runtime::process::shim::shim_main(&spec);
    }
    if arguments.rebuild_journal {
        let options = Options {
            ask: arguments.ask,
            alone: arguments.alone,
            without: arguments.without,
            leave: arguments.leave.into_iter().collect(),
        };
        return migrated::rebuild::main(&arguments.config, &options);
    }
    migrated::service::main(arguments.config, arguments.check)
}
