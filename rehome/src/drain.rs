//! `rehome drain`: everything off a host.

use std::process::ExitCode;

use clap::Args;
use rehome_shared::api::cluster::{
    Change, ChangeKind, DeployReply, DrainRequest, MoveRequest, Prediction,
};
use rehome_shared::ids::HostAddr;
use serde::Serialize;

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::deploy::{WaitArgs, wait};
use crate::moves::unknown;
use crate::progress::Scope;
use crate::render;

/// The arguments of `rehome drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The host that is emptied, as the deployment names it
    host: HostAddr,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What a dry run prints with `--json`.
#[derive(Debug, Serialize)]
struct Document {
    #[serde(flatten)]
    reply: DeployReply,
    predictions: Vec<Predicted>,
}

/// What one of the moves is expected to take.
#[derive(Debug, Serialize)]
struct Predicted {
    #[serde(flatten)]
    request: MoveRequest,
    #[serde(flatten)]
    prediction: Prediction,
}

/// Runs `rehome drain`.
pub(crate) fn run(
    args: DrainArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    let request = DrainRequest {
        host: args.host,
        dry_run: args.wait.dry_run,
    };
    block_on(async {
        let status = daemon.status().await?;
        let known: Vec<&str> = status.hosts.iter().map(|h| h.address.as_str()).collect();
        if !known.contains(&request.host.as_str()) {
            return Err(unknown("host", request.host.as_str(), &known).into());
        }
        let reply = daemon.drain(&request).await?;
        if reply.changes.is_empty() {
            console.line(&format!(
                "nothing to do: nothing is placed on {}",
                request.host
            ));
        } else {
            console.line(render::plan::plan(&reply.changes).trim_end());
        }
        if args.wait.dry_run {
            return predict(&daemon, reply, console).await;
        }
        let scope = Scope::Deployment {
            generation: reply.generation,
            changes: &reply.changes,
            applications: None,
        };
        wait(&daemon, &reply, args.wait, scope, console).await
    })
}

/// What each of the moves is expected to take.
async fn predict(
    daemon: &Migrated,
    reply: DeployReply,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let mut predictions = Vec::new();
    for request in reply.changes.iter().filter_map(moved) {
        let prediction = daemon.predict(&request).await?;
        console.line(render::plan::prediction(&request, &prediction).trim_end());
        predictions.push(Predicted {
            request,
            prediction,
        });
    }
    console.document(&Document { reply, predictions })?;
    Ok(ExitCode::SUCCESS)
}

fn moved(change: &Change) -> Option<MoveRequest> {
    match &change.kind {
        ChangeKind::Move { to, .. } => Some(MoveRequest {
            application: change.application.clone(),
            to: to.clone(),
        }),
        ChangeKind::Create { .. }
        | ChangeKind::Start { .. }
        | ChangeKind::Restart { .. }
        | ChangeKind::Update { .. }
        | ChangeKind::Stop { .. } => None,
    }
}
