//! The proxy and link router that runs on every host.
//!
//! It listens on every external port of the cluster and forwards each connection to wherever
//! the application runs now: directly when that is here, through the [trunk] of the other
//! host's proxy when it is not. At a handoff it parks, drains and reroutes, as its local
//! `migrated` says over the control socket.
//!
//! ```text
//!   client ──► listener ─┐            ┌─► application of this host
//!                        ├─ book ─ serve ─ relay
//!   other proxy ► trunk ─┘            └─► trunk of another host's proxy
//!                 migrated ► control ► keeper ► book, disk, listeners
//! ```
//!
//! Invariant: until an application has accepted, no byte of a client is read; so every failure
//! before that is a wait and not a loss. A header in which a proxy in front of this one announces a
//! client is not the client's: it is read first, and nothing behind it (module `greet`).
//!
//! [trunk]: rehome_shared::trunk

#![forbid(unsafe_code)]

mod accept;
mod book;
mod context;
mod control;
mod course;
mod descriptors;
mod dial;
mod fair;
mod fast;
mod gate;
mod greet;
mod handover;
mod http;
mod keeper;
mod leg;
mod listener;
mod metrics;
mod peers;
mod rarely;
mod ready;
mod relay;
mod reload;
mod seal;
mod serve;
mod settings;
mod socket;
mod sources;
mod start;
mod store;
mod trunk;
mod udp;
mod unread;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proxyd_core::gate::GateError;
use proxyd_core::handover::Hello;
use proxyd_core::tally::End;
use rehome_runtime::report::Report;
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Commit, ConnectionsReply, Drain, GateCounts, GateRef, PortProblem,
    Prepare, ReloadReply, RouteKey, RoutesReply, SetRoutes, Upgrade, UpgradeReply,
};
use rehome_shared::config::daemon::ProxydConfig;
use rehome_shared::ids::AppName;
use tokio::sync::{mpsc, oneshot};

use book::connection::Stage;
use book::orders::Order;
use context::Context;
use keeper::{Desk, GateVerb, Request};
use settings::Settings;
use start::Doors;

pub use fast::{KernelError, Trouble};
pub use handover::{GiveError, TakeError};
pub use keeper::{PortsTaken, Stopping};
pub use reload::{ConfigError, ReloadError, Reloader, check, load};
pub use seal::CertificatesError;
pub use start::StartError;

/// Why a verb was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerbError {
    /// It does not fit the gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The proxy stops.
    #[error(transparent)]
    Stopping(#[from] Stopping),
    /// What the kernel carries is not known, or not as the verb has it. Asked again, the verb is
    /// tried again.
    #[error("the fast path does not follow")]
    Kernel(#[from] KernelError),
}

/// A running proxy. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Proxyd {
    context: Context,
    desk: Desk,
    trunk: SocketAddr,
    metrics: Option<SocketAddr>,
    /// Where the file is read again, once somebody does that.
    reloads: Arc<OnceLock<mpsc::Sender<reload::Ask>>>,
    supervisor: Supervisor,
    doors: Arc<Doors>,
    /// What this process says of itself to a successor.
    hello: Arc<Hello>,
}

impl Proxyd {
    /// Where the trunk listens.
    #[must_use]
    pub fn trunk_addr(&self) -> SocketAddr {
        self.trunk
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Takes over a desired set of routes.
    ///
    /// # Errors
    /// [`Stopping`].
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn set_routes(&self, desired: SetRoutes) -> Result<RoutesReply, VerbError> {
        let set = |answer| Request::Set(desired, answer);
        let reply = self.desk.ask(set).await?;
        Ok(self.with_carriers(reply))
    }

    /// Every route as it is now.
    #[must_use]
    pub fn routes(&self) -> RoutesReply {
        self.with_carriers(self.context.book.routes())
    }

    fn with_carriers(&self, mut reply: RoutesReply) -> RoutesReply {
        if !self.context.carried.is_wanted() {
            return reply;
        }
        for status in &mut reply.routes {
            let route = self.context.book.route(status.key);
            let carried = |route: Arc<_>| self.context.carried.status(status.key, &route);
            status.fast_path = route.and_then(carried);
        }
        reply
    }

    /// Holds new connections of an application from now on.
    ///
    /// # Errors
    /// [`VerbError`] when the gate is unknown or newer.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn prepare(&self, verb: Prepare) -> Result<GateCounts, VerbError> {
        let application = verb.application.clone();
        self.gate(GateVerb::Prepare(verb)).await?;
        self.counts(&application).await
    }

