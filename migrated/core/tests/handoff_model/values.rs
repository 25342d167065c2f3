//! What the machines are fed with: applications with one volume each, three hosts, and two
//! migrations of each application, which are numbered one application after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

use migrated_core::UnixMillis;
use migrated_core::destination::{self, DestinationHandoff};
use migrated_core::record::{Record, Reservation};
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

/// The most applications of a world.
pub(crate) const APPLICATIONS: usize = 2;

/// The most migrations of an application.
pub(crate) const EACH: u8 = 2;

/// The most migrations of a world.
pub(crate) const MIGRATIONS: usize = IDS.len();

const NAMES: [&str; APPLICATIONS] = ["db", "queue"];
const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const DATASETS: [&str; APPLICATIONS] = [
    "7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11",
    "7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b22",
];
const IDS: [&str; 4] = [
    "01hf0000000000000000000001",
    "01hf0000000000000000000002",
    "01hf0000000000000000000003",
    "01hf0000000000000000000004",
];

pub(crate) fn application(app: usize) -> AppName {
    static ALL: LazyLock<[AppName; APPLICATIONS]> =
        LazyLock::new(|| NAMES.map(|name| AppName::try_new(name).unwrap()));
    ALL[app].clone()
}

pub(crate) fn host(number: usize) -> HostAddr {
    static ALL: LazyLock<[HostAddr; HOSTS.len()]> =
        LazyLock::new(|| HOSTS.map(|name| HostAddr::try_new(name).unwrap()));
    ALL[number].clone()
}

pub(crate) fn id(migration: u8) -> MigrationId {
    static ALL: LazyLock<[MigrationId; MIGRATIONS]> =
        LazyLock::new(|| IDS.map(|id| MigrationId::try_new(id).unwrap()));
    ALL[usize::from(migration)].clone()
}

/// Whose migration it is.
pub(crate) fn app_of(migration: u8) -> usize {
    usize::from(migration / EACH)
}

/// Which one of its application's it is.
pub(crate) fn slot_of(migration: u8) -> usize {
    usize::from(migration % EACH)
}

/// The migrations of an application.
pub(crate) fn numbers(app: usize) -> Range<u8> {
    let first = u8::try_from(app).unwrap() * EACH;
    first..first + EACH
}

/// The number of a migration.
pub(crate) fn number(of: &MigrationId) -> u8 {
    let at = IDS.iter().position(|known| *known == of.as_str()).unwrap();
    u8::try_from(at).unwrap()
}

pub(crate) fn volumes(app: usize) -> Vec<VolumeIdentity> {
    vec![VolumeIdentity {
        name: VolumeName::try_new("data").unwrap(),
        dataset: DatasetId::try_new(DATASETS[app]).unwrap(),
    }]
}

/// The hosts of a mask, where each host is the bit of its number.
pub(crate) fn hosts(mask: u8) -> BTreeSet<HostAddr> {
    let in_mask = (0..HOSTS.len()).filter(|at| mask & (1 << at) != 0);
    in_mask.map(host).collect()
}

/// Two worlds that differ only in names: the applications change places, and the hosts with
/// them where they begin on different ones. What can happen in the one can happen in the other,
/// so only one of them is visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symmetry {
    /// The applications.
    Applications,
    /// The applications and the hosts.
    Both,
}

impl Symmetry {
    pub(crate) fn host(self, at: usize) -> usize {
        match self {
            Self::Applications => at,
            Self::Both => 1 - at,
        }
    }

    pub(crate) fn record(self, record: &Record) -> Record {
        let text = serde_json::to_string(record).unwrap();
        serde_json::from_str(&self.text(&text)).unwrap()
    }

    pub(crate) fn migration(self, migration: &SourceMigration) -> SourceMigration {
        let plan = serde_json::to_string(&migration.plan).unwrap();
        SourceMigration {
            id: id((number(&migration.id) + EACH) % (2 * EACH)),
            plan: serde_json::from_str(&self.text(&plan)).unwrap(),
            rounds: migration.rounds.clone(),
            phase: migration.phase.clone(),
        }
    }

    /// Every name in a text that has one gives way to its counterpart.
    fn text(self, text: &str) -> String {
        let mut pairs = vec![
            (NAMES[0], NAMES[1]),
            (DATASETS[0], DATASETS[1]),
            (IDS[0], IDS[2]),
            (IDS[1], IDS[3]),
        ];
        if self == Self::Both {
            pairs.push((HOSTS[0], HOSTS[1]));
        }
        let mut text = text.to_owned();
        for (one, other) in pairs {
            let (one, other) = (format!("\"{one}\""), format!("\"{other}\""));
            text = text
                .replace(&one, "\"~\"")
                .replace(&other, &one)
                .replace("\"~\"", &other);
        }
        text
    }
}

pub(crate) fn reservation(app: usize, from: usize, epoch: u8) -> Reservation {
    Reservation {
        from: host(from),
        application: application(app),
        epoch: Epoch(epoch.into()),
        generation: DeploymentGeneration(1),
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
        volumes: volumes(app)
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

/// What people are shown of a migration.
pub(crate) fn report(migration: &SourceMigration) -> Box<Migration> {
    Box::new(Migration {
        id: migration.id.clone(),
        application: migration.plan.application.clone(),
        from: host(usize::from(migration.plan.to == host(0))),
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
        predicted_window: None,
        throttled: None,
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
        SourceTag::Drained => E::Drained { rounds: Vec::new() },
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
            finals: volumes(app_of(migration))
                .into_iter()
                .map(|volume| FinalSnapshot {
                    dataset: volume.dataset,
                    name: "final".to_owned(),
                    guid: id(migration).to_string(),
                })
                .collect(),
        },
        DestinationTag::Granted(epoch) => E::Granted {
            attempt: Attempt(1),
            epoch: Epoch(epoch.into()),
        },
        DestinationTag::Entrusted => E::Entrusted {
            attempt: Attempt(1),
            epoch: handoff.epoch_here(),
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
