//! The handoff on the host that takes.
//!
//! ```text
//! Reserved ⟲ ─► Verified ─► Owned (ADOPT) ─► Serving (C2)
//!     └────┬────────┘          └───────────► Returned
//!       Dropped
//! ```
//!
//! Without volumes `Started` stands where `Verified` does. A promise is kept: from `Verified` on
//! only the source's grant or abort moves the state, however long they take. Nothing is mounted
//! writable before `Owned`, no client is answered before `Serving`, and after `Serving` there is
//! no return; nor is there one where an operator's word stood in for the grant, as the source is
//! fenced and would never hear of it.

use rehome_shared::api::peer::{FinalSnapshot, HandoffState, VolumeIdentity};
use rehome_shared::ids::{Attempt, Epoch, MigrationId};

use crate::record::{DestinationRecord, Reservation};

/// A handoff on its destination.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationHandoff {
    /// The migration.
    pub id: MigrationId,
    /// What was promised.
    pub reservation: Reservation,
    /// How far it is.
    pub phase: Phase,
    /// Whether an operator granted it, and not its source.
    pub entrusted: bool,
}

/// How far a handoff is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Rounds may come.
    Reserved,
    /// The final snapshots of this attempt are all here (none, without volumes).
    Verified {
        /// Which try.
        attempt: Attempt,
        /// The snapshots.
        finals: Vec<FinalSnapshot>,
    },
    /// This host is the owner; the application is being started.
    Owned {
        /// Which try.
        attempt: Attempt,
        /// The snapshots that the live trees are made from.
        finals: Vec<FinalSnapshot>,
    },
    /// Clients are served.
    Serving {
        /// Which try.
        attempt: Attempt,
        /// The snapshots that are the common base from now on.
        finals: Vec<FinalSnapshot>,
    },
    /// Given back.
    Returned {
        /// Which try.
        attempt: Attempt,
        /// Why.
        reason: String,
    },
    /// Called off.
    Dropped,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The source says these are the final snapshots, and they were found here.
    Verified {
        /// Which try.
        attempt: Attempt,
        /// The source's epoch.
        epoch: Epoch,
        /// The snapshots.
        finals: Vec<FinalSnapshot>,
    },
    /// The source released.
    Granted {
        /// Which try.
        attempt: Attempt,
        /// The epoch that is granted.
        epoch: Epoch,
    },
    /// An operator grants it, as the source is fenced.
    Entrusted {
        /// Which try.
        attempt: Attempt,
        /// The epoch that is granted.
        epoch: Epoch,
    },
    /// The application runs and is healthy.
    Healthy,
    /// It cannot be made to serve; it is stopped and no process of it is left.
    Failed {
        /// Why.
        reason: String,
    },
    /// The source calls it off, or is known to have done so.
    Aborted,
    /// Nothing was heard of it for long. Only what was merely reserved can expire.
    Expired,
    /// What came of a handoff that was called off is discarded.
    Discarded,
    /// The source has taken note of the outcome and needs nothing of it any more. Nobody else may
    /// close it: a source that finds its outcome forgotten could never go on.
    Closed,
}

/// A step: persist the records, then take the state.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Step {
    /// What must be durable first.
    pub records: Vec<DestinationRecord>,
    /// The state then; `None` when nothing needs to be known of it any more.
    pub next: Option<DestinationHandoff>,
}

/// A message that does not fit the state: it is stale, and answered with the state as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stale: the handoff is {state:?} at attempt {attempt}")]
pub struct Stale {
    /// The state.
    pub state: HandoffState,
    /// The newest attempt.
    pub attempt: Attempt,
}

impl DestinationHandoff {
    /// A handoff that begins. Persist [`DestinationRecord::Reserved`] first.
    #[must_use]
    pub fn begin(id: MigrationId, reservation: Reservation) -> Self {
        Self {
            id,
            reservation,
            phase: Phase::Reserved,
            entrusted: false,
        }
    }

    /// What follows an event. An event that was seen before changes nothing and is no error.
    ///
    /// # Errors
    /// [`Stale`] when the event does not fit; nothing changes.
    pub fn step(&self, event: Event) -> Result<Step, Stale> {
        match (&self.phase, event) {
            (
                Phase::Reserved | Phase::Verified { .. },
                Event::Verified {
                    attempt,
                    epoch,
                    finals,
                },
            ) => self.verified(attempt, epoch, finals),
            (_, Event::Granted { attempt, epoch }) => {
                self.granted(attempt, epoch, DestinationRecord::Adopted)
            }
            (_, Event::Entrusted { attempt, epoch }) => {
                self.granted(attempt, epoch, DestinationRecord::Entrusted)
            }
            (Phase::Owned { attempt, finals }, Event::Healthy) => Ok(self.to(
                DestinationRecord::Serving,
                Phase::Serving {
                    attempt: *attempt,
                    finals: finals.clone(),
                },
            )),
            (Phase::Owned { attempt, .. }, Event::Failed { reason }) if !self.entrusted => Ok(self
                .to(
                    DestinationRecord::Returned {
                        reason: reason.clone(),
                    },
                    Phase::Returned {
                        attempt: *attempt,
                        reason,
                    },
                )),
            (Phase::Reserved | Phase::Verified { .. }, Event::Aborted)
            | (Phase::Reserved, Event::Expired) => {
                Ok(self.to(DestinationRecord::Dropped, Phase::Dropped))
            }
            (Phase::Dropped, Event::Aborted) => Ok(self.unchanged()),
            (Phase::Dropped, Event::Discarded)
            | (Phase::Serving { .. } | Phase::Returned { .. }, Event::Closed) => Ok(Step {
                records: vec![DestinationRecord::Closed],
                next: None,
            }),
            _ => Err(self.stale()),
        }
    }

