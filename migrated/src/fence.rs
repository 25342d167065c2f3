//! A host fences itself: who learns that another host owns what its own journal calls its own
//! gives way, and keeps what it alone holds for people.
//!
//! It learns of it by asking when it starts ([`crate::clearance`]) and by gossip. First it is
//! written down; then the reconcile loop stops the instance, the route leads to the owner, and
//! the live tree is dropped if the owner has all of it, or set aside as a *diverged copy*.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use migrated_core::fencing::{self, Standing, Word};
use migrated_core::record::Record;
use migrated_core::registry::{Registry, Role};
use migrated_core::source::{AfterRelease, BeforeRelease, Phase};
use migrated_core::stamp::{Of, Stamp};
use migrated_core::{UnixMillis, destination};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{DivergedCopy, Migration, MigrationState};
use rehome_shared::api::peer::{Advert, KeptVolume, KnownOwner, VolumeIdentity};
use rehome_shared::api::proxy::Target;
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, RouteVersion};

use crate::clearance::{self, Patience};
use crate::destination::TakeError;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::storage::{StorageError, VolumeInfo};
use crate::{applications, clock, migrations, routes};

/// The pause between rounds of questions about what gossip says.
const PAUSE: Duration = Duration::from_secs(3);

/// An owner that does not answer is asked so often for what it has, with this pause, before a
/// tree is kept rather than dropped.
const TRIES: u32 = 3;
const TRY_PAUSE: Duration = Duration::from_secs(2);

/// An instance of an earlier ownership is asked to stop for so long before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// What this host's journal says about who owns what, or promises.
pub(crate) fn concerned(registry: &Registry) -> Vec<AppName> {
    let mut names: BTreeSet<AppName> = registry.applications().keys().cloned().collect();
    let coming = registry.destinations().values();
    names.extend(coming.map(|handoff| handoff.reservation.application.clone()));
    names.into_iter().collect()
}

/// Takes in what others say of an application: calls off promises that can never be kept, and
/// gives way to a newer owner, durably.
///
/// # Errors
/// [`LedgerError`]; nothing was taken in.
///
/// # Cancel safety
/// May have taken effect; the same words do no harm again.
pub(crate) async fn consider(
    host: &Arc<Host>,
    application: &AppName,
    words: Vec<Word>,
) -> Result<Standing, LedgerError> {
    // Before a promise is dropped: an older offer, its final snapshots and its grant may still be
    // on their way, and would make it anew.
    let told = words.iter().map(|word| KnownOwner {
        application: application.clone(),
        epoch: word.epoch,
        owner: word.owner.clone(),
    });
    write_heard(host, told.collect()).await?;
    let void = host
        .ledger
        .read(|registry| fencing::void_promises(registry, &host.address, application, &words));
    for id in void {
        tracing::warn!(%application, migration.id = %id, "a handoff to this host is over: its epoch is another host's");
        crate::destination::call_off(host, &id).await;
    }
    let fenced = host.desired.get().fenced.clone();
    let decided = {
        let (owner, name) = (Arc::clone(host), application.clone());
        host.ledger.transact(move |registry| {
            let standing = fencing::stand(registry, &owner.address, &name, &words, &fenced);
            let Standing::Fenced { epoch, owner: to } = &standing else {
                return (Vec::new(), (standing, None));
            };
            let ended = registry
                .source_of(&name)
                .map(|migration| ended(&owner, migration, *epoch, to));
            let record = Record::Fenced {
                application: name,
                epoch: *epoch,
                owner: to.clone(),
                report: ended.clone().map(Box::new),
            };
            (vec![record], (standing, ended))
        })
    };
    let (standing, ended) = decided.await?;
    if let Standing::Fenced { epoch, owner } = &standing {
        tracing::warn!(%application, %epoch, %owner, "another host owns it: this host gives way");
        give_way(host, application, *epoch, owner, ended).await;
    }
    Ok(standing)
}

/// The report of a migration from here that ends because its application was given away without
/// this host.
fn ended(
    host: &Host,
    migration: &migrated_core::source::SourceMigration,
    epoch: Epoch,
    owner: &HostAddr,
) -> Migration {
    let known = host.live.get(&migration.id).map(|run| run.view());
    let mut report = known.unwrap_or_else(|| migrations::report(host, migration));
    // What was released had ended here but for the word of who took it.
    report.state = match migration.phase {
        Phase::After(_) => MigrationState::Done,
        Phase::Before(_) | Phase::Ended(_) => MigrationState::Aborted,
    };
    report.error = Some(format!("fenced: {owner} owns it at epoch {epoch}"));
    report.now = None;
    report
}

