//! The real machines behind small numbers: journals and open migrations are kept once each, so
//! that a state of the world is a handful of bytes.

use std::collections::{BTreeSet, HashMap};

use migrated_core::admission::{Admission, may_give, may_take};
use migrated_core::destination::DestinationHandoff;
use migrated_core::journal::{self, MAGIC, Position};
use migrated_core::record::{DestinationRecord, Plan, Record, SourceRecord};
use migrated_core::registry::{Registry, Role};
use migrated_core::source::{self, Phase, SourceMigration};
use rehome_shared::api::peer::HandoffState;
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::ids::{DeploymentGeneration, MigrationId};

use crate::values::{
    NOW, application, destination_event, host, id, reservation, source_event, volumes,
};

/// The journal in which nothing was written.
pub(crate) const EMPTY: u16 = 0;

/// No open migration.
pub(crate) const NONE: u16 = 0;

/// What can happen to a migration on its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SourceTag {
    Ready,
    RoundAgain,
    RoundCutOver,
    Parked,
    Drained,
    Stopped,
    VerifiedInTime,
    VerifiedLate,
    Failed,
    Resumed,
    Adopted,
    Served,
    Returned,
    Closed,
}

/// What can happen to a handoff on its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DestinationTag {
    Verified,
    Granted(u8),
    Healthy,
    Failed,
    Aborted,
    Expired,
    Discarded,
    Closed,
}

/// The source's step: the journal after each of its records, the last one being the whole step.
#[derive(Debug, Clone)]
pub(crate) struct Stepped {
    pub(crate) journals: Vec<u16>,
    pub(crate) live: u16,
}

struct Journal {
    records: Vec<Record>,
    registry: Registry,
    /// The epochs at which this host was the owner, as bits.
    owned: u32,
    /// What this host may have said of each migration.
    said: [BTreeSet<Message>; 2],
}

/// What a destination says of a migration, in the order in which it can come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum View {
    Reserved,
    Verified,
    Owned,
    Serving,
    Returned,
}

/// All of them.
pub(crate) const VIEWS: [View; 5] = [
    View::Reserved,
    View::Verified,
    View::Owned,
    View::Serving,
    View::Returned,
];

impl View {
    /// Whether a destination in this state says this.
    pub(crate) fn is(self, state: HandoffState) -> bool {
        match state {
            HandoffState::Reserved => self == Self::Reserved,
            HandoffState::Verified => self == Self::Verified,
            HandoffState::Owned => self == Self::Owned,
            HandoffState::Serving => self == Self::Serving,
            HandoffState::Returned => self == Self::Returned,
            // Nothing follows from what is not known, or was called off by the source itself.
            HandoffState::Unknown | HandoffState::Dropped => false,
        }
    }
}

/// A message of a migration. Which ones may have been sent follows from the journal of the host
/// that sends: it says what its state says, again and again, and whatever it said once may
/// arrive at any later time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Message {
    Prepare,
    Verify,
    Grant,
    Abort,
    Close,
    View(View),
}

pub(crate) struct Machines {
    journals: Vec<Journal>,
    appended: HashMap<(u16, String), u16>,
    meanings: HashMap<String, u16>,
    lives: Vec<Option<SourceMigration>>,
    source_steps: HashMap<(u16, u16, SourceTag), Option<Stepped>>,
    destination_steps: HashMap<(u16, u8, DestinationTag), Option<u16>>,
    takes: HashMap<(u16, u8, u8), Option<Vec<u16>>>,
    /// Something that the machines must never do, found while stepping.
    pub(crate) broken: Option<String>,
}

impl Machines {
    pub(crate) fn new() -> Self {
        Self {
            journals: vec![Journal {
                records: Vec::new(),
                registry: Registry::default(),
                owned: 0,
                said: [BTreeSet::new(), BTreeSet::new()],
            }],
            appended: HashMap::new(),
            meanings: HashMap::new(),
            lives: vec![None],
            source_steps: HashMap::new(),
            destination_steps: HashMap::new(),
            takes: HashMap::new(),
            broken: None,
        }
    }

