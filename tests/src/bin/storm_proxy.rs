//! 20,000 clients come to a parked gate, and all of them are served. Says how that went.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rehome_tests::storm::Storm;

#[derive(Debug, Parser)]
struct Arguments {
    /// How many come
    #[arg(long, default_value_t = 20_000)]
    clients: usize,
    /// How many of them the gate holds: with a limit of 20,000 descriptors there are no more
    #[arg(long, default_value_t = 8_000)]
    held: u32,
    /// How many the kernel holds
    #[arg(long, default_value_t = 4_096)]
    backlog: u32,
    /// What the application takes to accept one, in microseconds
    #[arg(long, default_value_t = 200)]
    pace: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let storm = Storm {
        clients: arguments.clients,
        held: arguments.held,
        backlog: arguments.backlog,
        pace: Duration::from_micros(arguments.pace),
        patience: Duration::from_mins(4),
    };
    let (text, code) = match storm.run() {
        Ok(summary) => (summary.to_string(), ExitCode::SUCCESS),
        Err(error) => (format!("{error:#}"), ExitCode::FAILURE),
    };
    // The exit status says it too.
    drop(writeln!(io::stdout(), "{text}"));
    code
}
