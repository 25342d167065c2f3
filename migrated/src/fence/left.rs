//! What a former ownership leaves here: a live tree of an application that is another host's. It
//! is dropped when the owner has all of it, and kept as a *diverged copy* otherwise.
//!
//! Nothing is dropped here on anybody's word but the owner's own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use migrated_core::registry::{Registry, Role};
use migrated_core::source::{AfterRelease, BeforeRelease, Phase};
use migrated_core::stamp::{Of, Stamp};
use migrated_core::{UnixMillis, destination};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::DivergedCopy;
use rehome_shared::api::peer::{KeptVolume, VolumeIdentity};
use rehome_shared::ids::{AppName, Epoch, HostAddr};

use crate::destination::TakeError;
use crate::host::Host;
use crate::storage::{StorageError, VolumeInfo};
use crate::{applications, clock};

/// An owner that does not answer is asked so often for what it has, with this pause, before a
/// tree is kept rather than dropped.
const TRIES: u32 = 3;
const TRY_PAUSE: Duration = Duration::from_secs(2);

/// An instance of an earlier ownership is asked to stop for so long before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// The name of a tree that is set aside: the epoch that it was written at, and when it was.
#[must_use]
pub(crate) fn copy_name(epoch: Epoch, now: UnixMillis) -> String {
    let date = clock::rfc3339(now);
    // 2026-11-23T03:30:00.123Z → 20261123T033000123Z
    let compact: String = date.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("e{epoch}-{compact}")
}

/// Something live here of an application that is another host's.
struct Left {
    application: AppName,
    /// Who is asked what it has of it.
    owner: HostAddr,
    /// The epoch that it was written at, as far as its stamp does not say.
    epoch: Epoch,
    volume: VolumeIdentity,
    /// What the volume is stamped with in the end. Never more than the journal knows: a stamp that
    /// is newer would make it an old one at the next start.
    gone: Option<Gone>,
}

/// Whose an application is that is another host's for certain, by the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gone {
    to: HostAddr,
    epoch: Epoch,
}

fn gone(registry: &Registry, application: &AppName) -> Option<Gone> {
    let known = registry.applications().get(application)?;
    match &known.role {
        Role::Owner | Role::Left { .. } => None,
        Role::Gone { to } => Some(Gone {
            to: to.clone(),
            epoch: known.epoch,
        }),
    }
}

/// What stands for an application here that is another host's, and that no handoff needs.
fn left(registry: &Registry, volumes: &[VolumeInfo]) -> Vec<Left> {
    let mut all = Vec::new();
    for (name, known) in registry.applications() {
        let Some(gone) = gone(registry, name).filter(|_| !is_in_hand(registry, name)) else {
            continue;
        };
        for volume in &known.volumes {
            if volumes
                .iter()
                .any(|info| info.live && info.dataset == volume.dataset)
            {
                all.push(Left {
                    application: name.clone(),
                    owner: gone.to.clone(),
                    epoch: gone.epoch,
                    volume: volume.clone(),
                    gone: Some(gone.clone()),
                });
            }
        }
    }
    all
}

/// Whether a handoff still needs what is here of an application.
fn is_in_hand(registry: &Registry, application: &AppName) -> bool {
    let giving = registry
        .source_of(application)
        .is_some_and(|migration| match &migration.phase {
            Phase::Before(
                BeforeRelease::Preparing
                | BeforeRelease::PreCopy { .. }
                | BeforeRelease::StartingThere
                | BeforeRelease::CutOver { .. }
                | BeforeRelease::Aborting { .. },
            )
            | Phase::After(
                AfterRelease::Granting { .. }
                | AfterRelease::Handed { .. }
                | AfterRelease::Finishing { .. }
                | AfterRelease::Reclaiming { .. },
            ) => true,
            Phase::Ended(_) => false,
        });
    // What was given back is stamped and dropped by the task that gives it back.
    let returning = registry.destinations_of(application).any(|handoff| {
        let known = registry.applications().get(application);
        matches!(handoff.phase, destination::Phase::Returned { .. })
            && known.is_some_and(|known| known.epoch == handoff.epoch_here().next())
    });
    giving || returning || registry.incoming(application).is_some()
}

