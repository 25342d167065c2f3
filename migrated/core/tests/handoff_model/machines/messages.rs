//! What hosts say to each other of a migration.

use migrated_core::record::{Record, SourceRecord};
use migrated_core::registry::Registry;
use migrated_core::source::{Effect, SourceMigration};
use rehome_shared::api::peer::HandoffState;

use super::Machines;
use crate::values::id;

/// What a destination says of a migration, in the order in which it can come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum View {
    Reserved,
    Verified,
    Owned,
    Serving,
    Returned,
}

/// All of them.
pub(crate) const VIEWS: [View; 5] = [
    View::Reserved,
    View::Verified,
    View::Owned,
    View::Serving,
    View::Returned,
];

impl View {
    /// Whether a destination in this state says this.
    pub(crate) fn is(self, state: HandoffState) -> bool {
        match state {
            HandoffState::Reserved => self == Self::Reserved,
            HandoffState::Verified => self == Self::Verified,
            HandoffState::Owned => self == Self::Owned,
            HandoffState::Serving => self == Self::Serving,
            HandoffState::Returned => self == Self::Returned,
            // Nothing follows from what is not known, or was called off by the source itself.
            HandoffState::Unknown | HandoffState::Dropped => false,
        }
    }
}

/// A message of a migration. Which ones may have been sent follows from the journal of the host
/// that sends: it says what its state says, again and again, and whatever it said once may
/// arrive at any later time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Message {
    Prepare,
    Verify,
    Grant,
    Abort,
    Close,
    View(View),
}

/// What a host says of a migration from a record on.
pub(super) fn says(record: &Record, registry: &Registry, migration: u8) -> Option<Message> {
    match record {
        Record::Source {
            migration: of,
            step,
        } if *of == id(migration) => match step {
            SourceRecord::Planned(_) => Some(Message::Prepare),
            SourceRecord::CutOver { .. } => Some(Message::Verify),
            SourceRecord::Aborted { .. } => Some(Message::Abort),
            SourceRecord::Released { .. } => Some(Message::Grant),
            SourceRecord::Served | SourceRecord::Reclaimed { .. } => Some(Message::Close),
            SourceRecord::Round(_) | SourceRecord::Adopted | SourceRecord::Closed { .. } => None,
        },
        Record::Destination { migration: of, .. } if *of == id(migration) => {
            let handoff = registry.destinations().get(of);
            // Nothing follows from what is not known, or was called off by the source itself.
            VIEWS
                .into_iter()
                .find(|view| handoff.is_some_and(|h| view.is(h.state())))
                .map(Message::View)
        }
        Record::Born { .. }
        | Record::VolumesAdded { .. }
        | Record::VolumesMade { .. }
        | Record::Source { .. }
        | Record::Destination { .. }
        | Record::Held { .. }
        | Record::Past { .. }
        | Record::Fenced { .. }
        | Record::Claimed { .. }
        | Record::Heard { .. } => None,
    }
}

impl Machines {
    /// Whether the source of an open migration says this of it now.
    pub(crate) fn says_now(&self, live: u16, migration: u8, message: Message) -> bool {
        let Some(effect) = self
            .live(live)
            .filter(|m| m.id == id(migration))
            .and_then(SourceMigration::effect)
        else {
            return false;
        };
        match effect {
            Effect::Prepare => message == Message::Prepare,
            Effect::SendFinal { .. } => message == Message::Verify,
            Effect::Grant { .. } => message == Message::Grant,
            Effect::Restore { .. } => message == Message::Abort,
            Effect::Finish { .. } | Effect::Reclaim { .. } => message == Message::Close,
            Effect::SendRound { .. }
            | Effect::StartThere { .. }
            | Effect::Park
            | Effect::Drain
            | Effect::Stop
            | Effect::AwaitOutcome { .. } => false,
        }
    }
}