    fn verified(
        &self,
        attempt: Attempt,
        epoch: Epoch,
        finals: Vec<FinalSnapshot>,
    ) -> Result<Step, Stale> {
        if epoch != self.reservation.epoch {
            return Err(self.stale());
        }
        match &self.phase {
            Phase::Verified {
                attempt: known,
                finals: same,
            } if attempt == *known => {
                if finals == *same {
                    Ok(self.unchanged())
                } else {
                    Err(self.stale())
                }
            }
            Phase::Verified { attempt: known, .. } if attempt < *known => Err(self.stale()),
            _ => Ok(self.to(
                DestinationRecord::Verified {
                    attempt,
                    finals: finals.clone(),
                },
                Phase::Verified { attempt, finals },
            )),
        }
    }

    fn granted(
        &self,
        attempt: Attempt,
        epoch: Epoch,
        record: DestinationRecord,
    ) -> Result<Step, Stale> {
        match &self.phase {
            Phase::Verified { attempt: known, .. }
                if attempt == *known && epoch == self.epoch_here() =>
            {
                Ok(Step {
                    next: self.replay(&record),
                    records: vec![record],
                })
            }
            Phase::Owned { attempt: known, .. }
            | Phase::Serving { attempt: known, .. }
            | Phase::Returned { attempt: known, .. }
                if attempt == *known =>
            {
                Ok(self.unchanged())
            }
            _ => Err(self.stale()),
        }
    }

    /// What comes.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeIdentity> {
        let offered = self.reservation.volumes.iter();
        offered.map(|volume| volume.identity.clone()).collect()
    }

    /// The epoch that this host owns it at.
    #[must_use]
    pub fn epoch_here(&self) -> Epoch {
        self.reservation.epoch.next()
    }

    /// The newest attempt; 0 before the first.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        match &self.phase {
            Phase::Reserved | Phase::Dropped => Attempt(0),
            Phase::Verified { attempt, .. }
            | Phase::Owned { attempt, .. }
            | Phase::Serving { attempt, .. }
            | Phase::Returned { attempt, .. } => *attempt,
        }
    }

    /// The state's word on the wire.
    #[must_use]
    pub fn state(&self) -> HandoffState {
        match &self.phase {
            Phase::Reserved => HandoffState::Reserved,
            Phase::Verified { .. } => HandoffState::Verified,
            Phase::Owned { .. } => HandoffState::Owned,
            Phase::Serving { .. } => HandoffState::Serving,
            Phase::Returned { .. } => HandoffState::Returned,
            Phase::Dropped => HandoffState::Dropped,
        }
    }

    /// The state that its source may hear of. What was given back is the source's only when the
    /// volumes are `stamped` so: from the word on it may own the application again, and a journal
    /// that was lost here and made anew out of older stamps would make this host an owner beside
    /// it.
    #[must_use]
    pub fn told(&self, stamped: bool) -> HandoffState {
        match self.state() {
            HandoffState::Returned if !stamped => HandoffState::Owned,
            state => state,
        }
    }

    /// The state that a record leads to; `None` when nothing needs to be known any more. A
    /// record that does not fit (which only a damaged journal can hold) changes nothing.
    #[must_use]
    pub fn replay(&self, record: &DestinationRecord) -> Option<Self> {
        let phase = match (record, &self.phase) {
            (DestinationRecord::Reserved(reservation), _) => {
                return Some(Self::begin(self.id.clone(), (**reservation).clone()));
            }
            (
                DestinationRecord::Verified { attempt, finals },
                Phase::Reserved | Phase::Verified { .. },
            ) => Phase::Verified {
                attempt: *attempt,
                finals: finals.clone(),
            },
            (DestinationRecord::Adopted, Phase::Verified { attempt, finals }) => Phase::Owned {
                attempt: *attempt,
                finals: finals.clone(),
            },
            (DestinationRecord::Entrusted, Phase::Verified { attempt, finals }) => {
                return Some(Self {
                    phase: Phase::Owned {
                        attempt: *attempt,
                        finals: finals.clone(),
                    },
                    entrusted: true,
                    ..self.clone()
                });
            }
            (DestinationRecord::Serving, Phase::Owned { attempt, finals }) => Phase::Serving {
                attempt: *attempt,
                finals: finals.clone(),
            },
            (DestinationRecord::Returned { reason }, Phase::Owned { attempt, .. }) => {
                Phase::Returned {
                    attempt: *attempt,
                    reason: reason.clone(),
                }
            }
            (DestinationRecord::Dropped, Phase::Reserved | Phase::Verified { .. }) => {
                Phase::Dropped
            }
            (
                DestinationRecord::Closed,
                Phase::Serving { .. } | Phase::Returned { .. } | Phase::Dropped,
            ) => return None,
            (
                DestinationRecord::Verified { .. }
                | DestinationRecord::Adopted
                | DestinationRecord::Entrusted
                | DestinationRecord::Serving
                | DestinationRecord::Returned { .. }
                | DestinationRecord::Dropped
                | DestinationRecord::Closed,
                _,
            ) => return Some(self.clone()),
        };
        Some(Self {
            phase,
            ..self.clone()
        })
    }

    fn to(&self, record: DestinationRecord, phase: Phase) -> Step {
        Step {
            records: vec![record],
            next: Some(Self {
                phase,
                ..self.clone()
            }),
        }
    }

    fn unchanged(&self) -> Step {
        Step {
            records: Vec::new(),
            next: Some(self.clone()),
        }
    }

    fn stale(&self) -> Stale {
        Stale {
            state: self.state(),
            attempt: self.attempt(),
        }
    }
}

#[cfg(test)]
mod tests;