/// Sets aside or drops live trees that are not this host's any more. Called at every look of the
/// reconcile loop; the work is a task of its own.
pub(crate) fn tidy(host: &Arc<Host>, volumes: &[VolumeInfo]) {
    note_diverged(host, volumes);
    for left in host.ledger.read(|registry| left(registry, volumes)) {
        // The loop evicts an instance first.
        if host.instance(&left.application).is_some() || !host.occupy(&left.application) {
            continue;
        }
        let owner = Arc::clone(host);
        host.spawn("set aside", async move {
            if let Err(error) = tidy_one(&owner, &left).await {
                let error = Report(&error).to_string();
                tracing::warn!(application = %left.application, error, "a tree that is another host's cannot be set aside");
            }
            owner.vacate(&left.application);
        });
    }
}

/// Before anything is received here: a live tree that stands for an earlier ownership is kept or
/// dropped now, and not when another one takes its place.
///
/// # Errors
/// [`StorageError`]; the tree is where it was.
///
/// # Cancel safety
/// May have taken effect; call it again.
pub(crate) async fn make_room(
    host: &Host,
    application: &AppName,
    (owner, epoch): (&HostAddr, Epoch),
    volumes: impl Iterator<Item = VolumeIdentity>,
) -> Result<(), TakeError> {
    let _held = host.hold(application).await;
    let (foreign, gone) = host.ledger.read(|registry| {
        let mine = registry.owned(application).is_some();
        let foreign = !mine && !is_in_hand(registry, application);
        (foreign, gone(registry, application))
    });
    if foreign {
        stop_former(host, application)
            .await
            .map_err(TakeError::Refused)?;
    }
    for volume in volumes {
        let left = Left {
            application: application.clone(),
            owner: owner.clone(),
            epoch,
            volume,
            gone: gone.clone(),
        };
        tidy_one(host, &left).await?;
    }
    Ok(())
}

/// Stops what still runs here of an earlier ownership, where the reconcile loop had no time for it
/// yet. Whoever calls it holds the application, which is not this host's.
///
/// # Errors
/// Why it still runs, for people.
///
/// # Cancel safety
/// May have taken effect; call it again.
pub(crate) async fn stop_former(host: &Host, application: &AppName) -> Result<(), String> {
    // Before the first look nothing is known of what runs.
    if host.instances.borrow().is_none() {
        let looked = host.observe().await;
        looked.map_err(|error| format!("what runs here is not known: {}", Report(&error)))?;
    }
    if host.instance(application).is_none() {
        return Ok(());
    }
    let removed = applications::remove(host, application, GRACE).await;
    removed.map_err(|error| {
        let error = Report(&error);
        format!("what still runs of it cannot be stopped: {error}")
    })
}

async fn tidy_one(host: &Host, left: &Left) -> Result<(), StorageError> {
    let dataset = &left.volume.dataset;
    let Some(info) = host.storage.inspect(dataset).await? else {
        return Ok(());
    };
    let still = host.ledger.read(|registry| {
        let mine = registry.owned(&left.application).is_some();
        !mine && !is_in_hand(registry, &left.application)
    });
    // Between the look and the occupation it may have been granted to this host.
    if !still || !info.live || host.instance(&left.application).is_some() {
        return Ok(());
    }
    if owner_has_all(host, left, &info).await? {
        host.storage.retire(dataset).await?;
        tracing::info!(application = %left.application, volume = %left.volume.name, "the live tree of a former ownership is dropped: the owner has all of it");
    } else {
        let wrote_at = info.stamp.as_ref().map(|stamp| stamp.epoch);
        keep_copy(
            host,
            &left.application,
            &left.volume,
            wrote_at.unwrap_or(left.epoch),
        )
        .await?;
    }
    let Some(gone) = &left.gone else {
        return Ok(());
    };
    let known = info.stamp.map(|stamp| stamp.volumes).unwrap_or_default();
    let only = std::slice::from_ref(&left.volume);
    let of = Of {
        application: &left.application,
        volumes: if known.is_empty() { only } else { &known },
    };
    let stamp = Stamp::gone(of, &left.volume, &gone.to, gone.epoch);
    host.storage.stamp(dataset, &stamp).await
}

