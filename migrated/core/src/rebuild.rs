//! A lost journal made again: who owns what, by the stamps on this host's volumes and by what the
//! other hosts say.
//!
//! A stamp alone proves what happened before it was written, the others' word what happened
//! after. Decided is by application, and first of all by the newest owner that anybody knows;
//! then the stamps decide. What was perhaps released is asked for where it would have gone to.
//! Whatever is not certain is undecided and named: nobody guesses who owns what. An operator may
//! leave such an application behind, so that the others get their journal.

mod left;
mod stamped;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::cluster::{Desired, Migration, MigrationState};
use rehome_shared::api::peer::{Advert, HandoffState, HandoffView, HostReport};
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::ids::{AppName, DatasetId, Epoch, HostAddr, MigrationId};

use self::stamped::{by_application, decisive};
use crate::UnixMillis;
use crate::destination::DestinationHandoff;
use crate::record::Record;
use crate::registry::Registry;
use crate::stamp::{Stamp, StampState};

/// A volume in this host's pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its identity.
    pub dataset: DatasetId,
    /// What stands on it, unless that cannot be read.
    pub stamp: Option<Stamp>,
    /// Whether it has a live tree.
    pub live: bool,
}

/// What another host says.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// Which.
    pub host: HostAddr,
    /// Owners that it knows of.
    pub owners: Vec<(AppName, Epoch, HostAddr)>,
    /// Migrations that it coordinates or coordinated.
    pub migrations: Vec<Migration>,
}

impl Word {
    /// What a host says of itself, and of the others.
    #[must_use]
    pub fn new(report: &HostReport, adverts: &[Advert]) -> Self {
        let own = report
            .owned
            .iter()
            .map(|owned| (owned.application.clone(), owned.epoch, report.host.clone()));
        let told = adverts.iter().map(|advert| {
            let epoch = advert.version.epoch;
            (advert.application.clone(), epoch, advert.host.clone())
        });
        let known = report
            .known
            .iter()
            .map(|known| (known.application.clone(), known.epoch, known.owner.clone()));
        Self {
            host: report.host.clone(),
            owners: own.chain(told).chain(known).collect(),
            migrations: report.migrations.clone(),
        }
    }
}

/// A handoff that a stamp leaves open: only where it would have gone to knows how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Which migration.
    pub migration: MigrationId,
    /// Whom to ask.
    pub to: HostAddr,
    /// The source's epoch.
    pub epoch: Epoch,
}

/// Everything to decide by.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// This host.
    pub here: &'a HostAddr,
    /// The deployment that it follows.
    pub desired: &'a Desired,
    /// How applications move.
    pub limits: &'a BTreeMap<AppName, MigrationLimits>,
    /// Now.
    pub now: UnixMillis,
    /// What is in the pool.
    pub volumes: &'a [Volume],
    /// What the other hosts say.
    pub words: &'a [Word],
    /// The answers to the [`questions`]. What is merely reserved was called off before.
    pub handoffs: &'a BTreeMap<MigrationId, HandoffView>,
    /// The applications that an operator leaves behind where they are undecided.
    pub leave: &'a BTreeSet<AppName>,
}

/// What is decided of an application.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Which.
    pub application: AppName,
    /// What the new journal says of it.
    pub records: Vec<Record>,
    /// The same for people, and why.
    pub why: String,
    /// Whether it was left undecided.
    pub left: bool,
}

