//! How clients are announced to `proxyd`: the keys about the PROXY protocol.

use std::net::IpAddr;
use std::time::Duration;

use super::super::quantity::positive_duration;
use super::super::read::{At, Fields, Report};
use crate::api::proxy::Announce;
use crate::ids::Protocol;
use crate::network::Network;

/// The keys of the section.
pub(super) const KEYS: [&str; 2] = ["accept_from", "header_timeout"];

/// The most that a header may take: what a client sends meanwhile lies in its socket, uncounted.
const LONGEST_HEADER: Duration = Duration::from_mins(1);

/// Who says in front of their bytes who the client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Every TCP connection from these networks begins with a PROXY header, and one that does not
    /// is refused. Nobody else is asked for one.
    pub accept_from: Vec<Network>,
    /// The most that a header may take to arrive.
    pub header_timeout: Duration,
}

impl Default for ProxyProtocol {
    fn default() -> Self {
        Self {
            accept_from: Vec::new(),
            header_timeout: Duration::from_secs(5),
        }
    }
}

impl ProxyProtocol {
    /// Whether a connection from this address begins with a header.
    #[must_use]
    pub fn announces(&self, address: IpAddr) -> bool {
        self.accept_from.iter().any(|n| n.contains(address))
    }

    /// A network of these that has every address there is.
    #[must_use]
    pub fn everybody(&self) -> Option<Network> {
        self.accept_from.iter().find(|n| n.is_everything()).copied()
    }
}

/// Who announces the clients of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceptProxy {
    /// Those of [`ProxyProtocol::accept_from`].
    #[default]
    Auto,
    /// Nobody: every connection is its client's own.
    Off,
}

/// The section `proxy_protocol`.
pub(super) fn proxy_protocol(fields: &mut Fields<'_>, report: &mut Report) -> ProxyProtocol {
    let default = ProxyProtocol::default();
    ProxyProtocol {
        accept_from: fields
            .take("accept_from")
            .map_or(default.accept_from, |at| networks(&at, report)),
        header_timeout: fields
            .take("header_timeout")
            .and_then(|at| header_timeout(&at, report))
            .unwrap_or(default.header_timeout),
    }
}

fn header_timeout(at: &At<'_>, report: &mut Report) -> Option<Duration> {
    let value = positive_duration(at, report)?;
    if value <= LONGEST_HEADER {
        return Some(value);
    }
    report.problem(
        &at.place,
        "a header may take one minute at most",
        "write for example 5s: a proxy in front sends it at once",
    );
    None
}

/// A list of networks.
pub(super) fn networks(at: &At<'_>, report: &mut Report) -> Vec<Network> {
    let items = at.list(report, "a list of networks, for example [\"10.0.0.5\"]");
    let read = |item: &At<'_>| item.parsed(report, "a network", str::parse);
    items.iter().filter_map(read).collect()
}

/// The keys of a route.
pub(super) fn of_route(
    fields: &mut Fields<'_>,
    report: &mut Report,
    protocol: Option<Protocol>,
) -> (Option<AcceptProxy>, Option<Announce>) {
    let accept = fields
        .take("accept_proxy")
        .map(|at| accept_proxy(&at, report, protocol));
    let send = fields
        .take("send_proxy")
        .map(|at| send_proxy(&at, report, protocol));
    (
        accept.unwrap_or(Some(AcceptProxy::default())),
        send.unwrap_or(Some(Announce::default())),
    )
}

fn accept_proxy(
    at: &At<'_>,
    report: &mut Report,
    protocol: Option<Protocol>,
) -> Option<AcceptProxy> {
    if protocol == Some(Protocol::Udp) {
        report.problem(
            &at.place,
            "nobody announces clients that send datagrams",
            "leave accept_proxy out, or use protocol: tcp",
        );
        return None;
    }
    let words = [("auto", AcceptProxy::Auto), ("off", AcceptProxy::Off)];
    word(at, report, "accept_proxy", &words)
}

/// What is to be told of each client in front of its bytes.
pub(in super::super) fn send_proxy(
    at: &At<'_>,
    report: &mut Report,
    protocol: Option<Protocol>,
) -> Option<Announce> {
    let words = [("v2", Announce::ProxyV2), ("off", Announce::Nothing)];
    let send = word(at, report, "send_proxy", &words)?;
    if send == Announce::ProxyV2 && protocol == Some(Protocol::Udp) {
        report.problem(
            &at.place,
            "datagrams have no header in front",
            "leave send_proxy out, or use protocol: tcp",
        );
        return None;
    }
    Some(send)
}

/// One of some words. YAML 1.1 takes an unquoted `off` for a boolean; here it can only be the word.
fn word<T: Copy>(at: &At<'_>, report: &mut Report, what: &str, words: &[(&str, T)]) -> Option<T> {
    let off = words.iter().find(|(word, _)| *word == "off");
    match off.filter(|_| at.value.scalar_text() == Some("off")) {
        Some((_, off)) => Some(*off),
        None => at.word(report, what, words),
    }
}
