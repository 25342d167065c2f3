//! Words for phases and events, for messages and reports.

use super::{AfterRelease, BeforeRelease, CutOverStep, Event, Phase};

impl Phase {
    /// A word for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Before(before) => match before {
                BeforeRelease::Preparing => "prepare",
                BeforeRelease::PreCopy { .. } => "precopy",
                BeforeRelease::StartingThere => "start",
                BeforeRelease::CutOver { step, .. } => match step {
                    CutOverStep::Parking => "park",
                    CutOverStep::Draining => "drain",
                    CutOverStep::Stopping => "stop",
                    CutOverStep::Final => "final_delta",
                },
                BeforeRelease::Aborting { .. } => "abort",
            },
            Self::After(after) => match after {
                AfterRelease::Granting { .. } => "adopt",
                AfterRelease::Handed { .. } => "start",
                AfterRelease::Finishing { .. } => "clean_up",
                AfterRelease::Reclaiming { .. } => "return",
            },
            Self::Ended(_) => "ended",
        }
    }
}

impl Event {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Refused { .. } => "refused",
            Self::RoundSent { .. } => "round sent",
            Self::RoundFailed { .. } => "round failed",
            Self::StartedThere => "started there",
            Self::Parked => "parked",
            Self::Drained { .. } => "drained",
            Self::Stopped => "stopped",
            Self::Verified => "verified",
            Self::Failed { .. } => "failed",
            Self::AbortRequested { .. } => "abort requested",
            Self::Adopted => "adopted",
            Self::Served => "served",
            Self::Returned { .. } => "returned",
            Self::Closed { .. } => "closed",
        }
    }
}
