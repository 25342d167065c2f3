//! Values for tests.

use std::collections::BTreeMap;

use rehome_shared::api::cluster::{
    ApplicationState, ApplicationStatus, ConnectionGauge, Connections, Failure, Migration,
    MigrationState, Progress, Round, VolumeStatus, Window,
};
use rehome_shared::api::proxy::Announce;
use rehome_shared::config::model::Port;
use rehome_shared::ids::{AppName, DeploymentGeneration, Epoch, HostAddr, MigrationId, Protocol};
use rehome_shared::units::Bytes;

pub(crate) fn app(name: &str) -> AppName {
    AppName::try_new(name).unwrap()
}

pub(crate) fn host(address: &str) -> HostAddr {
    HostAddr::try_new(address).unwrap()
}

/// `db`, running where it should.
pub(crate) fn application(state: ApplicationState) -> ApplicationStatus {
    ApplicationStatus {
        name: app("db"),
        state,
        host: Some(host("10.0.0.1")),
        desired_host: Some(host("10.0.0.1")),
        epoch: Epoch(3),
        ports: vec![Port {
            internal: 5432,
            external: 15432,
            protocol: Protocol::Tcp,
            send_proxy: Announce::default(),
        }],
        volumes: vec![VolumeStatus {
            name: "data".to_owned(),
            bytes: Bytes(45 << 20),
            maximum_size: Some(Bytes(1 << 30)),
        }],
        instance: None,
        started_at: None,
        connections: ConnectionGauge {
            active: 3,
            parked: 1,
        },
        reason: None,
        diverged: Vec::new(),
    }
}

/// `db` on its way from 10.0.0.1 to 10.0.0.2.
pub(crate) fn migration(state: MigrationState) -> Migration {
    let phases = [
        ("prepare", 0.3),
        ("precopy", 4.0),
        ("stop", 0.5),
        ("start", 0.25),
        ("health", 0.1),
    ];
    Migration {
        id: MigrationId::try_new("01jd0000000000000000000000").unwrap(),
        application: app("db"),
        from: host("10.0.0.1"),
        to: host("10.0.0.2"),
        state,
        epoch: Epoch(4),
        generation: DeploymentGeneration(7),
        started_at: "2026-11-22T10:00:00Z".to_owned(),
        rounds: vec![
            Round {
                bytes: Bytes(40 << 20),
                seconds: 3.0,
            },
            Round {
                bytes: Bytes(2 << 20),
                seconds: 0.2,
            },
        ],
        phases: phases
            .into_iter()
            .map(|(name, s)| (name.to_owned(), s))
            .collect::<BTreeMap<_, _>>(),
        window_seconds: Some(Window {
            platform: 0.25,
            application: 0.6,
        }),
        predicted_window: None,
        throttled: None,
        bytes: Bytes(42 << 20),
        connections: Connections {
            drained: 5,
            parked: 12,
            refused: 0,
        },
        error: None,
        now: None,
    }
}

/// Deployment 7 with `db` in the given state, not settled.
pub(crate) fn progress(application: ApplicationStatus) -> Progress {
    Progress {
        generation: DeploymentGeneration(7),
        settled: false,
        applications: vec![application],
        migrations: Vec::new(),
        failures: Vec::new(),
    }
}

pub(crate) fn failure(reason: &str) -> Failure {
    Failure {
        host: host("10.0.0.2"),
        application: Some(app("db")),
        reason: reason.to_owned(),
    }
}
