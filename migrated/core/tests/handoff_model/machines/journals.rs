//! Journals, each kept once and known by a number.

use std::collections::{BTreeSet, HashMap};

use migrated_core::journal::{self, MAGIC};
use migrated_core::record::Record;
use migrated_core::registry::{Registry, Role};

use super::messages::{Message, says};
use crate::values::{APPLICATIONS, MIGRATIONS, Symmetry, application};

/// The journal in which nothing was written.
pub(crate) const EMPTY: u16 = 0;

struct Journal {
    /// The journal before the last record, and that record.
    written: Option<(u16, Record)>,
    registry: Registry,
    /// The epochs at which this host was the owner of each application, as bits.
    owned: [u32; APPLICATIONS],
    /// Whether this host is the owner of each application.
    owner: [bool; APPLICATIONS],
    /// What this host may have said of each migration.
    said: [BTreeSet<Message>; MIGRATIONS],
}

pub(crate) struct Journals {
    all: Vec<Journal>,
    appended: HashMap<(u16, String), u16>,
    meanings: HashMap<blake3::Hash, u16>,
    mirrored: HashMap<u16, u16>,
    /// Something that must never be in a journal.
    pub(super) broken: Option<String>,
}

impl Journals {
    pub(super) fn new() -> Self {
        Self {
            all: vec![Journal {
                written: None,
                registry: Registry::default(),
                owned: [0; APPLICATIONS],
                owner: [false; APPLICATIONS],
                said: std::array::from_fn(|_| BTreeSet::new()),
            }],
            appended: HashMap::new(),
            meanings: HashMap::new(),
            mirrored: HashMap::from([(EMPTY, EMPTY)]),
            broken: None,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    fn get(&self, journal: u16) -> &Journal {
        &self.all[usize::from(journal)]
    }

    /// What was written is lost, and what was said is not: but for an abort and a close, which
    /// nobody waits for that long. One that came when the journal was made again, and a release
    /// with it, would leave both hosts without the application.
    pub(super) fn lose(&mut self, journal: u16) -> u16 {
        let before = self.get(journal);
        let mut said = before.said.clone();
        for said in &mut said {
            said.remove(&Message::Abort);
            said.remove(&Message::Close);
        }
        let lost = Journal {
            written: None,
            registry: Registry::default(),
            owned: before.owned,
            owner: [false; APPLICATIONS],
            said,
        };
        self.keep(lost)
    }

    /// What a host does next depends on what its journal means, not on how that came to be.
    fn keep(&mut self, journal: Journal) -> u16 {
        let Journal {
            registry,
            owned,
            said,
            ..
        } = &journal;
        let meaning = blake3::hash(format!("{registry:?} {owned:?} {said:?}").as_bytes());
        let next = u16::try_from(self.all.len()).unwrap();
        let kept = *self.meanings.entry(meaning).or_insert(next);
        if kept == next {
            self.all.push(journal);
        }
        kept
    }

    pub(super) fn registry(&self, journal: u16) -> &Registry {
        &self.get(journal).registry
    }

    pub(super) fn owned_epochs(&self, journal: u16, app: usize) -> u32 {
        self.get(journal).owned[app]
    }

    pub(super) fn owns(&self, journal: u16, app: usize) -> bool {
        self.get(journal).owner[app]
    }

    pub(super) fn said(&self, journal: u16, migration: u8, message: Message) -> bool {
        self.get(journal).said[usize::from(migration)].contains(&message)
    }

    fn records(&self, journal: u16) -> Vec<&Record> {
        let mut records = Vec::new();
        let mut at = journal;
        while let Some((before, record)) = &self.get(at).written {
            records.push(record);
            at = *before;
        }
        records.reverse();
        records
    }

    /// Appends a record. Every journal that comes to be is checked once: it reads back from its
    /// bytes, means the same when it is replayed twice or made anew, and its epochs only grow.
    pub(super) fn append(&mut self, journal: u16, record: &Record) -> u16 {
        let key = (journal, serde_json::to_string(record).unwrap());
        if let Some(known) = self.appended.get(&key) {
            return *known;
        }
        let before = self.get(journal);
        let mut registry = before.registry.clone();
        registry.apply(record);
        let mut owned = before.owned;
        let mut shrinks = false;
        for (app, owned) in owned.iter_mut().enumerate() {
            let Some(known) = registry.applications().get(&application(app)) else {
                continue;
            };
            let earlier = before.registry.applications().get(&application(app));
            shrinks |= earlier.is_some_and(|earlier| earlier.epoch > known.epoch);
            if known.role == Role::Owner {
                *owned |= 1 << known.epoch.0;
            }
        }
        let mut said = before.said.clone();
        for (migration, said) in (0..).zip(&mut said) {
            said.extend(says(record, &registry, migration));
        }
        if shrinks {
            self.broken = Some(format!("an epoch shrinks at {record:?}"));
        }
        let mut records = self.records(journal);
        records.push(record);
        if let Err(problem) = check_replay(&records, &registry) {
            self.broken = Some(problem);
        }
        let new = self.keep(Journal {
            written: Some((journal, record.clone())),
            owner: std::array::from_fn(|app| registry.owned(&application(app)).is_some()),
            registry,
            owned,
            said,
        });
        self.appended.insert(key, new);
        new
    }

    /// The journal in which the two applications (and the two hosts) changed places.
    pub(super) fn mirror(&mut self, journal: u16, symmetry: Symmetry) -> u16 {
        if let Some(known) = self.mirrored.get(&journal) {
            return *known;
        }
        let (before, record) = self.get(journal).written.clone().unwrap();
        let before = self.mirror(before, symmetry);
        let mirrored = self.append(before, &symmetry.record(&record));
        self.mirrored.insert(journal, mirrored);
        self.mirrored.insert(mirrored, journal);
        mirrored
    }
}

fn check_replay(records: &[&Record], registry: &Registry) -> Result<(), String> {
    let mut bytes = MAGIC.to_vec();
    let mut position = journal::start();
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
    if Registry::replay(records.iter().chain(records).copied()) != *registry {
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
