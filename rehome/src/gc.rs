//! `rehome gc`: lists what an accident left on the hosts, and removes it; and the diverged copies
//! of an application that is named.

use std::process::ExitCode;

use clap::Args;
use rehome_shared::api::gc::{Collected, Meant};
use rehome_shared::ids::AppName;

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::render;

/// The arguments of `rehome gc`.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Remove the diverged copies of an application instead: what it wrote on hosts that were not
    /// its owner any more. Nothing else has that
    #[arg(long, value_name = "APPLICATION")]
    diverged: Option<AppName>,
}

/// Runs `rehome gc`.
pub(crate) fn run(
    args: &GcArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    let meant = Meant {
        diverged: args.diverged.clone(),
    };
    let collected = block_on(async {
        Ok(if args.dry_run {
            daemon.garbage(&meant).await?
        } else {
            daemon.collect_garbage(&meant).await?
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
        let mut items = host.garbage.iter().chain(&host.diverged);
        host.problem.is_none() && items.all(|item| item.error.is_none())
    })
}