    /// Lets what flows finish, idle connections first.
    ///
    /// # Errors
    /// [`VerbError`] when that is not the handoff that goes on.
    ///
    /// # Cancel safety
    /// Cancel safe: what was closed stays closed.
    pub async fn drain(&self, verb: Drain) -> Result<GateCounts, VerbError> {
        let Drain {
            application,
            version,
            deadline,
        } = verb;
        self.gate(GateVerb::Check(GateRef {
            application: application.clone(),
            version,
        }))
        .await?;
        let (book, carried) = (&self.context.book, &self.context.carried);
        let both = async {
            let relays = gate::drain(book, &application, deadline, gate::IDLE_AFTER);
            if !carried.is_used() {
                return Ok(relays.await);
            }
            let keys = book.keys(&application);
            let (_counts, flows) = tokio::join!(relays, carried.drain(&keys, deadline));
            flows?;
            self.counts(&application).await
        };
        self.unless_handed_over(&application, both).await?
    }

    /// Resets what still flows.
    ///
    /// # Errors
    /// [`VerbError`] when that is not the handoff that goes on.
    ///
    /// # Cancel safety
    /// Cancel safe: the order is given at once.
    pub async fn freeze(&self, verb: GateRef) -> Result<GateCounts, VerbError> {
        let application = verb.application.clone();
        self.gate(GateVerb::Freeze(verb)).await?;
        let (book, carried) = (&self.context.book, &self.context.carried);
        let both = async {
            let relays = gate::freeze(book, &application);
            if !carried.is_used() {
                return Ok(relays.await);
            }
            let keys = book.keys(&application);
            let (_counts, flows) = tokio::join!(relays, carried.cut(&application, &keys));
            flows?;
            self.counts(&application).await
        };
        self.unless_handed_over(&application, both).await?
    }

    /// The counts of an application's gate, with the flows that the kernel carries.
    async fn counts(&self, application: &AppName) -> Result<GateCounts, VerbError> {
        let (book, carried) = (&self.context.book, &self.context.carried);
        if !carried.is_used() {
            return Ok(book.counts(application));
        }
        let flows = carried.flows(&book.keys(application)).await?;
        let over = carried.over(application, flows);
        book.note_flows(application, End::Finished, over.ended);
        book.note_flows(application, End::Cut, over.cut);
        let mut counts = book.counts(application);
        counts.active = counts.active.saturating_add(flows);
        Ok(counts)
    }

    /// A verb that ends what flows answers only where everything is that flows: not in the
    /// middle of a handover, and not while the predecessor still has some of it. `migrated`
    /// asks again.
    async fn unless_handed_over<T>(
        &self,
        application: &AppName,
        verb: impl Future<Output = T>,
    ) -> Result<T, VerbError> {
        if self.context.handover.is_behind(application) {
            return Err(Stopping.into());
        }
        // Both may be dropped: what was ended stays ended.
        tokio::select! {
            biased;
            () = self.context.handover.begun() => Err(Stopping.into()),
            done = verb => Ok(done),
        }
    }

    /// Starts another program of proxyd and hands everything over to it: sockets, clients that
    /// wait, connections. This process then ends by itself, as soon as nothing is left in it.
    ///
    /// # Errors
    /// [`GiveError`]; this process goes on.
    ///
    /// # Cancel safety
    /// A dropped call is still carried out.
    pub async fn upgrade(&self, upgrade: Upgrade) -> Result<UpgradeReply, GiveError> {
        let (answer, answered) = oneshot::channel();
        let proxy = self.clone();
        let task = async move {
            let outcome = handover::hand_over(&proxy, &upgrade).await;
            if let Err(error) = &outcome {
                tracing::error!(error = %Report(error), "not handed over");
            }
            // Before the answer: who has it and asks for something else asks the successor.
            if proxy.has_handed_over() {
                proxy.supervisor.cancel();
            }
            // Who asked may be gone.
            drop(answer.send(outcome));
        };
        self.supervisor
            .spawn("handover", Criticality::Ordinary, task);
        answered.await.unwrap_or(Err(GiveError::Stopping(Stopping)))
    }

    /// Whether everything has gone to a successor, so that this process ends.
    #[must_use]
    pub fn has_handed_over(&self) -> bool {
        self.context.handover.is_over()
    }

