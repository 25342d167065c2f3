//! What the machines are fed with: one application with one volume, two hosts, two migrations.

use std::collections::BTreeMap;
use std::time::Duration;

use migrated_core::UnixMillis;
use migrated_core::destination::{self, DestinationHandoff};
use migrated_core::record::Reservation;
use migrated_core::source::{self, AfterRound, Phase, SourceMigration};
use rehome_shared::api::cluster::{Connections, Migration, MigrationState, Round};
use rehome_shared::api::peer::{FinalSnapshot, OfferedVolume, VolumeIdentity};
use rehome_shared::config::model::{
    Application, Healthcheck, Image, ImageVersion, MigrationLimits, MigrationPolicy, RestartPolicy,
};
use rehome_shared::ids::{
    AppName, Attempt, DatasetId, DeploymentGeneration, Epoch, HostAddr, MigrationId, VolumeName,
};
use rehome_shared::units::Bytes;

use crate::machines::{DestinationTag, SourceTag};

pub(crate) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

pub(crate) fn application() -> AppName {
    AppName::try_new("db").unwrap()
}

pub(crate) fn host(number: usize) -> HostAddr {
    HostAddr::try_new(["h1", "h2"][number]).unwrap()
}

pub(crate) fn id(migration: u8) -> MigrationId {
    MigrationId::try_new(
        ["01hf0000000000000000000001", "01hf0000000000000000000002"][usize::from(migration)],
    )
    .unwrap()
}

pub(crate) fn volumes() -> Vec<VolumeIdentity> {
    vec![VolumeIdentity {
        name: VolumeName::try_new("data").unwrap(),
        dataset: DatasetId::try_new("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11").unwrap(),
    }]
}

pub(crate) fn reservation(from: usize, epoch: u8) -> Reservation {
    Reservation {
        from: host(from),
        application: application(),
        epoch: Epoch(epoch.into()),
        generation: DeploymentGeneration(1),
        spec: Application {
            image: Image {
                repository: "db".to_owned(),
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
        volumes: volumes()
            .into_iter()
            .map(|identity| OfferedVolume {
                identity,
                used: Bytes(1),
                limit: None,
            })
            .collect(),
        limits: MigrationLimits::default(),
    }
}

pub(crate) fn report(migration: &SourceMigration) -> Box<Migration> {
    Box::new(Migration {
        id: migration.id.clone(),
        application: application(),
        from: host(0),
        to: migration.plan.to.clone(),
        state: match &migration.phase {
            Phase::Before(_) => MigrationState::Aborted,
            Phase::After(source::AfterRelease::Reclaiming { .. }) => MigrationState::Returned,
            Phase::After(_) | Phase::Ended(_) => MigrationState::Done,
        },
        epoch: migration.plan.epoch,
        generation: migration.plan.generation,
        started_at: String::new(),
        rounds: Vec::new(),
        phases: BTreeMap::new(),
        window_seconds: None,
        bytes: Bytes(0),
        connections: Connections::default(),
        error: None,
        now: None,
    })
}

pub(crate) fn source_event(
    migration: &SourceMigration,
    tag: SourceTag,
) -> Option<(UnixMillis, source::Event)> {
    use source::Event as E;
    let round = Round {
        bytes: Bytes(1 << 20),
        seconds: 0.5,
    };
    let reason = || "because".to_owned();
    let deadline = migration.deadline().unwrap_or(NOW);
    let event = match tag {
        SourceTag::Ready => E::Ready,
        SourceTag::RoundAgain => E::RoundSent {
            round,
            next: AfterRound::Again,
        },
        SourceTag::RoundCutOver => E::RoundSent {
            round,
            next: AfterRound::CutOver,
        },
        SourceTag::Parked => E::Parked,
        SourceTag::Drained => E::Drained,
        SourceTag::Stopped => E::Stopped,
        SourceTag::VerifiedInTime => return Some((deadline, E::Verified)),
        SourceTag::VerifiedLate => return Some((UnixMillis(deadline.0 + 1), E::Verified)),
        SourceTag::Failed => E::Failed { reason: reason() },
        SourceTag::Resumed => migration.resumed()?,
        SourceTag::Adopted => E::Adopted,
        SourceTag::Served => E::Served,
        SourceTag::Returned => E::Returned { reason: reason() },
        SourceTag::Closed => E::Closed {
            report: report(migration),
        },
    };
    Some((NOW, event))
}

pub(crate) fn destination_event(
    handoff: &DestinationHandoff,
    migration: u8,
    tag: DestinationTag,
) -> destination::Event {
    use destination::Event as E;
    match tag {
        DestinationTag::Verified => E::Verified {
            attempt: Attempt(1),
            epoch: handoff.reservation.epoch,
            finals: volumes()
                .into_iter()
                .map(|volume| FinalSnapshot {
                    dataset: volume.dataset,
                    name: "final".to_owned(),
                    guid: migration.to_string(),
                })
                .collect(),
        },
        DestinationTag::Granted(epoch) => E::Granted {
            attempt: Attempt(1),
            epoch: Epoch(epoch.into()),
        },
        DestinationTag::Healthy => E::Healthy,
        DestinationTag::Failed => E::Failed {
            reason: "because".to_owned(),
        },
        DestinationTag::Aborted => E::Aborted,
        DestinationTag::Expired => E::Expired,
        DestinationTag::Discarded => E::Discarded,
        DestinationTag::Closed => E::Closed,
    }
}