/// Why it is not certain who owns an application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// Two owners of one epoch.
    #[error("{application}: {one} and {other} are both said to own it at epoch {epoch}")]
    Contested {
        /// Which.
        application: AppName,
        /// At which epoch.
        epoch: Epoch,
        /// One of them.
        one: HostAddr,
        /// The other.
        other: HostAddr,
    },
    /// This host's volumes are older than what others know of this host.
    #[error(
        "{application}: the other hosts know that this host owns it at epoch {known}, and its volumes here are of epoch {stamped}: is the pool an old copy?"
    )]
    OldPool {
        /// Which.
        application: AppName,
        /// What is known.
        known: Epoch,
        /// What stands on the volumes.
        stamped: Epoch,
    },
    /// This host owned it, and nothing of it is here.
    #[error(
        "{application}: the other hosts know that this host owns it at epoch {known}, and its volumes are not in the pool"
    )]
    NotInPool {
        /// Which.
        application: AppName,
        /// What is known.
        known: Epoch,
    },
    /// The destination of a move did not call it off.
    #[error("{application}: migration {migration} of it is still {state:?} at its destination")]
    NotCalledOff {
        /// Which.
        application: AppName,
        /// Its move.
        migration: MigrationId,
        /// How that stands there.
        state: HandoffState,
    },
    /// The source of a move is just deciding.
    #[error("{application}: {from} is just cutting it over to this host; try again in a minute")]
    InWindow {
        /// Which.
        application: AppName,
        /// The source.
        from: HostAddr,
    },
    /// Two datasets under one name.
    #[error("{application}: both {one} and {other} are stamped as its volume {name}")]
    Twice {
        /// Which.
        application: AppName,
        /// The volume's name.
        name: String,
        /// One dataset.
        one: DatasetId,
        /// The other.
        other: DatasetId,
    },
    /// Without its description its handoff cannot be written down.
    #[error("{0}: it came here by a move, and no deployment here describes it")]
    Undescribed(AppName),
}

impl Undecided {
    /// Whether its application may be left behind. What a source is just deciding of is certain
    /// in a minute; without a promise that was given here, nobody might own it then.
    #[must_use]
    pub fn may_be_left(&self) -> bool {
        !matches!(self, Self::InWindow { .. })
    }

    /// Whether its application is left behind without a word of an operator: nothing of it is here
    /// that could be started or lost.
    #[must_use]
    pub fn is_left(&self) -> bool {
        matches!(self, Self::NotInPool { .. })
    }

    /// Which application.
    #[must_use]
    pub fn application(&self) -> &AppName {
        match self {
            Self::Contested { application, .. }
            | Self::OldPool { application, .. }
            | Self::NotInPool { application, .. }
            | Self::NotCalledOff { application, .. }
            | Self::InWindow { application, .. }
            | Self::Twice { application, .. }
            | Self::Undescribed(application) => application,
        }
    }
}

/// What others know of this host and its own journal does not: an application, and the epoch at
/// which it is or was this host's. What comes here by a handoff is known before it is owned.
#[must_use]
pub fn forgotten(registry: &Registry, here: &HostAddr, words: &[Word]) -> Option<(AppName, Epoch)> {
    let told = words.iter().flat_map(|word| &word.owners);
    let mut mine = told.filter(|(_, _, owner)| owner == here);
    mine.find(|(name, epoch, _)| {
        let known = registry.known_owner(here, name).map(|(epoch, _)| epoch);
        let coming = registry
            .destinations_of(name)
            .map(DestinationHandoff::epoch_here);
        let coming = coming.max();
        known.max(coming).is_none_or(|known| known < *epoch)
    })
    .map(|(name, epoch, _)| (name.clone(), *epoch))
}

/// Whether stamps tell of more than a journal does: then the journal is not the newest, or was
/// begun anew. What only comes here need not be known.
#[must_use]
pub fn unknown_to(registry: &Registry, here: &HostAddr, volumes: &[Volume]) -> Option<Stamp> {
    let stamps = volumes.iter().filter_map(|volume| volume.stamp.as_ref());
    let mut told = stamps.filter(|stamp| match stamp.state_on(here) {
        StampState::Incoming { .. } => false,
        // A pool that was another host's says nothing of this one's journal.
        StampState::Gone { .. } => stamp.state != Some(StampState::Held),
        StampState::Held | StampState::Moving { .. } => true,
    });
    told.find(|stamp| {
        registry
            .applications()
            .get(&stamp.application)
            .is_none_or(|known| known.epoch < stamp.epoch)
    })
    .cloned()
}

/// The hosts whose word is needed.
#[must_use]
pub fn must_answer(here: &HostAddr, desired: &Desired, volumes: &[Volume]) -> BTreeSet<HostAddr> {
    let mut hosts: BTreeSet<HostAddr> = desired.placement.keys().cloned().collect();
    hosts.extend(desired.kept.values().cloned());
    for stamp in volumes.iter().filter_map(|volume| volume.stamp.as_ref()) {
        match stamp.state_on(here) {
            StampState::Moving { to } => hosts.insert(to),
            StampState::Incoming { from } => hosts.insert(from),
            StampState::Held | StampState::Gone { .. } => false,
        };
    }
    hosts.remove(here);
    hosts
}

