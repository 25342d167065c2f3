//! The real machines behind small numbers: journals and open migrations are kept once each, so
//! that a state of the world is a handful of bytes.

use std::collections::HashMap;

use migrated_core::admission::{Admission, may_adopt, may_give, may_take};
use migrated_core::destination::DestinationHandoff;
use migrated_core::record::{DestinationRecord, Plan, Record, SourceRecord};
use migrated_core::registry::Registry;
use migrated_core::source::{self, Phase, SourceMigration};
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::ids::{DeploymentGeneration, MigrationId};

use crate::values::{
    NOW, Symmetry, app_of, application, destination_event, host, id, numbers, reservation,
    source_event, volumes,
};

mod journals;
mod messages;
mod words;

pub(crate) use journals::EMPTY;
use journals::Journals;
pub(crate) use messages::{Message, VIEWS, View};
pub(crate) use words::known;

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
    Entrusted,
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

/// The journal that an offer comes to, where it is and from where it comes, its migration and its
/// epoch.
type Offer = (u16, [usize; 2], u8, u8);

pub(crate) struct Machines {
    journals: Journals,
    lives: Vec<Option<SourceMigration>>,
    source_steps: HashMap<(u16, u16, SourceTag), Option<Stepped>>,
    destination_steps: HashMap<(u16, usize, u8, DestinationTag), Option<u16>>,
    takes: HashMap<Offer, Option<Vec<u16>>>,
    mirrored: HashMap<u16, u16>,
    /// Something that the machines must never do, found while stepping.
    broken: Option<String>,
}

impl Machines {
    pub(crate) fn new() -> Self {
        Self {
            journals: Journals::new(),
            lives: vec![None],
            source_steps: HashMap::new(),
            destination_steps: HashMap::new(),
            takes: HashMap::new(),
            mirrored: HashMap::from([(NONE, NONE)]),
            broken: None,
        }
    }

    /// The journal of a host that an application was born on.
    pub(crate) fn born(&mut self, journal: u16, app: usize) -> u16 {
        let announced = Record::Born {
            application: application(app),
            volumes: volumes(app),
        };
        let journal = self.append(journal, &announced);
        self.append(
            journal,
            &Record::VolumesMade {
                application: application(app),
            },
        )
    }

