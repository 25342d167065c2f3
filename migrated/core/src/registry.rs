//! What a sequence of records means: who owns what on this host, and which handoffs are open.
//!
//! Folding is total: any sequence gives a registry, a record that does not fit changes nothing,
//! and a prefix folded twice in a row gives the same registry as folded once. Which sequences may be written is decided by [`crate::source`] and
//! [`crate::destination`] before they are.

use std::collections::BTreeMap;

use rehome_shared::api::cluster::Migration;
use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::ids::{AppName, Epoch, HostAddr, MigrationId};
use serde::{Deserialize, Serialize};

use crate::destination::{self, DestinationHandoff};
use crate::record::{DestinationRecord, Record, SourceRecord};
use crate::source::{Phase, SourceMigration};

mod compacted;

/// Closed migrations that are remembered for `rehome migrations`.
pub const HISTORY: usize = 200;

/// Who owns an application, as this host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This host.
    Owner,
    /// This host gave it away: to this one, as far as it knows.
    Gone {
        /// The next owner.
        to: HostAddr,
    },
    /// Whose it is was not certain when this journal was made anew, and an operator left that
    /// open: nothing of it runs here, and nothing of it is given away or dropped.
    Left {
        /// Who is said to be its owner; perhaps this host.
        owner: HostAddr,
        /// Why that is not certain, for people.
        why: String,
    },
}

impl Role {
    /// The owner, as `here` knows it.
    #[must_use]
    pub fn owner<'a>(&'a self, here: &'a HostAddr) -> &'a HostAddr {
        match self {
            Self::Owner => here,
            Self::Gone { to } => to,
            Self::Left { owner, .. } => owner,
        }
    }
}

/// An application that this host owns or owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// The newest epoch that this host knows.
    pub epoch: Epoch,
    /// Who owns it at that epoch.
    pub role: Role,
    /// Its volumes.
    pub volumes: Vec<VolumeIdentity>,
    /// Of these, the ones that were announced and perhaps not made yet.
    pub unmade: Vec<VolumeIdentity>,
}

/// What this host's journal says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Registry {
    applications: BTreeMap<AppName, Ownership>,
    sources: BTreeMap<MigrationId, SourceMigration>,
    destinations: BTreeMap<MigrationId, DestinationHandoff>,
    history: Vec<Migration>,
    heard: BTreeMap<AppName, (Epoch, HostAddr)>,
}

