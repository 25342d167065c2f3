//! The command: checks and deploys files, moves applications, shows what runs where, and
//! makes a cluster of hosts on one machine to try all of it.
//!
//! Each command is a module of its own. This file only reads the command line, runs the
//! command and turns its result into an exit status: 0 done, 1 failed, 2 the command line or
//! a file is wrong.

#![forbid(unsafe_code)]

mod abort;
mod ca;
mod check;
mod cli;
mod client;
mod connections;
mod console;
mod demo;
mod deploy;
mod drain;
mod failover;
mod gc;
mod hash;
mod invocation;
mod lab;
mod migrations;
mod moves;
mod outcome;
mod paths;
mod progress;
mod render;
mod report;
mod status;
mod stop;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::console::Console;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help_or_error) => return console::usage(&help_or_error),
    };
    let console = Console::new(cli.json);
    match cli.run(console) {
        Ok(status) => status,
        Err(error) => {
            console.error(&error);
            outcome::status_of(&error)
        }
    }
}
