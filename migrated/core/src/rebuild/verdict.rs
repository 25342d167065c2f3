//! The verdict on one application.

use rehome_shared::api::cluster::{Migration, MigrationState};
use rehome_shared::api::peer::{HandoffState, HandoffView, OfferedVolume, VolumeIdentity};
use rehome_shared::ids::{AppName, Attempt, Epoch, HostAddr, MigrationId};
use rehome_shared::units::Bytes;

use super::stamped::Stamped;
use super::{Evidence, Undecided, is_open};
use crate::record::{DestinationRecord, Plan, Record, Reservation, SourceRecord};
use crate::registry::Role;
use crate::stamp::StampState;

/// What people and the source are told of a handoff that ends with the journal.
const NOT_HERE: &str = "its journal was lost; it does not run here";

/// The steps of a cut-over during which the source may release at any moment.
const WINDOW: [&str; 4] = ["park", "drain", "stop", "final_delta"];

/// The only try of a migration: see [`crate::source`].
const FIRST: Attempt = Attempt(1);

type Decided = Result<Option<(Vec<Record>, String)>, Undecided>;

impl Evidence<'_> {
    /// The verdict on an application that has volumes here.
    pub(super) fn by_stamps(
        &self,
        name: &AppName,
        stamped: &Stamped<'_>,
        known: Option<(Epoch, &HostAddr)>,
    ) -> Decided {
        let at = stamped.top.epoch;
        let above = known.filter(|(epoch, _)| *epoch > at);
        if let Some(handoff) = self.promised(stamped, above) {
            return Ok(Some(self.released(name, stamped, handoff)));
        }
        if let Some(migration) = self.returnable(name, stamped) {
            return self.returned(name, stamped, migration).map(Some);
        }
        match above {
            Some((epoch, owner)) if owner != self.here => {
                return Ok(Some(gone(name, stamped, epoch, owner)));
            }
            // It came back and was closed at the other side; the stamp did not get that far.
            Some((epoch, _)) if matches!(stamped.state, StampState::Moving { .. }) => {
                return Ok(Some(self.held(name, stamped, epoch)));
            }
            Some((epoch, _)) => {
                return Err(Undecided::OldPool {
                    application: name.clone(),
                    known: epoch,
                    stamped: at,
                });
            }
            None => {}
        }
        match &stamped.state {
            StampState::Held | StampState::Moving { .. } => {
                self.contested(name, at, known)?;
                self.called_off(name, stamped)?;
                Ok(Some(self.held(name, stamped, at)))
            }
            StampState::Incoming { from } => match self.sending(stamped, from) {
                Some(migration) if is_in_window(migration) => Err(Undecided::InWindow {
                    application: name.clone(),
                    from: from.clone(),
                }),
                // The source sends it again, or not. That it is another host's is written down:
                // an older offer that wanders about finds nobody who would take it.
                _ => Ok(known.map(|(epoch, owner)| gone(name, stamped, epoch, owner))),
            },
            StampState::Gone { to } => Ok(Some(gone(name, stamped, at, to))),
        }
    }

    /// The verdict on an application that has nothing in the pool. One that has volumes is not
    /// this host's without them: as its owner it would stand in the way of another host's copy.
    pub(super) fn by_word(
        &self,
        name: &AppName,
        known: Option<(Epoch, &HostAddr)>,
    ) -> Result<Option<(Vec<Record>, String)>, Undecided> {
        let spec = self.desired.applications.get(name);
        let plain = spec.is_none_or(|spec| spec.volumes.is_empty());
        if let (true, Some(spec)) = (plain, spec) {
            let told = self.words.iter().flat_map(|word| &word.migrations);
            let coming = told
                .filter(|m| m.application == *name && m.to == *self.here && is_open(m))
                // Released, and adopted at most.
                .find(|m| known.is_none_or(|(epoch, _)| m.epoch >= epoch) && is_past_release(m));
            if let Some(migration) = coming {
                let mut steps = self.verified(migration, spec.clone(), Vec::new());
                steps.push(DestinationRecord::Adopted);
                let why = format!(
                    "owner at epoch {}: {} released it",
                    migration.epoch, migration.from
                );
                return Ok(Some((destination(&migration.id, steps), why)));
            }
        }
        let Some((epoch, _)) = known.filter(|(_, owner)| *owner == self.here) else {
            return Ok(None);
        };
        if !plain {
            return Err(Undecided::NotInPool {
                application: name.clone(),
                known: epoch,
            });
        }
        let why = format!("owner at epoch {epoch}: it has no volumes, and the other hosts say so");
        Ok(Some((vec![owner(name, epoch, Vec::new())], why)))
    }

    /// The handoff that a release was, or would have been, the answer to. Before the destination
    /// promises, the application is stopped and its final snapshots are whole; and a way back is
    /// stamped before anything runs again. So it is released, and the machine goes on from there:
    /// the destination's own state decides what follows.
    fn promised(
        &self,
        stamped: &Stamped<'_>,
        above: Option<(Epoch, &HostAddr)>,
    ) -> Option<(&MigrationId, &HandoffView)> {
        let StampState::Moving { to } = &stamped.state else {
            return None;
        };
        let (id, view) = self
            .handoffs
            .get_key_value(stamped.top.migration.as_ref()?)?;
        let next = stamped.top.epoch.next();
        let fits = match view.state {
            // Who says that it is the destination's already heard it of the release.
            HandoffState::Verified | HandoffState::Owned | HandoffState::Serving => {
                above.is_none_or(|(epoch, owner)| epoch == next && owner == to)
            }
            HandoffState::Returned => above.is_none_or(|(epoch, owner)| {
                (epoch == next && owner == to) || (epoch == next.next() && owner == self.here)
            }),
            HandoffState::Unknown | HandoffState::Reserved | HandoffState::Dropped => false,
        };
        fits.then_some((id, view))
    }

    fn released(
        &self,
        name: &AppName,
        stamped: &Stamped<'_>,
        (id, view): (&MigrationId, &HandoffView),
    ) -> (Vec<Record>, String) {
        let at = stamped.top.epoch;
        let to = match &stamped.state {
            StampState::Moving { to } => to.clone(),
            StampState::Held | StampState::Incoming { .. } | StampState::Gone { .. } => {
                self.here.clone()
            }
        };
        let plan = Plan {
            application: name.clone(),
            to: to.clone(),
            epoch: at,
            generation: self.desired.generation,
            volumes: stamped.volumes.clone(),
            limits: self.limits.get(name).copied().unwrap_or_default(),
            was_running: true,
            started_at: self.now,
        };
        let step = |step| Record::Source {
            migration: id.clone(),
            step,
        };
        let attempt = view.attempt;
        let records = vec![
            owner(name, at, stamped.volumes.clone()),
            step(SourceRecord::Planned(plan)),
            step(SourceRecord::Released { attempt }),
        ];
        let why = format!(
            "released to {to} at epoch {}: migration {id} is {:?} there, and goes on",
            at.next(),
            view.state
        );
        (records, why)
    }

    /// The migration that brings it here and is released already, although it goes back: it was
    /// given back and its source has not heard so, or nothing of it has run here and its source
    /// has it whole.
    fn returnable(&self, name: &AppName, stamped: &Stamped<'_>) -> Option<&Migration> {
        let at = stamped.top.epoch;
        match &stamped.state {
            StampState::Incoming { .. } => self
                .released_to_here(name, at.next())
                .filter(|migration| stamped.top.migration.as_ref() == Some(&migration.id)),
            StampState::Gone { to } => self
                .released_to_here(name, Epoch(at.0.saturating_sub(1)))
                .filter(|migration| migration.from == *to),
            StampState::Held | StampState::Moving { .. } => None,
        }
    }

    fn returned(
        &self,
        name: &AppName,
        stamped: &Stamped<'_>,
        migration: &Migration,
    ) -> Result<(Vec<Record>, String), Undecided> {
        let spec = self.desired.applications.get(name);
        let spec = spec.ok_or_else(|| Undecided::Undescribed(name.clone()))?;
        let mut steps = self.verified(migration, spec.clone(), stamped.volumes.clone());
        steps.push(DestinationRecord::Adopted);
        let reason = NOT_HERE.to_owned();
        steps.push(DestinationRecord::Returned { reason });
        let why = format!(
            "given back to {} at epoch {}: it had been released to this host, and does not run here",
            migration.from,
            migration.epoch.next()
        );
        Ok((destination(&migration.id, steps), why))
    }

    /// It is this host's; and where a source still waits to hear so, it will.
    fn held(&self, name: &AppName, stamped: &Stamped<'_>, epoch: Epoch) -> (Vec<Record>, String) {
        let mut records = Vec::new();
        let mut why = format!("owner at epoch {epoch}, as its volumes say");
        let waiting = self.released_to_here(name, epoch);
        let spec = self.desired.applications.get(name);
        match (waiting, spec) {
            (Some(migration), Some(spec)) if stamped.live => {
                let mut steps = self.verified(migration, spec.clone(), stamped.volumes.clone());
                steps.extend([DestinationRecord::Adopted, DestinationRecord::Serving]);
                records.extend(destination(&migration.id, steps));
                why = format!("{why}; {} is told that it is served here", migration.from);
            }
            _ => {}
        }
        if !stamped.live {
            why = format!("{why}, but not all of them are here: it is not started without");
        }
        records.push(owner(name, epoch, stamped.volumes.clone()));
        (records, why)
    }

    fn verified(
        &self,
        migration: &Migration,
        spec: rehome_shared::config::model::Application,
        volumes: Vec<VolumeIdentity>,
    ) -> Vec<DestinationRecord> {
        let offered = |identity| OfferedVolume {
            identity,
            used: Bytes(0),
            limit: None,
        };
        let limits = self.limits.get(&migration.application);
        let reservation = Reservation {
            from: migration.from.clone(),
            application: migration.application.clone(),
            epoch: Epoch(migration.epoch.0.saturating_sub(1)),
            generation: migration.generation,
            spec,
            volumes: volumes.into_iter().map(offered).collect(),
            limits: limits.copied().unwrap_or_default(),
        };
        vec![
            DestinationRecord::Reserved(Box::new(reservation)),
            DestinationRecord::Verified {
                attempt: FIRST,
                finals: Vec::new(),
            },
        ]
    }

    /// The owner that others know of at the very epoch must be this host.
    fn contested(
        &self,
        name: &AppName,
        at: Epoch,
        known: Option<(Epoch, &HostAddr)>,
    ) -> Result<(), Undecided> {
        match known {
            Some((epoch, owner)) if epoch == at && owner != self.here => {
                Err(Undecided::Contested {
                    application: name.clone(),
                    epoch,
                    one: self.here.clone(),
                    other: owner.clone(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A cut-over that came to nothing was called off at the destination.
    fn called_off(&self, name: &AppName, stamped: &Stamped<'_>) -> Result<(), Undecided> {
        let (StampState::Moving { .. }, Some(id)) = (&stamped.state, &stamped.top.migration) else {
            return Ok(());
        };
        let view = self.handoffs.get(id);
        let state = view.map_or(HandoffState::Reserved, |view| view.state);
        match state {
            HandoffState::Unknown | HandoffState::Dropped => Ok(()),
            HandoffState::Reserved
            | HandoffState::Verified
            | HandoffState::Owned
            | HandoffState::Serving
            | HandoffState::Returned => Err(Undecided::NotCalledOff {
                application: name.clone(),
                migration: id.clone(),
                state,
            }),
        }
    }

    /// The migration that a volume comes here by, as its source tells it.
    fn sending(&self, stamped: &Stamped<'_>, from: &HostAddr) -> Option<&Migration> {
        let id = stamped.top.migration.as_ref()?;
        let word = self.words.iter().find(|word| word.host == *from)?;
        word.migrations.iter().find(|m| m.id == *id && is_open(m))
    }
}

fn is_in_window(migration: &Migration) -> bool {
    migration
        .now
        .as_ref()
        .is_some_and(|now| WINDOW.contains(&now.phase.as_str()))
}

/// Without volumes the epoch alone does not tell: the plan's own is not known here.
fn is_past_release(migration: &Migration) -> bool {
    let phase = migration.now.as_ref().map(|now| now.phase.as_str());
    migration.state == MigrationState::Blocked
        || migration.phases.contains_key("release")
        || matches!(phase, Some("adopt" | "clean_up"))
}

fn owner(name: &AppName, epoch: Epoch, volumes: Vec<VolumeIdentity>) -> Record {
    Record::Held {
        application: name.clone(),
        epoch,
        role: Role::Owner,
        volumes,
        unmade: Vec::new(),
    }
}

fn gone(
    name: &AppName,
    stamped: &Stamped<'_>,
    epoch: Epoch,
    to: &HostAddr,
) -> (Vec<Record>, String) {
    let record = Record::Held {
        application: name.clone(),
        epoch,
        role: Role::Gone { to: to.clone() },
        volumes: stamped.volumes.clone(),
        unmade: Vec::new(),
    };
    let why = format!("{to} owns it, at epoch {epoch}");
    (vec![record], why)
}

fn destination(id: &MigrationId, steps: Vec<DestinationRecord>) -> Vec<Record> {
    let record = |step| Record::Destination {
        migration: id.clone(),
        step,
    };
    steps.into_iter().map(record).collect()
}