/// Keeps a live tree that holds what the owner does not have.
///
/// # Errors
/// [`StorageError`]; the tree is where it was, or kept.
///
/// # Cancel safety
/// May have taken effect; what is not live any more is not kept twice.
pub(crate) async fn keep_copy(
    host: &Host,
    application: &AppName,
    volume: &VolumeIdentity,
    epoch: Epoch,
) -> Result<(), StorageError> {
    let name = copy_name(epoch, clock::now());
    let place = host.storage.set_aside(&volume.dataset, &name).await?;
    tracing::warn!(
        %application,
        volume = %volume.name,
        path = %place.display(),
        "what was written here after another host took over is kept as a diverged copy"
    );
    Ok(())
}

/// Whether the live tree equals a snapshot that the owner has too. An owner that does not answer
/// is taken to have nothing.
async fn owner_has_all(host: &Host, left: &Left, info: &VolumeInfo) -> Result<bool, StorageError> {
    let dataset = &left.volume.dataset;
    let mut equal = Vec::new();
    for snapshot in info.snapshots.iter().rev() {
        if host.storage.is_unchanged(dataset, &snapshot.name).await? {
            equal.push(&snapshot.guid);
        }
    }
    if equal.is_empty() {
        return Ok(false);
    }
    let path = format!("/peer/v1/volumes/{dataset}");
    for attempt in 1..=TRIES {
        let answer: Result<KeptVolume, _> = host
            .peers
            .request(&left.owner, Method::GET, &path, None::<&()>)
            .await;
        match answer {
            Ok(kept) => return Ok(equal.iter().any(|guid| kept.snapshots.contains(guid))),
            Err(error) if error.status().is_some() => return Ok(false),
            Err(_) if attempt < TRIES => tokio::time::sleep(TRY_PAUSE).await,
            Err(_) => {}
        }
    }
    Ok(false)
}

/// Remembers what is set aside, for people.
fn note_diverged(host: &Host, volumes: &[VolumeInfo]) {
    let names: BTreeMap<_, _> = host.ledger.read(|registry| {
        registry
            .applications()
            .iter()
            .flat_map(|(name, known)| known.volumes.iter().map(move |volume| (name, volume)))
            .map(|(name, volume)| {
                (
                    volume.dataset.clone(),
                    (name.clone(), volume.name.to_string()),
                )
            })
            .collect()
    });
    let copies = volumes.iter().flat_map(|info| {
        let stamped = info
            .stamp
            .as_ref()
            .map(|stamp| (stamp.application.clone(), stamp.volume.to_string()));
        let of = stamped.or_else(|| names.get(&info.dataset).cloned());
        info.diverged.iter().filter_map(move |name| {
            let (application, volume) = of.clone()?;
            let path = host.storage.diverged_path(&info.dataset, name);
            Some(DivergedCopy {
                application,
                host: host.address.clone(),
                volume,
                name: name.clone(),
                path: path.display().to_string(),
            })
        })
    });
    let copies = copies.collect();
    host.memory().diverged = copies;
}

#[cfg(test)]
mod tests {
    use migrated_core::record::Record;

    use super::*;
    use crate::fixtures::{app, host};

    #[test]
    fn the_name_of_a_copy_says_when_and_at_which_epoch_and_is_a_plain_name() {
        assert_eq!(
            copy_name(Epoch(3), UnixMillis(1_795_404_600_123)),
            "e3-20261123T033000123Z"
        );
    }

    #[test]
    fn a_former_owners_volume_is_stamped_with_what_the_journal_knows_and_no_more() {
        assert_eq!(gone(&Registry::default(), &app("db")), None, "never had it");
        let born = Record::Born {
            application: app("db"),
            volumes: Vec::new(),
        };
        let mut journal = vec![born];
        assert_eq!(
            gone(&Registry::replay(&journal), &app("db")),
            None,
            "has it"
        );
        journal.push(Record::Fenced {
            application: app("db"),
            epoch: Epoch(2),
            owner: host("h2"),
            report: None,
        });
        let heard = Record::Heard {
            application: app("db"),
            epoch: Epoch(7),
            owner: host("h3"),
        };
        journal.push(heard);
        let known = Gone {
            to: host("h2"),
            epoch: Epoch(2),
        };
        assert_eq!(gone(&Registry::replay(&journal), &app("db")), Some(known));
    }
}