    /// The journal of a host that the application was born on.
    pub(crate) fn born(&mut self) -> u16 {
        let announced = Record::Born {
            application: application(),
            volumes: volumes(),
        };
        let journal = self.append(EMPTY, &announced);
        self.append(
            journal,
            &Record::VolumesMade {
                application: application(),
            },
        )
    }

    pub(crate) fn journals(&self) -> usize {
        self.journals.len()
    }

    pub(crate) fn registry(&self, journal: u16) -> &Registry {
        &self.journals[usize::from(journal)].registry
    }

    /// The epochs at which the writer of a journal ever was the owner, as bits.
    pub(crate) fn owned_epochs(&self, journal: u16) -> u32 {
        self.journals[usize::from(journal)].owned
    }

    /// Whether the writer of a journal may have said this of a migration.
    pub(crate) fn said(&self, journal: u16, migration: u8, message: Message) -> bool {
        self.journals[usize::from(journal)].said[usize::from(migration)].contains(&message)
    }

    pub(crate) fn owns(&self, journal: u16) -> bool {
        self.registry(journal).owned(&application()).is_some()
    }

    pub(crate) fn live(&self, live: u16) -> Option<&SourceMigration> {
        self.lives[usize::from(live)].as_ref()
    }

    /// The open migration that a restarted daemon finds.
    pub(crate) fn recovered(&mut self, journal: u16) -> u16 {
        let found = self.registry(journal).source_of(&application()).cloned();
        self.keep(found)
    }

    pub(crate) fn handoff(&self, journal: u16, migration: u8) -> Option<&DestinationHandoff> {
        self.registry(journal).destinations().get(&id(migration))
    }

    fn keep(&mut self, live: Option<SourceMigration>) -> u16 {
        let at = self
            .lives
            .iter()
            .position(|known| *known == live)
            .unwrap_or_else(|| {
                self.lives.push(live);
                self.lives.len() - 1
            });
        u16::try_from(at).unwrap()
    }

    /// Appends a record. Every journal that comes to be is checked once: it reads back from its
    /// bytes, means the same when it is replayed twice, and its epochs only grow.
    fn append(&mut self, journal: u16, record: &Record) -> u16 {
        let key = (journal, serde_json::to_string(record).unwrap());
        if let Some(known) = self.appended.get(&key) {
            return *known;
        }
        let before = &self.journals[usize::from(journal)];
        let mut records = before.records.clone();
        records.push(record.clone());
        let mut registry = before.registry.clone();
        registry.apply(record);
        let mut owned = before.owned;
        if let Some(known) = registry.applications().get(&application()) {
            let earlier = before.registry.applications().get(&application());
            if earlier.is_some_and(|earlier| earlier.epoch > known.epoch) {
                self.broken = Some(format!("the epoch shrinks at {record:?}"));
            }
            if known.role == Role::Owner {
                owned |= 1 << known.epoch.0;
            }
        }
        if let Err(problem) = check_replay(&records, &registry) {
            self.broken = Some(problem);
        }
        let mut said = before.said.clone();
        for migration in 0..2 {
            let spoken = says(record, &registry, migration);
            said[usize::from(migration)].extend(spoken);
        }
        // What a host does next depends on what its journal means, not on how that came to be.
        let meaning = format!("{registry:?} {owned} {said:?}");
        let next = u16::try_from(self.journals.len()).unwrap();
        let new = *self.meanings.entry(meaning).or_insert(next);
        if new == next {
            self.journals.push(Journal {
                records,
                registry,
                owned,
                said,
            });
        }
        self.appended.insert(key, new);
        new
    }

