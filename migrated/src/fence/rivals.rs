//! Two owners of one epoch. Only a failover without all hosts can bring them about, and neither
//! can be told to give way: what one gossips of itself is kept beside the other, which names it in
//! its status until an operator has decided.

use std::collections::BTreeMap;

use migrated_core::fencing::{self, Standing, Word};
use migrated_core::registry::Registry;
use rehome_shared::api::peer::{Basis, KnownOwner};
use rehome_shared::ids::{AppName, Epoch, HostAddr};
use tokio::sync::watch;

use crate::host::Host;

type Said = BTreeMap<(AppName, HostAddr), Epoch>;

/// What other hosts said last of what they own themselves, at the epoch that this host owns it at.
#[derive(Debug, Default)]
pub struct Rivals {
    said: watch::Sender<Said>,
}

impl Rivals {
    /// Takes in what a host knows, at every round of gossip.
    pub(crate) fn hear(&self, registry: &Registry, peer: &HostAddr, known: &[KnownOwner]) {
        let mut news: Said = known
            .iter()
            .filter(|told| told.owner == *peer && told.basis != Basis::Open)
            .filter(|told| {
                let owned = registry.owned(&told.application);
                owned.is_some_and(|owned| owned.epoch == told.epoch)
            })
            .map(|told| ((told.application.clone(), peer.clone()), told.epoch))
            .collect();
        self.said.send_if_modified(|said| {
            let others = said.iter().filter(|((_, speaker), _)| speaker != peer);
            news.extend(others.map(|(key, epoch)| (key.clone(), *epoch)));
            let changed = *said != news;
            *said = std::mem::take(&mut news);
            changed
        });
    }

    /// What they said of an application.
    pub(crate) fn words(&self, application: &AppName) -> Vec<Word> {
        let said = self.said.borrow();
        let of = said.iter().filter(|((name, _), _)| name == application);
        of.map(|((_, speaker), epoch)| Word {
            speaker: speaker.clone(),
            epoch: *epoch,
            owner: speaker.clone(),
        })
        .collect()
    }

    /// Changes whenever what they say does.
    pub(crate) fn changes(&self) -> watch::Receiver<BTreeMap<(AppName, HostAddr), Epoch>> {
        self.said.subscribe()
    }
}

/// Why an application of this host waits for an operator, if another host owns it as well.
#[must_use]
pub(crate) fn contested(host: &Host, application: &AppName) -> Option<String> {
    let words = host.rivals.words(application);
    if words.is_empty() {
        return None;
    }
    let fenced = host.desired.get().fenced.clone();
    let standing = host
        .ledger
        .read(|registry| fencing::stand(registry, &host.address, application, &words, &fenced));
    match standing {
        Standing::Contested { epoch, owner } => {
            Some(cure(&host.address, application, epoch, &owner))
        }
        Standing::Clear | Standing::Fenced { .. } | Standing::Outdated { .. } => None,
    }
}

/// What an operator can do about two owners of one epoch.
#[must_use]
pub(crate) fn cure(
    here: &HostAddr,
    application: &AppName,
    epoch: Epoch,
    owner: &HostAddr,
) -> String {
    let keep = |to: &HostAddr, fenced: &HostAddr| {
        format!("`rehome failover {application} --to {to} --fenced {fenced}@{epoch}`")
    };
    format!(
        "{owner} owns it at epoch {epoch}, too, and neither can be told to give way: take the host whose data is not wanted off the network, then run {} to keep what is on {here}, or {} to keep what is on {owner}; the other one is kept as a diverged copy when its host comes back",
        keep(here, owner),
        keep(owner, here),
    )
}

#[cfg(test)]
mod tests {
    use migrated_core::record::Record;

    use super::*;
    use crate::fixtures::{app, host, known};

    #[test]
    fn a_rival_is_who_says_of_itself_that_it_owns_it_at_the_same_epoch() {
        let born = Record::Born {
            application: app("db"),
            volumes: Vec::new(),
        };
        let registry = Registry::replay(&[born]);
        let rivals = Rivals::default();
        let mut changes = rivals.changes();
        let heard = |peer: &str, all: &[KnownOwner]| {
            rivals.hear(&registry, &host(peer), all);
            rivals.words(&app("db"))
        };
        for quiet in [
            known("db", 1, "h1"),
            known("db", 2, "h2"),
            known("web", 1, "h2"),
        ] {
            assert!(heard("h2", &[quiet]).is_empty());
        }
        assert!(heard("h3", &[known("db", 1, "h2")]).is_empty(), "hearsay");
        let mut open = known("db", 1, "h2");
        open.basis = Basis::Open;
        assert!(heard("h2", &[open]).is_empty(), "left open");
        assert!(!changes.has_changed().unwrap());

        let words = heard("h2", &[known("db", 1, "h2")]);
        assert_eq!((words[0].epoch, &words[0].owner), (Epoch(1), &host("h2")));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(
            heard("h3", &[]).len(),
            1,
            "what another one says is its own"
        );
        assert_eq!(heard("h2", &[known("db", 1, "h2")]).len(), 1);
        assert!(!changes.has_changed().unwrap(), "the same again");
        assert!(heard("h2", &[]).is_empty(), "it gave way");
    }

    #[test]
    fn the_cure_is_a_command_for_either_owner() {
        let said = cure(&host("h1"), &app("db"), Epoch(4), &host("h2"));
        for command in [
            "rehome failover db --to h1 --fenced h2@4",
            "rehome failover db --to h2 --fenced h1@4",
        ] {
            assert!(said.contains(command), "{said}");
        }
    }
}
