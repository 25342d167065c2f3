//! The handoff on the host that gives: the coordinator.
//!
//! ```text
//!            with volumes                                   without
//! Preparing ─────────────► PreCopy ⟲ ─► CutOver              Preparing ─► StartingThere
//!     │                       │     Parking Draining             │             │
//!     │                       │     Stopping Final               │             │
//!     └───────────┬───────────┴────────┤                         ├─────────────┤
//!              Aborting                │ Released (C1)        Aborting         │ Released
//!                 │                    ▼                                       ▼
//!               Ended     Granting ─► Handed ─► Finishing ─► Ended
//!                                        └────► Reclaiming ─► Ended
//! ```
//!
//! Before C1 every failure leads to `Aborting`; the types behind C1 have no such state: from
//! `Granting` on the source never runs the application again unless the destination returns it.

use rehome_shared::api::cluster::{Migration, Round};
use rehome_shared::ids::{Attempt, MigrationId};

use crate::UnixMillis;
use crate::record::{Plan, SourceRecord};

mod effect;
mod names;
mod replay;

pub use effect::Effect;

/// A migration on its source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceMigration {
    /// Its id.
    pub id: MigrationId,
    /// What it is about.
    pub plan: Plan,
    /// The rounds that arrived.
    pub rounds: Vec<Round>,
    /// How far it is.
    pub phase: Phase,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The application is this host's.
    Before(BeforeRelease),
    /// The next epoch is the destination's.
    After(AfterRelease),
    /// Over; this is how.
    Ended(Ending),
}

impl Phase {
    /// Whether the application serves here as if there were no migration.
    #[must_use]
    pub fn leaves_serving(&self) -> bool {
        matches!(
            self,
            Self::Before(
                BeforeRelease::Preparing
                    | BeforeRelease::PreCopy { .. }
                    | BeforeRelease::StartingThere
            )
        )
    }
}

/// Before C1: every failure leads back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeforeRelease {
    /// Asking the destination whether it can take it.
    Preparing,
    /// Sending a round while the application serves.
    PreCopy {
        /// Failures of this round in a row.
        failures: u32,
    },
    /// Without volumes: starting there while it still serves here.
    StartingThere,
    /// The window.
    CutOver {
        /// Which try.
        attempt: Attempt,
        /// Past it only an abort is possible.
        deadline: UnixMillis,
        /// What is being done.
        step: CutOverStep,
    },
    /// Called off: bringing the application back here.
    Aborting {
        /// Why.
        reason: String,
    },
}

/// The steps of a cut-over before C1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOverStep {
    /// New connections are being parked.
    Parking,
    /// Old ones may finish.
    Draining,
    /// The application is being stopped.
    Stopping,
    /// The final difference is on its way.
    Final,
}

/// After C1: the only way back is that the destination returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterRelease {
    /// Telling the destination, for as long as it takes.
    Granting {
        /// Which try.
        attempt: Attempt,
    },
    /// The destination is the owner; whether it serves is not known yet.
    Handed {
        /// Which try.
        attempt: Attempt,
    },
    /// The destination serves: cleaning up here.
    Finishing {
        /// Which try.
        attempt: Attempt,
    },
    /// The destination returned it: bringing it back here.
    Reclaiming {
        /// Which try.
        attempt: Attempt,
        /// Why.
        reason: String,
    },
}

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The destination serves.
    Done,
    /// It was called off before C1.
    Aborted,
    /// The destination gave it back.
    Returned,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The destination reserved.
    Ready,
    /// The destination cannot take it.
    Refused {
        /// Why.
        reason: String,
    },
    /// A round arrived; the caller asked [`crate::convergence`] what it means.
    RoundSent {
        /// The round.
        round: Round,
        /// What to do next.
        next: AfterRound,
    },
    /// A round did not arrive.
    RoundFailed {
        /// Why.
        reason: String,
        /// Whether another try may help.
        again: bool,
    },
    /// The destination runs it and it is healthy.
    StartedThere,
    /// New connections are held.
    Parked,
    /// Old connections ended, or their time is over.
    Drained {
        /// The rounds that arrived meanwhile.
        rounds: Vec<Round>,
    },
    /// No process of it is left.
    Stopped,
    /// The destination has all of the final snapshots and has promised to wait.
    Verified,
    /// What the state needs cannot be done.
    Failed {
        /// Why.
        reason: String,
    },
    /// Somebody asks for the way back.
    AbortRequested {
        /// Who or why.
        reason: String,
    },
    /// The destination is the owner.
    Adopted,
    /// The destination serves.
    Served,
    /// The destination gave it back.
    Returned {
        /// Why.
        reason: String,
    },
    /// Cleaning up, or the way back, is complete.
    Closed {
        /// What people are shown for ever after.
        report: Box<Migration>,
    },
}

