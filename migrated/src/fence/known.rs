//! What this host knows of who owns what, and tells others: the newest epoch of each application.
//!
//! What others know is written down, so that a restart does not forget it.

use std::collections::{BTreeMap, BTreeSet};

use migrated_core::destination;
use migrated_core::record::Record;
use migrated_core::registry::{Registry, Role};
use rehome_runtime::report::Report;
use rehome_shared::api::peer::{Basis, KnownOwner};
use rehome_shared::api::proxy::Target;
use rehome_shared::ids::{AppName, Epoch, HostAddr};

use super::concerned;
use crate::host::Host;
use crate::ledger::LedgerError;

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
    let known = known(host);
    host.ledger.read(|registry| {
        let told = known
            .into_iter()
            .map(|(application, (epoch, owner))| KnownOwner {
                basis: basis(registry, &host.address, &application, (epoch, &owner)),
                application,
                epoch,
                owner,
            });
        told.collect()
    })
}

/// How this host knows an owner.
fn basis(
    registry: &Registry,
    here: &HostAddr,
    application: &AppName,
    (epoch, owner): (Epoch, &HostAddr),
) -> Basis {
    let held = registry.applications().get(application);
    let same = held.filter(|held| held.epoch == epoch && held.role.owner(here) == owner);
    match same.map(|held| &held.role) {
        Some(Role::Owner | Role::Gone { .. }) => Basis::Journal,
        Some(Role::Left { .. }) => Basis::Open,
        None => Basis::Heard,
    }
}

/// Of what this host knows, what neither an ownership nor a handoff of its own tells: a new machine
/// hears the same.
#[must_use]
pub fn heard(host: &Host) -> BTreeSet<AppName> {
    let own: BTreeSet<AppName> = host.ledger.read(concerned).into_iter().collect();
    let mut heard: BTreeSet<AppName> = known(host).into_keys().collect();
    heard.retain(|name| !own.contains(name));
    heard
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
pub(super) async fn write_heard(host: &Host, told: Vec<KnownOwner>) -> Result<(), LedgerError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{app, host};

    #[test]
    fn what_a_host_knows_is_its_own_hearsay_or_left_open() {
        let held = |role| Record::Held {
            application: app("db"),
            epoch: Epoch(3),
            role,
            volumes: Vec::new(),
            unmade: Vec::new(),
        };
        let of = |records: &[Record], epoch: u64, owner: &str| {
            let registry = Registry::replay(records);
            let told = (Epoch(epoch), &host(owner));
            basis(&registry, &host("h1"), &app("db"), told)
        };
        assert_eq!(of(&[], 3, "h2"), Basis::Heard);
        let gone = [held(Role::Gone { to: host("h2") })];
        assert_eq!(of(&gone, 3, "h2"), Basis::Journal);
        assert_eq!(of(&gone, 4, "h2"), Basis::Heard, "it heard of a newer one");
        assert_eq!(of(&[held(Role::Owner)], 3, "h1"), Basis::Journal);
        let left = Role::Left {
            owner: host("h1"),
            why: "because".to_owned(),
        };
        assert_eq!(of(&[held(left)], 3, "h1"), Basis::Open);
    }
}
