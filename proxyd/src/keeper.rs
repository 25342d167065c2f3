//! The one task that changes routes.
//!
//! Requests queue here, so a verb and a new desired set never race, and a client that hangs up
//! in the middle leaves nothing half done. Each change is kept on disk, then published, then
//! the listeners follow. When the disk refuses, the change takes effect all the same and the
//! write is tried again: after a crash this proxy would know an older route, whose application
//! is gone, and would park; refusing the change would stop traffic for certain.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proxyd_core::gate::{Change, GateError};
use proxyd_core::table::RouteTable;
use rehome_runtime::report::Report;
use rehome_runtime::telemetry::Readiness;
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Commit, Gate, GateRef, Prepare, RoutesReply, SetRoutes,
};
use rehome_shared::ids::AppName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::book::log_applied;
use crate::context::Context;
use crate::listener::Listeners;
use crate::settings::Settings;
use crate::store::Store;

/// How often ports that could not be had, unkept routes and leases are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Requests that wait; `migrated` sends one at a time.
const QUEUE: usize = 64;

/// The proxy stops and answers no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proxy is stopping")]
pub struct Stopping;

/// A change that the keeper is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    Set(SetRoutes, oneshot::Sender<RoutesReply>),
    Gate(GateVerb, oneshot::Sender<Result<(), GateError>>),
    CheckPorts(CheckPorts, oneshot::Sender<CheckPortsReply>),
    Configure(Box<Settings>, oneshot::Sender<()>),
}

/// A verb that changes or checks a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GateVerb {
    Prepare(Prepare),
    /// Before a drain or a freeze.
    Check(GateRef),
    Commit(Commit),
    Rollback(GateRef),
}

impl GateVerb {
    fn application(&self) -> &AppName {
        match self {
            Self::Prepare(verb) => &verb.application,
            Self::Commit(verb) => &verb.application,
            Self::Check(verb) | Self::Rollback(verb) => &verb.application,
        }
    }
}

/// Where requests go. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Desk(mpsc::Sender<Request>);

impl Desk {
    /// Hands a request in and waits for its answer.
    ///
    /// # Cancel safety
    /// A request that was handed in is carried out even when the wait is dropped.
    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Stopping> {
        let (answer, answered) = oneshot::channel();
        self.0.send(request(answer)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)
    }
}

/// The keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    context: Context,
    listeners: Listeners,
    store: Store,
    readiness: Readiness,
    requests: mpsc::Receiver<Request>,
    /// The table on disk is older than the one in force.
    unkept: bool,
    /// When `migrated` last spoke of a gate that is parked.
    heard: BTreeMap<AppName, Instant>,
}

