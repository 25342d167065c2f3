//! `migrated`: the daemon's command line.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Internal::ProcessShim { spec }) = arguments.internal {
        // Before any thread exists: namespaces are entered by threads.
        return migrated::runtime::process::shim::shim_main(&spec);
    }
    migrated::service::main(arguments.config, arguments.check)
}
