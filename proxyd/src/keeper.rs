//! The one task that changes routes.
//!
//! Requests queue here, so a verb and a new desired set never race, and a client that hangs up
//! in the middle leaves nothing half done. The table is the keeper's; each change of it is kept on
//! disk, then published, then the listeners follow, each by what changed and not by all of the
//! table. When the disk refuses, the change takes effect all the same and the
//! write is tried again: after a crash this proxy would know an older route, whose application
//! is gone, and would park; refusing the change would stop traffic for certain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::handover::Terms;
use proxyd_core::reload::Place;
use proxyd_core::table::{Changes, RouteTable};
use rehome_runtime::failpoint;
use rehome_runtime::report::Report;
use rehome_runtime::telemetry::Readiness;
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Commit, Gate, GateRef, PortProblem, Prepare, RoutesReply,
    SetRoutes,
};
use rehome_shared::ids::AppName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::VerbError;
use crate::book::{log_applied, log_changes};
use crate::context::Context;
use crate::fast::{Fast, KernelError, Trouble};
use crate::handover::Equipment;
use crate::listener::Listeners;
use crate::settings::Settings;
use crate::store::{KeepError, Store};

/// How often ports that could not be had, unkept routes and leases are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Requests that wait; `migrated` sends one at a time.
const QUEUE: usize = 64;

/// The proxy stops and answers no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proxy is stopping")]
pub struct Stopping;

/// Ports of the configuration file that cannot be had; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", said(.0))]
pub struct PortsTaken(pub Vec<PortProblem>);

fn said(problems: &[PortProblem]) -> String {
    let reasons: Vec<&str> = problems.iter().map(|p| p.reason.as_str()).collect();
    reasons.join("\n")
}

/// A change that the keeper is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    Set(SetRoutes, oneshot::Sender<RoutesReply>),
    Gate(GateVerb, oneshot::Sender<Result<(), VerbError>>),
    CheckPorts(CheckPorts, oneshot::Sender<CheckPortsReply>),
    Configure(
        Box<Settings>,
        oneshot::Sender<Result<Vec<PortProblem>, PortsTaken>>,
    ),
    HandOver(HandOver),
}

/// A step of the handover to a successor.
#[derive(Debug)]
pub(crate) enum HandOver {
    /// Change nothing any more and say what there is: until the handover has failed, or this
    /// process has ended, every other request is answered by [`Stopping`].
    /// A successor that does not know of a fast path gets none.
    Freeze(Terms, oneshot::Sender<Result<Equipment, Trouble>>),
    /// Accept nobody any more; the answer says whether that is certain.
    Pause(oneshot::Sender<bool>),
    /// It has failed: accept and change again.
    GoOn(oneshot::Sender<()>),
}

/// A verb that changes or checks a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GateVerb {
    Prepare(Prepare),
    /// Before a drain.
    Check(GateRef),
    /// Before a freeze: what the kernel carries stops now.
    Freeze(GateRef),
    Commit(Commit),
    Rollback(GateRef),
}

impl GateVerb {
    fn application(&self) -> &AppName {
        match self {
            Self::Prepare(verb) => &verb.application,
            Self::Commit(verb) => &verb.application,
            Self::Check(verb) | Self::Freeze(verb) | Self::Rollback(verb) => &verb.application,
        }
    }

    /// Its word in the names of fail points.
    fn word(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Check(_) | Self::Freeze(_) => "check",
            Self::Commit(_) => "commit",
            Self::Rollback(_) => "rollback",
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

    /// Waits until requests are answered no more, and the ports are left.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// The keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    context: Context,
    table: RouteTable,
    listeners: Listeners,
    store: Store,
    fast: Fast,
    readiness: Readiness,
    requests: mpsc::Receiver<Request>,
    /// A successor takes over.
    frozen: bool,
    /// The table came from a predecessor, and is kept in its form.
    adopted: bool,
    /// The table on disk is older than the one in force.
    unkept: bool,
    /// Of the gates that were prepared and are parked.
    leases: BTreeMap<AppName, Lease>,
}

/// The lease of a gate.
#[derive(Debug)]
struct Lease {
    length: Duration,
    /// When `migrated` last spoke of the gate.
    heard: Instant,
}

impl Keeper {
    pub(crate) fn new(
        context: Context,
        listeners: Listeners,
        store: Store,
        readiness: Readiness,
    ) -> (Self, Desk) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let carried = Arc::clone(&context.carried);
        let fast = Fast::new(carried, &context.settings(), store.directory());
        let keeper = Self {
            context,
            table: RouteTable::default(),
            listeners,
            store,
            fast,
            readiness,
            requests,
            frozen: false,
            adopted: false,
            unkept: false,
            leases: BTreeMap::new(),
        };
        (keeper, Desk(sender))
    }

