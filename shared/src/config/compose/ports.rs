//! Compose's `ports`: `EXTERNAL:INTERNAL[/PROTOCOL]`, or a mapping with `target` and `published`.

use super::super::fig::port_number;
use super::super::model::Port;
use super::super::network::PROTOCOLS;
use super::super::read::{At, Fields, Place, Report};
use super::super::yaml::Value;
use crate::api::proxy::Announce;
use crate::ids::Protocol;

/// The value of `ports`.
pub(super) fn ports(at: &At<'_>, report: &mut Report) -> Vec<(Port, Place)> {
    at.list(report, "a list, for example [\"8080:80\"]")
        .into_iter()
        .filter_map(|item| {
            let port = match item.value {
                Value::Map(_) => long(&item, report),
                _ => short(&item, report),
            };
            port.map(|port| (port, item.place))
        })
        .collect()
}

fn short(at: &At<'_>, report: &mut Report) -> Option<Port> {
    let text = match at.value {
        // A bare number is a text without its quotes, and gets the same answer.
        Value::Int(_, raw) => raw,
        _ => at.text(report, "a text such as \"8080:80\"")?,
    };
    let mut refuse = |message: String, cure: &str| {
        report.problem(&at.place, message, cure);
        None
    };
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let Some((_, protocol)) = PROTOCOLS.iter().take(2).find(|(word, _)| *word == protocol) else {
        return refuse(
            format!("unknown protocol {protocol:?}"),
            "write /tcp or /udp, or nothing for TCP",
        );
    };
    if numbers.contains('-') {
        return refuse(
            format!("{text:?} is a range of ports"),
            "write one entry per port",
        );
    }
    let Some((external, internal)) = numbers.rsplit_once(':') else {
        return refuse(
            format!("the port {text:?} names no external port"),
            "write both: a port must be the same on every host. For example \"8080:80\"",
        );
    };
    if external.contains(':') || external.contains('.') {
        return refuse(
            format!("the port {text:?} names an address"),
            "leave the address out: an external port opens on every host",
        );
    }
    let (external, internal) = (
        port_number(at, report, external),
        port_number(at, report, internal),
    );
    Some(Port {
        internal: internal?,
        external: external?,
        protocol: *protocol,
        send_proxy: Announce::default(),
    })
}

fn long(at: &At<'_>, report: &mut Report) -> Option<Port> {
    let mut fields = at.mapping(report, "a mapping with target and published")?;
    let internal = fields
        .require(
            report,
            "target",
            "write the port inside the container, target: 80",
        )
        .and_then(|v| v.port(report, "target"));
    let external = fields
        .require(
            report,
            "published",
            "write the port that every host opens, published: 8080",
        )
        .and_then(|v| match v.value {
            Value::Text(text) => port_number(&v, report, text),
            _ => v.port(report, "published"),
        });
    let protocol = protocol(&mut fields, report);
    if let Some(mode) = fields.take("mode") {
        // Both mean the same here: every host listens.
        mode.word(report, "mode", &[("ingress", ()), ("host", ())]);
    }
    if let Some(name) = fields.take("name") {
        name.text(report, "a text");
    }
    fields.refuse(
        report,
        "key",
        &[(
            "host_ip",
            "leave the address out: an external port opens on every host",
        )],
    );
    fields.ignore_extensions();
    fields.finish(
        report,
        &[
            "target",
            "published",
            "protocol",
            "app_protocol",
            "mode",
            "name",
        ],
    );
    Some(Port {
        internal: internal?,
        external: external?,
        protocol: protocol?,
        send_proxy: Announce::default(),
    })
}

/// `protocol`, and `app_protocol: http`, which tells the proxy what travels.
fn protocol(fields: &mut Fields<'_>, report: &mut Report) -> Option<Protocol> {
    let transports = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let transport = fields.take("protocol").map_or(Some(Protocol::Tcp), |v| {
        v.word(report, "protocol", &transports)
    })?;
    let application = fields
        .take("app_protocol")
        .and_then(|v| v.text(report, "a text"));
    if transport == Protocol::Tcp && application == Some("http") {
        return Some(Protocol::Http);
    }
    Some(transport)
}
