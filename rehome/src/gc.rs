//! `rehome gc`: lists what an accident left on the hosts, and removes it.

use std::process::ExitCode;

use clap::Args;
use rehome_shared::api::gc::Collected;

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::render;

/// The arguments of `rehome gc`.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Runs `rehome gc`.
pub(crate) fn run(
    args: &GcArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    let collected = block_on(async {
        Ok(if args.dry_run {
            daemon.garbage().await?
        } else {
            daemon.collect_garbage().await?
        })
    })?;
    console.line(render::gc::collected(&collected).trim_end());
    console.document(&collected)?;
    if is_complete(&collected) {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}

/// Whether every host could be looked at, and all that was to be removed is.
fn is_complete(collected: &Collected) -> bool {
    let mut hosts = collected.hosts.iter();
    hosts.all(|host| {
        let mut items = host.garbage.iter();
        host.problem.is_none() && items.all(|item| item.error.is_none())
    })
}
