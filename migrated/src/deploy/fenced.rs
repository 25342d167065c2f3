//! Deployments while a host that an operator fenced does not answer. What it owned is still its
//! own until somebody takes over: such an application is neither born anew, empty, nor moved.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::cluster::{DeployRequest, Desired, Failure};
use rehome_shared::api::peer::{Basis, HostReport, KnownOwner, OwnedApplication};
use rehome_shared::ids::{AppName, Epoch, HostAddr};

use super::DeployError;
use crate::fence;
use crate::host::Host;

type Reports = BTreeMap<HostAddr, HostReport>;

/// The newest epoch of each application that any host knows, and its owner then.
pub(crate) type Known = BTreeMap<AppName, (Epoch, HostAddr)>;

/// What this host and the hosts that answer know together.
pub(crate) fn known(host: &Host, reports: &Reports) -> Known {
    let mut known = fence::known(host);
    for report in reports.values() {
        for told in &report.known {
            let older = known.get(&told.application);
            if older.is_none_or(|(newest, _)| told.epoch > *newest) {
                let news = (told.epoch, told.owner.clone());
                known.insert(told.application.clone(), news);
            }
        }
    }
    known
}

/// The fenced hosts that do not answer.
pub(super) fn silent(current: &Desired, reports: &Reports) -> BTreeSet<HostAddr> {
    let fenced = current.fenced.iter();
    fenced
        .filter(|host| !reports.contains_key(*host))
        .cloned()
        .collect()
}

/// The hosts that stay fenced: one leaves that answers, follows the deployment that says so,
/// claims nothing that another host owns, and has heard of whoever took over from it, as has who
/// waits for something from it. What it gave away before could be taken otherwise.
pub(super) fn still(current: &Desired, reports: &Reports) -> BTreeSet<HostAddr> {
    let mut fenced = current.fenced.clone();
    fenced.retain(|host| {
        reports.get(host).is_none_or(|report| {
            let contested = |owned: &OwnedApplication| is_overtaken(reports, host, owned);
            report.generation != current.generation
                || report.owned.iter().any(contested)
                || report
                    .known
                    .iter()
                    .any(|known| is_unaware(reports, report, known))
        })
    });
    fenced
}

/// Whether a host and another one have still to hear from each other whose an application is. The
/// other one may wait for a grant of this host, which must not come to it before it has heard of a
/// newer owner; that something is its own nobody hears from others, nor that another one of the
/// same epoch took over, unless it still gives that epoch away.
fn is_unaware(reports: &Reports, of: &HostReport, knows: &KnownOwner) -> bool {
    let name = &knows.application;
    let mut others = reports.values().filter(|report| report.host != of.host);
    others.any(|report| {
        let Some(told) = report.known_owner(name) else {
            return false;
        };
        let is_news_here = told.owner != of.host;
        let is_news_there = knows.owner != of.host && knows.owner != report.host;
        match told.epoch.cmp(&knows.epoch) {
            _ if told.owner == knows.owner => false,
            Ordering::Greater => is_news_here,
            Ordering::Equal => {
                is_news_here && told.basis != Basis::Open && of.incoming.contains(name)
            }
            Ordering::Less => is_news_there && report.incoming.contains(name),
        }
    })
}

/// Whether another host knows of another owner at an epoch as large as that of an owner.
pub(super) fn is_overtaken(reports: &Reports, owner: &HostAddr, owned: &OwnedApplication) -> bool {
    let name = &owned.application;
    reports
        .iter()
        .filter(|(speaker, _)| *speaker != owner)
        .any(|(_, report)| {
            let known = report.known_owner(name);
            known.is_some_and(|known| counts(known, owned.epoch) && known.owner != *owner)
        })
}

/// Whether what a host knows is as new as an epoch. What it left open is no claim beside another
/// owner of that epoch.
fn counts(known: &KnownOwner, epoch: Epoch) -> bool {
    known.epoch > epoch || (known.epoch == epoch && known.basis != Basis::Open)
}

/// Gives applications that nobody answers for to the silent host that had them last.
pub(super) fn attribute(
    owners: &mut BTreeMap<AppName, HostAddr>,
    current: &Desired,
    reports: &Reports,
    silent: &BTreeSet<HostAddr>,
) {
    let names = current.applications.keys().chain(current.kept.keys());
    for name in names {
        if owners.contains_key(name) {
            continue;
        }
        let told = reports
            .values()
            .filter_map(|report| report.known_owner(name))
            .max_by_key(|known| known.epoch)
            .map(|known| &known.owner);
        let last = told
            .or_else(|| current.kept.get(name))
            .or_else(|| current.host_of(name));
        if let Some(last) = last.filter(|last| silent.contains(*last)) {
            owners.insert(name.clone(), last.clone());
        }
    }
}

