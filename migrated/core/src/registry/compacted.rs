//! The fewest records that come to a registry: what a journal holds after it was compacted.
//!
//! Order matters only for applications: what the steps of an open handoff say of an owner may be
//! long past, so how this host stands to each application comes last.

use rehome_shared::ids::{Attempt, MigrationId};

use super::Registry;
use crate::UnixMillis;
use crate::destination::{self, DestinationHandoff};
use crate::record::{DestinationRecord, Record, SourceRecord};
use crate::source::{AfterRelease, BeforeRelease, Phase, SourceMigration};

impl Registry {
    /// Records that, replayed, come to this very registry.
    #[must_use]
    pub fn compacted(&self) -> Vec<Record> {
        let past = self.history.iter().map(|report| Record::Past {
            report: Box::new(report.clone()),
        });
        let sources = self.sources.values().flat_map(given);
        let destinations = self.destinations.values().flat_map(taken);
        let held = self.applications.iter().map(|(name, known)| Record::Held {
            application: name.clone(),
            epoch: known.epoch,
            role: known.role.clone(),
            volumes: known.volumes.clone(),
            unmade: known.unmade.clone(),
        });
        let heard = self
            .heard
            .iter()
            .map(|(name, (epoch, owner))| Record::Heard {
                application: name.clone(),
                epoch: *epoch,
                owner: owner.clone(),
            });
        past.chain(sources)
            .chain(destinations)
            .chain(heard)
            .chain(held)
            .collect()
    }

    /// Whether a change of owner is under way that clients are waiting for, as far as this host
    /// can tell: no time for anything that can wait.
    #[must_use]
    pub fn is_in_window(&self) -> bool {
        let leaving = self
            .sources
            .values()
            .any(|migration| match &migration.phase {
                Phase::Before(BeforeRelease::CutOver { .. })
                | Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }) => true,
                Phase::Before(_) | Phase::After(_) | Phase::Ended(_) => false,
            });
        let coming = self.destinations.values().any(|handoff| {
            matches!(
                handoff.phase,
                destination::Phase::Verified { .. } | destination::Phase::Owned { .. }
            )
        });
        leaving || coming
    }
}

/// The records of a migration that this host coordinates.
fn given(migration: &SourceMigration) -> Vec<Record> {
    let plan = migration.plan.clone();
    let began = plan.started_at;
    let mut steps = vec![SourceRecord::Planned(plan)];
    steps.extend(migration.rounds.iter().copied().map(SourceRecord::Round));
    match &migration.phase {
        Phase::Before(before) => steps.extend(until_now(before)),
        Phase::After(after) => steps.extend(since_release(after, migration.rounds.len(), began)),
        // One that is over is not in the registry any more.
        Phase::Ended(_) => return Vec::new(),
    }
    let record = |step| Record::Source {
        migration: migration.id.clone(),
        step,
    };
    steps.into_iter().map(record).collect()
}

fn until_now(phase: &BeforeRelease) -> Option<SourceRecord> {
    match phase {
        BeforeRelease::Preparing | BeforeRelease::PreCopy { .. } | BeforeRelease::StartingThere => {
            None
        }
        BeforeRelease::CutOver {
            attempt, deadline, ..
        } => Some(SourceRecord::CutOver {
            attempt: *attempt,
            deadline: *deadline,
        }),
        BeforeRelease::Aborting { reason } => Some(SourceRecord::Aborted {
            reason: reason.clone(),
        }),
    }
}

fn since_release(phase: &AfterRelease, rounds: usize, began: UnixMillis) -> Vec<SourceRecord> {
    let (attempt, then) = match phase {
        AfterRelease::Granting { attempt } => (*attempt, None),
        AfterRelease::Handed { attempt } => (*attempt, Some(SourceRecord::Adopted)),
        AfterRelease::Finishing { attempt } => (*attempt, Some(SourceRecord::Served)),
        AfterRelease::Reclaiming { attempt, reason } => {
            let reason = reason.clone();
            (*attempt, Some(SourceRecord::Reclaimed { reason }))
        }
    };
    let mut steps = cut_over(rounds, attempt, began);
    steps.push(SourceRecord::Released { attempt });
    steps.extend(then);
    steps
}

/// After rounds nothing is released without a cut-over. When its patience ended does not matter
/// any more.
fn cut_over(rounds: usize, attempt: Attempt, began: UnixMillis) -> Vec<SourceRecord> {
    if rounds == 0 {
        return Vec::new();
    }
    vec![SourceRecord::CutOver {
        attempt,
        deadline: began,
    }]
}

/// The records of a handoff that comes or came to this host.
fn taken(handoff: &DestinationHandoff) -> Vec<Record> {
    use destination::Phase as P;
    let reserved = DestinationRecord::Reserved(Box::new(handoff.reservation.clone()));
    let verified = |attempt: &Attempt, finals: &Vec<_>| DestinationRecord::Verified {
        attempt: *attempt,
        finals: finals.clone(),
    };
    let adopted = if handoff.entrusted {
        DestinationRecord::Entrusted
    } else {
        DestinationRecord::Adopted
    };
    let steps = match &handoff.phase {
        P::Reserved => vec![reserved],
        P::Verified { attempt, finals } => vec![reserved, verified(attempt, finals)],
        P::Owned { attempt, finals } => vec![reserved, verified(attempt, finals), adopted],
        P::Serving { attempt, finals } => {
            let serving = DestinationRecord::Serving;
            vec![reserved, verified(attempt, finals), adopted, serving]
        }
        P::Returned { attempt, reason } => {
            let reason = reason.clone();
            let returned = DestinationRecord::Returned { reason };
            vec![reserved, verified(attempt, &Vec::new()), adopted, returned]
        }
        P::Dropped => vec![reserved, DestinationRecord::Dropped],
    };
    steps_of(&handoff.id, steps)
}

fn steps_of(id: &MigrationId, steps: Vec<DestinationRecord>) -> Vec<Record> {
    let record = |step| Record::Destination {
        migration: id.clone(),
        step,
    };
    steps.into_iter().map(record).collect()
}

#[cfg(test)]
mod tests;
