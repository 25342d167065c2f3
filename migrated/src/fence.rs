//! A host fences itself: who learns that another host owns what its own journal calls its own
//! gives way, and keeps what it alone holds for people.
//!
//! It learns of it by asking when it starts ([`crate::clearance`]) and by gossip. First it is
//! written down; then the reconcile loop stops the instance, the route leads to the owner, and
//! the live tree is dropped if the owner has all of it, or set aside as a *diverged copy*.

mod known;
mod left;
mod rivals;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use migrated_core::fencing::{self, Standing, Word};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use migrated_core::source::{AfterRelease, Phase, SourceMigration};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Migration, MigrationState};
use rehome_shared::api::peer::{Advert, Basis, KnownOwner};
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, RouteVersion};

use crate::clearance::{self, Patience};
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::{migrations, routes};

pub use known::{heard, known, promised, told};
pub use rivals::Rivals;

pub(crate) use known::learn;
#[cfg(test)]
pub(crate) use left::copy_name;
pub(crate) use left::{keep_copy, make_room, stop_former, tidy};
pub(crate) use rivals::{contested, cure};

use known::write_heard;

/// The pause between rounds of questions about what gossip says.
const PAUSE: Duration = Duration::from_secs(3);

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
        basis: Basis::Heard,
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
fn ended(host: &Host, migration: &SourceMigration, epoch: Epoch, owner: &HostAddr) -> Migration {
    let known = host.live.get(&migration.id).map(|run| run.view());
    let mut report = known.unwrap_or_else(|| migrations::report(host, migration));
    let (state, error) = ending(migration, epoch, owner);
    report.state = state;
    report.error = Some(error);
    report.now = None;
    report
}

/// How a migration ended whose application was found to be another host's, as far as this host
/// can know: done is only what the destination is known to serve, or to own.
fn ending(migration: &SourceMigration, epoch: Epoch, owner: &HostAddr) -> (MigrationState, String) {
    let to = &migration.plan.to;
    let fenced = format!("fenced: {owner} owns it at epoch {epoch}");
    match &migration.phase {
        Phase::Before(_) | Phase::Ended(_) => (MigrationState::Aborted, fenced),
        Phase::After(AfterRelease::Finishing { .. }) => (MigrationState::Done, fenced),
        Phase::After(AfterRelease::Reclaiming { .. }) => (MigrationState::Returned, fenced),
        Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. })
            if owner == to =>
        {
            (MigrationState::Done, fenced)
        }
        Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }) => (
            MigrationState::Returned,
            format!("it was released to {to}, and that {to} served it was never heard; {fenced}"),
        ),
    }
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
    let mut rivals = host.rivals.changes();
    let watching = async {
        host.clearance.asked().await;
        loop {
            desired.borrow_and_update();
            routes.borrow_and_update();
            rivals.borrow_and_update();
            learn(&host, told(&host)).await;
            let suspects = suspects(&host);
            if !suspects.is_empty() {
                confirm(&host, suspects).await;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // All arms wait on a level.
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                changed = routes.changed() => if changed.is_err() { return },
                changed = rivals.changed() => if changed.is_err() { return },
            }
        }
    };
    let _stopped = stop.run_until_cancelled(watching).await;
}

/// The applications that adverts, or other owners, contradict this host's journal about.
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
                    .chain(host.rivals.words(name))
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
        let mut words = clearance::words(host, &reports, &application);
        words.retain(|word| is_fenced || word.speaker == word.owner);
        if let Err(error) = consider(host, &application, words).await {
            tracing::error!(%application, %error, "what other hosts say of an application cannot be taken down");
        }
    }
}

#[cfg(test)]
mod tests;