/// What must be asked of handoffs.
#[must_use]
pub fn questions(here: &HostAddr, volumes: &[Volume]) -> Vec<Question> {
    let question = |stamps: Vec<&Volume>| {
        let top = decisive(here, &stamps)?;
        let StampState::Moving { to } = top.state_on(here) else {
            return None;
        };
        Some(Question {
            migration: top.migration.clone()?,
            to,
            epoch: top.epoch,
        })
    };
    by_application(volumes)
        .into_values()
        .filter_map(question)
        .collect()
}

/// Decides of every application that this host may have. `fresh` makes identities.
///
/// # Errors
/// Everything that is [`Undecided`] and not left behind.
pub fn decide(
    evidence: &Evidence<'_>,
    fresh: &mut dyn FnMut() -> DatasetId,
) -> Result<Vec<Verdict>, Vec<Undecided>> {
    let stamped = by_application(evidence.volumes);
    let mut names: BTreeSet<&AppName> = stamped.keys().copied().collect();
    names.extend(evidence.desired.applications.keys());
    for word in evidence.words {
        names.extend(word.owners.iter().map(|(name, ..)| name));
    }
    let mut verdicts = Vec::new();
    let mut undecided = Vec::new();
    for name in names {
        let volumes = stamped.get(name).map(Vec::as_slice).unwrap_or_default();
        match evidence.of(name, volumes, fresh) {
            Ok(Some((records, why))) => verdicts.push(Verdict {
                application: name.clone(),
                records,
                why,
                left: false,
            }),
            Ok(None) => {}
            Err(why) if why.is_left() || evidence.leave.contains(name) && why.may_be_left() => {
                verdicts.push(evidence.left(name, volumes, &why));
            }
            Err(why) => undecided.push(why),
        }
    }
    if undecided.is_empty() {
        Ok(verdicts)
    } else {
        Err(undecided)
    }
}

impl Evidence<'_> {
    /// The newest owner that others know of.
    fn known(&self, name: &AppName) -> Result<Option<(Epoch, &HostAddr)>, Undecided> {
        let told = self.words.iter().flat_map(|word| &word.owners);
        let all: Vec<(Epoch, &HostAddr)> = told
            .filter(|(application, ..)| application == name)
            .map(|(_, epoch, owner)| (*epoch, owner))
            .collect();
        let Some((epoch, one)) = all.iter().max_by_key(|(epoch, _)| *epoch).copied() else {
            return Ok(None);
        };
        let other = all.iter().find(|(e, owner)| *e == epoch && *owner != one);
        match other {
            None => Ok(Some((epoch, one))),
            Some((_, other)) => Err(Undecided::Contested {
                application: name.clone(),
                epoch,
                one: one.clone(),
                other: (*other).clone(),
            }),
        }
    }

    fn of(
        &self,
        name: &AppName,
        volumes: &[&Volume],
        fresh: &mut dyn FnMut() -> DatasetId,
    ) -> Result<Option<(Vec<Record>, String)>, Undecided> {
        let known = match self.known(name) {
            // Between two others, and nothing of it is here.
            Err(Undecided::Contested { one, other, .. })
                if volumes.is_empty() && one != *self.here && other != *self.here =>
            {
                return Ok(None);
            }
            known => known?,
        };
        match self.stamped(name, volumes, fresh)? {
            Some(stamped) => self.by_stamps(name, &stamped, known),
            None => self.by_word(name, known),
        }
    }

    /// The open migration of an application to this host whose source has released it.
    fn released_to_here(&self, name: &AppName, epoch: Epoch) -> Option<&Migration> {
        let told = self.words.iter().flat_map(|word| &word.migrations);
        told.filter(|m| m.application == *name && m.to == *self.here && is_open(m))
            .find(|m| m.epoch == epoch)
    }
}

fn is_open(migration: &Migration) -> bool {
    matches!(
        migration.state,
        MigrationState::Running | MigrationState::Blocked
    )
}

#[cfg(test)]
mod tests;