impl Registry {
    /// What all the records mean together.
    #[must_use]
    pub fn replay<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut registry = Self::default();
        for record in records {
            registry.apply(record);
        }
        registry
    }

    /// One more record.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Born {
                application,
                volumes,
            } => {
                let owned = Ownership {
                    epoch: Epoch(1),
                    role: Role::Owner,
                    volumes: volumes.clone(),
                    unmade: volumes.clone(),
                };
                self.applications.insert(application.clone(), owned);
            }
            Record::VolumesAdded {
                application,
                volumes,
            } => self.announce(application, volumes),
            Record::VolumesMade { application } => {
                if let Some(owned) = self.applications.get_mut(application) {
                    owned.unmade.clear();
                }
            }
            Record::Source { migration, step } => self.apply_source(migration, step),
            Record::Destination { migration, step } => self.apply_destination(migration, step),
            Record::Held {
                application,
                epoch,
                role,
                volumes,
                unmade,
            } => {
                let held = Ownership {
                    epoch: *epoch,
                    role: role.clone(),
                    volumes: volumes.clone(),
                    unmade: unmade.clone(),
                };
                self.applications.insert(application.clone(), held);
            }
            Record::Past { report } => self.remember(report),
            Record::Fenced {
                application,
                epoch,
                owner,
                report,
            } => self.apply_fenced(application, *epoch, owner, report.as_deref()),
            Record::Claimed {
                application,
                epoch,
                volumes,
                fenced: _,
            } => self.apply_claimed(application, *epoch, volumes),
            Record::Heard {
                application,
                epoch,
                owner,
            } => self.hear(application, *epoch, owner),
        }
    }

    fn announce(&mut self, application: &AppName, volumes: &[VolumeIdentity]) {
        let Some(owned) = self.applications.get_mut(application) else {
            return;
        };
        for volume in volumes {
            if !owned.volumes.contains(volume) {
                owned.volumes.push(volume.clone());
                owned.unmade.push(volume.clone());
            }
        }
    }

    fn hear(&mut self, application: &AppName, epoch: Epoch, owner: &HostAddr) {
        let known = self.heard.get(application);
        if known.is_none_or(|(known, _)| *known < epoch) {
            self.heard
                .insert(application.clone(), (epoch, owner.clone()));
        }
    }

    /// What this host still had to do about the application is over with it.
    fn apply_fenced(
        &mut self,
        application: &AppName,
        epoch: Epoch,
        owner: &HostAddr,
        report: Option<&Migration>,
    ) {
        let Some(known) = self.applications.get_mut(application) else {
            return;
        };
        if epoch < known.epoch {
            return;
        }
        known.epoch = epoch;
        known.role = Role::Gone { to: owner.clone() };
        self.sources
            .retain(|_, source| source.plan.application != *application);
        self.destinations.retain(|_, handoff| {
            handoff.reservation.application != *application || handoff.epoch_here() > epoch
        });
        if let Some(report) = report {
            self.remember(report);
        }
    }

    /// What was promised to come from the owner before does not come any more, and what was given
    /// back to it is not its to take any more: nobody may tell it so.
    fn apply_claimed(&mut self, application: &AppName, epoch: Epoch, volumes: &[VolumeIdentity]) {
        self.destinations.retain(|_, handoff| {
            handoff.reservation.application != *application
                || !matches!(
                    handoff.phase,
                    destination::Phase::Reserved
                        | destination::Phase::Verified { .. }
                        | destination::Phase::Returned { .. }
                        | destination::Phase::Dropped
                )
        });
        let known = self.applications.get(application);
        if known.is_some_and(|known| known.epoch >= epoch) {
            return;
        }
        self.applications.insert(
            application.clone(),
            Ownership {
                epoch,
                role: Role::Owner,
                volumes: volumes.to_vec(),
                unmade: Vec::new(),
            },
        );
    }

    fn apply_source(&mut self, id: &MigrationId, record: &SourceRecord) {
        if let SourceRecord::Planned(plan) = record {
            self.sources
                .insert(id.clone(), SourceMigration::begin(id.clone(), plan.clone()));
            return;
        }
        let Some(migration) = self.sources.get(id) else {
            return;
        };
        let next = migration.replay(record);
        if next == *migration {
            return;
        }
        let plan = &migration.plan;
        if let Some(owned) = self.applications.get_mut(&plan.application) {
            match record {
                SourceRecord::Released { .. } => {
                    owned.epoch = plan.epoch.next();
                    owned.role = Role::Gone {
                        to: plan.to.clone(),
                    };
                }
                SourceRecord::Reclaimed { .. } => {
                    owned.epoch = plan.epoch.next().next();
                    owned.role = Role::Owner;
                }
                SourceRecord::Planned(_)
                | SourceRecord::Round(_)
                | SourceRecord::CutOver { .. }
                | SourceRecord::Aborted { .. }
                | SourceRecord::Adopted
                | SourceRecord::Served
                | SourceRecord::Closed { .. } => {}
            }
        }
        if let SourceRecord::Closed { report } = record {
            self.remember(report);
        }
        if matches!(next.phase, Phase::Ended(_)) {
            self.sources.remove(id);
        } else {
            self.sources.insert(id.clone(), next);
        }
    }

    fn apply_destination(&mut self, id: &MigrationId, record: &DestinationRecord) {
        if let DestinationRecord::Reserved(reservation) = record {
            self.destinations.insert(
                id.clone(),
                DestinationHandoff::begin(id.clone(), (**reservation).clone()),
            );
            return;
        }
        let Some(handoff) = self.destinations.get(id) else {
            return;
        };
        let next = handoff.replay(record);
        let reservation = &handoff.reservation;
        let advanced = next
            .as_ref()
            .is_some_and(|next| next.phase != handoff.phase);
        match record {
            DestinationRecord::Adopted | DestinationRecord::Entrusted if advanced => {
                self.applications.insert(
                    reservation.application.clone(),
                    Ownership {
                        epoch: handoff.epoch_here(),
                        role: Role::Owner,
                        volumes: reservation
                            .volumes
                            .iter()
                            .map(|v| v.identity.clone())
                            .collect(),
                        unmade: Vec::new(),
                    },
                );
            }
            DestinationRecord::Returned { .. } if advanced => {
                if let Some(owned) = self.applications.get_mut(&reservation.application) {
                    owned.epoch = handoff.epoch_here().next();
                    owned.role = Role::Gone {
                        to: reservation.from.clone(),
                    };
                }
            }
            DestinationRecord::Reserved(_)
            | DestinationRecord::Verified { .. }
            | DestinationRecord::Adopted
            | DestinationRecord::Entrusted
            | DestinationRecord::Serving
            | DestinationRecord::Returned { .. }
            | DestinationRecord::Dropped
            | DestinationRecord::Closed => {}
        }
        match next {
            Some(next) => {
                self.destinations.insert(id.clone(), next);
            }
            None => {
                self.destinations.remove(id);
            }
        }
    }

    fn remember(&mut self, report: &Migration) {
        self.history.retain(|known| known.id != report.id);
        self.history.push(report.clone());
        let surplus = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..surplus);
    }

    /// All applications that this host owns or owned.
    #[must_use]
    pub fn applications(&self) -> &BTreeMap<AppName, Ownership> {
        &self.applications
    }

    /// The newest owner of each application, as far as `here` knows: by what it owns or owned
    /// itself, and by what it heard.
    #[must_use]
    pub fn known(&self, here: &HostAddr) -> BTreeMap<AppName, (Epoch, HostAddr)> {
        let mut known = self.heard.clone();
        for (name, held) in &self.applications {
            let owner = held.role.owner(here);
            let older = known
                .get(name)
                .is_none_or(|(epoch, _)| *epoch <= held.epoch);
            if older {
                known.insert(name.clone(), (held.epoch, owner.clone()));
            }
        }
        known
    }

    /// The newest owner of one application, as far as `here` knows.
    #[must_use]
    pub fn known_owner(&self, here: &HostAddr, application: &AppName) -> Option<(Epoch, HostAddr)> {
        let held = self
            .applications
            .get(application)
            .map(|held| (held.epoch, held.role.owner(here).clone()));
        let heard = self.heard.get(application).cloned();
        match (held, heard) {
            (Some(held), Some(heard)) if heard.0 > held.0 => Some(heard),
            (held, heard) => held.or(heard),
        }
    }

    /// The newest owner of an application that others told this host of.
    #[must_use]
    pub fn heard(&self, application: &AppName) -> Option<&(Epoch, HostAddr)> {
        self.heard.get(application)
    }

    /// An application, if this host is its owner.
    #[must_use]
    pub fn owned(&self, application: &AppName) -> Option<&Ownership> {
        self.applications
            .get(application)
            .filter(|owned| owned.role == Role::Owner)
    }

    /// The applications whose owner was left open, and who that is said to be.
    pub fn left(&self) -> impl Iterator<Item = (&AppName, &Ownership)> {
        let all = self.applications.iter();
        all.filter(|(_, known)| matches!(known.role, Role::Left { .. }))
    }

    /// Whether an application's owner was left open.
    #[must_use]
    pub fn is_left(&self, application: &AppName) -> bool {
        self.left().any(|(name, _)| name == application)
    }

    /// Whether it says nothing of this host itself: all that is in it was heard of others.
    #[must_use]
    pub fn is_hearsay(&self) -> bool {
        let Self {
            applications,
            sources,
            destinations,
            history,
            heard: _,
        } = self;
        applications.is_empty()
            && sources.is_empty()
            && destinations.is_empty()
            && history.is_empty()
    }

    /// The open migrations that this host coordinates.
    #[must_use]
    pub fn sources(&self) -> &BTreeMap<MigrationId, SourceMigration> {
        &self.sources
    }

    /// The open migration of an application that this host coordinates.
    #[must_use]
    pub fn source_of(&self, application: &AppName) -> Option<&SourceMigration> {
        self.sources
            .values()
            .find(|m| m.plan.application == *application)
    }

    /// The handoffs that come or came to this host.
    #[must_use]
    pub fn destinations(&self) -> &BTreeMap<MigrationId, DestinationHandoff> {
        &self.destinations
    }

    /// The handoffs of an application that are open here: the one under way, and those that their
    /// source has not closed yet.
    pub fn destinations_of(
        &self,
        application: &AppName,
    ) -> impl Iterator<Item = &DestinationHandoff> {
        self.destinations
            .values()
            .filter(|h| h.reservation.application == *application)
    }

    /// The handoff of an application to this host that is not settled yet.
    #[must_use]
    pub fn incoming(&self, application: &AppName) -> Option<&DestinationHandoff> {
        self.destinations_of(application).find(|handoff| {
            matches!(
                handoff.phase,
                destination::Phase::Reserved
                    | destination::Phase::Verified { .. }
                    | destination::Phase::Owned { .. }
            )
        })
    }

    /// Closed migrations, oldest first.
    #[must_use]
    pub fn history(&self) -> &[Migration] {
        &self.history
    }
}

#[cfg(test)]
mod tests;
