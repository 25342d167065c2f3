//! What people are told that a deployment changes.

use rehome_shared::api::proxy::Announce;
use rehome_shared::config::model::{Port, Volume};
use rehome_shared::ids::Protocol;
use rehome_shared::units::Bytes;

use super::*;
use crate::fixtures::{app, deployment, host, report};

fn told(current: &Desired, desired: &Desired, hosts: &[HostReport]) -> Vec<(String, ChangeKind)> {
    let reports: BTreeMap<HostAddr, HostReport> = hosts
        .iter()
        .map(|report| (report.host.clone(), report.clone()))
        .collect();
    let owners = hosts
        .iter()
        .flat_map(|report| {
            report
                .owned
                .iter()
                .map(|o| (o.application.clone(), report.host.clone()))
        })
        .collect();
    changes(current, desired, &owners, &reports)
        .into_iter()
        .map(|change| (change.application.to_string(), change.kind))
        .collect()
}

#[test]
fn nothing_changes_where_everything_is_as_it_should_be() {
    let now = deployment(1, &[("h1", &["db"])]);
    assert_eq!(told(&now, &now, &[report("h1", &now, &[("db", 1)])]), []);
}

#[test]
fn what_nobody_has_is_made_and_what_another_host_has_moves() {
    let now = deployment(1, &[("h1", &["db"]), ("h2", &[])]);
    let next = deployment(1, &[("h1", &["web"]), ("h2", &["db"])]);
    let hosts = [report("h1", &now, &[("db", 1)]), report("h2", &now, &[])];
    let expected = [
        (
            "db".to_owned(),
            ChangeKind::Move {
                from: host("h1"),
                to: host("h2"),
                volumes: false,
            },
        ),
        ("web".to_owned(), ChangeKind::Create { host: host("h1") }),
    ];
    assert_eq!(told(&now, &next, &hosts), expected);
}

#[test]
fn a_volume_moves_with_its_application() {
    let now = deployment(1, &[("h1", &["db"]), ("h2", &[])]);
    let mut next = deployment(1, &[("h1", &[]), ("h2", &["db"])]);
    let volume = Volume {
        name: rehome_shared::ids::VolumeName::try_new("data").unwrap(),
        mountpoint: "/data".to_owned(),
        maximum_size: Some(Bytes(1 << 20)),
        dataset_id: None,
    };
    next.applications
        .get_mut(&app("db"))
        .unwrap()
        .volumes
        .push(volume);
    let kinds = told(&now, &next, &[report("h1", &now, &[("db", 1)])]);
    let moved = ChangeKind::Move {
        from: host("h1"),
        to: host("h2"),
        volumes: true,
    };
    assert_eq!(kinds, [("db".to_owned(), moved)]);
}

#[test]
fn only_what_an_instance_is_made_of_restarts_it() {
    let now = deployment(1, &[("h1", &["db"])]);
    let hosts = [report("h1", &now, &[("db", 1)])];
    let mut grace = now.clone();
    grace.applications.get_mut(&app("db")).unwrap().stop_grace = std::time::Duration::from_secs(1);
    let update = ChangeKind::Update { host: host("h1") };
    assert_eq!(told(&now, &grace, &hosts), [("db".to_owned(), update)]);
    let mut user = now.clone();
    user.applications.get_mut(&app("db")).unwrap().user = Some("nobody".to_owned());
    let restart = ChangeKind::Restart { host: host("h1") };
    assert_eq!(
        told(&now, &user, &hosts),
        [("db".to_owned(), restart.clone())]
    );
    // An instance expects a header in front of its clients' bytes from its start or never.
    let port = |send_proxy| {
        let mut desired = now.clone();
        desired.applications.get_mut(&app("db")).unwrap().ports = vec![Port {
            internal: 80,
            external: 80,
            protocol: Protocol::Tcp,
            send_proxy,
        }];
        desired
    };
    let (plain, announced) = (port(Announce::Nothing), port(Announce::ProxyV2));
    let update = ChangeKind::Update { host: host("h1") };
    assert_eq!(told(&now, &plain, &hosts), [("db".to_owned(), update)]);
    assert_eq!(
        told(&plain, &announced, &hosts),
        [("db".to_owned(), restart)]
    );
}

#[test]
fn what_is_not_placed_any_more_stops_once() {
    let now = deployment(1, &[("h1", &["db"])]);
    let next = deployment(1, &[("h1", &[])]);
    let mut runs = report("h1", &now, &[("db", 1)]);
    let stop = ChangeKind::Stop { host: host("h1") };
    assert_eq!(
        told(&now, &next, std::slice::from_ref(&runs)),
        [("db".to_owned(), stop)]
    );
    runs.owned[0].config_hash = None;
    assert_eq!(told(&now, &next, std::slice::from_ref(&runs)), []);
    let start = ChangeKind::Start { host: host("h1") };
    assert_eq!(told(&next, &now, &[runs]), [("db".to_owned(), start)]);
}

#[test]
fn what_has_failed_is_started_again() {
    let now = deployment(1, &[("h1", &["db"])]);
    let mut failed = report("h1", &now, &[("db", 1)]);
    failed.applications[0].state = ApplicationState::Failed;
    let start = ChangeKind::Start { host: host("h1") };
    assert_eq!(told(&now, &now, &[failed]), [("db".to_owned(), start)]);
}
