//! The state of the cluster as two tables, and what is wrong below them.

use rehome_shared::api::cluster::{ApplicationStatus, HostStatus, Status};
use rehome_shared::config::model::Port;

use super::{NOTHING, or_nothing, table};

/// The whole of `rehome status`.
pub(crate) fn status(status: &Status) -> String {
    let hosts: Vec<_> = status.hosts.iter().map(host_row).collect();
    let mut text = format!(
        "deployment {}\n\n{}\n{}",
        status.generation,
        table(&["HOST", "REACHABLE", "VERSION"], &hosts),
        applications(&status.applications),
    );
    let notes = notes(status);
    if !notes.is_empty() {
        text = [text, notes.join("\n")].join("\n") + "\n";
    }
    text
}

/// What is wrong, by host and by application.
fn notes(status: &Status) -> Vec<String> {
    let hosts = status
        .hosts
        .iter()
        .filter_map(|host| Some(format!("{}: {}", host.address, host.problem.as_ref()?)));
    let applications = status
        .applications
        .iter()
        .filter_map(|app| Some(format!("{}: {}", app.name, app.reason.as_ref()?)));
    let copies = status.applications.iter().flat_map(|app| &app.diverged);
    let copies = copies.map(|copy| {
        format!(
            "{}: {} keeps what was written to {} when it was not the owner any more, as {}",
            copy.application, copy.host, copy.volume, copy.path
        )
    });
    hosts.chain(applications).chain(copies).collect()
}

fn host_row(host: &HostStatus) -> Vec<String> {
    let reachable = match (host.reachable, host.fenced) {
        (true, false) => "yes",
        (false, false) => "no",
        (true, true) => "yes, was fenced",
        (false, true) => "no, fenced",
    };
    vec![
        host.address.to_string(),
        reachable.to_owned(),
        or_nothing(host.version.as_ref()),
    ]
}

/// The table of applications, or that there are none.
fn applications(applications: &[ApplicationStatus]) -> String {
    const HEADER: [&str; 8] = [
        "APPLICATION",
        "STATE",
        "HOST",
        "SHOULD BE ON",
        "EPOCH",
        "PORTS",
        "VOLUMES",
        "CONNECTIONS",
    ];
    if applications.is_empty() {
        return "no applications\n".to_owned();
    }
    let rows: Vec<_> = applications.iter().map(application_row).collect();
    table(&HEADER, &rows)
}

fn application_row(app: &ApplicationStatus) -> Vec<String> {
    let volumes = app.volumes.iter().map(|volume| {
        let limit = volume
            .maximum_size
            .map(|limit| format!(" of {limit}"))
            .unwrap_or_default();
        format!("{} {}{limit}", volume.name, volume.bytes)
    });
    let connections = match app.connections.parked {
        0 => app.connections.active.to_string(),
        parked => format!("{} +{parked} parked", app.connections.active),
    };
    vec![
        app.name.to_string(),
        app.state.as_str().to_owned(),
        or_nothing(app.host.as_ref()),
        or_nothing(app.desired_host.as_ref()),
        app.epoch.to_string(),
        list(app.ports.iter().copied().map(port)),
        list(volumes),
        connections,
    ]
}

/// `15432→5432/tcp`: from what every host listens on to where the application does.
fn port(port: Port) -> String {
    format!("{}→{}/{}", port.external, port.internal, port.protocol)
}

fn list(parts: impl Iterator<Item = String>) -> String {
    let text = parts.collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        NOTHING.to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::cluster::ApplicationState;
    use rehome_shared::ids::DeploymentGeneration;

    use super::super::sample::{application, host};
    use super::*;

    fn cluster() -> Status {
        Status {
            generation: DeploymentGeneration(7),
            hosts: vec![
                HostStatus {
                    address: host("10.0.0.1"),
                    reachable: true,
                    version: Some("0.1.0".to_owned()),
                    problem: None,
                    fenced: false,
                },
                HostStatus {
                    address: host("10.0.0.2"),
                    reachable: false,
                    version: None,
                    problem: Some("does not answer".to_owned()),
                    fenced: false,
                },
            ],
            applications: vec![application(ApplicationState::Running)],
        }
    }

    #[test]
    fn hosts_and_applications_stand_in_tables() {
        assert_eq!(
            status(&cluster()),
            "deployment 7\n\
             \n\
             HOST      REACHABLE  VERSION\n\
             10.0.0.1  yes        0.1.0\n\
             10.0.0.2  no         -\n\
             \n\
             APPLICATION  STATE    HOST      SHOULD BE ON  EPOCH  PORTS           VOLUMES                    CONNECTIONS\n\
             db           running  10.0.0.1  10.0.0.1      3      15432→5432/tcp  data 45.0 MiB of 1.00 GiB  3 +1 parked\n\
             \n\
             10.0.0.2: does not answer\n"
        );
    }

    #[test]
    fn fenced_hosts_and_diverged_copies_are_shown() {
        let mut value = cluster();
        for host in &mut value.hosts {
            host.fenced = true;
        }
        for app in &mut value.applications {
            app.diverged
                .push(rehome_shared::api::cluster::DivergedCopy {
                    application: app.name.clone(),
                    host: host("10.0.0.2"),
                    volume: "data".to_owned(),
                    name: "e2-20261123".to_owned(),
                    path: "/pool/diverged/x/e2-20261123".to_owned(),
                });
        }
        let text = status(&value);
        assert!(text.contains("10.0.0.1  yes, was fenced"), "{text}");
        assert!(text.contains("10.0.0.2  no, fenced"), "{text}");
        assert!(
            text.ends_with("db: 10.0.0.2 keeps what was written to data when it was not the owner any more, as /pool/diverged/x/e2-20261123\n"),
            "{text}"
        );
    }

    #[test]
    fn a_cluster_without_applications_says_so() {
        let mut value = cluster();
        value.applications.clear();
        assert!(status(&value).contains("no applications\n"));
    }

    #[test]
    fn an_application_nobody_owns_has_no_host() {
        let mut value = cluster();
        for app in &mut value.applications {
            app.host = None;
            app.reason = Some("no host has its volume".to_owned());
        }
        let text = status(&value);
        assert!(text.contains("running  -"), "{text}");
        assert!(text.ends_with("db: no host has its volume\n"), "{text}");
    }
}
