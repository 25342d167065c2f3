//! Values that the tests of several modules start from: application `db` with one volume moves
//! from `h1`, its owner at epoch 1, to `h2`.

use std::collections::BTreeMap;
use std::time::Duration;

use rehome_shared::api::cluster::{Connections, Migration, MigrationState, Round};
use rehome_shared::api::peer::{FinalSnapshot, OfferedVolume, VolumeIdentity};
use rehome_shared::api::proxy::Announce;
use rehome_shared::config::model::{
    Application, Healthcheck, Image, ImageVersion, Link, MigrationLimits, MigrationPolicy, OnStall,
    Port, Probe, RestartPolicy, Volume,
};
use rehome_shared::ids::{
    AppName, Attempt, DatasetId, DeploymentGeneration, Epoch, HostAddr, MigrationId, Protocol,
    VolumeName,
};
use rehome_shared::units::Bytes;

use crate::UnixMillis;
use crate::record::{DestinationRecord, Plan, Record, Reservation, SourceRecord};

pub(crate) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

pub(crate) fn application() -> AppName {
    AppName::try_new("db").unwrap()
}

pub(crate) fn host(name: &str) -> HostAddr {
    HostAddr::try_new(name).unwrap()
}

/// Larger numbers are later migrations.
pub(crate) fn id(number: u8) -> MigrationId {
    MigrationId::try_new(format!("01hf0000000000000000000{number:03}")).unwrap()
}

pub(crate) fn volume(name: &str) -> VolumeIdentity {
    let last = name.len();
    VolumeIdentity {
        name: VolumeName::try_new(name).unwrap(),
        dataset: DatasetId::try_new(format!("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b{last:02}"))
            .unwrap(),
    }
}

pub(crate) fn plan() -> Plan {
    Plan {
        application: application(),
        to: host("h2"),
        epoch: Epoch(1),
        generation: DeploymentGeneration(3),
        volumes: vec![volume("data")],
        limits: MigrationLimits::default(),
        was_running: true,
        started_at: NOW,
    }
}

pub(crate) fn spec() -> Application {
    Application {
        image: Image {
            repository: "acme/db".to_owned(),
            version: ImageVersion::Tag("1".to_owned()),
        },
        ports: vec![Port {
            internal: 6379,
            external: 6379,
            protocol: Protocol::Tcp,
            send_proxy: Announce::default(),
        }],
        links: vec![Link {
            local_port: 80,
            remote_port: 8080,
            alias: "web".to_owned(),
        }],
        volumes: vec![Volume {
            name: volume("data").name,
            mountpoint: "/data".to_owned(),
            maximum_size: Some(Bytes(1 << 30)),
            dataset_id: None,
        }],
        environment: BTreeMap::from([("MODE".to_owned(), "fast".to_owned())]),
        mem_limit: None,
        cpu_shares: None,
        restart_policy: RestartPolicy::OnFailure {
            maximum_retry_count: Some(3),
        },
        command: Some(vec!["serve".to_owned()]),
        entrypoint: None,
        user: None,
        working_dir: None,
        hostname: None,
        healthcheck: Healthcheck {
            probe: Some(Probe::Http {
                port: 80,
                path: "/up".to_owned(),
            }),
            ..Healthcheck::default()
        },
        stop_grace: Duration::from_secs(10),
        stop_signal: None,
        migration: MigrationPolicy {
            hard_cap: Some(Duration::from_millis(1500)),
            on_stall: Some(OnStall::Wait),
            ..MigrationPolicy::default()
        },
    }
}

pub(crate) fn reservation() -> Reservation {
    Reservation {
        from: host("h1"),
        application: application(),
        epoch: Epoch(1),
        generation: DeploymentGeneration(3),
        spec: spec(),
        volumes: vec![OfferedVolume {
            identity: volume("data"),
            used: Bytes(1024),
            limit: None,
        }],
        limits: MigrationLimits::default(),
    }
}

pub(crate) fn finals() -> Vec<FinalSnapshot> {
    vec![FinalSnapshot {
        dataset: volume("data").dataset,
        name: "mig-final-1".to_owned(),
        guid: "17".to_owned(),
    }]
}

pub(crate) fn round() -> Round {
    Round {
        bytes: Bytes(1 << 20),
        seconds: 0.25,
    }
}

pub(crate) fn report(id: MigrationId, state: MigrationState) -> Box<Migration> {
    Box::new(Migration {
        id,
        application: application(),
        from: host("h1"),
        to: host("h2"),
        state,
        epoch: Epoch(2),
        generation: DeploymentGeneration(3),
        started_at: "2023-11-14T22:13:20Z".to_owned(),
        rounds: vec![round()],
        phases: BTreeMap::from([("stop".to_owned(), 0.5)]),
        window_seconds: None,
        predicted_window: None,
        throttled: None,
        bytes: Bytes(1 << 20),
        connections: Connections::default(),
        error: None,
        now: None,
    })
}

pub(crate) fn born() -> Vec<Record> {
    vec![
        Record::Born {
            application: application(),
            volumes: vec![volume("data")],
        },
        Record::VolumesMade {
            application: application(),
        },
    ]
}

pub(crate) fn source(number: u8, step: SourceRecord) -> Record {
    Record::Source {
        migration: id(number),
        step,
    }
}

pub(crate) fn destination(number: u8, step: DestinationRecord) -> Record {
    Record::Destination {
        migration: id(number),
        step,
    }
}

pub(crate) fn reserved(number: u8) -> Record {
    destination(number, DestinationRecord::Reserved(Box::new(reservation())))
}

pub(crate) fn verified(number: u8) -> Record {
    destination(
        number,
        DestinationRecord::Verified {
            attempt: Attempt(1),
            finals: finals(),
        },
    )
}
