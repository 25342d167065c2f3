//! What an accident left on a host: of which snapshots, volumes and instances it is certain that
//! nobody needs them.
//!
//! Never a live tree, a volume that is stopped and kept, or what is not a migration's. Of each
//! volume the newest common base stays, and of an application the newest that all of its volumes
//! have, which another host could go on from. Whatever could still belong to a migration is not
//! garbage, also where only another host can say so: while a host is silent, what nobody else
//! knows is in [`Findings::doubts`].

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{AppName, DatasetId, HostAddr, MigrationId};

use crate::registry::Registry;

/// A volume as it lies in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSeen {
    /// Its identity.
    pub dataset: DatasetId,
    /// The owner that stands on it.
    pub owner: Option<HostAddr>,
    /// The migration that stands on it.
    pub migration: Option<MigrationId>,
    /// Whether it has a live tree.
    pub live: bool,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<String>,
}

/// What the other hosts say of migrations that they coordinate or coordinated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// How each stands.
    pub migrations: BTreeMap<MigrationId, MigrationState>,
    /// The hosts that did not answer.
    pub silent: BTreeSet<HostAddr>,
}

/// What is on a host.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// This host.
    pub here: &'a HostAddr,
    /// Its journal, read after everything else was looked at: what began meanwhile is in it.
    pub registry: &'a Registry,
    /// What the others say.
    pub elsewhere: &'a Elsewhere,
    /// The volumes in its pool.
    pub volumes: &'a [VolumeSeen],
    /// Snapshots that were received by halves, by their volume.
    pub partials: &'a [(DatasetId, String)],
    /// The applications that it has instances of.
    pub instances: &'a [AppName],
}

/// Something that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Garbage {
    /// A snapshot of a volume.
    Snapshot {
        /// The volume.
        dataset: DatasetId,
        /// The snapshot.
        name: String,
    },
    /// Part of a snapshot that was being received.
    Partial {
        /// The volume.
        dataset: DatasetId,
        /// The snapshot.
        name: String,
    },
    /// A whole volume that was received and never became this host's.
    Volume {
        /// Which.
        dataset: DatasetId,
    },
    /// An instance of an application that is not this host's.
    Instance {
        /// Whose.
        application: AppName,
    },
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Garbage, and why it is that.
    pub garbage: Vec<(Garbage, String)>,
    /// What may be garbage, and why that is not certain now.
    pub doubts: Vec<String>,
}

/// Looks for garbage.
#[must_use]
pub fn find(seen: &Seen<'_>) -> Findings {
    let mut findings = Findings::default();
    for volume in seen.volumes {
        if !seen.is_moving(volume) && !seen.is_left(volume) {
            seen.look_at(volume, &mut findings);
        }
    }
    for (dataset, name) in seen.partials {
        let volume = seen
            .volumes
            .iter()
            .find(|volume| volume.dataset == *dataset);
        let fed = volume.map_or_else(|| seen.has_open_handoff(dataset), |v| seen.is_moving(v));
        if !fed {
            let garbage = Garbage::Partial {
                dataset: dataset.clone(),
                name: name.clone(),
            };
            let why = "no migration that is under way feeds it";
            findings.garbage.push((garbage, why.to_owned()));
        }
    }
    for application in seen.instances {
        if !seen.expects(application) {
            let garbage = Garbage::Instance {
                application: application.clone(),
            };
            let why = "this host does not own the application, and no migration brings it";
            findings.garbage.push((garbage, why.to_owned()));
        }
    }
    findings
}

/// How a migration stands, as far as anybody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    CalledOff,
    Over,
    Unknown,
}

