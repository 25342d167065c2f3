//! The one thing to do in each state.

use rehome_shared::ids::{Attempt, Epoch};

#[cfg(doc)]
use super::Event;
use super::{AfterRelease, BeforeRelease, CutOverStep, FIRST, Phase, SourceMigration};

/// The one thing to do in a state. Each may be performed again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Ask the destination to reserve; answers [`Event::Ready`] or [`Event::Refused`].
    Prepare,
    /// Send a round; answers [`Event::RoundSent`] or [`Event::RoundFailed`].
    SendRound {
        /// From 1.
        round: u32,
        /// Failures of this round so far, for the pause before it.
        failures: u32,
    },
    /// Have the destination start it; answers [`Event::StartedThere`] or [`Event::Failed`].
    StartThere {
        /// Which try: the one that is granted afterwards.
        attempt: Attempt,
    },
    /// Park; answers [`Event::Parked`] or [`Event::Failed`].
    Park,
    /// Drain, and send rounds while that lasts; answers [`Event::Drained`] or [`Event::Failed`].
    Drain,
    /// Stop the application; answers [`Event::Stopped`] or [`Event::Failed`].
    Stop,
    /// Final snapshot, send, verify; answers [`Event::Verified`] or [`Event::Failed`].
    SendFinal {
        /// Which try.
        attempt: Attempt,
    },
    /// Grant until the destination says it is the owner; answers [`Event::Adopted`] or what the
    /// destination knows beyond that.
    Grant {
        /// Which try.
        attempt: Attempt,
        /// The destination's epoch.
        epoch: Epoch,
    },
    /// Ask until it serves or returns; answers [`Event::Served`] or [`Event::Returned`].
    AwaitOutcome {
        /// Which try.
        attempt: Attempt,
    },
    /// Lead the routes away, drop what is no longer needed; answers [`Event::Closed`].
    Finish {
        /// Which try.
        attempt: Attempt,
    },
    /// Start the application here again at the source's own epoch, open the gate, call the
    /// destination off; answers [`Event::Closed`].
    Restore {
        /// Why.
        reason: String,
    },
    /// The same at the epoch after the next; answers [`Event::Closed`].
    Reclaim {
        /// Which try.
        attempt: Attempt,
        /// The epoch that this host owns it at.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
}

impl SourceMigration {
    /// The one thing to do now; `None` when it is over.
    #[must_use]
    pub fn effect(&self) -> Option<Effect> {
        Some(match &self.phase {
            Phase::Before(before) => self.effect_before(before),
            Phase::After(after) => self.effect_after(after),
            Phase::Ended(_) => return None,
        })
    }

    fn effect_before(&self, phase: &BeforeRelease) -> Effect {
        match phase {
            BeforeRelease::Preparing => Effect::Prepare,
            BeforeRelease::PreCopy { failures } => Effect::SendRound {
                round: u32::try_from(self.rounds.len())
                    .unwrap_or(u32::MAX)
                    .saturating_add(1),
                failures: *failures,
            },
            BeforeRelease::StartingThere => Effect::StartThere { attempt: FIRST },
            BeforeRelease::CutOver { attempt, step, .. } => match step {
                CutOverStep::Parking => Effect::Park,
                CutOverStep::Draining => Effect::Drain,
                CutOverStep::Stopping => Effect::Stop,
                CutOverStep::Final => Effect::SendFinal { attempt: *attempt },
            },
            BeforeRelease::Aborting { reason } => Effect::Restore {
                reason: reason.clone(),
            },
        }
    }

    fn effect_after(&self, phase: &AfterRelease) -> Effect {
        let next = self.plan.epoch.next();
        match phase {
            AfterRelease::Granting { attempt } => Effect::Grant {
                attempt: *attempt,
                epoch: next,
            },
            AfterRelease::Handed { attempt } => Effect::AwaitOutcome { attempt: *attempt },
            AfterRelease::Finishing { attempt } => Effect::Finish { attempt: *attempt },
            AfterRelease::Reclaiming { attempt, reason } => Effect::Reclaim {
                attempt: *attempt,
                epoch: next.next(),
                reason: reason.clone(),
            },
        }
    }
}
