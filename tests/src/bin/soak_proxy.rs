//! Disturbs proxies under load for a given time, from a given seed or a new one, and says how it
//! went.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rehome_tests::proxy::soak::Soak;

#[derive(Debug, Parser)]
struct Arguments {
    /// For so long
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// What is done to the proxies follows from it [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(arguments.seconds);
    let (text, code) = match (Soak { seed, length }).run() {
        Ok(summary) => (summary, ExitCode::SUCCESS),
        Err(error) => (format!("{error:#}"), ExitCode::FAILURE),
    };
    // The exit status says it too.
    drop(writeln!(io::stdout(), "{text}"));
    code
}
