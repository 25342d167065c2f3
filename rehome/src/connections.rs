//! `rehome connections`: what this host's `proxyd` relays and holds, and where it goes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::Protocol;

use crate::client::{CallError, Proxyd, block_on};
use crate::console::Console;
use crate::outcome::WrongInput;
use crate::render;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// The arguments of `rehome connections`.
#[derive(Debug, Args)]
pub(crate) struct ConnectionsArgs {
    /// Only of this external port: 5432, 5432/tcp or 53/udp
    #[arg(long, value_name = "PORT", value_parser = route)]
    route: Option<RouteKey>,
    /// Look again every second until Ctrl-C; with --json, a document each time
    #[arg(long)]
    follow: bool,
    /// The control socket of proxyd
    #[arg(long, value_name = "PATH", default_value = "/run/rehome/proxyd.sock")]
    socket: PathBuf,
}

fn route(text: &str) -> Result<RouteKey, String> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(RouteKey::new(port, Protocol::Tcp)),
        _ => text
            .parse()
            .map_err(|error: rehome_shared::ids::InvalidId| error.to_string()),
    }
}

/// Runs `rehome connections`.
pub(crate) fn run(
    args: &ConnectionsArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    if let Some(host) = target {
        return Err(WrongInput(format!(
            "connections are asked of the proxyd of this host: run `rehome connections` on {host}"
        ))
        .into());
    }
    let daemon = Proxyd::at(&args.socket);
    if args.follow {
        return block_on(async { Ok(follow(&daemon, args.route, console).await?) });
    }
    let reply = block_on(async { Ok(daemon.connections(args.route).await?) })?;
    console.line(render::connections::connections(&reply).trim_end());
    console.document(&reply)?;
    Ok(ExitCode::SUCCESS)
}

/// Looks until the user has seen enough. A daemon that is away for a while is said once.
async fn follow(
    daemon: &Proxyd,
    route: Option<RouteKey>,
    console: Console,
) -> Result<ExitCode, CallError> {
    let (mut answered, mut away) = (false, false);
    loop {
        match daemon.connections(route).await {
            Ok(reply) => {
                console.page(&render::connections::connections(&reply), &reply);
                (answered, away) = (true, false);
            }
            // Without a first answer there may be nothing that could ever answer.
            Err(error) if error.may_pass() && answered => {
                if !std::mem::replace(&mut away, true) {
                    console.progress(&format!("no answer, trying again: {error}"));
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_tcp() {
        assert_eq!(route("5432").unwrap().to_string(), "5432/tcp");
        assert_eq!(route("53/udp").unwrap().to_string(), "53/udp");
        for bad in ["", "0", "x", "70000", "1/icmp"] {
            assert!(route(bad).is_err(), "{bad}");
        }
    }
}
