//! The HTTP application, as the hosts of a test run it.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Parser;

#[derive(Debug, Parser)]
struct Arguments {
    /// Where the words are kept
    directory: PathBuf,
    /// Where it listens
    port: u16,
}

fn main() -> anyhow::Result<()> {
    let Arguments { directory, port } = Arguments::parse();
    rehome_tests::web::server::run(&directory, port)
}
