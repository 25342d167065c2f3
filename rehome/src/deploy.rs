//! `rehome deploy`: makes the cluster what two files say.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rehome_shared::api::cluster::{DeployReply, DeployRequest};
use rehome_shared::units::{InvalidQuantity, parse_duration};

use crate::check::CheckArgs;
use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::outcome::WRONG;
use crate::progress::{Display, Scope, follow};
use crate::{check, render, report};

/// The arguments of `rehome deploy`.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The hosts and what runs on each
    deployment: PathBuf,
    /// The applications
    application: PathBuf,
    #[command(flatten)]
    wait: WaitArgs,
}

/// How long a command waits for what it has asked for.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WaitArgs {
    /// Only say what would happen
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Return as soon as the hosts have accepted it
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait; what was begun goes on afterwards
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = limit)]
    pub(crate) timeout: Duration,
}

fn limit(text: &str) -> Result<Duration, InvalidQuantity> {
    parse_duration(text)
}

/// Runs `rehome deploy`.
pub(crate) fn run(
    args: &DeployArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let files = CheckArgs {
        deployment: Some(args.deployment.clone()),
        application: args.application.clone(),
    };
    let Some(files) = check::read_files(&files, console)? else {
        return Ok(ExitCode::from(WRONG));
    };
    let daemon = Migrated::at(target)?;
    let request = DeployRequest {
        applications: files.applications,
        placement: files.placement.unwrap_or_default(),
        dry_run: args.wait.dry_run,
    };
    block_on(async {
        let reply = daemon.deploy(&request).await?;
        if !args.wait.dry_run {
            console.line(&format!("deployment {}", reply.generation));
        }
        console.line(render::plan::plan(&reply.changes).trim_end());
        let scope = Scope::Deployment {
            generation: reply.generation,
            changes: &reply.changes,
            applications: Some(&request.applications),
        };
        wait(&daemon, &reply, args.wait, scope, console).await
    })
}

/// Waits for what was submitted, unless the user does not want to, and sums up.
pub(crate) async fn wait(
    daemon: &Migrated,
    reply: &DeployReply,
    args: WaitArgs,
    scope: Scope<'_>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    if args.dry_run || args.no_wait {
        return report::submitted(reply, console);
    }
    let begin = Instant::now();
    let mut display = Display::new(console);
    let followed = follow(daemon, reply.generation, scope, args.timeout, &mut display).await?;
    report::ended(reply, &followed, scope, begin.elapsed(), console)
}