    /// What must never be in a journal, or be done by a machine.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref().or(self.journals.broken.as_deref())
    }

    pub(crate) fn journals(&self) -> usize {
        self.journals.count()
    }

    pub(crate) fn registry(&self, journal: u16) -> &Registry {
        self.journals.registry(journal)
    }

    /// The epochs at which the writer of a journal ever was the owner, as bits.
    pub(crate) fn owned_epochs(&self, journal: u16, app: usize) -> u32 {
        self.journals.owned_epochs(journal, app)
    }

    /// Whether the writer of a journal may have said this of a migration.
    pub(crate) fn said(&self, journal: u16, migration: u8, message: Message) -> bool {
        self.journals.said(journal, migration, message)
    }

    pub(crate) fn owns(&self, journal: u16, app: usize) -> bool {
        self.journals.owns(journal, app)
    }

    pub(crate) fn live(&self, live: u16) -> Option<&SourceMigration> {
        self.lives[usize::from(live)].as_ref()
    }

    /// The open migration that a restarted daemon finds.
    pub(crate) fn recovered(&mut self, journal: u16, app: usize) -> u16 {
        let found = self.registry(journal).source_of(&application(app)).cloned();
        self.keep(found)
    }

    pub(crate) fn handoff(&self, journal: u16, migration: u8) -> Option<&DestinationHandoff> {
        self.registry(journal).destinations().get(&id(migration))
    }

    /// A journal and an open migration with the applications (and the hosts) in each other's
    /// place.
    pub(crate) fn mirror_journal(&mut self, journal: u16, symmetry: Symmetry) -> u16 {
        self.journals.mirror(journal, symmetry)
    }

    /// The journal of a host that lost what it wrote; what it said is said.
    pub(crate) fn lose(&mut self, journal: u16) -> u16 {
        self.journals.lose(journal)
    }

    /// The journal after several records.
    pub(crate) fn append_all(&mut self, journal: u16, records: &[Record]) -> u16 {
        let append = |at, record| self.journals.append(at, record);
        records.iter().fold(journal, append)
    }

    pub(crate) fn mirror_live(&mut self, live: u16, symmetry: Symmetry) -> u16 {
        if let Some(known) = self.mirrored.get(&live) {
            return *known;
        }
        let mirrored = self.live(live).map(|m| symmetry.migration(m));
        let mirrored = self.keep(mirrored);
        self.mirrored.insert(live, mirrored);
        self.mirrored.insert(mirrored, live);
        mirrored
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

    fn append(&mut self, journal: u16, record: &Record) -> u16 {
        self.journals.append(journal, record)
    }

    /// Begins a migration, if the guard allows it.
    pub(crate) fn begin(
        &mut self,
        journal: u16,
        [here, to]: [usize; 2],
        migration: u8,
    ) -> Option<(u16, u16)> {
        let application = application(app_of(migration));
        let owned = self.registry(journal).owned(&application)?;
        let plan = Plan {
            application,
            to: host(to),
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
            .map(|step| self.persist(journal, &migration, step));
        self.source_steps.insert(key, stepped.clone());
        stepped
    }

    fn persist(
        &mut self,
        journal: u16,
        migration: &SourceMigration,
        step: source::Step,
    ) -> Stepped {
        let step = without_reasons(step);
        let mut journals = Vec::new();
        let mut at = journal;
        for record in &step.records {
            at = self.append_source(at, &migration.id, record);
            journals.push(at);
        }
        let over = matches!(step.next.phase, Phase::Ended(_));
        let next = (!over).then_some(step.next);
        let source = |at| self.registry(at).source_of(&migration.plan.application);
        let replayed = source(at).cloned();
        // With a guard taken out it goes on although the journal knows nothing of it any more.
        if source(journal).is_some() && !journals.is_empty() && replayed != next {
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

    fn append_source(&mut self, journal: u16, id: &MigrationId, step: &SourceRecord) -> u16 {
        self.append(
            journal,
            &Record::Source {
                migration: id.clone(),
                step: step.clone(),
            },
        )
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
            at = self.append_source(at, &migration.id, record);
        }
        Some(Stepped {
            journals: vec![at],
            live: self.keep(Some(step.next)),
        })
    }

    /// Steps a handoff; `None` when it is unknown, the message is stale, or the epoch is known to
    /// be another host's.
    pub(crate) fn destination_step(
        &mut self,
        journal: u16,
        here: usize,
        migration: u8,
        tag: DestinationTag,
    ) -> Option<u16> {
        let key = (journal, here, migration, tag);
        if let Some(known) = self.destination_steps.get(&key) {
            return *known;
        }
        let handoff = self.handoff(journal, migration)?.clone();
        let adopts = matches!(tag, DestinationTag::Granted(_) | DestinationTag::Entrusted);
        let may = !adopts || may_adopt(self.registry(journal), &host(here), &handoff).is_ok();
        let stepped = may
            .then(|| {
                handoff
                    .step(destination_event(&handoff, migration, tag))
                    .ok()
            })
            .flatten()
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
        [here, from]: [usize; 2],
        migration: u8,
        epoch: u8,
    ) -> Option<Vec<u16>> {
        let key = (journal, [here, from], migration, epoch);
        if let Some(known) = self.takes.get(&key) {
            return known.clone();
        }
        let offer = reservation(app_of(migration), from, epoch);
        let admission = may_take(self.registry(journal), &host(here), &id(migration), &offer);
        let taken = match admission {
            Err(_) => None,
            Ok(Admission::Known) => Some(Vec::new()),
            Ok(Admission::Reserve { supersedes }) => {
                let mut journals = Vec::new();
                let mut at = journal;
                let older =
                    numbers(app_of(migration)).filter(|other| supersedes.contains(&id(*other)));
                for older in older {
                    for tag in [
                        DestinationTag::Aborted,
                        DestinationTag::Discarded,
                        DestinationTag::Closed,
                    ] {
                        if let Some(next) = self.destination_step(at, here, older, tag) {
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
