//! `rehome connections`: what this host's `proxyd` relays and holds, and where it goes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::Protocol;

use crate::client::{Proxyd, block_on};
use crate::console::Console;
use crate::outcome::WrongInput;
use crate::render;

/// The arguments of `rehome connections`.
#[derive(Debug, Args)]
pub(crate) struct ConnectionsArgs {
    /// Only of this external port: 5432, 5432/tcp or 53/udp
    #[arg(long, value_name = "PORT", value_parser = route)]
    route: Option<RouteKey>,
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
    let reply = block_on(async { Ok(daemon.connections(args.route).await?) })?;
    console.line(render::connections::connections(&reply.connections).trim_end());
    console.document(&reply)?;
    Ok(ExitCode::SUCCESS)
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
