//! What the configuration file decides for the data plane. A reload replaces it as a whole;
//! connections keep what they started with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use proxyd_core::fast::Policy;
use proxyd_core::limits::Limits;
use proxyd_core::table::FileRoute;
use rehome_shared::api::proxy::{ParkLimits, RouteKey, Target};
use rehome_shared::config::daemon::{
    AcceptProxy, FastPath, ListenOn, ProxyProtocol, ProxydConfig, ProxydTimeouts, StaticRoute,
};
use rehome_shared::ids::HostAddr;

use crate::seal::{CertificatesError, Seal};

/// Enough for four each way with 256 hosts.
const READY_PLACES: usize = 1024;

/// The settings in force.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// This host's name, where the file has it.
    pub(crate) host: Option<HostAddr>,
    pub(crate) listen: ListenOn,
    /// Who announces clients.
    proxy_protocol: ProxyProtocol,
    /// Routes of the file whose clients nobody announces.
    unannounced: BTreeSet<RouteKey>,
    pub(crate) limits: Limits,
    /// What the kernel may carry.
    pub(crate) fast_path: Policy,
    /// Connections of one client address.
    pub(crate) per_source: Option<NonZeroU32>,
    pub(crate) timeouts: ProxydTimeouts,
    pub(crate) trunk_connect: Duration,
    /// How trunks are sealed, where they are.
    pub(crate) seal: Option<Seal>,
    /// Sealed connections that this host keeps ready, and as many again that others keep ready
    /// here.
    pub(crate) ready_places: usize,
    pub(crate) udp_sessions: usize,
    /// What buffers and pipes may hold together between a read and a write.
    pub(crate) relay_bytes: usize,
    /// What pipes may hold together.
    pub(crate) pipe_bytes: usize,
    /// How long a trunk connection may wait for a route that this host does not know yet.
    pub(crate) unknown_route: Duration,
    /// Routes of the file.
    pub(crate) routes: BTreeMap<RouteKey, FileRoute>,
}

impl Settings {
    /// What a file says, with the certificates that it names. Blocks.
    ///
    /// # Errors
    /// [`CertificatesError`].
    pub(crate) fn load(config: &ProxydConfig) -> Result<Self, CertificatesError> {
        let tls = config.trunk.tls.as_ref();
        let seal = tls.map(|tls| Seal::load(tls, config.host.as_ref()));
        let seal = seal.transpose()?;
        let limits = &config.limits;
        let park = ParkLimits {
            park_limit: limits.parked,
            park_timeout: limits.park_timeout,
        };
        let route = |route: &StaticRoute| {
            let key = RouteKey::new(route.external, route.protocol);
            (
                key,
                FileRoute {
                    target: Target::Local {
                        addr: route.backend,
                    },
                    limits: park,
                    content: route.protocol.into(),
                    announce: route.send_proxy,
                },
            )
        };
        if let Some(network) = config.proxy_protocol.everybody() {
            tracing::warn!(%network, "whoever connects may announce itself as any client");
        }
        Ok(Self {
            host: config.host.clone(),
            listen: config.listen.clone(),
            proxy_protocol: config.proxy_protocol.clone(),
            unannounced: config.routes.iter().filter_map(unannounced).collect(),
            fast_path: fast_path(config),
            limits: Limits {
                connections: u64::from(limits.connections),
                per_route: u64::from(limits.per_route),
                parked_bytes: limits.parked_bytes.0,
            },
            per_source: limits.per_source,
            timeouts: config.timeouts,
            trunk_connect: config.trunk.connect_timeout,
            seal,
            ready_places: READY_PLACES,
            udp_sessions: usize::try_from(limits.udp_sessions).unwrap_or(usize::MAX),
            relay_bytes: usize::try_from(limits.relay_bytes.0).unwrap_or(usize::MAX),
            pipe_bytes: usize::try_from(limits.pipe_bytes.0).unwrap_or(usize::MAX),
            unknown_route: limits.park_timeout,
            routes: config.routes.iter().map(route).collect(),
        })
    }
}

fn unannounced(route: &StaticRoute) -> Option<RouteKey> {
    let key = RouteKey::new(route.external, route.protocol);
    (route.accept_proxy == AcceptProxy::Off).then_some(key)
}

impl Settings {
    /// Whether a connection from this address begins with a header that announces its client.
    pub(crate) fn announces(&self, route: RouteKey, address: IpAddr) -> bool {
        self.proxy_protocol.announces(address) && !self.unannounced.contains(&route)
    }

    /// The most that such a header may take.
    pub(crate) fn header_timeout(&self) -> Duration {
        self.proxy_protocol.header_timeout
    }
}

fn fast_path(config: &ProxydConfig) -> Policy {
    let timeouts = &config.timeouts;
    let kept_out = config.routes.iter();
    let kept_out = kept_out.filter(|route| route.fast_path == FastPath::Off);
    Policy {
        wanted: config.fast_path == FastPath::Auto,
        per_connection: config.limits.per_source.is_some()
            || timeouts.idle.is_some()
            || timeouts.lifetime.is_some(),
        announced: !config.proxy_protocol.accept_from.is_empty(),
        unannounced: config.routes.iter().filter_map(unannounced).collect(),
        kept_out: kept_out
            .map(|route| RouteKey::new(route.external, route.protocol))
            .collect(),
    }
}