impl Keeper {
    pub(crate) fn new(
        context: Context,
        listeners: Listeners,
        store: Store,
        readiness: Readiness,
    ) -> (Self, Desk) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let heard = BTreeMap::new();
        let keeper = Self {
            context,
            listeners,
            store,
            readiness,
            requests,
            unkept: false,
            heard,
        };
        (keeper, Desk(sender))
    }

    /// Puts the first table in force: what was kept, and the file's routes.
    ///
    /// # Cancel safety
    /// Dropping it leaves ports unopened.
    pub(crate) async fn begin(&mut self, mut table: RouteTable) {
        log_applied(&table.apply_file(&self.context.settings().routes));
        self.put_in_force(&table).await;
    }

    /// Serves requests until the stop.
    ///
    /// # Cancel safety
    /// Not cancel safe: a change may be kept and not published. Stop it by its token.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All arms are cancel safe: they only wait.
            tokio::select! {
                () = stop.cancelled() => return,
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                _ = looks.tick() => self.look().await,
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        // An answer that nobody waits for any more is no failure.
        match request {
            Request::Set(desired, answer) => drop(answer.send(self.set(&desired).await)),
            Request::Gate(verb, answer) => drop(answer.send(self.gate(&verb).await)),
            Request::CheckPorts(ports, answer) => {
                let problems = self
                    .listeners
                    .check(&ports.keys, &self.context.book.table());
                drop(answer.send(CheckPortsReply { problems }));
            }
            Request::Configure(settings, answer) => {
                self.configure(*settings).await;
                let _unheard = answer.send(());
            }
        }
    }

    async fn set(&mut self, desired: &SetRoutes) -> RoutesReply {
        let before = self.context.book.table();
        let mut table = before.clone();
        let applied = table.apply(desired);
        log_applied(&applied);
        for route in &desired.routes {
            self.hear(&route.application);
        }
        let gates = |table: &RouteTable, application| {
            table
                .gate(application)
                .is_some_and(|view| view.gate == Gate::Parked)
        };
        for application in desired.routes.iter().map(|route| &route.application) {
            if gates(&table, application) && !gates(&before, application) {
                self.context.book.begin_tally(application);
            }
        }
        if table != before {
            self.change(table).await;
        } else if self.listeners.has_failures() {
            self.listeners.reconcile(&table).await;
        }
        self.context.book.routes()
    }

    async fn gate(&mut self, verb: &GateVerb) -> Result<(), GateError> {
        let mut table = self.context.book.table();
        let application = verb.application();
        let was = table.gate(application).map(|view| view.gate);
        let change = match verb {
            GateVerb::Prepare(verb) => table.prepare(verb)?,
            GateVerb::Check(verb) => {
                table.check_prepared(verb)?;
                Change::Same
            }
            GateVerb::Commit(verb) => table.commit(verb)?,
            GateVerb::Rollback(verb) => table.rollback(verb)?,
        };
        self.hear(application);
        if matches!(verb, GateVerb::Prepare(_)) && was != Some(Gate::Parked) {
            self.context.book.begin_tally(application);
        }
        if change == Change::Changed {
            let gate = table.gate(application);
            tracing::info!(%application, ?gate, "gate changed");
            self.change(table).await;
        }
        Ok(())
    }

    async fn configure(&mut self, settings: Settings) {
        let mut table = self.context.book.table();
        let applied = table.apply_file(&settings.routes);
        log_applied(&applied);
        self.context.set_settings(settings);
        self.put_in_force(&table).await;
    }

    /// Keeps a table and puts it in force.
    async fn change(&mut self, table: RouteTable) {
        self.keep(&table).await;
        self.put_in_force(&table).await;
    }

    async fn put_in_force(&mut self, table: &RouteTable) {
        self.context.peers.set(table.peers());
        self.context.book.publish(table.clone());
        self.listeners.reconcile(table).await;
    }

    async fn keep(&mut self, table: &RouteTable) {
        match self.store.save(table).await {
            Ok(()) => {
                if std::mem::take(&mut self.unkept) {
                    tracing::info!("the routes are kept on disk again");
                    self.readiness.clear("store");
                }
            }
            Err(error) => {
                let error = Report(&error).to_string();
                self.context.book.metrics.store_failures.inc();
                if !std::mem::replace(&mut self.unkept, true) {
                    tracing::error!(error, "the routes are in force but not kept on disk");
                    self.readiness.block("store", error);
                }
            }
        }
    }

    fn hear(&mut self, application: &AppName) {
        self.heard.insert(application.clone(), Instant::now());
    }

    async fn look(&mut self) {
        let table = self.context.book.table();
        if self.unkept {
            self.keep(&table).await;
        }
        if self.listeners.has_failures() {
            self.listeners.reconcile(&table).await;
        }
        self.check_leases(&table);
    }

    /// A lease that ran out is a question, never an answer: the gate stays parked.
    fn check_leases(&mut self, table: &RouteTable) {
        let now = Instant::now();
        let applications: std::collections::BTreeSet<_> = table
            .routes()
            .values()
            .filter_map(|route| route.application())
            .cloned()
            .collect();
        self.heard
            .retain(|application, _| applications.contains(application));
        for application in applications {
            let Some(lease) = table.gate(&application).and_then(|view| view.lease) else {
                continue;
            };
            // After a restart the lease begins anew.
            let heard = self.heard.entry(application.clone()).or_insert(now);
            if now.saturating_duration_since(*heard) >= lease {
                *heard = now;
                self.context.book.metrics.leases_expired.inc();
                tracing::warn!(%application, "nobody spoke of a parked gate for its whole lease");
            }
        }
    }
}
