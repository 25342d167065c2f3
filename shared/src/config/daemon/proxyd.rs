//! `proxyd.yml`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::super::network::PROTOCOLS;
use super::super::problem::{Problem, Source};
use super::super::quantity::{duration, positive_duration, size};
use super::super::read::{At, Fields, Report};
use super::clients;
use super::settings::{address_or, host, log, path_or, read, section, socket_address};
use super::{
    FastPath, ListenOn, PROXYD_SOCKET, ProxydConfig, ProxydLimits, ProxydTimeouts, StaticRoute,
    localhost, trunk,
};
use crate::ids::Protocol;
use crate::units::Bytes;

const KEYS: [&str; 13] = [
    "version",
    "host",
    "socket",
    "state",
    "metrics",
    "log",
    "trunk",
    "listen",
    "proxy_protocol",
    "fast_path",
    "limits",
    "timeouts",
    "routes",
];
const LIMITS: [&str; 9] = [
    "connections",
    "per_route",
    "per_source",
    "parked",
    "park_timeout",
    "parked_bytes",
    "udp_sessions",
    "relay_bytes",
    "pipe_bytes",
];
const TIMEOUTS: [&str; 7] = [
    "connect",
    "half_close",
    "idle",
    "lifetime",
    "udp_idle",
    "keepalive",
    "user_timeout",
];
const ROUTE: [&str; 6] = [
    "external",
    "protocol",
    "backend",
    "fast_path",
    "accept_proxy",
    "send_proxy",
];

/// Reads `proxyd.yml`.
///
/// # Errors
/// Every problem of the file, in its order.
pub fn proxyd_config(source: &Source) -> Result<ProxydConfig, Vec<Problem>> {
    read(source, &KEYS, |fields, report| Some(build(fields, report)))
}

fn build(fields: &mut Fields<'_>, report: &mut Report) -> ProxydConfig {
    ProxydConfig {
        host: fields.take("host").and_then(|at| host(&at, report)),
        socket: path_or(fields, report, "socket", PROXYD_SOCKET),
        state: path_or(fields, report, "state", "/var/lib/rehome/proxyd"),
        metrics: address_or(fields, report, "metrics", localhost(9421)),
        log: log(fields, report),
        trunk: section(fields, report, "trunk", &trunk::KEYS, trunk::trunk),
        listen: fields
            .take("listen")
            .map_or_else(ListenOn::default, |at| listen(&at, report)),
        proxy_protocol: section(
            fields,
            report,
            "proxy_protocol",
            &clients::KEYS,
            clients::proxy_protocol,
        ),
        fast_path: fast_path(fields, report, FastPath::Off).unwrap_or(FastPath::Off),
        limits: section(fields, report, "limits", &LIMITS, limits),
        timeouts: section(fields, report, "timeouts", &TIMEOUTS, timeouts),
        routes: fields
            .take("routes")
            .map_or_else(Vec::new, |at| routes(&at, report)),
    }
}

/// A time greater than zero at a key, or the default.
fn wait(fields: &mut Fields<'_>, report: &mut Report, key: &str, default: Duration) -> Duration {
    fields
        .take(key)
        .and_then(|at| positive_duration(&at, report))
        .unwrap_or(default)
}

/// A time at a key that has no limit by default; neither has zero.
fn limit(fields: &mut Fields<'_>, report: &mut Report, key: &str) -> Option<Duration> {
    fields
        .take(key)
        .and_then(|at| duration(&at, report))
        .filter(|time| !time.is_zero())
}

fn listen(at: &At<'_>, report: &mut Report) -> ListenOn {
    let items = at.list(
        report,
        "a list of addresses, for example [\"0.0.0.0\", \"::\"]",
    );
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(items.len());
    for item in &items {
        let address = item.parsed(report, "an IPv4 or IPv6 address without a port", |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not an address"))
        });
        match address {
            Some(address) if addresses.contains(&address) => {
                report.problem(
                    &item.place,
                    format!("{address} stands twice"),
                    "keep one of them",
                );
            }
            Some(address) => addresses.push(address),
            None => {}
        }
    }
    if addresses.is_empty() {
        report.problem(
            &at.place,
            "no address to listen on",
            "write at least one, or leave 'listen' out to listen on all",
        );
        return ListenOn::DualStack;
    }
    ListenOn::Addresses(addresses)
}

