//! What is only wrong across applications, or across the two files: every external port, dataset
//! and link variable exists once in the cluster.

use std::collections::{BTreeMap, BTreeSet};

use super::daemon::{PEER_PORT, TRUNK_PORT};
use super::draft::Drafts;
use super::links::variable_prefix;
use super::model::{Link, Placement, Port, Probe};
use super::read::{Place, Report};
use crate::ids::{AppName, DatasetId, Protocol};

/// Checks the applications of a file against each other.
pub(super) fn check(drafts: &Drafts, report: &mut Report) {
    external_ports(drafts, report);
    datasets(drafts, report);
    volumes(drafts, report);
    links(drafts, report);
    announced(drafts, report);
}

/// A port expects to be told of each client or it does not, whoever comes.
fn announced(drafts: &Drafts, report: &mut Report) {
    for draft in drafts.values() {
        let streams = draft
            .ports
            .iter()
            .filter(|(p, _)| p.protocol != Protocol::Udp);
        let mut known: BTreeMap<u16, (Port, &Place)> = BTreeMap::new();
        for (port, place) in streams {
            match known.get(&port.internal) {
                Some((first, at)) if first.send_proxy != port.send_proxy => report.problem(
                    place,
                    format!(
                        "send_proxy differs from that of the same internal port {} in line {}",
                        port.internal, at.line
                    ),
                    "the application expects a header on a port or it does not: write the same",
                ),
                Some(_) => {}
                None => {
                    known.insert(port.internal, (*port, place));
                }
            }
        }
        if let Some(Probe::Http { port, .. }) = draft.probe()
            && let Some((told, place)) = known.get(port)
            && !told.send_proxy.is_nothing()
        {
            report.warning(
                place,
                format!("the check of health asks port {port} by HTTP and without a PROXY header"),
                "use healthcheck: {tcp: ...} or a command, or a port without send_proxy",
            );
        }
    }
}

/// Warns about applications that no host runs.
pub(super) fn check_placement(drafts: &Drafts, placement: &Placement, report: &mut Report) {
    let placed: BTreeSet<&AppName> = placement.values().flatten().collect();
    for (name, draft) in drafts.iter().filter(|(name, _)| !placed.contains(name)) {
        report.warning(
            &draft.place,
            format!("no host of the deployment runs {name}"),
            "place it, or leave it so to keep its volume and stop it",
        );
    }
}

/// Two ports clash when they have the same external number on the same transport.
fn external_ports(drafts: &Drafts, report: &mut Report) {
    let mut taken: BTreeMap<(u16, bool), (&AppName, Port, usize)> = BTreeMap::new();
    for (name, draft) in drafts {
        for (port, place) in &draft.ports {
            let udp = port.protocol == Protocol::Udp;
            match taken.get(&(port.external, udp)) {
                // The same mapping twice means it once.
                Some((owner, first, _)) if *owner == name && first == port => {}
                Some((owner, _, line)) => report.problem(
                    place,
                    format!(
                        "external port {} is already used by {owner} in line {line}",
                        port.external
                    ),
                    "an external port opens on every host: choose another number",
                ),
                None => {
                    taken.insert((port.external, udp), (name, *port, place.line));
                }
            }
            if !udp && (port.external == PEER_PORT || port.external == TRUNK_PORT) {
                report.warning(
                    place,
                    format!(
                        "external port {} is the default port of Rehome's own daemons",
                        port.external
                    ),
                    "choose another number, or move the daemons to other ports",
                );
            }
        }
    }
}

fn datasets(drafts: &Drafts, report: &mut Report) {
    let mut taken: BTreeMap<&DatasetId, (&AppName, usize)> = BTreeMap::new();
    for (name, draft) in drafts {
        for (volume, place) in &draft.volumes {
            let Some(id) = &volume.dataset_id else {
                continue;
            };
            if let Some((owner, line)) = taken.get(id) {
                report.problem(
                    place,
                    format!("the dataset {id} is already claimed by {owner} in line {line}: two volumes share one dataset"),
                    "a dataset belongs to one volume of one application: use another dataset_id",
                );
            } else {
                taken.insert(id, (name, place.line));
            }
        }
    }
}

/// Within an application: a name and a mountpoint are used once.
fn volumes(drafts: &Drafts, report: &mut Report) {
    for draft in drafts.values() {
        let (mut names, mut mountpoints) = (BTreeMap::new(), BTreeMap::new());
        for (volume, place) in &draft.volumes {
            if let Some(line) = names.insert(volume.name.as_str(), place.line) {
                report.problem(
                    place,
                    format!(
                        "the volume name {:?} is already used in line {line}",
                        volume.name.as_str()
                    ),
                    "give each volume of an application a name of its own",
                );
            }
            if let Some(line) = mountpoints.insert(volume.mountpoint.as_str(), place.line) {
                report.problem(
                    place,
                    format!(
                        "the mountpoint {:?} is already used in line {line}",
                        volume.mountpoint
                    ),
                    "mount each volume at a place of its own",
                );
            }
        }
    }
}

fn links(drafts: &Drafts, report: &mut Report) {
    let exposed: BTreeMap<u16, Protocol> = drafts
        .values()
        .flat_map(|draft| draft.ports.iter())
        .filter(|(port, _)| port.protocol != Protocol::Udp)
        .map(|(port, _)| (port.external, port.protocol))
        .collect();
    for draft in drafts.values() {
        let mut variables: BTreeMap<String, (&Link, &Place)> = BTreeMap::new();
        for (link, place) in &draft.links {
            let prefix = variable_prefix(link);
            match variables.get(&prefix) {
                Some((first, _)) if *first == link => continue,
                Some((first, at)) => report.problem(
                    place,
                    format!(
                        "the alias {:?} gives the same variable names ({prefix}…) as {:?} in line {}",
                        link.alias, first.alias, at.line
                    ),
                    "choose another alias: case and '-' or '_' do not tell aliases apart",
                ),
                None => {
                    variables.insert(prefix, (link, place));
                }
            }
            if !exposed.contains_key(&link.remote_port) {
                report.warning(
                    place,
                    format!(
                        "no application exposes the external port {} that this link leads to",
                        link.remote_port
                    ),
                    "correct remote_port, or give the target a port with that external number",
                );
            }
        }
    }
}