/// What follows a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterRound {
    /// One more.
    Again,
    /// The window.
    CutOver,
    /// Give up.
    Abort {
        /// Why.
        reason: String,
    },
}

/// A step: persist the records, then take the state, then perform its effect.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Step {
    /// What must be durable first.
    pub records: Vec<SourceRecord>,
    /// The state then.
    pub next: SourceMigration,
}

/// An event that a state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// C1 is past: only the destination can give it back.
    #[error("the handoff is past the point of no return: the destination owns it")]
    TooLate,
    /// The migration is over.
    #[error("the migration is over")]
    Over,
    /// It is already on its way back.
    #[error("it is already on its way back")]
    OnItsWayBack,
    /// The event answers another effect than the state's.
    #[error("{event} is not an answer to what {phase} asked for")]
    NotAnAnswer {
        /// The event.
        event: &'static str,
        /// The state.
        phase: &'static str,
    },
}

/// Failures of one round in a row before the move is called off.
const ROUND_TRIES: u32 = 12;

/// The only try of a migration so far: what is called off is tried again as another migration.
const FIRST: Attempt = Attempt(1);

impl SourceMigration {
    /// A migration that begins. Persist [`SourceRecord::Planned`] first.
    #[must_use]
    pub fn begin(id: MigrationId, plan: Plan) -> Self {
        Self {
            id,
            plan,
            rounds: Vec::new(),
            phase: Phase::Before(BeforeRelease::Preparing),
        }
    }

    /// The deadline of the cut-over under way.
    #[must_use]
    pub fn deadline(&self) -> Option<UnixMillis> {
        match &self.phase {
            Phase::Before(BeforeRelease::CutOver { deadline, .. }) => Some(*deadline),
            Phase::Before(_) | Phase::After(_) | Phase::Ended(_) => None,
        }
    }

    /// What follows an event.
    ///
    /// # Errors
    /// [`Illegal`] when the state does not allow the event; nothing changes.
    pub fn step(&self, now: UnixMillis, event: Event) -> Result<Step, Illegal> {
        match &self.phase {
            Phase::Before(before) => self.step_before(before, now, event),
            Phase::After(after) => self.step_after(after, event),
            Phase::Ended(_) => Err(Illegal::Over),
        }
    }

    fn step_before(
        &self,
        phase: &BeforeRelease,
        now: UnixMillis,
        event: Event,
    ) -> Result<Step, Illegal> {
        use BeforeRelease as B;
        match (phase, event) {
            (B::Aborting { .. }, Event::Closed { report }) => {
                Ok(self.close(report, Ending::Aborted))
            }
            (B::Aborting { .. }, Event::AbortRequested { .. }) => Err(Illegal::OnItsWayBack),
            (B::Aborting { .. }, event) => Err(self.not_an_answer(&event)),
            (_, Event::AbortRequested { reason } | Event::Failed { reason }) => {
                Ok(self.abort(reason))
            }
            (B::Preparing, Event::Refused { reason }) => Ok(self.abort(reason)),
            (B::Preparing, Event::Ready) if self.plan.volumes.is_empty() => {
                Ok(self.enter(Vec::new(), B::StartingThere))
            }
            (B::Preparing, Event::Ready) => Ok(self.enter(Vec::new(), B::PreCopy { failures: 0 })),
            (B::PreCopy { .. }, Event::RoundSent { round, next }) => {
                Ok(self.round(round, next, now))
            }
            (B::PreCopy { failures }, Event::RoundFailed { reason, again }) => {
                let failures = failures.saturating_add(1);
                if again && failures < ROUND_TRIES {
                    Ok(self.enter(Vec::new(), B::PreCopy { failures }))
                } else {
                    Ok(self.abort(reason))
                }
            }
            (B::StartingThere, Event::StartedThere) => Ok(self.release(FIRST)),
            (
                B::CutOver {
                    attempt,
                    deadline,
                    step,
                },
                event,
            ) => self.step_cut_over(*attempt, *deadline, *step, now, event),
            (_, event) => Err(self.not_an_answer(&event)),
        }
    }

    fn step_cut_over(
        &self,
        attempt: Attempt,
        deadline: UnixMillis,
        step: CutOverStep,
        now: UnixMillis,
        event: Event,
    ) -> Result<Step, Illegal> {
        let mut sent = Vec::new();
        let next = match (step, event) {
            (CutOverStep::Parking, Event::Parked) => CutOverStep::Draining,
            (CutOverStep::Draining, Event::Drained { rounds }) => {
                sent = rounds;
                CutOverStep::Stopping
            }
            (CutOverStep::Stopping, Event::Stopped) => CutOverStep::Final,
            // C1 never happens after the deadline that was written down.
            (CutOverStep::Final, Event::Verified) if now <= deadline => {
                return Ok(self.release(attempt));
            }
            (CutOverStep::Final, Event::Verified) => {
                return Ok(self.abort(self.past_the_cap()));
            }
            (_, event) => return Err(self.not_an_answer(&event)),
        };
        Ok(self.after_rounds(sent, |migration| {
            if now > deadline {
                return migration.abort(migration.past_the_cap());
            }
            migration.enter(
                Vec::new(),
                BeforeRelease::CutOver {
                    attempt,
                    deadline,
                    step: next,
                },
            )
        }))
    }