fn limits(fields: &mut Fields<'_>, report: &mut Report) -> ProxydLimits {
    let default = ProxydLimits::default();
    let mut count = |key: &str, default: u32| {
        fields
            .take(key)
            .and_then(|at| at.count(report, 1, key))
            .unwrap_or(default)
    };
    let (connections, per_route) = (
        count("connections", default.connections),
        count("per_route", default.per_route),
    );
    let (parked, udp_sessions) = (
        count("parked", default.parked),
        count("udp_sessions", default.udp_sessions),
    );
    let per_source = fields
        .take("per_source")
        .and_then(|at| at.count(report, 0, "per_source"))
        .map_or(default.per_source, NonZeroU32::new);
    let park_timeout = wait(fields, report, "park_timeout", default.park_timeout);
    let mut bytes = |key: &str, default: Bytes| {
        fields
            .take(key)
            .and_then(|at| size(&at, report, key))
            .unwrap_or(default)
    };
    ProxydLimits {
        connections,
        per_route,
        per_source,
        parked,
        park_timeout,
        parked_bytes: bytes("parked_bytes", default.parked_bytes),
        udp_sessions,
        relay_bytes: bytes("relay_bytes", default.relay_bytes),
        pipe_bytes: bytes("pipe_bytes", default.pipe_bytes),
    }
}

fn timeouts(fields: &mut Fields<'_>, report: &mut Report) -> ProxydTimeouts {
    let default = ProxydTimeouts::default();
    ProxydTimeouts {
        connect: wait(fields, report, "connect", default.connect),
        half_close: wait(fields, report, "half_close", default.half_close),
        idle: limit(fields, report, "idle"),
        lifetime: limit(fields, report, "lifetime"),
        udp_idle: wait(fields, report, "udp_idle", default.udp_idle),
        keepalive: wait(fields, report, "keepalive", default.keepalive),
        user_timeout: wait(fields, report, "user_timeout", default.user_timeout),
    }
}

fn fast_path(fields: &mut Fields<'_>, report: &mut Report, default: FastPath) -> Option<FastPath> {
    let words = [("auto", FastPath::Auto), ("off", FastPath::Off)];
    fields.take("fast_path").map_or(Some(default), |at| {
        // YAML 1.1 takes an unquoted `off` for a boolean; here it can only be the word.
        if at.value.scalar_text() == Some("off") {
            return Some(FastPath::Off);
        }
        at.word(report, "fast_path", &words)
    })
}

fn routes(at: &At<'_>, report: &mut Report) -> Vec<StaticRoute> {
    let mut taken: BTreeMap<(u16, bool), usize> = BTreeMap::new();
    let mut routes = Vec::new();
    for item in at.list(report, "a list of routes") {
        let Some(route) = route(&item, report) else {
            continue;
        };
        let transport = (route.external, route.protocol == Protocol::Udp);
        if let Some(line) = taken.insert(transport, item.place.line) {
            report.problem(
                &item.place,
                format!(
                    "external port {} is already used in line {line}",
                    route.external
                ),
                "give each route an external port of its own",
            );
        }
        routes.push(route);
    }
    routes
}

fn route(at: &At<'_>, report: &mut Report) -> Option<StaticRoute> {
    let mut fields = at.mapping(
        report,
        "a mapping, for example {external: 8080, backend: \"10.0.0.5:80\"}",
    )?;
    let external = fields
        .require(report, "external", "write the port that clients connect to")
        .and_then(|at| at.port(report, "the external port"));
    let backend = fields
        .require(
            report,
            "backend",
            "write the address and port that the route leads to",
        )
        .and_then(|at| {
            let address = socket_address(&at, report)?;
            if address.port() == 0 {
                report.problem(
                    &at.place,
                    "the backend has port 0",
                    "write a port from 1 to 65535",
                );
                return None;
            }
            Some(address)
        });
    let protocol = fields.take("protocol").map_or(Some(Protocol::Tcp), |at| {
        at.word(report, "protocol", &PROTOCOLS)
    });
    let fast_path = fast_path(&mut fields, report, FastPath::Auto);
    let (accept_proxy, send_proxy) = clients::of_route(&mut fields, report, protocol);
    fields.finish(report, &ROUTE);
    Some(StaticRoute {
        external: external?,
        protocol: protocol?,
        backend: backend?,
        fast_path: fast_path?,
        accept_proxy: accept_proxy?,
        send_proxy: send_proxy?,
    })
}