/// What follows at once; the reconcile loop does the rest.
async fn give_way(
    host: &Arc<Host>,
    application: &AppName,
    epoch: Epoch,
    owner: &HostAddr,
    ended: Option<Migration>,
) {
    if let Some(report) = ended {
        if let Some(run) = host.live.get(&report.id) {
            run.fenced.cancel();
        }
        host.metrics.migration_ended(&report);
    }
    let version = RouteVersion {
        epoch,
        generation: Generation::default(),
    };
    host.routes.hear(&[Advert {
        application: application.clone(),
        version,
        host: owner.clone(),
    }]);
    host.routes.forget(application);
    host.kick();
    if let Err(error) = routes::push(host).await {
        let error = Report(&error).to_string();
        tracing::warn!(
            error,
            "proxyd cannot be told that the application is elsewhere; the loop repeats it"
        );
    }
}

/// Asks whenever gossip says that something of this host's is another host's. Runs until the stop.
///
/// # Cancel safety
/// Cancel safe.
pub async fn follow(host: Arc<Host>) {
    let stop = host.supervisor.token().clone();
    let mut desired = host.desired.watch();
    let mut routes = host.routes.changes();
    let watching = async {
        host.clearance.asked().await;
        loop {
            desired.borrow_and_update();
            routes.borrow_and_update();
            learn(&host, told(&host)).await;
            let suspects = suspects(&host);
            if !suspects.is_empty() {
                confirm(&host, suspects).await;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // Both arms wait on a level.
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                changed = routes.changed() => if changed.is_err() { return },
            }
        }
    };
    let _stopped = stop.run_until_cancelled(watching).await;
}

/// The applications that adverts contradict this host's journal about.
fn suspects(host: &Host) -> Vec<AppName> {
    let fenced = host.desired.get().fenced.clone();
    let adverts = host.routes.tell(&host.address);
    host.ledger.read(|registry| {
        concerned(registry)
            .into_iter()
            .filter(|name| {
                let words: Vec<Word> = adverts
                    .iter()
                    .filter(|advert| advert.application == *name && advert.host != host.address)
                    .map(|advert| Word {
                        speaker: advert.host.clone(),
                        epoch: advert.version.epoch,
                        owner: advert.host.clone(),
                    })
                    .collect();
                matches!(
                    fencing::stand(registry, &host.address, name, &words, &fenced),
                    Standing::Fenced { .. }
                ) || !fencing::void_promises(registry, &host.address, name, &words).is_empty()
            })
            .collect()
    })
}

/// What runs here is not stopped on hearsay: the owner itself must say so, unless an operator
/// declared this host fenced.
async fn confirm(host: &Arc<Host>, suspects: Vec<AppName>) {
    let reports = clearance::hear(host, Patience::SHORT).await;
    let is_fenced = host.desired.get().fenced.contains(&host.address);
    for application in suspects {
        let mut words = clearance::words(&reports, &host.address, &application);
        words.retain(|word| is_fenced || word.speaker == word.owner);
        if let Err(error) = consider(host, &application, words).await {
            tracing::error!(%application, %error, "what other hosts say of an application cannot be taken down");
        }
    }
}

/// The newest epoch that this host knows of each application, and who owns it then: by its
/// journal, by what comes to it, by gossip, and by what its `proxyd` was told before a restart.
#[must_use]
pub fn known(host: &Host) -> BTreeMap<AppName, (Epoch, HostAddr)> {
    let mut known: BTreeMap<AppName, (Epoch, HostAddr)> = BTreeMap::new();
    let mut learn = |name: &AppName, epoch: Epoch, owner: &HostAddr| {
        let news = known.get(name).is_none_or(|(newest, _)| epoch > *newest);
        if news && epoch > Epoch(0) {
            known.insert(name.clone(), (epoch, owner.clone()));
        }
    };
    host.ledger.read(|registry| {
        for (name, (epoch, owner)) in registry.known(&host.address) {
            learn(&name, epoch, &owner);
        }
        for handoff in registry.destinations().values() {
            let offer = &handoff.reservation;
            learn(&offer.application, offer.epoch, &offer.from);
        }
    });
    for advert in host.routes.tell(&host.address) {
        learn(&advert.application, advert.version.epoch, &advert.host);
    }
    for status in host.routes.statuses().unwrap_or_default() {
        if let Some(Target::Remote { host: owner, .. }) = &status.target {
            learn(&status.application, status.version.epoch, owner);
        }
    }
    known
}

