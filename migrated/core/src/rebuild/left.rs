//! What a journal says of an application that is undecided and that an operator left behind.

use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::ids::{AppName, Epoch, HostAddr};

use super::stamped::decisive;
use super::{Evidence, Undecided, Verdict, Volume};
use crate::record::Record;
use crate::registry::Role;
use crate::stamp::StampState;

impl Evidence<'_> {
    /// The newest that is said of it is written down, and that it is not certain: neither the
    /// stamps nor the other hosts know of anything newer than the new journal then.
    pub(super) fn left(&self, name: &AppName, volumes: &[&Volume], why: &Undecided) -> Verdict {
        let (epoch, owner) = self.newest(name, volumes);
        let text = why.to_string();
        let why = text.strip_prefix(&format!("{name}: ")).unwrap_or(&text);
        let record = Record::Held {
            application: name.clone(),
            epoch,
            role: Role::Left {
                owner: owner.clone(),
                why: why.to_owned(),
            },
            volumes: self.identities(volumes),
            unmade: Vec::new(),
        };
        Verdict {
            application: name.clone(),
            records: vec![record],
            why: format!(
                "left undecided, with {owner} as its last owner, at epoch {epoch}: {why}. It is not started here, and its volumes stay as they are"
            ),
            left: true,
        }
    }

    /// The last owner by the stamps and by what others say; of two at one epoch the one that is
    /// not this host, as nothing may run here that may run there.
    fn newest(&self, name: &AppName, volumes: &[&Volume]) -> (Epoch, HostAddr) {
        let told = self.words.iter().flat_map(|word| &word.owners);
        let told = told
            .filter(|(application, ..)| application == name)
            .map(|(_, epoch, owner)| (*epoch, owner.clone()))
            .max_by_key(|(epoch, owner)| (*epoch, owner != self.here));
        let stamped = decisive(self.here, volumes).map(|top| {
            let owner = match top.state_on(self.here) {
                StampState::Incoming { from } => from,
                StampState::Gone { to } => to,
                StampState::Held | StampState::Moving { .. } => self.here.clone(),
            };
            (top.epoch, owner)
        });
        match (told, stamped) {
            (Some(told), Some(stamped)) if stamped.0 > told.0 => stamped,
            (Some(told), _) => told,
            (None, Some(stamped)) => stamped,
            (None, None) => (Epoch::default(), self.here.clone()),
        }
    }

    /// Its volumes; two of one name, where nobody knows which is the one.
    fn identities(&self, volumes: &[&Volume]) -> Vec<VolumeIdentity> {
        let Some(top) = decisive(self.here, volumes) else {
            return Vec::new();
        };
        let mut all = top.volumes.clone();
        for volume in volumes {
            let Some(stamp) = &volume.stamp else { continue };
            let own = VolumeIdentity {
                name: stamp.volume.clone(),
                dataset: volume.dataset.clone(),
            };
            // Of an earlier application of that name, perhaps.
            let older = stamp.epoch < top.epoch && all.iter().any(|v| v.name == own.name);
            if !older && !all.contains(&own) {
                all.push(own);
            }
        }
        all
    }
}
