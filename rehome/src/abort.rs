//! `rehome abort`: back to the source, while that is still possible.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rehome_shared::api::cluster::{Migration, MigrationState};
use rehome_shared::ids::MigrationId;

use crate::client::{CallError, Migrated, block_on};
use crate::console::Console;
use crate::render::migration::{ending, title};

/// How long the way back may take: the application may have to start again on the source.
const LIMIT: Duration = Duration::from_mins(2);

/// From one question to the next.
const INTERVAL: Duration = Duration::from_millis(250);

/// The arguments of `rehome abort`.
#[derive(Debug, Args)]
pub(crate) struct AbortArgs {
    /// The migration, as `rehome migrations` prints it
    id: MigrationId,
}

/// Runs `rehome abort`.
pub(crate) fn run(
    args: &AbortArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    let migration = block_on(async {
        let asked = daemon.abort(&args.id).await?;
        // Dropping the wait loses nothing: the migration goes its way without it.
        Ok(
            match tokio::time::timeout(LIMIT, end_of(&daemon, asked.clone())).await {
                Ok(ended) => ended?,
                Err(_elapsed) => asked,
            },
        )
    })?;
    console.document(&migration)?;
    let text = format!("{}: {}", title(&migration), ending(&migration));
    if migration.state == MigrationState::Aborted {
        console.line(&text);
        return Ok(ExitCode::SUCCESS);
    }
    console.progress(&format!("not aborted: {text}"));
    Ok(ExitCode::FAILURE)
}

/// Waits until a migration has ended. The caller bounds the wait.
async fn end_of(daemon: &Migrated, mut migration: Migration) -> Result<Migration, CallError> {
    while migration.state == MigrationState::Running {
        tokio::time::sleep(INTERVAL).await;
        match daemon.migration(&migration.id).await {
            Ok(now) => migration = now,
            Err(error) if error.may_pass() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(migration)
}