    /// Begins a migration, if the guard allows it.
    pub(crate) fn begin(&mut self, journal: u16, here: usize, migration: u8) -> Option<(u16, u16)> {
        let owned = self.registry(journal).owned(&application())?;
        let plan = Plan {
            application: application(),
            to: host(1 - here),
            epoch: owned.epoch,
            generation: DeploymentGeneration(1),
            volumes: owned.volumes.clone(),
            limits: MigrationLimits::default(),
            was_running: true,
            started_at: NOW,
        };
        may_give(self.registry(journal), &host(here), &id(migration), &plan).ok()?;
        let step = SourceRecord::Planned(plan.clone());
        let journal = self.append(
            journal,
            &Record::Source {
                migration: id(migration),
                step,
            },
        );
        Some((
            journal,
            self.keep(Some(SourceMigration::begin(id(migration), plan))),
        ))
    }

    /// Steps the open migration; `None` when the state does not allow it.
    pub(crate) fn source_step(
        &mut self,
        journal: u16,
        live: u16,
        tag: SourceTag,
    ) -> Option<Stepped> {
        let key = (journal, live, tag);
        if let Some(known) = self.source_steps.get(&key) {
            return known.clone();
        }
        let migration = self.live(live)?.clone();
        let stepped = source_event(&migration, tag)
            .and_then(|(now, event)| migration.step(now, event).ok())
            .map(|step| self.persist(journal, &migration.id, step));
        self.source_steps.insert(key, stepped.clone());
        stepped
    }

    fn persist(&mut self, journal: u16, migration: &MigrationId, step: source::Step) -> Stepped {
        let step = without_reasons(step);
        let mut journals = Vec::new();
        let mut at = journal;
        for record in &step.records {
            let record = Record::Source {
                migration: migration.clone(),
                step: record.clone(),
            };
            at = self.append(at, &record);
            journals.push(at);
        }
        let over = matches!(step.next.phase, Phase::Ended(_));
        let next = (!over).then_some(step.next);
        if !journals.is_empty() && self.registry(at).source_of(&application()) != next.as_ref() {
            self.broken = Some(format!("replay and step disagree about {next:?}"));
        }
        if journals.is_empty() {
            journals.push(journal);
        }
        Stepped {
            journals,
            live: self.keep(next),
        }
    }

    /// A migration that is called off although the machine does not allow it.
    pub(crate) fn force_abort(&mut self, journal: u16, live: u16) -> Option<Stepped> {
        let mut migration = self.live(live)?.clone();
        migration.phase = Phase::Before(source::BeforeRelease::Preparing);
        let event = source::Event::AbortRequested {
            reason: "forced".to_owned(),
        };
        let step = migration.step(NOW, event).ok()?;
        let mut at = journal;
        for record in &step.records {
            let record = Record::Source {
                migration: migration.id.clone(),
                step: record.clone(),
            };
            at = self.append(at, &record);
        }
        Some(Stepped {
            journals: vec![at],
            live: self.keep(Some(step.next)),
        })
    }

    /// Steps a handoff; `None` when it is unknown or the message is stale.
    pub(crate) fn destination_step(
        &mut self,
        journal: u16,
        migration: u8,
        tag: DestinationTag,
    ) -> Option<u16> {
        let key = (journal, migration, tag);
        if let Some(known) = self.destination_steps.get(&key) {
            return *known;
        }
        let handoff = self.handoff(journal, migration)?.clone();
        let stepped = handoff
            .step(destination_event(&handoff, migration, tag))
            .ok()
            .map(|step| {
                let mut at = journal;
                for record in &step.records {
                    at = self.append_destination(at, migration, record.clone());
                }
                if self.handoff(at, migration) != step.next.as_ref() {
                    self.broken = Some(format!("replay and step disagree about {:?}", step.next));
                }
                at
            });
        self.destination_steps.insert(key, stepped);
        stepped
    }

    pub(crate) fn append_destination(
        &mut self,
        journal: u16,
        migration: u8,
        step: DestinationRecord,
    ) -> u16 {
        self.append(
            journal,
            &Record::Destination {
                migration: id(migration),
                step,
            },
        )
    }

