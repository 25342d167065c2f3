//! What stands on a volume: whose it is, and where a handoff of it is, so that a pool explains
//! itself to a person and a lost journal can be made again.
//!
//! A stamp follows the record that it tells of, so a stamp that says more than the journal tells
//! of a journal that is not the newest. Between the stop of an application and the grant nothing
//! is stamped: it would cost the window. It never travels with a stream.

use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::ids::{AppName, Epoch, HostAddr, MigrationId, VolumeName};
use serde::{Deserialize, Serialize};

use crate::destination::DestinationHandoff;
use crate::source::SourceMigration;

/// What stands on a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The application.
    pub application: AppName,
    /// The volume's name in it.
    pub volume: VolumeName,
    /// The owner as this host last knew it.
    pub owner: HostAddr,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The migration under way, if any.
    pub migration: Option<MigrationId>,
    /// Where it stands; earlier versions did not say so.
    #[serde(default)]
    pub state: Option<StampState>,
    /// All volumes of the application, so that one stamp knows whether another one is missing;
    /// earlier versions did not say so.
    #[serde(default)]
    pub volumes: Vec<VolumeIdentity>,
}

/// Where a volume stands on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StampState {
    /// The owner may run its application.
    Held,
    /// A cut-over may have released it.
    Moving {
        /// To this host.
        to: HostAddr,
    },
    /// It comes here; nothing of it has run here since.
    Incoming {
        /// From this host.
        from: HostAddr,
    },
    /// It was given away.
    Gone {
        /// To this host.
        to: HostAddr,
    },
}

/// The application that a stamp is about, and all its volumes.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// Which.
    pub application: &'a AppName,
    /// All its volumes.
    pub volumes: &'a [VolumeIdentity],
}

impl Stamp {
    fn new(of: Of<'_>, volume: &VolumeIdentity, owner: &HostAddr, epoch: Epoch) -> Self {
        Self {
            application: of.application.clone(),
            volume: volume.name.clone(),
            owner: owner.clone(),
            epoch,
            migration: None,
            state: Some(StampState::Held),
            volumes: of.volumes.to_vec(),
        }
    }

    /// Of a volume that this host owns: before the application starts on it.
    #[must_use]
    pub fn held(of: Of<'_>, volume: &VolumeIdentity, here: &HostAddr, epoch: Epoch) -> Self {
        Self::new(of, volume, here, epoch)
    }

    /// Of a volume that was given away.
    #[must_use]
    pub fn gone(of: Of<'_>, volume: &VolumeIdentity, to: &HostAddr, epoch: Epoch) -> Self {
        Self {
            state: Some(StampState::Gone { to: to.clone() }),
            ..Self::new(of, volume, to, epoch)
        }
    }

    /// Of a volume that is being cut over: before anything is stopped.
    #[must_use]
    pub fn moving(here: &HostAddr, migration: &SourceMigration, volume: &VolumeIdentity) -> Self {
        let plan = &migration.plan;
        let of = Of {
            application: &plan.application,
            volumes: &plan.volumes,
        };
        Self {
            migration: Some(migration.id.clone()),
            state: Some(StampState::Moving {
                to: plan.to.clone(),
            }),
            ..Self::new(of, volume, here, plan.epoch)
        }
    }

    /// Of a volume that a round has come of.
    #[must_use]
    pub fn incoming(handoff: &DestinationHandoff, volume: &VolumeIdentity) -> Self {
        let reservation = &handoff.reservation;
        let volumes = handoff.volumes();
        let of = Of {
            application: &reservation.application,
            volumes: &volumes,
        };
        Self {
            migration: Some(handoff.id.clone()),
            state: Some(StampState::Incoming {
                from: reservation.from.clone(),
            }),
            ..Self::new(of, volume, &reservation.from, reservation.epoch)
        }
    }

    /// Where the volume stands on this host.
    #[must_use]
    pub fn state_on(&self, here: &HostAddr) -> StampState {
        let elsewhere = || StampState::Gone {
            to: self.owner.clone(),
        };
        match &self.state {
            Some(StampState::Held) if self.owner != *here => elsewhere(),
            Some(state) => state.clone(),
            None if self.owner == *here => StampState::Held,
            None if self.migration.is_some() => StampState::Incoming {
                from: self.owner.clone(),
            },
            None => elsewhere(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{application, host, id, plan, reservation, volume};

    #[test]
    fn a_stamp_reads_as_it_was_written() {
        let data = volume("data");
        let volumes = [data.clone()];
        let of = Of {
            application: &application(),
            volumes: &volumes,
        };
        let migration = SourceMigration::begin(id(1), plan());
        let handoff = DestinationHandoff::begin(id(1), reservation());
        let all = [
            Stamp::held(of, &data, &host("h1"), Epoch(1)),
            Stamp::moving(&host("h1"), &migration, &data),
            Stamp::incoming(&handoff, &data),
            Stamp::gone(of, &data, &host("h2"), Epoch(2)),
        ];
        for stamp in all {
            let json = serde_json::to_string(&stamp).unwrap();
            assert_eq!(serde_json::from_str::<Stamp>(&json).unwrap(), stamp);
            assert_eq!(stamp.volumes, volumes);
        }
    }

    #[test]
    fn a_stamp_of_an_earlier_version_says_what_it_can() {
        let old = |owner: &str, migration: &str| {
            let json = format!(
                r#"{{"application":"db","volume":"data","owner":"{owner}","epoch":3,"migration":{migration}}}"#
            );
            serde_json::from_str::<Stamp>(&json)
                .unwrap()
                .state_on(&host("h1"))
        };
        let moving = "\"01hf0000000000000000000001\"";
        let (from, to) = (host("h2"), host("h2"));
        assert_eq!(old("h1", "null"), StampState::Held);
        assert_eq!(old("h2", moving), StampState::Incoming { from });
        assert_eq!(old("h2", "null"), StampState::Gone { to });
    }

    #[test]
    fn a_pool_that_came_from_another_host_is_not_held_here() {
        let data = volume("data");
        let of = Of {
            application: &application(),
            volumes: &[],
        };
        let stamp = Stamp::held(of, &data, &host("h1"), Epoch(4));
        assert_eq!(stamp.state_on(&host("h1")), StampState::Held);
        let to = host("h1");
        assert_eq!(stamp.state_on(&host("h2")), StampState::Gone { to });
    }
}
