//! `rehome failover`: another host takes over from an owner that is gone for good.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rehome_shared::api::cluster::{
    DeployReply, FailoverMeans, FailoverReply, FailoverRequest, FencedOwner,
};
use rehome_shared::ids::{AppName, Epoch, HostAddr};
use rehome_shared::units::{InvalidQuantity, parse_duration};

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::deploy::{WaitArgs, wait};
use crate::progress::Scope;

/// The arguments of `rehome failover`.
#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// The application
    application: AppName,
    /// The host that takes over, as the deployment names it
    #[arg(long, value_name = "HOST")]
    to: HostAddr,
    /// The owner that is gone, and its epoch, as `rehome status` prints them. With this you vouch
    /// that it runs nothing any more: it is off, or cut off from clients and other hosts
    #[arg(long, value_name = "HOST@EPOCH", value_parser = fenced)]
    fenced: FencedOwner,
    /// A further host that does not answer and of which you vouch the same
    #[arg(long, value_name = "HOST")]
    also_fenced: Vec<HostAddr>,
    /// Go on from older data where the newest is gone with its owner
    #[arg(long)]
    accept_loss: bool,
    /// Return as soon as the new owner has taken over
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it runs; it goes on afterwards
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = limit)]
    timeout: Duration,
}

fn limit(text: &str) -> Result<Duration, InvalidQuantity> {
    parse_duration(text)
}

/// Reads `HOST@EPOCH`.
fn fenced(text: &str) -> Result<FencedOwner, String> {
    let form = || format!("{text:?} is not HOST@EPOCH, as in 10.0.0.1@3");
    let (host, epoch) = text.rsplit_once('@').ok_or_else(form)?;
    Ok(FencedOwner {
        host: HostAddr::try_new(host).map_err(|error| error.to_string())?,
        epoch: Epoch(epoch.parse().map_err(|_| form())?),
    })
}

/// Runs `rehome failover`.
pub(crate) fn run(
    args: FailoverArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    let request = FailoverRequest {
        application: args.application,
        to: args.to,
        fenced: args.fenced,
        also_fenced: BTreeSet::from_iter(args.also_fenced),
        accept_loss: args.accept_loss,
    };
    block_on(async {
        let reply = daemon.fail_over(&request).await?;
        if args.no_wait {
            console.line(&said(&request, &reply));
            console.document(&reply)?;
            return Ok(ExitCode::SUCCESS);
        }
        console.line(&said(&request, &reply));
        let deployed = DeployReply {
            generation: reply.generation,
            changes: Vec::new(),
        };
        let waiting = WaitArgs {
            dry_run: false,
            no_wait: false,
            timeout: args.timeout,
        };
        let scope = Scope::Move {
            application: &request.application,
            to: &request.to,
        };
        wait(&daemon, &deployed, waiting, scope, console).await
    })
}

/// What was done, and what it cost.
fn said(request: &FailoverRequest, reply: &FailoverReply) -> String {
    let how = match reply.means {
        FailoverMeans::Already => "it had taken over before",
        FailoverMeans::Granted => "all of it had come there",
        FailoverMeans::TakenBack => "it takes back what it had released",
        FailoverMeans::Claimed => "it goes on from what it keeps",
    };
    let loss = reply
        .loss
        .as_ref()
        .map(|loss| format!("\naccepted: {loss}"))
        .unwrap_or_default();
    format!(
        "{} is {}'s at epoch {}: {how}{loss}",
        request.application, request.to, reply.epoch
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_and_its_epoch_are_read_as_status_prints_them() {
        for text in ["10.0.0.1@3", "db1.example@12", "fd00::1@1"] {
            assert_eq!(
                fenced(text).map(|owner| owner.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in ["10.0.0.1", "10.0.0.1@", "10.0.0.1@x", "@3", "10.0.0.1@-1"] {
            assert!(fenced(text).is_err(), "{text}");
        }
    }
}
