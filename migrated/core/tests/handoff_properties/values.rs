//! What the machines are fed with: three hosts, and applications of which the last has no volume.

use std::collections::BTreeMap;
use std::time::Duration;

use migrated_core::UnixMillis;
use migrated_core::record::{Plan, Reservation};
use migrated_core::source::{Phase, SourceMigration};
use rehome_shared::api::cluster::{Connections, Migration, MigrationState};
use rehome_shared::api::peer::{FinalSnapshot, OfferedVolume, VolumeIdentity};
use rehome_shared::config::model::{
    Application, Healthcheck, Image, ImageVersion, MigrationLimits, MigrationPolicy, RestartPolicy,
};
use rehome_shared::ids::{
    AppName, DatasetId, DeploymentGeneration, Epoch, HostAddr, MigrationId, VolumeName,
};
use rehome_shared::units::Bytes;

pub(crate) const HOSTS: usize = 3;
pub(crate) const APPLICATIONS: usize = 3;

/// The application that has none.
pub(crate) const WITHOUT_VOLUME: usize = 2;

pub(crate) fn host(number: usize) -> HostAddr {
    HostAddr::try_new(["h1", "h2", "h3"][number]).unwrap()
}

pub(crate) fn number_of(host: &HostAddr) -> usize {
    (0..HOSTS).find(|at| self::host(*at) == *host).unwrap()
}

pub(crate) fn application(app: usize) -> AppName {
    AppName::try_new(["db", "queue", "web"][app]).unwrap()
}

pub(crate) fn app_of(name: &AppName) -> usize {
    (0..APPLICATIONS)
        .find(|app| application(*app) == *name)
        .unwrap()
}

/// Larger numbers are later migrations.
pub(crate) fn id(number: usize) -> MigrationId {
    MigrationId::try_new(format!("01hf{number:022}")).unwrap()
}

pub(crate) fn volumes(app: usize) -> Vec<VolumeIdentity> {
    if app == WITHOUT_VOLUME {
        return Vec::new();
    }
    vec![VolumeIdentity {
        name: VolumeName::try_new("data").unwrap(),
        dataset: DatasetId::try_new(format!("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b1{app}")).unwrap(),
    }]
}

pub(crate) fn finals(app: usize, migration: &MigrationId) -> Vec<FinalSnapshot> {
    volumes(app)
        .into_iter()
        .map(|volume| FinalSnapshot {
            dataset: volume.dataset,
            name: format!("mig-{migration}-final-1"),
            guid: migration.to_string(),
        })
        .collect()
}

pub(crate) fn plan(app: usize, to: HostAddr, epoch: Epoch, now: UnixMillis) -> Plan {
    Plan {
        application: application(app),
        to,
        epoch,
        generation: DeploymentGeneration(1),
        volumes: volumes(app),
        limits: MigrationLimits::default(),
        was_running: true,
        started_at: now,
    }
}

pub(crate) fn reservation(from: usize, plan: &Plan) -> Reservation {
    Reservation {
        from: host(from),
        application: plan.application.clone(),
        epoch: plan.epoch,
        generation: plan.generation,
        spec: Application {
            image: Image {
                repository: "image".to_owned(),
                version: ImageVersion::Tag("1".to_owned()),
            },
            ports: Vec::new(),
            links: Vec::new(),
            volumes: Vec::new(),
            environment: BTreeMap::new(),
            mem_limit: None,
            cpu_shares: None,
            restart_policy: RestartPolicy::Always,
            command: None,
            entrypoint: None,
            user: None,
            working_dir: None,
            hostname: None,
            healthcheck: Healthcheck::default(),
            stop_grace: Duration::from_secs(10),
            stop_signal: None,
            migration: MigrationPolicy::default(),
        },
        volumes: plan
            .volumes
            .iter()
            .map(|identity| OfferedVolume {
                identity: identity.clone(),
                used: Bytes(1),
                limit: None,
            })
            .collect(),
        limits: plan.limits,
    }
}

pub(crate) fn report(from: usize, migration: &SourceMigration) -> Box<Migration> {
    let state = match &migration.phase {
        Phase::Before(_) => MigrationState::Aborted,
        Phase::After(migrated_core::source::AfterRelease::Reclaiming { .. }) => {
            MigrationState::Returned
        }
        Phase::After(_) | Phase::Ended(_) => MigrationState::Done,
    };
    Box::new(Migration {
        id: migration.id.clone(),
        application: migration.plan.application.clone(),
        from: host(from),
        to: migration.plan.to.clone(),
        state,
        epoch: migration.plan.epoch,
        generation: migration.plan.generation,
        started_at: String::new(),
        rounds: migration.rounds.clone(),
        phases: BTreeMap::new(),
        window_seconds: None,
        predicted_window: None,
        throttled: None,
        bytes: Bytes(0),
        connections: Connections::default(),
        error: None,
        now: None,
    })
}
