//! What a deployment changes, for people: the hosts find out by themselves what they do.

use std::collections::BTreeMap;

use rehome_shared::api::cluster::{ApplicationState, Change, ChangeKind, Desired};
use rehome_shared::api::peer::{HostReport, OwnedApplication};
use rehome_shared::config::model::Application;
use rehome_shared::ids::{AppName, HostAddr};

use crate::applications;

/// All changes, by name. Empty when everything is as `desired` says.
pub(super) fn changes(
    current: &Desired,
    desired: &Desired,
    owners: &BTreeMap<AppName, HostAddr>,
    reports: &BTreeMap<HostAddr, HostReport>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, spec) in &desired.applications {
        let Some(to) = desired.host_of(name) else {
            continue;
        };
        let kind = match owners.get(name) {
            None => Some(ChangeKind::Create { host: to.clone() }),
            Some(from) if from != to => Some(ChangeKind::Move {
                from: from.clone(),
                to: to.clone(),
                volumes: !spec.volumes.is_empty(),
            }),
            Some(owner) => reports
                .get(owner)
                .and_then(|report| in_place(current, name, spec, owner, report)),
        };
        changes.extend(kind.map(|kind| Change {
            application: name.clone(),
            kind,
        }));
    }
    for (name, owner) in owners {
        let placed = desired.applications.contains_key(name) && desired.host_of(name).is_some();
        let runs = reports
            .get(owner)
            .and_then(|r| owned(r, name))
            .is_some_and(|o| o.config_hash.is_some());
        if !placed && runs {
            let kind = ChangeKind::Stop {
                host: owner.clone(),
            };
            changes.push(Change {
                application: name.clone(),
                kind,
            });
        }
    }
    changes.sort_by(|a, b| a.application.cmp(&b.application));
    changes
}

fn owned<'a>(report: &'a HostReport, name: &AppName) -> Option<&'a OwnedApplication> {
    report.owned.iter().find(|owned| owned.application == *name)
}

/// What changes for an application that stays where it is.
fn in_place(
    current: &Desired,
    name: &AppName,
    spec: &Application,
    owner: &HostAddr,
    report: &HostReport,
) -> Option<ChangeKind> {
    let known = owned(report, name)?;
    let host_addr = owner.clone();
    let Some(hash) = &known.config_hash else {
        return Some(ChangeKind::Start { host: host_addr });
    };
    let new_volume = spec
        .volumes
        .iter()
        .any(|v| known.volumes.iter().all(|k| k.name != v.name));
    let wanted = applications::config_hash(owner, spec, &known.volumes);
    if new_volume || *hash != wanted {
        return Some(ChangeKind::Restart { host: host_addr });
    }
    let state = report
        .applications
        .iter()
        .find(|a| a.name == *name)
        .map(|a| a.state);
    if matches!(state, Some(ApplicationState::Failed)) {
        return Some(ChangeKind::Start { host: host_addr });
    }
    (current.applications.get(name) != Some(spec)).then_some(ChangeKind::Update { host: host_addr })
}

#[cfg(test)]
mod tests;
