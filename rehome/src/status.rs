//! `rehome status`: hosts, applications, where each runs and should run.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rehome_shared::api::cluster::Status;

use crate::client::{CallError, Migrated, block_on};
use crate::console::Console;
use crate::render;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// The arguments of `rehome status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Look again every second until Ctrl-C; with --json, a document at each change
    #[arg(long)]
    watch: bool,
}

/// Runs `rehome status`.
pub(crate) fn run(
    args: &StatusArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    if args.watch {
        return block_on(async { watch(&daemon, console).await.map_err(Into::into) });
    }
    let status = block_on(async { Ok(daemon.status().await?) })?;
    console.line(render::status::status(&status).trim_end());
    console.document(&status)?;
    Ok(ExitCode::SUCCESS)
}

/// Looks until the user has seen enough. A daemon that is away for a while is said once.
async fn watch(daemon: &Migrated, console: Console) -> Result<ExitCode, CallError> {
    let mut last: Option<Status> = None;
    let mut away = false;
    loop {
        match daemon.status().await {
            Ok(status) => {
                if away || last.as_ref() != Some(&status) {
                    console.page(&render::status::status(&status), &status);
                }
                last = Some(status);
                away = false;
            }
            // Without a first answer there may be nothing that could ever answer.
            Err(error) if error.may_pass() && last.is_some() => {
                if !away {
                    console.progress(&format!("no answer, trying again: {error}"));
                    away = true;
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
