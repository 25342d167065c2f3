//! `rehome migrations`: the history, or all of one migration.

use std::process::ExitCode;

use clap::Args;
use rehome_shared::ids::MigrationId;

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::render;

/// The arguments of `rehome migrations`.
#[derive(Debug, Args)]
pub(crate) struct MigrationsArgs {
    /// One migration, with the time of every phase
    id: Option<MigrationId>,
}

/// Runs `rehome migrations`.
pub(crate) fn run(
    args: &MigrationsArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    match &args.id {
        None => {
            let migrations = block_on(async { Ok(daemon.migrations().await?) })?;
            console.line(render::migration::history(&migrations).trim_end());
            console.document(&migrations)?;
        }
        Some(id) => {
            let migration = block_on(async { Ok(daemon.migration(id).await?) })?;
            console.line(render::migration::details(&migration).trim_end());
            console.document(&migration)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