    /// An offer arrives: the journal after each record that it leads to (none when it is known
    /// already), or `None` when it is refused.
    pub(crate) fn take(
        &mut self,
        journal: u16,
        here: usize,
        migration: u8,
        epoch: u8,
    ) -> Option<Vec<u16>> {
        let key = (journal, migration, epoch);
        if let Some(known) = self.takes.get(&key) {
            return known.clone();
        }
        let offer = reservation(1 - here, epoch);
        let admission = may_take(self.registry(journal), &host(here), &id(migration), &offer);
        let taken = match admission {
            Err(_) => None,
            Ok(Admission::Known) => Some(Vec::new()),
            Ok(Admission::Reserve { supersedes }) => {
                let mut journals = Vec::new();
                let mut at = journal;
                for older in (0..2).filter(|other| supersedes.contains(&id(*other))) {
                    for tag in [
                        DestinationTag::Aborted,
                        DestinationTag::Discarded,
                        DestinationTag::Closed,
                    ] {
                        if let Some(next) = self.destination_step(at, older, tag) {
                            at = next;
                            journals.push(at);
                        }
                    }
                    assert_eq!(self.handoff(at, older), None, "it came to its end");
                }
                let record = DestinationRecord::Reserved(Box::new(offer));
                journals.push(self.append_destination(at, migration, record));
                Some(journals)
            }
        };
        self.takes.insert(key, taken.clone());
        taken
    }
}

/// Why something was called off makes no difference.
fn without_reasons(mut step: source::Step) -> source::Step {
    for record in &mut step.records {
        if let SourceRecord::Aborted { reason } = record {
            reason.clear();
        }
    }
    if let Phase::Before(source::BeforeRelease::Aborting { reason }) = &mut step.next.phase {
        reason.clear();
    }
    step
}

/// What a host says of a migration from a record on.
fn says(record: &Record, registry: &Registry, migration: u8) -> Option<Message> {
    match record {
        Record::Source {
            migration: of,
            step,
        } if *of == id(migration) => match step {
            SourceRecord::Planned(_) => Some(Message::Prepare),
            SourceRecord::CutOver { .. } => Some(Message::Verify),
            SourceRecord::Aborted { .. } => Some(Message::Abort),
            SourceRecord::Released { .. } => Some(Message::Grant),
            SourceRecord::Served | SourceRecord::Reclaimed { .. } => Some(Message::Close),
            SourceRecord::Round(_) | SourceRecord::Adopted | SourceRecord::Closed { .. } => None,
        },
        Record::Destination { migration: of, .. } if *of == id(migration) => {
            let handoff = registry.destinations().get(of);
            // Nothing follows from what is not known, or was called off by the source itself.
            VIEWS
                .into_iter()
                .find(|view| handoff.is_some_and(|h| view.is(h.state())))
                .map(Message::View)
        }
        Record::Born { .. }
        | Record::VolumesAdded { .. }
        | Record::VolumesMade { .. }
        | Record::Source { .. }
        | Record::Destination { .. }
        | Record::Held { .. }
        | Record::Past { .. } => None,
    }
}

fn check_replay(records: &[Record], registry: &Registry) -> Result<(), String> {
    let mut bytes = MAGIC.to_vec();
    let mut position = Position::start();
    for record in records {
        let (frame, next) = journal::encode(position, record).map_err(|e| e.to_string())?;
        bytes.extend(frame);
        position = next;
    }
    let read = journal::scan(&bytes).map_err(|e| e.to_string())?;
    if Registry::replay(&read.records) != *registry {
        return Err(format!(
            "replay of the bytes differs after {:?}",
            records.last()
        ));
    }
    if Registry::replay(records.iter().chain(records)) != *registry {
        return Err(format!(
            "replaying twice differs after {:?}",
            records.last()
        ));
    }
    if Registry::replay(&registry.compacted()) != *registry {
        return Err(format!("compaction differs after {:?}", records.last()));
    }
    Ok(())
}
