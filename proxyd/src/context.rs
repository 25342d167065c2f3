//! What every part of the data plane shares.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rehome_runtime::supervise::Supervisor;
use rehome_shared::ids::HostAddr;

use crate::book::Book;
use crate::fast::Carried;
use crate::handover::Handover;
use crate::peers::Peers;
use crate::ready::Ready;
use crate::relay::Stores;
use crate::settings::Settings;
use crate::sources::Sources;
use crate::udp::Room;

/// The shared parts. Clones share: every connection has one.
#[derive(Debug, Clone)]
pub(crate) struct Context(Arc<Parts>);

/// What a [`Context`] leads to.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) book: Arc<Book>,
    pub(crate) peers: Peers,
    pub(crate) ready: Ready,
    pub(crate) stores: Stores,
    pub(crate) udp_room: Room,
    pub(crate) sources: Sources,
    pub(crate) handover: Handover,
    /// What the kernel carries.
    pub(crate) carried: Arc<Carried>,
    /// Owns one task per connection.
    pub(crate) connections: Supervisor,
    settings: ArcSwap<Settings>,
}

impl Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Context {
    pub(crate) fn new(book: Arc<Book>, settings: Settings, supervisor: &Supervisor) -> Self {
        Self(Arc::new(Parts {
            peers: Peers::default(),
            ready: Ready::default(),
            stores: Stores::new(settings.relay_bytes, settings.pipe_bytes, &book.metrics),
            sources: Sources::new(settings.per_source),
            book,
            udp_room: Room::new(settings.udp_sessions),
            handover: Handover::default(),
            carried: Arc::new(Carried::new()),
            connections: supervisor.group(),
            settings: ArcSwap::from_pointee(settings),
        }))
    }
}

impl Parts {
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub(crate) fn set_settings(&self, settings: Settings) {
        self.book.set_limits(settings.limits);
        self.sources.set_limit(settings.per_source);
        self.stores
            .set_limits(settings.relay_bytes, settings.pipe_bytes);
        self.settings.store(Arc::new(settings));
        // The certificates were read again.
        self.ready.clear();
    }

    /// This host's name, from `migrated` or from the file.
    pub(crate) fn host(&self) -> Option<HostAddr> {
        self.book.host().or_else(|| self.settings().host.clone())
    }
}

#[cfg(test)]
impl Context {
    /// Of a file that says no more than it must, for tests.
    pub(crate) fn of_file(
        adjust: impl FnOnce(&mut rehome_shared::config::daemon::ProxydConfig),
    ) -> Self {
        use rehome_shared::config::daemon;

        let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = daemon::ProxydConfig {
            host: None,
            socket: "socket".into(),
            state: "state".into(),
            metrics: nowhere,
            log: daemon::Log::default(),
            trunk: daemon::Trunk {
                listen: nowhere,
                ..daemon::Trunk::default()
            },
            listen: daemon::ListenOn::default(),
            proxy_protocol: daemon::ProxyProtocol::default(),
            fast_path: daemon::FastPath::Off,
            limits: daemon::ProxydLimits::default(),
            timeouts: daemon::ProxydTimeouts::default(),
            routes: Vec::new(),
        };
        adjust(&mut config);
        let settings = Settings::load(&config).unwrap();
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Arc::new(crate::metrics::Metrics::new(&mut registry));
        let book = Book::new(settings.limits, metrics);
        Self::new(book, settings, &Supervisor::new())
    }
}