/// The same as others are told.
#[must_use]
pub fn told(host: &Host) -> Vec<KnownOwner> {
    known(host)
        .into_iter()
        .map(|(application, (epoch, owner))| KnownOwner {
            application,
            epoch,
            owner,
        })
        .collect()
}

/// Writes down what others know and this host would forget at its next start.
pub(crate) async fn learn(host: &Host, told: Vec<KnownOwner>) {
    if let Err(error) = write_heard(host, told).await {
        let error = Report(&error).to_string();
        tracing::warn!(
            error,
            "what other hosts know cannot be written down; it is told again"
        );
    }
}

/// Of what others know, what is news here is durable then.
async fn write_heard(host: &Host, told: Vec<KnownOwner>) -> Result<(), LedgerError> {
    let news = |registry: &Registry, here: &HostAddr, told: Vec<KnownOwner>| {
        let known = registry.known(here);
        let newer = told.into_iter().filter(|told| {
            let before = known.get(&told.application);
            told.owner != *here && before.is_none_or(|(epoch, _)| told.epoch > *epoch)
        });
        newer
            .map(|told| Record::Heard {
                application: told.application,
                epoch: told.epoch,
                owner: told.owner,
            })
            .collect::<Vec<_>>()
    };
    // Most of what is told is known: that costs no turn of the journal.
    let any = host
        .ledger
        .read(|registry| !news(registry, &host.address, told.clone()).is_empty());
    if !any {
        return Ok(());
    }
    let here = host.address.clone();
    host.ledger
        .transact(move |registry| (news(registry, &here, told), ()))
        .await
}

/// The applications that have come here whole and wait for their source's grant, with the epoch
/// that they are granted at.
#[must_use]
pub fn promised(registry: &Registry) -> BTreeMap<AppName, Epoch> {
    registry
        .destinations()
        .values()
        .filter(|handoff| matches!(handoff.phase, destination::Phase::Verified { .. }))
        .map(|handoff| {
            (
                handoff.reservation.application.clone(),
                handoff.epoch_here(),
            )
        })
        .collect()
}

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
    owner: HostAddr,
    epoch: Epoch,
    volume: VolumeIdentity,
}

/// What stands for an application here that is another host's, and that no handoff needs.
fn left(registry: &Registry, volumes: &[VolumeInfo]) -> Vec<Left> {
    let mut all = Vec::new();
    for (name, known) in registry.applications() {
        let Role::Gone { to } = &known.role else {
            continue;
        };
        if is_in_hand(registry, name) {
            continue;
        }
        for volume in &known.volumes {
            if volumes
                .iter()
                .any(|info| info.live && info.dataset == volume.dataset)
            {
                all.push(Left {
                    application: name.clone(),
                    owner: to.clone(),
                    epoch: known.epoch,
                    volume: volume.clone(),
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
    let foreign = host.ledger.read(|registry| {
        registry.owned(application).is_none() && !is_in_hand(registry, application)
    });
    if foreign && host.instance(application).is_some() {
        // Of an earlier ownership: the reconcile loop had no time for it yet.
        let removed = applications::remove(host, application, GRACE).await;
        removed.map_err(|error| {
            let error = Report(&error);
            TakeError::Refused(format!("what still runs of it cannot be stopped: {error}"))
        })?;
    }
    for volume in volumes {
        let left = Left {
            application: application.clone(),
            owner: owner.clone(),
            epoch,
            volume,
        };
        tidy_one(host, &left).await?;
    }
    Ok(())
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
    let known = info.stamp.map(|stamp| stamp.volumes).unwrap_or_default();
    let only = std::slice::from_ref(&left.volume);
    let of = Of {
        application: &left.application,
        volumes: if known.is_empty() { only } else { &known },
    };
    let stamp = Stamp::gone(of, &left.volume, &left.owner, left.epoch);
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
    use super::*;

    #[test]
    fn the_name_of_a_copy_says_when_and_at_which_epoch_and_is_a_plain_name() {
        assert_eq!(
            copy_name(Epoch(3), UnixMillis(1_795_404_600_123)),
            "e3-20261123T033000123Z"
        );
    }
}
