//! The way between proxyds: the section `trunk` of `proxyd.yml`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::super::quantity::positive_duration;
use super::super::read::{At, Fields, Report};
use super::clients::networks;
use super::settings::{address_or, tls_files};
use super::{TRUNK_PORT, TlsFiles};
use crate::network::Network;

/// The keys of the section.
pub(super) const KEYS: [&str; 3] = ["listen", "connect_timeout", "tls"];
const TLS: [&str; 7] = [
    "ca",
    "certificate",
    "key",
    "send",
    "accept",
    "plain",
    "ready",
];

/// The most connections that may be kept ready for a host. The other side counts on it.
pub const MOST_READY: u32 = 64;

/// The way between proxyds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trunk {
    /// Where this proxyd listens for the others.
    pub listen: SocketAddr,
    /// The most a connect to another proxyd may take.
    pub connect_timeout: Duration,
    /// How traffic between hosts is sealed; absent where it is plain.
    pub tls: Option<TrunkTls>,
}

impl Default for Trunk {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), TRUNK_PORT),
            connect_timeout: Duration::from_secs(2),
            tls: None,
        }
    }
}

/// Mutual TLS between proxyds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkTls {
    /// This host's identity and whom it trusts.
    pub files: TlsFiles,
    /// What this host sends.
    pub send: Sent,
    /// What it accepts.
    pub accept: Accepted,
    /// Networks that are trusted: to and from them trunks are plain.
    pub plain: Vec<Network>,
    /// Connections that are kept ready for each host that traffic goes to, so that a new one pays
    /// for no handshake; at most [`MOST_READY`].
    pub ready: u32,
}

/// The form of trunk connections that a host opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sent {
    /// TLS, but to trusted networks.
    #[default]
    Tls,
    /// Plain, while there are hosts that accept nothing else.
    Plain,
}

/// The form of trunk connections that a host accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accepted {
    /// TLS, and plain ones from trusted networks.
    #[default]
    Tls,
    /// Either, while there are hosts that send plain ones.
    Both,
}

/// The section `trunk`.
pub(super) fn trunk(fields: &mut Fields<'_>, report: &mut Report) -> Trunk {
    let default = Trunk::default();
    Trunk {
        listen: address_or(fields, report, "listen", default.listen),
        connect_timeout: fields
            .take("connect_timeout")
            .and_then(|at| positive_duration(&at, report))
            .unwrap_or(default.connect_timeout),
        tls: fields.take("tls").and_then(|at| tls(&at, report)),
    }
}

fn tls(at: &At<'_>, report: &mut Report) -> Option<TrunkTls> {
    let cure = "write tls: {ca: FILE, certificate: FILE, key: FILE}";
    let mut fields = at.mapping(report, "a mapping of ca, certificate and key")?;
    let files = tls_files(&mut fields, report, cure);
    let send = fields.take("send").map_or(Some(Sent::default()), |at| {
        let words = [("tls", Sent::Tls), ("plain", Sent::Plain)];
        at.word(report, "send", &words)
    });
    let accept = fields
        .take("accept")
        .map_or(Some(Accepted::default()), |at| {
            let words = [("tls", Accepted::Tls), ("both", Accepted::Both)];
            at.word(report, "accept", &words)
        });
    let plain = fields
        .take("plain")
        .map_or_else(Vec::new, |at| networks(&at, report));
    let ready = fields.take("ready").map_or(Some(4), |at| {
        let few = at.integer(report, 0..=i128::from(MOST_READY), "ready")?;
        u32::try_from(few).ok()
    });
    fields.finish(report, &TLS);
    Some(TrunkTls {
        files: files?,
        send: send?,
        accept: accept?,
        plain,
        ready: ready?,
    })
}
