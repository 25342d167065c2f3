//! Ports and links as the native format writes them, and the rule for aliases.

use super::daemon::send_proxy as send_proxy_of;
use super::model::{Link, Port};
use super::read::{At, Place, Report};
use crate::api::proxy::Announce;
use crate::ids::Protocol;

/// The words for what travels through a port.
pub(super) const PROTOCOLS: [(&str, Protocol); 3] = [
    ("tcp", Protocol::Tcp),
    ("udp", Protocol::Udp),
    ("http", Protocol::Http),
];

/// The value of `ports`.
pub(super) fn ports(at: &At<'_>, report: &mut Report) -> Vec<(Port, Place)> {
    at.list(
        report,
        "a list of mappings, for example [{internal: 80, external: 8080}]",
    )
    .into_iter()
    .filter_map(|item| port(&item, report).map(|port| (port, item.place)))
    .collect()
}

fn port(at: &At<'_>, report: &mut Report) -> Option<Port> {
    let mut fields = at.mapping(
        report,
        "a mapping, for example {internal: 80, external: 8080}",
    )?;
    let internal = fields
        .require(
            report,
            "internal",
            "write the port on which the application listens, internal: 80",
        )
        .and_then(|v| v.port(report, "the internal port"));
    let external = fields
        .require(
            report,
            "external",
            "write the port that every host opens, external: 8080",
        )
        .and_then(|v| v.port(report, "the external port"));
    let protocol = fields.take("protocol").map_or(Some(Protocol::Tcp), |v| {
        v.word(report, "protocol", &PROTOCOLS)
    });
    let send_proxy = fields.take("send_proxy");
    let send_proxy = send_proxy.map_or(Some(Announce::default()), |v| {
        send_proxy_of(&v, report, protocol)
    });
    let known = ["internal", "external", "protocol", "send_proxy"];
    fields.finish(report, &known);
    Some(Port {
        internal: internal?,
        external: external?,
        protocol: protocol?,
        send_proxy: send_proxy?,
    })
}

/// The value of `links`.
pub(super) fn links(at: &At<'_>, report: &mut Report) -> Vec<(Link, Place)> {
    at.list(
        report,
        "a list of mappings, for example [{local_port: 9200, remote_port: 9200, alias: es}]",
    )
    .into_iter()
    .filter_map(|item| link(&item, report).map(|link| (link, item.place)))
    .collect()
}

fn link(at: &At<'_>, report: &mut Report) -> Option<Link> {
    let rule = "a mapping, for example {local_port: 9200, remote_port: 9200, alias: es}";
    let mut fields = at.mapping(report, rule)?;
    let local_port = fields
        .require(
            report,
            "local_port",
            "write the port in the variables' names, local_port: 9200",
        )
        .and_then(|v| v.port(report, "the local port"));
    let remote_port = fields
        .require(
            report,
            "remote_port",
            "write the other application's external port, remote_port: 9200",
        )
        .and_then(|v| v.port(report, "the remote port"));
    let alias = fields
        .require(
            report,
            "alias",
            "write the prefix of the variables' names, alias: es",
        )
        .and_then(|v| {
            let text = v.text(report, "a text, for example es")?;
            alias(&v.place, text, report)
        });
    fields.finish(report, &["local_port", "remote_port", "alias"]);
    Some(Link {
        local_port: local_port?,
        remote_port: remote_port?,
        alias: alias?,
    })
}

/// Checks an alias: it becomes part of the names of environment variables.
pub(super) fn alias(place: &Place, text: &str, report: &mut Report) -> Option<String> {
    let fits = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits {
        return Some(text.to_owned());
    }
    report.problem(
        place,
        format!("the alias must be alphanumeric, found {text:?}"),
        "write 1 to 63 ASCII letters, digits, '-' or '_': it begins the names of environment variables",
    );
    None
}
