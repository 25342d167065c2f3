//! What Fig and Compose have in common: links from service to service.
//!
//! Such a link names a service; it means one link for each port that the service exposes, under
//! the container's port, as Docker links did.

use std::collections::BTreeMap;

use super::draft::Drafts;
use super::model::{Link, Port};
use super::network::alias;
use super::read::{At, Place, Report};
use crate::ids::{AppName, Protocol};

/// A link as it is written.
#[derive(Debug)]
pub(super) struct ServiceLink {
    target: String,
    alias: String,
    place: Place,
}

/// The links of each service.
pub(super) type ServiceLinks = BTreeMap<AppName, Vec<ServiceLink>>;

/// The value of `links`.
pub(super) fn links(at: &At<'_>, report: &mut Report) -> Vec<ServiceLink> {
    at.list(
        report,
        "a list of texts, for example [db] or [\"db:database\"]",
    )
    .into_iter()
    .filter_map(|item| link(&item, report))
    .collect()
}

fn link(at: &At<'_>, report: &mut Report) -> Option<ServiceLink> {
    let rule = "a text: SERVICE or SERVICE:ALIAS";
    let text = at.text(report, rule)?;
    let (target, name) = text.split_once(':').unwrap_or((text, text));
    if name.contains(':') && name != text {
        report.problem(
            &at.place,
            format!("{text:?} is not a link: the alias is unclear with more than two parts"),
            format!("write {rule}"),
        );
        return None;
    }
    let alias = alias(&at.place, name, report)?;
    Some(ServiceLink {
        target: target.to_owned(),
        alias,
        place: at.place.clone(),
    })
}

/// Turns the links between services into links between ports.
pub(super) fn resolve(drafts: &mut Drafts, links: ServiceLinks, report: &mut Report) {
    let exposed: BTreeMap<AppName, Vec<Port>> = drafts
        .iter()
        .map(|(name, draft)| {
            (
                name.clone(),
                reachable(draft.ports.iter().map(|(port, _)| *port)),
            )
        })
        .collect();
    for (name, links) in links {
        let Some(draft) = drafts.get_mut(&name) else {
            continue;
        };
        for link in links {
            let Some((_, ports)) = exposed
                .iter()
                .find(|(name, _)| name.as_str() == link.target)
            else {
                report.problem(
                    &link.place,
                    format!(
                        "the link leads to {:?}, but there is no such service",
                        link.target
                    ),
                    "name a service of this file",
                );
                continue;
            };
            if ports.is_empty() {
                report.warning(
                    &link.place,
                    format!(
                        "{:?} exposes no ports: the link expands to no links at all",
                        link.target
                    ),
                    format!("give {:?} a port, or remove the link", link.target),
                );
            }
            draft.links.extend(ports.iter().map(|port| {
                let to = Link {
                    local_port: port.internal,
                    remote_port: port.external,
                    alias: link.alias.clone(),
                };
                (to, link.place.clone())
            }));
        }
    }
}

/// The ports that link variables can name: streams, each internal port by its lowest external.
fn reachable(ports: impl Iterator<Item = Port>) -> Vec<Port> {
    let mut ports: Vec<Port> = ports
        .filter(|port| port.protocol != Protocol::Udp)
        .collect();
    ports.sort_unstable();
    ports.dedup_by_key(|port| port.internal);
    ports
}
