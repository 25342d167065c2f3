//! What Prometheus sees of each route, told when it asks: nothing is kept up to date for it in
//! between, and a route that nobody uses costs nothing.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use proxyd_core::table::{Owner, Phase, Route};
use rehome_shared::api::proxy::{Content, Target};
use rehome_shared::ids::HostAddr;

use super::RouteMeters;
use crate::book::Book;
use crate::book::status::Glimpse;

/// The metrics of every route.
#[derive(Debug)]
pub(crate) struct RouteMetrics(pub(crate) Arc<Book>);

impl Collector for RouteMetrics {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let (host, routes) = (self.0.host(), self.0.glimpse());
        let routes: Vec<Shown> = routes.into_iter().map(Shown::from).collect();
        ends(&mut to, &routes)?;
        gauge(
            &mut to,
            ("proxy_connections_active", "Connections whose bytes flow."),
            routes.iter().filter(|shown| shown.is_used()),
            |shown| shown.seen.counts.active,
        )?;
        gauge(
            &mut to,
            (
                "proxy_connections_parked",
                "Connections that wait for their application.",
            ),
            routes.iter().filter(|shown| shown.is_used()),
            |shown| shown.seen.counts.parked,
        )?;
        gauge(
            &mut to,
            (
                "proxy_connections_resting",
                "HTTP connections without a request in flight.",
            ),
            routes.iter().filter(|shown| shown.is_http()),
            |shown| shown.seen.counts.resting,
        )?;
        gauge(
            &mut to,
            (
                "proxy_newcomers",
                "Connections whose PROXY header is not there yet.",
            ),
            routes.iter().filter(|shown| shown.is_used()),
            |shown| shown.seen.counts.newcomers,
        )?;
        requests(&mut to, &routes)?;
        bytes(&mut to, &routes)?;
        info(&mut to, &routes, host.as_ref())
    }
}

struct Shown {
    name: String,
    seen: Glimpse,
}

impl From<Glimpse> for Shown {
    fn from(seen: Glimpse) -> Self {
        Self {
            name: seen.key.to_string(),
            seen,
        }
    }
}

impl Shown {
    /// A gate that is closed and never was anything else has no traffic to be shown.
    fn is_used(&self) -> bool {
        self.seen.meters.is_some() || self.seen.route.phase != Phase::Closed
    }

    fn is_http(&self) -> bool {
        self.is_used() && self.seen.route.content == Content::Http
    }
}

fn requests(to: &mut DescriptorEncoder<'_>, routes: &[Shown]) -> fmt::Result {
    let help = "HTTP requests passed on.";
    let mut family = to.encode_descriptor("proxy_requests", help, None, MetricType::Counter)?;
    for shown in routes.iter().filter(|shown| shown.is_http()) {
        let meters = shown.seen.meters.as_ref();
        let requests = meters.map_or(0, |meters| meters.requests.get());
        let labels = [("route", shown.name.as_str())];
        let mut line = family.encode_family(&labels)?;
        line.encode_counter::<NoLabelSet, _, u64>(&requests, None)?;
    }
    Ok(())
}

fn ends(to: &mut DescriptorEncoder<'_>, routes: &[Shown]) -> fmt::Result {
    let help = "Connections that ended, by how.";
    let mut family = to.encode_descriptor("proxy_connections", help, None, MetricType::Counter)?;
    for shown in routes {
        let Some(meters) = &shown.seen.meters else {
            continue;
        };
        // Most ends never happen, and each would be a line of its own for every route.
        for (end, count) in meters.ends().filter(|(_, count)| *count > 0) {
            let labels = [("route", shown.name.as_str()), ("result", end.as_str())];
            let mut line = family.encode_family(&labels)?;
            line.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    Ok(())
}

fn bytes(to: &mut DescriptorEncoder<'_>, routes: &[Shown]) -> fmt::Result {
    let help = "Bytes passed on; in is from clients.";
    let mut family = to.encode_descriptor("proxy_bytes", help, None, MetricType::Counter)?;
    for shown in routes.iter().filter(|shown| shown.is_used()) {
        let meters = shown.seen.meters.as_ref();
        let count = |of: fn(&RouteMeters) -> u64| meters.map_or(0, |meters| of(meters));
        let directions = [
            ("in", count(|meters| meters.bytes_in.get())),
            ("out", count(|meters| meters.bytes_out.get())),
        ];
        for (direction, bytes) in directions {
            let labels = [("route", shown.name.as_str()), ("direction", direction)];
            let mut line = family.encode_family(&labels)?;
            line.encode_counter::<NoLabelSet, _, u64>(&bytes, None)?;
        }
    }
    Ok(())
}

fn info(to: &mut DescriptorEncoder<'_>, routes: &[Shown], host: Option<&HostAddr>) -> fmt::Result {
    let help = "What each route leads to; always 1.";
    let mut family = to.encode_descriptor("route_info", help, None, MetricType::Gauge)?;
    for shown in routes {
        let route = &shown.seen.route;
        let epoch = route.version.epoch.to_string();
        let labels = [
            ("route", shown.name.as_str()),
            ("host", leads_to(route, host)),
            ("gate", route.phase.gate().as_str()),
            ("epoch", epoch.as_str()),
        ];
        family.encode_family(&labels)?.encode_gauge(&1_i64)?;
    }
    Ok(())
}

fn gauge<'a>(
    to: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    routes: impl Iterator<Item = &'a Shown>,
    value: impl Fn(&Shown) -> u64,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for shown in routes {
        let labels = [("route", shown.name.as_str())];
        let value = i64::try_from(value(shown)).unwrap_or(i64::MAX);
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

/// The host that serves the route, where one is known to.
fn leads_to<'a>(route: &'a Route, here: Option<&'a HostAddr>) -> &'a str {
    match (&route.phase, &route.owner) {
        (Phase::Open(Target::Remote { host, .. }), _) => host.as_str(),
        (Phase::Open(Target::Local { .. }), Owner::Application(_)) => {
            here.map_or("", HostAddr::as_str)
        }
        (Phase::Open(Target::Local { .. }) | Phase::Parked(_) | Phase::Closed, _) => "",
    }
}
