//! Diverged copies: listed with everything else, and removed only for an application that somebody
//! names.

use std::sync::Arc;

use rehome_runtime::report::Report;
use rehome_shared::api::gc::{HostGarbage, Item, Kind};
use rehome_shared::ids::{AppName, DatasetId};

use super::{GarbageError, Verb, note, unseen};
use crate::host::Host;
use crate::storage::VolumeInfo;

/// The copies of one application, which are removed by [`Verb::Remove`].
pub(super) async fn of(host: &Arc<Host>, verb: Verb, application: &AppName) -> HostGarbage {
    // What is being set aside just now is not half a copy.
    let _held = host.hold(application).await;
    let volumes = match host.storage.list().await {
        Ok(volumes) => volumes,
        Err(error) => return unseen(host.address.clone(), &Report(&error).to_string()),
    };
    let mut copies = copies(host, &volumes).await;
    copies.retain(|copy| copy.application.as_ref() == Some(application));
    if verb == Verb::Remove {
        for copy in &mut copies {
            match remove(host, copy).await {
                Ok(()) => copy.removed = true,
                Err(error) => copy.error = Some(Report(&error).to_string()),
            }
            note(copy);
        }
    }
    HostGarbage {
        host: host.address.clone(),
        problem: None,
        garbage: Vec::new(),
        doubts: Vec::new(),
        diverged: copies,
    }
}

async fn remove(host: &Host, copy: &Item) -> Result<(), GarbageError> {
    let dataset = copy.dataset.as_ref().ok_or(GarbageError::NeededNow)?;
    Ok(host.storage.discard_diverged(dataset, &copy.name).await?)
}

/// All copies that this host keeps.
pub(super) async fn copies(host: &Host, volumes: &[VolumeInfo]) -> Vec<Item> {
    let mut copies = Vec::new();
    for info in volumes.iter().filter(|info| !info.diverged.is_empty()) {
        let application = application(host, info);
        let measured = host.storage.exclusive(&info.dataset).await;
        // It is for people to see: what cannot be measured is nothing.
        let sizes = measured.unwrap_or_default();
        for name in &info.diverged {
            copies.push(Item {
                kind: Kind::Diverged,
                application: application.clone(),
                dataset: Some(info.dataset.clone()),
                name: name.clone(),
                bytes: sizes.get(name).copied().unwrap_or_default(),
                why: what(host, &info.dataset, name),
                removed: false,
                error: None,
            });
        }
    }
    copies
}

fn application(host: &Host, info: &VolumeInfo) -> Option<AppName> {
    let stamped = info.stamp.as_ref().map(|stamp| stamp.application.clone());
    stamped.or_else(|| {
        host.ledger.read(|registry| {
            let mut all = registry.applications().iter();
            let of = all.find(|(_, known)| known.volumes.iter().any(|v| v.dataset == info.dataset));
            of.map(|(name, _)| name.clone())
        })
    })
}

fn what(host: &Host, dataset: &DatasetId, name: &str) -> String {
    let place = host.storage.diverged_path(dataset, name);
    let place = place.display();
    match dated(name) {
        Some((epoch, time)) => format!(
            "written here as the owner of epoch {epoch}, and set aside at {time} because another host owned it: {place}"
        ),
        None => format!("set aside because another host owned it: {place}"),
    }
}

/// The epoch and the time that the name of a copy tells: see [`crate::fence::copy_name`].
fn dated(name: &str) -> Option<(u64, String)> {
    let (epoch, time) = name.strip_prefix('e')?.split_once('-')?;
    let part = |from: usize, to: usize| time.get(from..to);
    let date = [part(0, 4)?, part(4, 6)?, part(6, 8)?].join("-");
    let clock = [part(9, 11)?, part(11, 13)?, part(13, 15)?].join(":");
    Some((epoch.parse().ok()?, format!("{date} {clock} UTC")))
}

#[cfg(test)]
mod tests {
    use migrated_core::UnixMillis;
    use rehome_shared::ids::Epoch;

    use super::*;
    use crate::fence::copy_name;

    #[test]
    fn the_name_of_a_copy_tells_its_epoch_and_its_time() {
        let name = copy_name(Epoch(3), UnixMillis(1_795_404_600_123));
        let told = dated(&name).map(|(epoch, time)| format!("{epoch} {time}"));
        assert_eq!(told.as_deref(), Some("3 2026-11-23 03:30:00 UTC"));
        for other in ["mine", "e3-", "ex-20261123T033000123Z"] {
            assert_eq!(dated(other), None, "{other}");
        }
    }
}
