//! What hosts say to each other of who owns what, and what a host makes of it.

use std::collections::BTreeSet;

use migrated_core::fencing::{self, Standing, Word};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use rehome_shared::api::cluster::{Migration, MigrationState};
use rehome_shared::ids::{AppName, Epoch, HostAddr};

use super::{DestinationTag, Machines};
use crate::values::{self, application, host};

/// What a host says of the owner of an application: by its journal, and by what comes to it.
pub(crate) fn known(
    registry: &Registry,
    here: &HostAddr,
    application: &AppName,
) -> Option<(Epoch, HostAddr)> {
    let offers = registry.destinations_of(application);
    let offered = offers.map(|handoff| &handoff.reservation);
    let offered = offered
        .max_by_key(|offer| offer.epoch)
        .map(|offer| (offer.epoch, offer.from.clone()));
    let own = registry.known_owner(here, application);
    match (own, offered) {
        (Some(own), Some(offered)) if offered.0 > own.0 => Some(offered),
        (own, offered) => own.or(offered),
    }
}

/// What came of what others said.
pub(crate) struct Considered {
    /// The journal after each record.
    pub(crate) journals: Vec<u16>,
    pub(crate) standing: Standing,
}

impl Machines {
    /// What a host says of the owner of an application.
    pub(crate) fn word(&self, journal: u16, speaker: usize, app: usize) -> Option<Word> {
        let speaker = host(speaker);
        let (epoch, owner) = known(self.registry(journal), &speaker, &application(app))?;
        Some(Word {
            speaker,
            epoch,
            owner,
        })
    }

    /// The same, if the host's own journal says so.
    pub(crate) fn first_hand(&self, journal: u16, speaker: usize, app: usize) -> Option<Word> {
        let word = self.word(journal, speaker, app)?;
        let held = self.registry(journal).applications();
        let held = held.get(&application(app))?;
        let same = held.epoch == word.epoch && *held.role.owner(&word.speaker) == word.owner;
        same.then_some(word)
    }

    /// What counts of it before a host starts anything.
    pub(crate) fn before_start(
        &self,
        journal: u16,
        [here, app]: [usize; 2],
        told: Vec<Word>,
        first_hand: &[Word],
    ) -> Vec<Word> {
        let (here, name) = (host(here), application(app));
        fencing::before_start(self.registry(journal), &here, &name, told, first_hand)
    }

    /// Takes in what others say, in the order in which a host does: what it heard is durable
    /// first, unless it `forgets`; then promises that can never be kept are called off, and then
    /// it gives way.
    pub(crate) fn consider(
        &mut self,
        journal: u16,
        [here, app]: [usize; 2],
        words: &[Word],
        fenced: &BTreeSet<HostAddr>,
        forgets: bool,
    ) -> Considered {
        let (this, name) = (host(here), application(app));
        let mut journals = Vec::new();
        let mut at = journal;
        for word in words.iter().filter(|word| word.owner != this && !forgets) {
            let before = self.registry(at).known_owner(&this, &name);
            if before.is_none_or(|(epoch, _)| word.epoch > epoch) {
                let heard = Record::Heard {
                    application: name.clone(),
                    epoch: word.epoch,
                    owner: word.owner.clone(),
                };
                at = self.append(at, &heard);
                journals.push(at);
            }
        }
        for void in fencing::void_promises(self.registry(at), &this, &name, words) {
            let number = values::number(&void);
            let aborted = DestinationTag::Aborted;
            if let Some(next) = self.destination_step(at, here, number, aborted) {
                at = next;
                journals.push(at);
            }
        }
        let standing = fencing::stand(self.registry(at), &this, &name, words, fenced);
        if let Standing::Fenced { epoch, owner } = &standing {
            let open = self.registry(at).source_of(&name);
            let ended = open.map(|open| {
                let report = values::report(open);
                let state = match report.state {
                    MigrationState::Aborted => MigrationState::Aborted,
                    _ => MigrationState::Done,
                };
                Box::new(Migration { state, ..*report })
            });
            let record = Record::Fenced {
                application: name,
                epoch: *epoch,
                owner: owner.clone(),
                report: ended,
            };
            at = self.append(at, &record);
            journals.push(at);
        }
        Considered { journals, standing }
    }
}