    /// Puts the first table in force: what was kept, and the file's routes. Answers those of the
    /// file whose ports cannot be had.
    ///
    /// # Cancel safety
    /// Dropping it leaves ports unopened.
    pub(crate) async fn begin(&mut self, table: RouteTable) -> Vec<PortProblem> {
        self.table = table;
        log_changes(&self.table.apply_file(&self.context.settings().routes));
        let all = Changes::all_of(&self.table);
        // A gate that comes back parked holds nobody whom the kernel leads past it.
        self.fast.begin(&self.table).await;
        self.publish(&all);
        self.listeners.reconcile(&self.table, &all).await
    }

    /// Takes clients in from now on.
    pub(crate) fn accept(&mut self) {
        self.listeners.accept();
    }

    /// Goes on where another process stopped: its table was kept in its form, and leases that
    /// began there run on.
    pub(crate) fn go_on(&mut self, heard: &BTreeMap<AppName, u64>) {
        self.adopted = true;
        let now = Instant::now();
        for (application, lease) in &mut self.leases {
            let ago = heard
                .get(application)
                .map(|ago| Duration::from_millis(*ago));
            lease.heard = ago.and_then(|ago| now.checked_sub(ago)).unwrap_or(now);
        }
    }

    /// Serves requests until the stop.
    ///
    /// # Cancel safety
    /// Not cancel safe: a change may be kept and not published. Stop it by its token.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.listeners.settle(&self.table).await;
        if std::mem::take(&mut self.adopted) {
            // A predecessor of another version reads and writes another form.
            let kept = self.store.rewrite(&self.table).await;
            self.note_kept(kept);
        }
        loop {
            // All arms are cancel safe: they only wait.
            tokio::select! {
                () = stop.cancelled() => break,
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => break,
                },
                _ = looks.tick() => if !self.frozen {
                    self.look().await;
                },
            }
        }
        self.context.handover.leave_ports(self.listeners.shared());
        // A successor has what is in the kernel, too.
        if !self.frozen {
            self.fast.end().await;
        }
    }

    async fn serve(&mut self, request: Request) {
        if self.frozen && !matches!(request, Request::HandOver(_)) {
            // Its sender hears that this proxy stops, and comes again.
            return;
        }
        // An answer that nobody waits for any more is no failure.
        match request {
            Request::Set(desired, answer) => drop(answer.send(self.set(&desired).await)),
            Request::Gate(verb, answer) => drop(answer.send(self.gate(&verb).await)),
            Request::CheckPorts(ports, answer) => {
                let problems = self.listeners.check(&ports.keys, &self.table);
                drop(answer.send(CheckPortsReply { problems }));
            }
            Request::Configure(settings, answer) => {
                drop(answer.send(self.configure(*settings).await));
            }
            Request::HandOver(step) => self.hand_over(step).await,
        }
    }

    async fn hand_over(&mut self, step: HandOver) {
        match step {
            HandOver::Freeze(terms, answer) => {
                self.frozen = true;
                if !terms.fast_path
                    && let Err(error) = self.fast.leave().await
                {
                    drop(answer.send(Err(error)));
                    return;
                }
                self.fast.release();
                let missing = self.listeners.failures().into_iter();
                let equipment = Equipment {
                    table: self.table.clone(),
                    sockets: self.listeners.shared(),
                    missing: missing.map(|problem| problem.key).collect(),
                    heard: self
                        .leases
                        .iter()
                        .map(|(name, lease)| (name.clone(), millis(lease.heard.elapsed())))
                        .collect(),
                };
                drop(answer.send(Ok(equipment)));
            }
            HandOver::Pause(answer) => drop(answer.send(self.listeners.pause().await)),
            HandOver::GoOn(answer) => {
                self.frozen = false;
                self.listeners.accept();
                let _unheard = answer.send(());
            }
        }
    }

    async fn set(&mut self, desired: &SetRoutes) -> RoutesReply {
        let applied = self.table.apply(desired);
        log_applied(&applied);
        for route in &desired.routes {
            self.hear(&route.application);
        }
        let book = &self.context.book;
        for application in &applied.changes.applications {
            let parked = self.gate_of(application) == Some(Gate::Parked);
            // The book does not know of the change yet.
            if parked && !book.parks(application) {
                book.begin_tally(application);
                self.context.carried.begin_count(application);
            }
        }
        if applied.changes.is_empty() {
            self.listeners.retry(&self.table).await;
        } else {
            self.change(&applied.changes).await;
        }
        if let Err(error) = self.fast.follow(&self.table, &applied.changes).await {
            // The next look, and every verb, tries again.
            tracing::error!(error = %Report(&error), "the fast path does not follow the routes");
        }
        self.context.book.routes()
    }

    async fn gate(&mut self, verb: &GateVerb) -> Result<(), VerbError> {
        let application = verb.application();
        let was = self.gate_of(application);
        let changes = match verb {
            GateVerb::Prepare(verb) => self.table.prepare(verb)?,
            GateVerb::Check(verb) | GateVerb::Freeze(verb) => {
                self.table.check_prepared(verb)?;
                Changes::default()
            }
            GateVerb::Commit(verb) => self.table.commit(verb)?,
            GateVerb::Rollback(verb) => self.table.rollback(verb)?,
        };
        self.hear(application);
        if matches!(verb, GateVerb::Prepare(_)) && was != Some(Gate::Parked) {
            self.context.book.begin_tally(application);
            self.context.carried.begin_count(application);
        }
        if !changes.is_empty() {
            let gate = self.table.gate(application);
            tracing::info!(%application, ?gate, "gate changed");
            self.change(&changes).await;
        }
        self.lead_kernel(verb, &changes).await?;
        failpoint::reach(|| format!("gate/{}/done", verb.word())).await;
        Ok(())
    }

    /// Has the kernel follow a verb, also one that is repeated because it had not.
    async fn lead_kernel(&mut self, verb: &GateVerb, changes: &Changes) -> Result<(), KernelError> {
        self.fast.follow(&self.table, changes).await?;
        match verb {
            GateVerb::Freeze(verb) => {
                let keys = self.table.of(&verb.application);
                let keys = keys.map(|(key, _)| key).collect();
                self.fast.fence(&self.table, keys).await
            }
            GateVerb::Prepare(_)
            | GateVerb::Check(_)
            | GateVerb::Commit(_)
            | GateVerb::Rollback(_) => Ok(()),
        }
    }

    fn gate_of(&self, application: &AppName) -> Option<Gate> {
        self.table.gate(application).map(|view| view.gate)
    }

    /// Takes over another configuration, or nothing of it. Returns the ports that are missing all
    /// the same, which the file does not answer for.
    async fn configure(&mut self, settings: Settings) -> Result<Vec<PortProblem>, PortsTaken> {
        let mut table = self.table.clone();
        let changes = table.apply_file(&settings.routes);
        let sockets = self.listeners.prepare(&table, &changes, &settings).await;
        let sockets = sockets.map_err(PortsTaken)?;
        // Nothing can fail from here on.
        log_changes(&changes);
        self.table = table;
        self.listeners.take_leave(&sockets).await;
        let (policy, places) = (settings.fast_path.clone(), Place::all(&settings.listen));
        self.context.set_settings(settings);
        self.fast.configure(policy, &places, &self.table).await;
        self.keep(&changes).await;
        self.publish(&changes);
        self.listeners.finish(sockets).await;
        Ok(self.listeners.failures())
    }

    /// Keeps a change of the table and puts it in force.
    async fn change(&mut self, changes: &Changes) {
        self.keep(changes).await;
        self.put_in_force(changes).await;
    }

    async fn keep(&mut self, changes: &Changes) {
        if self.unkept || changes.cluster || !changes.applications.is_empty() {
            let kept = self.store.append(&self.table, changes).await;
            self.note_kept(kept);
        }
    }

    async fn put_in_force(&mut self, changes: &Changes) {
        self.publish(changes);
        // What cannot be had is reported on its route.
        drop(self.listeners.reconcile(&self.table, changes).await);
    }

    fn publish(&mut self, changes: &Changes) {
        if changes.cluster {
            self.context.peers.set(self.table.peers());
            self.context.ready.keep_only(self.table.peers());
        }
        self.context.book.publish(&self.table, changes);
        for application in &changes.applications {
            self.follow_lease(application);
        }
    }

    fn note_kept(&mut self, kept: Result<(), KeepError>) {
        match kept {
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
        if let Some(lease) = self.leases.get_mut(application) {
            lease.heard = Instant::now();
        }
    }

    /// Knows the lease of a gate after a change. A new one begins now, also after a restart.
    fn follow_lease(&mut self, application: &AppName) {
        match self.table.gate(application).and_then(|view| view.lease) {
            Some(length) => {
                let heard = Instant::now();
                let lease = Lease { length, heard };
                let known = self.leases.entry(application.clone()).or_insert(lease);
                known.length = length;
            }
            None => {
                self.leases.remove(application);
            }
        }
    }

    async fn look(&mut self) {
        if self.unkept {
            let kept = self.store.rewrite(&self.table).await;
            self.note_kept(kept);
        }
        if self.leases.is_empty() {
            // Not in the middle of a handoff: its next verb would wait.
            self.store.shorten(&self.table).await;
        }
        self.listeners.retry(&self.table).await;
        self.fast.look(&self.table, &self.context.book).await;
        self.check_leases();
    }

    /// A lease that ran out is a question, never an answer: the gate stays parked.
    fn check_leases(&mut self) {
        let now = Instant::now();
        for (application, lease) in &mut self.leases {
            if now.saturating_duration_since(lease.heard) >= lease.length {
                lease.heard = now;
                self.context.book.metrics.leases_expired.inc();
                tracing::warn!(%application, "nobody spoke of a parked gate for its whole lease");
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
