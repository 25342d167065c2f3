//! What a migration's records mean after a restart.
//!
//! A record moves the state only where [`step`](SourceMigration::step) could have written it;
//! one that does not fit, which only a damaged journal can hold, changes nothing. So no record
//! leads from behind C1 back to before it.

use super::{AfterRelease, BeforeRelease, CutOverStep, Ending, Event, Phase, SourceMigration};
use crate::record::SourceRecord;

impl SourceMigration {
    /// The state that a record leads to: what [`step`](Self::step) made of it. The steps of a
    /// cut-over leave no records but the rounds of the drain, so a restart in the middle of one
    /// finds itself at its beginning; [`resumed`](Self::resumed) says what follows from that.
    #[must_use]
    pub fn replay(&self, record: &SourceRecord) -> Self {
        if let SourceRecord::Planned(plan) = record {
            return Self::begin(self.id.clone(), plan.clone());
        }
        let phase = match &self.phase {
            Phase::Before(before) => before.after(record),
            Phase::After(after) => after.after(record),
            Phase::Ended(_) => None,
        };
        let mut next = self.clone();
        if let Some(phase) = phase {
            next.phase = phase;
            if let SourceRecord::Round(round) = record {
                next.rounds.push(*round);
            }
        }
        next
    }

    /// What a restart of the daemon makes of the state it finds. In pre-copy the move goes on: the
    /// application never stopped for it. In the middle of a cut-over nobody knows how far it
    /// came and the clients are waiting: it is called off, which is always safe before C1.
    #[must_use]
    pub fn resumed(&self) -> Option<Event> {
        match &self.phase {
            Phase::Before(BeforeRelease::CutOver { .. }) => Some(Event::AbortRequested {
                reason: "migrated on the source was restarted in the middle of the cut-over"
                    .to_owned(),
            }),
            Phase::Before(_) | Phase::After(_) | Phase::Ended(_) => None,
        }
    }
}

impl BeforeRelease {
    /// What a record makes of it; `None` when it does not fit.
    fn after(&self, record: &SourceRecord) -> Option<Phase> {
        let next = match (record, self) {
            (SourceRecord::Round(_), Self::Preparing | Self::PreCopy { .. }) => {
                Self::PreCopy { failures: 0 }
            }
            (
                SourceRecord::Round(_),
                Self::CutOver {
                    attempt,
                    deadline,
                    step,
                },
            ) => Self::CutOver {
                attempt: *attempt,
                deadline: *deadline,
                step: after_drain(*step)?,
            },
            (
                SourceRecord::CutOver { attempt, deadline },
                Self::Preparing | Self::PreCopy { .. },
            ) => Self::CutOver {
                attempt: *attempt,
                deadline: *deadline,
                step: CutOverStep::Parking,
            },
            (SourceRecord::Aborted { reason }, _) => Self::Aborting {
                reason: reason.clone(),
            },
            // Without volumes the start there leaves no record: it is still being prepared.
            (
                SourceRecord::Released { attempt },
                Self::Preparing | Self::StartingThere | Self::CutOver { .. },
            ) => return Some(Phase::After(AfterRelease::Granting { attempt: *attempt })),
            (SourceRecord::Closed { .. }, Self::Aborting { .. }) => {
                return Some(Phase::Ended(Ending::Aborted));
            }
            _ => return None,
        };
        Some(Phase::Before(next))
    }
}

/// Where a round leads in a cut-over. It is written down when the drain is over; a restart knows
/// nothing of the steps, and stays at the first.
fn after_drain(step: CutOverStep) -> Option<CutOverStep> {
    match step {
        CutOverStep::Parking => Some(CutOverStep::Parking),
        CutOverStep::Draining | CutOverStep::Stopping => Some(CutOverStep::Stopping),
        CutOverStep::Final => None,
    }
}

impl AfterRelease {
    /// What a record makes of it; `None` when it does not fit.
    fn after(&self, record: &SourceRecord) -> Option<Phase> {
        let next = match (record, self) {
            (SourceRecord::Adopted, Self::Granting { attempt }) => {
                Self::Handed { attempt: *attempt }
            }
            (SourceRecord::Served, Self::Granting { attempt } | Self::Handed { attempt }) => {
                Self::Finishing { attempt: *attempt }
            }
            (
                SourceRecord::Reclaimed { reason },
                Self::Granting { attempt } | Self::Handed { attempt },
            ) => Self::Reclaiming {
                attempt: *attempt,
                reason: reason.clone(),
            },
            (SourceRecord::Closed { .. }, Self::Finishing { .. }) => {
                return Some(Phase::Ended(Ending::Done));
            }
            (SourceRecord::Closed { .. }, Self::Reclaiming { .. }) => {
                return Some(Phase::Ended(Ending::Returned));
            }
            _ => return None,
        };
        Some(Phase::After(next))
    }
}
