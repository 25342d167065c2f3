//! The log server, as the hosts of a soak run it.

#![forbid(unsafe_code)]

use clap::Parser;
use rehome_tests::log::server::{self, Options};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> anyhow::Result<()> {
    server::run(&Arguments::parse().options)
}