impl Seen<'_> {
    fn has_open_handoff(&self, dataset: &DatasetId) -> bool {
        let mut sources = self.registry.sources().values();
        let mut destinations = self.registry.destinations().values();
        sources.any(|m| m.plan.volumes.iter().any(|v| v.dataset == *dataset))
            || destinations.any(|handoff| {
                let mut volumes = handoff.reservation.volumes.iter();
                volumes.any(|v| v.identity.dataset == *dataset)
            })
    }

    fn is_moving(&self, volume: &VolumeSeen) -> bool {
        let stamped = volume.migration.as_ref();
        self.has_open_handoff(&volume.dataset)
            || stamped.is_some_and(|id| self.standing(id) == Standing::Open)
    }

    /// Of what was left undecided everything may be needed yet.
    fn is_left(&self, volume: &VolumeSeen) -> bool {
        let mut left = self.registry.left();
        left.any(|(_, known)| known.volumes.iter().any(|v| v.dataset == volume.dataset))
    }

    fn expects(&self, application: &AppName) -> bool {
        self.registry.owned(application).is_some()
            || self.registry.source_of(application).is_some()
            || self.registry.destinations_of(application).next().is_some()
    }

    fn standing(&self, id: &MigrationId) -> Standing {
        let open = self.registry.sources().contains_key(id)
            || self.registry.destinations().contains_key(id);
        if open {
            return Standing::Open;
        }
        let ours = self.registry.history().iter().find(|past| past.id == *id);
        let state = ours.map(|past| past.state);
        match state.or_else(|| self.elsewhere.migrations.get(id).copied()) {
            Some(MigrationState::Running | MigrationState::Blocked) => Standing::Open,
            Some(MigrationState::Aborted) => Standing::CalledOff,
            Some(MigrationState::Done | MigrationState::Returned) => Standing::Over,
            None => Standing::Unknown,
        }
    }

    fn look_at(&self, volume: &VolumeSeen, findings: &mut Findings) {
        let mut applications = self.registry.applications().values();
        let known =
            applications.any(|held| held.volumes.iter().any(|v| v.dataset == volume.dataset));
        if volume.live || known {
            return self.look_at_snapshots(volume, findings);
        }
        // Without a stamp, or with one that names this host, a person must look at it.
        let Some(owner) = volume.owner.as_ref().filter(|owner| *owner != self.here) else {
            return;
        };
        let dataset = &volume.dataset;
        let ids = volume
            .snapshots
            .iter()
            .filter_map(|name| migration_of(name));
        let ids: BTreeSet<MigrationId> = ids.chain(volume.migration.clone()).collect();
        if ids.iter().any(|id| self.standing(id) == Standing::Open) {
            return;
        }
        if let Some(id) = ids.iter().find(|id| self.may_be_open(id)) {
            return findings
                .doubts
                .push(self.doubt(&format!("volume {dataset}"), id));
        }
        let why = format!(
            "it came from {owner} and never became this host's; no migration that is under way brings it"
        );
        let dataset = dataset.clone();
        findings.garbage.push((Garbage::Volume { dataset }, why));
    }

    /// Of a volume that is this host's or was: the newest common base stays.
    fn look_at_snapshots(&self, volume: &VolumeSeen, findings: &mut Findings) {
        let is_base = |name: &&String| {
            is_final(name)
                && migration_of(name).is_some_and(|id| self.standing(&id) != Standing::CalledOff)
        };
        let base = volume.snapshots.iter().rev().find(is_base);
        let whole = self.whole_base(volume, is_base);
        for name in &volume.snapshots {
            let kept = Some(name) == base || Some(name) == whole;
            let Some(id) = migration_of(name).filter(|_| !kept) else {
                continue;
            };
            if self.standing(&id) == Standing::Open {
                continue;
            }
            if self.may_be_open(&id) {
                let what = format!("snapshot {name} of volume {}", volume.dataset);
                findings.doubts.push(self.doubt(&what, &id));
                continue;
            }
            let garbage = Garbage::Snapshot {
                dataset: volume.dataset.clone(),
                name: name.clone(),
            };
            let why = match base {
                Some(base) => format!("its migration is over, and {base} is the common base"),
                None => "its migration is over, and it is no common base".to_owned(),
            };
            findings.garbage.push((garbage, why));
        }
    }

    /// The newest base that all volumes of the application have.
    fn whole_base<'v>(
        &self,
        volume: &'v VolumeSeen,
        is_base: impl Fn(&&String) -> bool,
    ) -> Option<&'v String> {
        let mut applications = self.registry.applications().values();
        let all = applications.find(|known| {
            let mut volumes = known.volumes.iter();
            volumes.any(|v| v.dataset == volume.dataset)
        })?;
        let in_all = |name: &&String| {
            all.volumes.iter().all(|identity| {
                let mut seen = self.volumes.iter();
                let other = seen.find(|other| other.dataset == identity.dataset);
                other.is_some_and(|other| other.snapshots.contains(name))
            })
        };
        let mut newest_first = volume.snapshots.iter().rev();
        newest_first.find(|name| is_base(name) && in_all(name))
    }

    /// A host that does not answer may know it.
    fn may_be_open(&self, id: &MigrationId) -> bool {
        self.standing(id) == Standing::Unknown && !self.elsewhere.silent.is_empty()
    }

    fn doubt(&self, what: &str, id: &MigrationId) -> String {
        let silent: Vec<&str> = self.elsewhere.silent.iter().map(HostAddr::as_str).collect();
        let silent = silent.join(", ");
        format!(
            "{what} is kept: migration {id} may be under way on {silent}, which cannot be asked"
        )
    }
}

/// The migration that a snapshot was made for; `None` of any other snapshot.
fn migration_of(name: &str) -> Option<MigrationId> {
    let (id, _) = name.strip_prefix("mig-")?.split_once('-')?;
    MigrationId::try_new(id).ok()
}

/// Whether it is the last snapshot of a migration, which both sides have in the end.
fn is_final(name: &str) -> bool {
    let parts = name
        .strip_prefix("mig-")
        .and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(_, what)| what.starts_with("final-"))
}

#[cfg(test)]
mod tests;
