//! `rehome move`: one application to another host.

use std::process::ExitCode;

use clap::Args;
use rehome_shared::api::cluster::{ApplicationStatus, MoveRequest, Status};
use rehome_shared::ids::{AppName, HostAddr};

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::deploy::{WaitArgs, wait};
use crate::outcome::WrongInput;
use crate::progress::Scope;
use crate::render;

/// The arguments of `rehome move`.
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// The application
    application: AppName,
    /// The host it goes to, as the deployment names it
    #[arg(long, value_name = "HOST")]
    to: HostAddr,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Runs `rehome move`.
pub(crate) fn run(
    args: MoveArgs,
    target: Option<&str>,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let daemon = Migrated::at(target)?;
    let request = MoveRequest {
        application: args.application,
        to: args.to,
    };
    block_on(async {
        known(&daemon.status().await?, &request)?;
        if args.wait.dry_run {
            let prediction = daemon.predict(&request).await?;
            console.line(render::plan::prediction(&request, &prediction).trim_end());
            console.document(&prediction)?;
            return Ok(ExitCode::SUCCESS);
        }
        submit(&daemon, &request, args.wait, console).await
    })
}

async fn submit(
    daemon: &Migrated,
    request: &MoveRequest,
    args: WaitArgs,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let reply = daemon.move_application(request).await?;
    if reply.changes.is_empty() {
        console.line(&format!(
            "nothing to do: {} is on {}",
            request.application, request.to
        ));
    } else {
        console.line(render::plan::plan(&reply.changes).trim_end());
    }
    let scope = Scope::Move {
        application: &request.application,
        to: &request.to,
    };
    let status = wait(daemon, &reply, args, scope, console).await?;
    if status != ExitCode::SUCCESS {
        console.progress(&whereabouts(&daemon.status().await?, &request.application));
    }
    Ok(status)
}

/// Refuses names that are not in the cluster, and says which are.
fn known(status: &Status, request: &MoveRequest) -> Result<(), WrongInput> {
    let applications = || status.applications.iter().map(|app| app.name.as_str());
    let hosts = || status.hosts.iter().map(|host| host.address.as_str());
    let (name, to) = (request.application.as_str(), request.to.as_str());
    if !applications().any(|known| known == name) {
        return Err(unknown(
            "application",
            name,
            &applications().collect::<Vec<_>>(),
        ));
    }
    if !hosts().any(|known| known == to) {
        return Err(unknown("host", to, &hosts().collect::<Vec<_>>()));
    }
    Ok(())
}

/// A name that is not in the cluster, and the ones that are.
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> WrongInput {
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    WrongInput(format!("there is no {what} {name}; there are: {known}"))
}

/// Where an application is now.
fn whereabouts(status: &Status, name: &AppName) -> String {
    match status.applications.iter().find(|app| app.name == *name) {
        Some(ApplicationStatus {
            host: Some(host),
            state,
            ..
        }) => {
            format!("{name} is on {host}, {}", state.as_str())
        }
        Some(ApplicationStatus {
            host: None, state, ..
        }) => {
            format!("no reachable host owns {name} ({})", state.as_str())
        }
        None => format!("{name} is not in the deployment any more"),
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::cluster::{ApplicationState, HostStatus};
    use rehome_shared::ids::DeploymentGeneration;

    use super::*;
    use crate::render::sample::{app, application, host};

    fn cluster() -> Status {
        let host_status = |address| HostStatus {
            address: host(address),
            reachable: true,
            version: None,
            problem: None,
            fenced: false,
        };
        Status {
            generation: DeploymentGeneration(1),
            hosts: vec![host_status("10.0.0.1"), host_status("10.0.0.2")],
            applications: vec![application(ApplicationState::Running)],
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let ask = |name: &str, to: &str| {
            known(
                &cluster(),
                &MoveRequest {
                    application: app(name),
                    to: host(to),
                },
            )
            .map_err(|error| error.to_string())
        };
        assert_eq!(ask("db", "10.0.0.2"), Ok(()));
        assert_eq!(
            ask("web", "10.0.0.2"),
            Err("there is no application web; there are: db".to_owned())
        );
        assert_eq!(
            ask("db", "10.0.0.9"),
            Err("there is no host 10.0.0.9; there are: 10.0.0.1, 10.0.0.2".to_owned())
        );
    }

    #[test]
    fn an_application_is_always_somewhere_or_said_not_to_be() {
        let mut status = cluster();
        assert_eq!(
            whereabouts(&status, &app("db")),
            "db is on 10.0.0.1, running"
        );
        for app in &mut status.applications {
            app.host = None;
        }
        assert_eq!(
            whereabouts(&status, &app("db")),
            "no reachable host owns db (running)"
        );
        status.applications.clear();
        assert_eq!(
            whereabouts(&status, &app("db")),
            "db is not in the deployment any more"
        );
    }
}
