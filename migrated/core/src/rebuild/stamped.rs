//! The stamps of one application, judged together: a crash may have come between two of them.

use std::collections::BTreeMap;

use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::ids::{AppName, DatasetId, HostAddr};

use super::{Evidence, Undecided, Volume};
use crate::stamp::{Stamp, StampState};

/// How the stamps of an application stand together.
pub(super) struct Stamped<'a> {
    /// The one that decides.
    pub(super) top: &'a Stamp,
    pub(super) state: StampState,
    /// All volumes of the application, in the deployment's order.
    pub(super) volumes: Vec<VolumeIdentity>,
    /// Whether each has a live tree here.
    pub(super) live: bool,
}

pub(super) fn by_application(volumes: &[Volume]) -> BTreeMap<&AppName, Vec<&Volume>> {
    let mut all: BTreeMap<&AppName, Vec<&Volume>> = BTreeMap::new();
    for volume in volumes {
        if let Some(stamp) = &volume.stamp {
            all.entry(&stamp.application).or_default().push(volume);
        }
    }
    all
}

/// Of the stamps of an application the one that decides: a crash may have come between two. The
/// larger epoch is the newer. Of one epoch: what was given away was given away whole, a cut-over
/// is stamped before anything is stopped, and what is held was complete before.
pub(super) fn decisive<'a>(here: &HostAddr, volumes: &[&'a Volume]) -> Option<&'a Stamp> {
    let rank = |stamp: &Stamp| match stamp.state_on(here) {
        StampState::Incoming { .. } => 0,
        StampState::Held => 1,
        StampState::Moving { .. } => 2,
        StampState::Gone { .. } => 3,
    };
    volumes
        .iter()
        .filter_map(|volume| volume.stamp.as_ref())
        .max_by_key(|stamp| (stamp.epoch, rank(stamp)))
}

impl Evidence<'_> {
    /// How the stamps of an application stand together.
    pub(super) fn stamped<'a>(
        &self,
        name: &AppName,
        volumes: &[&'a Volume],
        fresh: &mut dyn FnMut() -> DatasetId,
    ) -> Result<Option<Stamped<'a>>, Undecided> {
        let Some(top) = decisive(self.here, volumes) else {
            return Ok(None);
        };
        let mut all: Vec<VolumeIdentity> = top.volumes.clone();
        for volume in volumes {
            let Some(stamp) = &volume.stamp else { continue };
            match all.iter().find(|known| known.name == stamp.volume) {
                Some(known) if known.dataset == volume.dataset => {}
                // Of an earlier application of that name, perhaps; its data stays where it is.
                Some(_) if stamp.epoch < top.epoch => {}
                Some(known) => {
                    return Err(Undecided::Twice {
                        application: name.clone(),
                        name: stamp.volume.to_string(),
                        one: known.dataset.clone(),
                        other: volume.dataset.clone(),
                    });
                }
                None => all.push(VolumeIdentity {
                    name: stamp.volume.clone(),
                    dataset: volume.dataset.clone(),
                }),
            }
        }
        if top.volumes.is_empty() {
            // An earlier version stamped it: what the deployment has and no stamp knows is taken
            // for missing, so that it is not made anew, empty.
            all.extend(self.missing(name, &all, fresh));
        }
        self.order(name, &mut all);
        let is_live = |identity: &VolumeIdentity| {
            self.volumes
                .iter()
                .any(|volume| volume.dataset == identity.dataset && volume.live)
        };
        Ok(Some(Stamped {
            top,
            state: top.state_on(self.here),
            live: all.iter().all(is_live),
            volumes: all,
        }))
    }

    /// Volumes that the deployment has, and that are not among these.
    pub(super) fn missing(
        &self,
        name: &AppName,
        known: &[VolumeIdentity],
        fresh: &mut dyn FnMut() -> DatasetId,
    ) -> Vec<VolumeIdentity> {
        let spec = self.desired.applications.get(name);
        let wanted = spec.map(|spec| spec.volumes.as_slice()).unwrap_or_default();
        wanted
            .iter()
            .filter(|volume| !known.iter().any(|known| known.name == volume.name))
            .map(|volume| VolumeIdentity {
                name: volume.name.clone(),
                dataset: volume.dataset_id.clone().unwrap_or_else(&mut *fresh),
            })
            .collect()
    }

    fn order(&self, name: &AppName, volumes: &mut [VolumeIdentity]) {
        let spec = self.desired.applications.get(name);
        let place = |volume: &VolumeIdentity| {
            let wanted = spec.map(|spec| spec.volumes.as_slice()).unwrap_or_default();
            let place = wanted.iter().position(|known| known.name == volume.name);
            place.unwrap_or(usize::MAX)
        };
        volumes.sort_by_key(place);
    }
}
