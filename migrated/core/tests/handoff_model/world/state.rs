//! A state of the world, in a handful of bytes.

#[cfg(doc)]
use super::Mutation;
use super::pool::Stamped;
use super::routing::{Advert, Route};
use crate::values::{self, APPLICATIONS};

#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent facts of a host"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct HostState {
    pub(super) journal: u16,
    pub(super) up: bool,
    /// Whether it lost its journal and has not made it again.
    pub(super) lost: bool,
    /// Whether the other hosts were asked since the daemon was started.
    pub(super) cleared: bool,
    /// Whether the whole host is down, so that nothing of it answers.
    pub(super) gone: bool,
    /// Whether an operator keeps it down.
    pub(super) off: bool,
    /// The hosts that are called fenced by the deployment that it follows, as bits.
    pub(super) fenced: u8,
}

/// An application on a host.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent facts of a host"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Side {
    /// The migration that the daemon drives, with what it knows beyond the journal.
    pub(super) live: u16,
    pub(super) instance: bool,
    /// Whether the host's proxy leads to the instance.
    pub(super) gate: bool,
    /// The newest write in the volume.
    pub(super) data: u8,
    /// Whether that one is only in the page cache yet.
    pub(super) unflushed: bool,
    pub(super) route: Route,
    /// What stands on the volume.
    pub(super) stamp: Stamped,
    /// Whether the live tree was dropped while its stamp says that it is there.
    pub(super) retired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct App {
    pub(super) sides: [Side; 2],
    /// Where each migration comes from, and at which epoch.
    pub(super) begun: [Option<(u8, u8)>; 2],
    /// The newest write in the final snapshot of each migration.
    pub(super) finals: [Option<u8>; 2],
    pub(super) acknowledged: u8,
    /// An advert that wanders about and may arrive at any time.
    pub(super) lingering: Option<Advert>,
    /// Which returns were said, where that waits for a stamp.
    pub(super) said_returned: [bool; 2],
    /// Whether a proxy ever went back.
    pub(super) went_back: bool,
    /// With [`Mutation::GrantBeforeRecord`]: the migration that was granted without a record.
    pub(super) granted_early: Option<u8>,
    /// With [`Mutation::ReturnAfterServing`]: the migration that was returned without a right.
    pub(super) returned_late: Option<u8>,
}

/// A state of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    pub(super) hosts: [HostState; 2],
    pub(super) apps: [App; APPLICATIONS],
    pub(super) crashes: u8,
    pub(super) losses: u8,
    pub(super) failovers: u8,
}

/// An application on a host: where something happens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) app: usize,
    pub(super) at: usize,
}

impl Place {
    pub(super) fn there(self) -> Self {
        Self {
            app: self.app,
            at: 1 - self.at,
        }
    }
}

impl State {
    pub(super) fn side(&self, place: Place) -> &Side {
        &self.apps[place.app].sides[place.at]
    }

    pub(super) fn side_mut(&mut self, place: Place) -> &mut Side {
        &mut self.apps[place.app].sides[place.at]
    }

    pub(super) fn journal(&self, place: Place) -> u16 {
        self.hosts[place.at].journal
    }

    /// The newest write in the final snapshot of a migration.
    pub(super) fn last(&self, migration: u8) -> u8 {
        self.apps[values::app_of(migration)].finals[values::slot_of(migration)].unwrap()
    }
}