/// What cannot be while fenced hosts do not answer.
pub(super) fn check(
    current: &Desired,
    request: &DeployRequest,
    owners: &BTreeMap<AppName, HostAddr>,
    silent: &BTreeSet<HostAddr>,
    known: &Known,
) -> Result<(), DeployError> {
    if silent.is_empty() {
        return Ok(());
    }
    let mut against = Vec::new();
    for (to, name) in request
        .placement
        .iter()
        .flat_map(|(to, names)| names.iter().map(move |name| (to, name)))
    {
        let owner = owners.get(name);
        let reason = if let Some(gone) = owner.filter(|owner| silent.contains(*owner)) {
            let moves = current.host_of(name) != Some(to);
            moves.then(|| {
                let epoch = known.get(name).map_or(Epoch(1), |(epoch, _)| *epoch);
                format!(
                    "its owner {gone} is fenced and does not answer: run `rehome failover {name} --to {to} --fenced {gone}@{epoch}`"
                )
            })
        } else if silent.contains(to) {
            Some(format!(
                "{to} is fenced and does not answer: place it elsewhere"
            ))
        } else if let (None, Some((epoch, last))) = (owner, known.get(name)) {
            Some(format!(
                "{last} had it at epoch {epoch}, and no host that answers owns it: it is not made anew, empty"
            ))
        } else {
            None
        };
        against.extend(reason.map(|reason| Failure {
            host: to.clone(),
            application: Some(name.clone()),
            reason,
        }));
    }
    if against.is_empty() {
        Ok(())
    } else {
        Err(DeployError::Refused(against))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{app, deployment, host, report};

    fn fenced(generation: u64, placement: &[(&str, &[&str])], hosts: &[&str]) -> Desired {
        let mut desired = deployment(generation, placement);
        desired.fenced = hosts.iter().map(|name| host(name)).collect();
        desired
    }

    fn reports(all: Vec<HostReport>) -> Reports {
        all.into_iter().map(|r| (r.host.clone(), r)).collect()
    }

    fn verdict(current: &Desired, wanted: &[(&str, &[&str])], reports: &Reports) -> String {
        let silent = silent(current, reports);
        let mut owners = super::super::owners(reports, &current.fenced).unwrap();
        attribute(&mut owners, current, reports, &silent);
        let Desired {
            applications,
            placement,
            ..
        } = deployment(1, wanted);
        let request = DeployRequest {
            applications,
            placement,
            dry_run: false,
        };
        let mut known = Known::new();
        for report in reports.values() {
            for told in &report.known {
                let news = (told.epoch, told.owner.clone());
                known.insert(told.application.clone(), news);
            }
        }
        match check(current, &request, &owners, &silent, &known) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_a_silent_fenced_host_owns_stays_its_own_until_somebody_takes_over() {
        let current = fenced(4, &[("h1", &["db"]), ("h2", &["web"])], &["h1"]);
        let answers = reports(vec![report("h2", &current, &[("web", 1)])]);
        assert_eq!(
            verdict(&current, &[("h1", &["db"]), ("h2", &["web"])], &answers),
            ""
        );
        assert_eq!(
            verdict(&current, &[("h1", &[]), ("h2", &["web"])], &answers),
            ""
        );
        let moved = verdict(&current, &[("h1", &[]), ("h2", &["web", "db"])], &answers);
        assert!(
            moved.contains("rehome failover db --to h2 --fenced h1@1"),
            "{moved}"
        );
    }

    #[test]
    fn nothing_is_placed_on_a_silent_fenced_host_and_nothing_is_born_twice() {
        let current = fenced(4, &[("h1", &[]), ("h2", &["web"])], &["h1"]);
        let answers = reports(vec![report("h2", &current, &[("web", 1)])]);
        let there = verdict(&current, &[("h1", &["new"]), ("h2", &["web"])], &answers);
        assert!(there.contains("place it elsewhere"), "{there}");
        assert_eq!(
            verdict(&current, &[("h1", &[]), ("h2", &["web", "new"])], &answers),
            "",
            "what nobody ever had"
        );
        let mut remembers = report("h2", &current, &[("web", 1)]);
        remembers.known.push(crate::fixtures::known("old", 3, "h3"));
        let answers = reports(vec![remembers]);
        let again = verdict(&current, &[("h1", &[]), ("h2", &["web", "old"])], &answers);
        assert!(again.contains("not made anew"), "{again}");
    }

    #[test]
    fn a_fenced_host_leaves_when_it_answers_and_contests_nothing() {
        let current = fenced(4, &[("h1", &[]), ("h2", &["db"])], &["h1"]);
        let owner = report("h2", &current, &[("db", 2)]);
        let is_still = |back: HostReport| {
            let answers = reports(vec![back, owner.clone()]);
            !still(&current, &answers).is_empty()
        };
        assert!(still(&current, &reports(vec![owner.clone()])).contains(&host("h1")));
        assert!(!is_still(report("h1", &current, &[("web", 1)])));
        assert!(
            is_still(report("h1", &current, &[("db", 1)])),
            "not yet aware"
        );
        let knows = |epoch, owner| {
            let mut released = report("h1", &current, &[]);
            released
                .known
                .push(crate::fixtures::known("db", epoch, owner));
            released
        };
        assert!(is_still(knows(1, "h3")), "it has not heard");
        assert!(!is_still(knows(2, "h2")), "it has heard");
        assert!(!is_still(knows(3, "h2")), "the next owner");
        assert!(!is_still(knows(3, "h3")), "the other waits for nothing");
        let mut waits = owner.clone();
        waits.incoming.push(app("db"));
        let unaware = reports(vec![knows(3, "h3"), waits]);
        assert!(still(&current, &unaware).contains(&host("h1")));
        let mut giving = knows(2, "h3");
        assert!(!is_still(giving.clone()), "it was given away at last");
        giving.incoming.push(app("db"));
        assert!(is_still(giving), "it is being given away");
        let behind = deployment(3, &[("h1", &["db"])]);
        assert!(is_still(report("h1", &behind, &[])), "follows an older one");
    }

    #[test]
    fn an_owner_that_was_overtaken_and_is_fenced_does_not_count() {
        let current = fenced(4, &[("h1", &[]), ("h2", &["db"])], &["h1"]);
        let both = reports(vec![
            report("h1", &current, &[("db", 1)]),
            report("h2", &current, &[("db", 2)]),
        ]);
        let owners = super::super::owners(&both, &current.fenced).unwrap();
        assert_eq!(owners.get(&app("db")), Some(&host("h2")));
        assert!(super::super::owners(&both, &BTreeSet::new()).is_err());
    }
}