    fn step_after(&self, phase: &AfterRelease, event: Event) -> Result<Step, Illegal> {
        use AfterRelease as A;
        match (phase, event) {
            (_, Event::AbortRequested { .. }) => Err(Illegal::TooLate),
            (A::Granting { attempt }, Event::Adopted) => {
                Ok(self.enter_after(vec![SourceRecord::Adopted], A::Handed { attempt: *attempt }))
            }
            (A::Granting { attempt } | A::Handed { attempt }, Event::Served) => Ok(self
                .enter_after(
                    vec![SourceRecord::Served],
                    A::Finishing { attempt: *attempt },
                )),
            (A::Granting { attempt } | A::Handed { attempt }, Event::Returned { reason }) => {
                Ok(self.enter_after(
                    vec![SourceRecord::Reclaimed {
                        reason: reason.clone(),
                    }],
                    A::Reclaiming {
                        attempt: *attempt,
                        reason,
                    },
                ))
            }
            (A::Finishing { .. }, Event::Closed { report }) => Ok(self.close(report, Ending::Done)),
            (A::Reclaiming { .. }, Event::Closed { report }) => {
                Ok(self.close(report, Ending::Returned))
            }
            (_, event) => Err(self.not_an_answer(&event)),
        }
    }

    fn round(&self, round: Round, next: AfterRound, now: UnixMillis) -> Step {
        self.after_rounds(vec![round], |migration| match next {
            AfterRound::Again => {
                migration.enter(Vec::new(), BeforeRelease::PreCopy { failures: 0 })
            }
            AfterRound::Abort { reason } => migration.abort(reason),
            AfterRound::CutOver => migration.cut_over(now),
        })
    }

    /// A step that rounds have led to: they are written down with it.
    fn after_rounds(&self, rounds: Vec<Round>, then: impl FnOnce(&Self) -> Step) -> Step {
        let mut records: Vec<_> = rounds.iter().copied().map(SourceRecord::Round).collect();
        let mut with_rounds = self.clone();
        with_rounds.rounds.extend(rounds);
        let mut step = then(&with_rounds);
        records.append(&mut step.records);
        step.records = records;
        step
    }

    fn cut_over(&self, now: UnixMillis) -> Step {
        let attempt = FIRST;
        let limits = &self.plan.limits;
        let deadline = now.after(limits.drain.saturating_add(limits.hard_cap));
        self.enter(
            vec![SourceRecord::CutOver { attempt, deadline }],
            BeforeRelease::CutOver {
                attempt,
                deadline,
                step: CutOverStep::Parking,
            },
        )
    }

    fn release(&self, attempt: Attempt) -> Step {
        self.enter_after(
            vec![SourceRecord::Released { attempt }],
            AfterRelease::Granting { attempt },
        )
    }

    fn abort(&self, reason: String) -> Step {
        self.enter(
            vec![SourceRecord::Aborted {
                reason: reason.clone(),
            }],
            BeforeRelease::Aborting { reason },
        )
    }

    fn close(&self, report: Box<Migration>, ending: Ending) -> Step {
        self.to(vec![SourceRecord::Closed { report }], Phase::Ended(ending))
    }

    fn enter(&self, records: Vec<SourceRecord>, phase: BeforeRelease) -> Step {
        self.to(records, Phase::Before(phase))
    }

    fn enter_after(&self, records: Vec<SourceRecord>, phase: AfterRelease) -> Step {
        self.to(records, Phase::After(phase))
    }

    fn to(&self, records: Vec<SourceRecord>, phase: Phase) -> Step {
        Step {
            records,
            next: Self {
                phase,
                ..self.clone()
            },
        }
    }

    fn past_the_cap(&self) -> String {
        format!(
            "the hard cap of {:.1} s would be passed",
            self.plan.limits.hard_cap.as_secs_f64()
        )
    }

    fn not_an_answer(&self, event: &Event) -> Illegal {
        Illegal::NotAnAnswer {
            event: event.name(),
            phase: self.phase.name(),
        }
    }

    /// The newest attempt; 0 before the first cut-over.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        match &self.phase {
            Phase::Before(BeforeRelease::CutOver { attempt, .. })
            | Phase::After(
                AfterRelease::Granting { attempt }
                | AfterRelease::Handed { attempt }
                | AfterRelease::Finishing { attempt }
                | AfterRelease::Reclaiming { attempt, .. },
            ) => *attempt,
            Phase::Before(_) | Phase::Ended(_) => Attempt(0),
        }
    }
}

#[cfg(test)]
mod tests;