    /// Leads somewhere else and lets the held connections go there. The answer does not wait
    /// for them: repeat the verb to see the counts change.
    ///
    /// # Errors
    /// [`VerbError`] when the version is not larger or the targets do not fit.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn commit(&self, verb: Commit) -> Result<GateCounts, VerbError> {
        let application = verb.application.clone();
        self.gate(GateVerb::Commit(verb)).await?;
        self.counts(&application).await
    }

    /// Opens to the old target.
    ///
    /// # Errors
    /// [`VerbError`] when the gate is newer or has no old target.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn rollback(&self, verb: GateRef) -> Result<GateCounts, VerbError> {
        let application: AppName = verb.application.clone();
        self.gate(GateVerb::Rollback(verb)).await?;
        self.counts(&application).await
    }

    /// Live connections.
    #[must_use]
    pub fn connections(&self, route: Option<RouteKey>) -> ConnectionsReply {
        self.context.book.connections(route)
    }

    /// Says which ports could not be listened on.
    ///
    /// # Errors
    /// [`Stopping`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn check_ports(&self, ports: CheckPorts) -> Result<CheckPortsReply, VerbError> {
        Ok(self
            .desk
            .ask(|answer| Request::CheckPorts(ports, answer))
            .await?)
    }

    /// Takes over another configuration: routes of the file, addresses, limits and timeouts.
    /// Connections go on. Sockets, state directory and trunk need a restart. Returns the ports
    /// that this host cannot listen on for `migrated`, and those of the file that it could not
    /// before.
    ///
    /// # Errors
    /// [`ReloadError::Ports`] when a port of the file cannot be had, and [`ReloadError::Stopping`]:
    /// nothing has changed then.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn configure(&self, config: &ProxydConfig) -> Result<Vec<PortProblem>, ReloadError> {
        let config = config.clone();
        // Certificates are files.
        let read = tokio::task::spawn_blocking(move || Settings::load(&config));
        let settings = read.await.map_err(ReloadError::Task)??;
        let settings = Box::new(descriptors::fit(settings));
        let missing = self
            .desk
            .ask(|answer| Request::Configure(settings, answer))
            .await??;
        self.context.book.metrics.reloaded("applied");
        Ok(missing)
    }

    /// Has the configuration file read again.
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    ///
    /// # Cancel safety
    /// A dropped call may still be carried out.
    pub async fn reload(&self) -> Result<ReloadReply, ReloadError> {
        let reloads = self.reloads.get().ok_or(ReloadError::NoFile)?;
        let (ask, answered) = oneshot::channel();
        reloads.send(ask).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)?
    }

    /// Counts a configuration that was wrong and changed nothing.
    pub fn reject_configuration(&self) {
        self.context.book.metrics.reloaded("rejected");
    }

    /// After the listeners have stopped: leaves connections to the process that starts next, where
    /// a service manager keeps them meanwhile.
    ///
    /// # Cancel safety
    /// Not cancel safe: what has stopped would be lost.
    pub async fn leave(&self) {
        handover::leave(self).await;
    }

    /// After the listeners have stopped: who is parked is turned away, idle connections are closed
    /// politely, the others get until `grace`, then everything is reset. After a handover who
    /// waits here waits on, for as long.
    ///
    /// # Cancel safety
    /// Cancel safe: what was closed stays closed.
    pub async fn wind_down(&self, grace: Duration) {
        let book = &self.context.book;
        let last = self.has_handed_over();
        if !last {
            book.turn_newcomers_away();
        }
        let started = std::time::Instant::now();
        // Who was accepted last counts as well.
        let here = || book.connection_count() > 0 || self.context.handover.arrivals() > 0;
        while here() && started.elapsed() < grace {
            let left = grace.saturating_sub(started.elapsed());
            book.order_all(Order::ClosePolitely, |c| match c.stage() {
                // It ends at once, or after the response.
                Stage::Resting | Stage::Answering => true,
                Stage::Relaying => gate::is_to_be_closed(c, gate::IDLE_AFTER, left),
                Stage::Connecting | Stage::Parked => false,
            });
            if !last {
                book.order_all(Order::Stop, |c| c.stage() == Stage::Parked);
            }
            fair::sleep(Duration::from_millis(20)).await;
        }
        book.turn_newcomers_away();
        book.order_all(Order::Stop, |_| true);
    }

    async fn gate(&self, verb: GateVerb) -> Result<(), VerbError> {
        self.desk.ask(|answer| Request::Gate(verb, answer)).await?
    }
}
