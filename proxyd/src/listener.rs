//! The external ports: sockets, and the set of them kept equal to the table.
//!
//! What changes is planned by `proxyd_core::reload` and carried out here in its order: everything
//! new listens before anything goes. A port that cannot be had is reported on its route and tried
//! again; the others do not notice. A closed gate has no listener: its clients are refused by the
//! kernel.

mod clients;
mod kept;
mod port;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::handover::Socket;
use proxyd_core::reload::{Need, Place, Plan, Spot, plan};
use proxyd_core::table::{Changes, Phase, Route, RouteTable};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::proxy::{PortProblem, RouteKey};
use rehome_shared::config::daemon::{ListenOn, ProxydTimeouts};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::context::Context;
use crate::handover::Shared;
use crate::settings::Settings;
use crate::socket::tune;
use crate::trunk;
pub(crate) use clients::take_announced;
use kept::Kept;
use port::{Port, try_port, why_not};

pub(crate) use kept::sort;

/// For handshakes that have begun when a port changes its address: the time of a way there and
/// back, to far away.
const HANDSHAKES: Duration = Duration::from_millis(200);
/// For the task of the trunk's port to end: no time, on a machine that runs everybody.
const TRUNK_TIME: Duration = Duration::from_secs(10);
/// Looks at whether the last clients of a route that goes have reached their application: half a
/// second, and longer on a machine that runs nobody for a while.
const LAST_CLIENTS: u32 = 100;
const LOOK: Duration = Duration::from_millis(5);

/// The open external ports, and the trunk's. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Listeners {
    context: Context,
    supervisor: Supervisor,
    trunk: Trunk,
    /// Whether clients are taken in; until then they wait in the kernel.
    accepting: bool,
    /// Some of the open ones may be another process's: none of them is closed yet.
    borrowed: bool,
    open: BTreeMap<Spot, Port>,
    kept: Kept,
    failed: BTreeMap<RouteKey, String>,
    /// The addresses that the open ones are on.
    on: ListenOn,
    timeouts: ProxydTimeouts,
}

/// What another process listens on.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    pub(crate) open: BTreeMap<Spot, OwnedFd>,
    /// Ports that it could not have.
    pub(crate) missing: Vec<RouteKey>,
    /// What the service manager has of these already, by name.
    pub(crate) kept: BTreeSet<String>,
}

/// The trunk's port.
#[derive(Debug)]
struct Trunk {
    tasks: Supervisor,
    listener: Arc<TcpListener>,
}

/// What is new listens already and is not served yet. Dropping it closes that again, and nothing
/// has changed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Change {
    plan: Plan,
    opened: BTreeMap<Spot, Port>,
    missing: BTreeMap<RouteKey, String>,
    /// What was looked at.
    keys: BTreeSet<RouteKey>,
    /// Of that, what is to listen.
    wanted: BTreeSet<RouteKey>,
}

impl Listeners {
    /// Without ports of its own yet, and accepting nothing until [`Listeners::accept`]. What is
    /// inherited stays open until [`Listeners::settle`].
    ///
    /// # Errors
    /// When an inherited socket cannot be watched.
    pub(crate) fn new(
        context: Context,
        supervisor: &Supervisor,
        trunk: TcpListener,
        inherited: Inherited,
    ) -> io::Result<Self> {
        let settings = context.settings();
        let (on, timeouts) = (settings.listen.clone(), settings.timeouts);
        let supervisor = supervisor.group();
        let trunk = Trunk {
            tasks: supervisor.group(),
            listener: Arc::new(trunk),
        };
        let missing = inherited.missing.into_iter();
        let before = |key| {
            (
                key,
                "the process before this one could not have it".to_owned(),
            )
        };
        let borrowed = !inherited.open.is_empty();
        let inherit = |(spot, descriptor)| {
            let port = Port::inherit(spot, descriptor)?;
            io::Result::Ok((spot, port))
        };
        let open = inherited.open.into_iter().map(inherit);
        let open = open.collect::<io::Result<BTreeMap<Spot, Port>>>()?;
        let mut kept = Kept::new(inherited.kept);
        kept.opened(Socket::Trunk, Arc::clone(&trunk.listener).into());
        for port in open.values() {
            kept.opened(port.described(), port.shared());
        }
        Ok(Self {
            context,
            supervisor,
            trunk,
            accepting: false,
            borrowed,
            open,
            kept,
            failed: missing.map(before).collect(),
            on,
            timeouts,
        })
    }

    /// What was inherited is this process's own from now on: closes what is not wanted of it, and
    /// gives the rest the times of this process's file.
    ///
    /// # Cancel safety
    /// A dropped call leaves ports open that nobody wants.
    pub(crate) async fn settle(&mut self, table: &RouteTable) {
        if std::mem::take(&mut self.borrowed) {
            let keys = self.open.keys().map(|spot| spot.key).collect();
            // What is missing is known since it was looked at first.
            drop(self.look_at(table, keys).await);
            self.tune_all();
        }
    }

    /// Takes clients in from now on, on every port.
    pub(crate) fn accept(&mut self) {
        if std::mem::replace(&mut self.accepting, true) {
            return;
        }
        for port in self.open.values_mut() {
            port.serve(&self.context, &self.supervisor);
        }
        self.trunk.tasks = self.supervisor.group();
        let listener = Arc::clone(&self.trunk.listener);
        let stop = self.trunk.tasks.token().clone();
        let accepts = trunk::run(self.context.clone(), listener, stop);
        self.trunk
            .tasks
            .spawn("trunk listener", Criticality::Critical, accepts);
    }

    /// Takes nobody in any more; who comes waits in the kernel. Says whether that is certain.
    ///
    /// # Cancel safety
    /// A dropped call may leave some ports accepting.
    pub(crate) async fn pause(&mut self) -> bool {
        self.accepting = false;
        self.trunk.tasks.cancel();
        self.open.values().for_each(Port::tire);
        let mut certain = self.trunk.tasks.idle(TRUNK_TIME).await;
        for port in self.open.values_mut() {
            certain &= port.rest().await;
        }
        certain
    }

    /// Every open socket.
    pub(crate) fn shared(&self) -> Vec<(Socket, Shared)> {
        let trunk = (Socket::Trunk, Arc::clone(&self.trunk.listener).into());
        let ports = self.open.values();
        let ports = ports.map(|port| (port.described(), port.shared()));
        ports.chain([trunk]).collect()
    }

    /// After a change: opens and closes so that exactly the routes of the table that are not
    /// closed listen, as far as their ports can be had. Only what changed is looked at. Answers
    /// the file's own routes whose ports cannot be had, where that is news.
    ///
    /// # Cancel safety
    /// A dropped call leaves ports unopened until the next one.
    pub(crate) async fn reconcile(
        &mut self,
        table: &RouteTable,
        changes: &Changes,
    ) -> Vec<PortProblem> {
        self.look_at(table, changes.keys().collect()).await
    }

    /// Tries again to open what could not be had the last time.
    ///
    /// # Cancel safety
    /// A dropped call leaves ports unopened until the next one.
    pub(crate) async fn retry(&mut self, table: &RouteTable) {
        if !self.failed.is_empty() {
            let keys = self.failed.keys().copied().collect();
            // Each is reported on its route.
            drop(self.look_at(table, keys).await);
        }
        self.tell_manager();
    }

    async fn look_at(&mut self, table: &RouteTable, keys: BTreeSet<RouteKey>) -> Vec<PortProblem> {
        let settings = self.context.settings();
        let (change, refused) = self.open_new(table, keys, &settings);
        self.finish(change).await;
        refused
    }

    /// Opens what another configuration needs and closes nothing. Everything is looked at when
    /// the addresses are others.
    ///
    /// # Errors
    /// Each port of the file's own routes that cannot be had. Nothing has changed then.
    ///
    /// # Cancel safety
    /// A dropped call leaves everything as it was.
    pub(crate) async fn prepare(
        &self,
        table: &RouteTable,
        changes: &Changes,
        settings: &Settings,
    ) -> Result<Change, Vec<PortProblem>> {
        let keys = if self.on == settings.listen {
            let failed = self.failed.keys().copied();
            changes.keys().chain(failed).collect()
        } else {
            let open = self.open.keys().map(|spot| spot.key);
            open.chain(table.routes().keys().copied()).collect()
        };
        let (change, refused) = self.open_new(table, keys, settings);
        if refused.is_empty() {
            return Ok(change);
        }
        self.take_back(change).await;
        Err(refused)
    }

    fn open_new(
        &self,
        table: &RouteTable,
        keys: BTreeSet<RouteKey>,
        settings: &Settings,
    ) -> (Change, Vec<PortProblem>) {
        let wanted = self.wanted(table, &keys, &settings.listen);
        let open = keys.iter().flat_map(|key| self.open_of(*key));
        let plan = plan(open.map(|(spot, _)| spot), &wanted);
        let mut change = Change {
            opened: BTreeMap::new(),
            missing: BTreeMap::new(),
            wanted: wanted.keys().map(|spot| spot.key).collect(),
            keys,
            plan,
        };
        let mut refused = Vec::new();
        for opening in &change.plan.open {
            let beside = opening.beside.iter().filter_map(|spot| self.open.get(spot));
            match Port::open(opening.spot, beside, &settings.timeouts) {
                Ok(port) => drop(change.opened.insert(opening.spot, port)),
                Err(error) => {
                    let key = opening.spot.key;
                    let reason = format!(
                        "cannot listen on port {key} at {}: {}",
                        at(opening.spot.place),
                        why_not(&error, key)
                    );
                    if opening.need == Need::Must {
                        let route = table.route(key).map(AsRef::as_ref);
                        let reason = format!("{reason}; {}", leads_to(route));
                        refused.push(PortProblem { key, reason });
                    }
                    change.missing.insert(key, reason);
                }
            }
        }
        (change, refused)
    }

    /// Closes what was opened in vain. Who came there beside an old socket of the port is served:
    /// for that client nothing has changed.
    async fn take_back(&self, change: Change) {
        let opened: Vec<Port> = change.opened.into_values().collect();
        let beside = |port: &&Port| self.open_of(port.key()).next().is_some();
        if turn_away(opened.iter().filter(beside)) {
            sleep(HANDSHAKES).await;
        }
        for port in opened {
            if beside(&&port) {
                port.take_queue(&self.context);
            }
            port.close();
        }
    }

    /// The sockets of these routes. Those of the file must be had, unless they are missed already:
    /// then another file does not make it worse.
    fn wanted(
        &self,
        table: &RouteTable,
        keys: &BTreeSet<RouteKey>,
        on: &ListenOn,
    ) -> BTreeMap<Spot, Need> {
        let places = Place::all(on);
        let mut wanted = BTreeMap::new();
        for key in keys.iter().copied() {
            let route = table.route(key).filter(|r| r.phase != Phase::Closed);
            let Some(route) = route else { continue };
            let told = route.application().is_some() || self.failed.contains_key(&key);
            let need = if told { Need::May } else { Need::Must };
            let spots = places.iter().map(|place| Spot { key, place: *place });
            wanted.extend(spots.map(|spot| (spot, need)));
        }
        wanted
    }

    /// The open sockets of a route.
    fn open_of(&self, key: RouteKey) -> impl Iterator<Item = (&Spot, &Port)> {
        let first = Spot {
            key,
            place: Place::Everywhere,
        };
        let open = self.open.range(first..);
        open.take_while(move |(spot, _)| spot.key == key)
    }

    /// Has the last clients of routes that go reach their application, while there is a route:
    /// also those whom the kernel has completed and nobody has accepted yet.
    ///
    /// # Cancel safety
    /// A dropped call leaves these ports closed.
    pub(crate) async fn take_leave(&mut self, change: &Change) {
        let gone = |spot: &&Spot| !change.wanted.contains(&spot.key);
        let going = change.plan.close.iter().filter(gone);
        let going: Vec<Port> = going.filter_map(|spot| self.open.remove(spot)).collect();
        self.note_closed(&going);
        let keys: BTreeSet<RouteKey> = going.iter().map(Port::key).collect();
        if turn_away(&going) {
            sleep(HANDSHAKES).await;
        }
        for mut port in going {
            port.rest().await;
            port.take_queue(&self.context);
            port.close();
        }
        for _ in 0..LAST_CLIENTS {
            let book = &self.context.book;
            if keys.iter().all(|key| book.held(*key) == 0) {
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Serves what is new and closes what is not wanted any more. The table is in force.
    ///
    /// # Cancel safety
    /// A dropped call leaves ports open that nobody serves, until the next one.
    pub(crate) async fn finish(&mut self, change: Change) {
        let settings = self.context.settings();
        if self.timeouts != settings.timeouts {
            self.timeouts = settings.timeouts;
            self.tune_all();
        }
        self.on = settings.listen.clone();
        for (spot, mut port) in change.opened {
            if self.accepting {
                port.serve(&self.context, &self.supervisor);
            }
            self.kept.opened(port.described(), port.shared());
            self.open.insert(spot, port);
        }
        let missing: BTreeSet<RouteKey> = change.missing.keys().copied().collect();
        if !self.borrowed {
            self.close(&change.plan.to_close(&missing), &change.wanted)
                .await;
        }
        self.report(&change.keys, change.missing, &change.wanted);
        self.tell_manager();
    }

    fn note_closed(&mut self, ports: &[Port]) {
        for port in ports {
            self.kept.closed(port.described());
        }
    }

    /// Tells the service manager which sockets to keep, where it listens to this process: not
    /// before a predecessor has named it.
    fn tell_manager(&mut self) {
        if self.accepting && !self.borrowed && !self.context.handover.has_predecessor() {
            self.kept.tell();
        }
    }

    /// Closes sockets. Where the port goes on elsewhere, nobody who has begun a handshake is lost.
    async fn close(&mut self, spots: &BTreeSet<Spot>, wanted: &BTreeSet<RouteKey>) {
        let closing: Vec<Port> = spots
            .iter()
            .filter_map(|spot| self.open.remove(spot))
            .collect();
        self.note_closed(&closing);
        let goes_on = |port: &&Port| wanted.contains(&port.key());
        if turn_away(closing.iter().filter(goes_on)) {
            sleep(HANDSHAKES).await;
        }
        for mut port in closing {
            port.rest().await;
            if wanted.contains(&port.key()) {
                port.take_queue(&self.context);
            }
            port.close();
        }
    }

    /// Says of what was looked at how it is served now.
    fn report(
        &mut self,
        keys: &BTreeSet<RouteKey>,
        mut missing: BTreeMap<RouteKey, String>,
        wanted: &BTreeSet<RouteKey>,
    ) {
        let book = &self.context.book;
        for key in keys {
            let error = missing.remove(key);
            let before = self.failed.get(key);
            if before == error.as_ref() {
                continue;
            }
            match &error {
                Some(error) => tracing::error!(route = %key, error, "route not served here"),
                None if wanted.contains(key) => tracing::info!(route = %key, "listening at last"),
                None => {}
            }
            book.set_listen_error(*key, error.clone());
            match error {
                Some(error) => drop(self.failed.insert(*key, error)),
                None => drop(self.failed.remove(key)),
            }
        }
        let failures = i64::try_from(self.failed.len()).unwrap_or(i64::MAX);
        book.metrics.listen_failures.set(failures);
    }

    /// The ports that could not be had.
    pub(crate) fn failures(&self) -> Vec<PortProblem> {
        let problem = |(key, reason): (&RouteKey, &String)| PortProblem {
            key: *key,
            reason: reason.clone(),
        };
        self.failed.iter().map(problem).collect()
    }

    /// Other times are those of connections from now on.
    fn tune_all(&self) {
        let ports = self.open.values().map(|port| port.tune(&self.timeouts));
        let trunk = tune(&*self.trunk.listener, &self.timeouts);
        for error in ports.chain([trunk]).filter_map(Result::err) {
            tracing::warn!(%error, "new timeouts are not in force on an open port");
        }
    }

    /// Says which of these ports could not be listened on.
    pub(crate) fn check(&self, keys: &[RouteKey], table: &RouteTable) -> Vec<PortProblem> {
        let places = Place::all(&self.context.settings().listen);
        let problem = |key: &RouteKey| {
            let file = table
                .route(*key)
                .is_some_and(|route| route.application().is_none());
            let reason = if file {
                Some("the proxy's configuration file has a route on it".to_owned())
            } else if self.open_of(*key).next().is_some() {
                None
            } else {
                let mut tries = places.iter().map(|place| try_port(*place, *key));
                tries.find_map(|tried| tried.err().map(|error| why_not(&error, *key)))
            };
            reason.map(|reason| PortProblem { key: *key, reason })
        };
        keys.iter().filter_map(problem).collect()
    }
}

/// Has those who come from now on to these try again in a second; whether there was one.
fn turn_away<'a>(ports: impl IntoIterator<Item = &'a Port>) -> bool {
    let turned = ports.into_iter().map(Port::turn_newcomers_away);
    turned.filter(|turned| *turned).count() > 0
}

fn at(place: Place) -> String {
    match place {
        Place::Everywhere => "every address".to_owned(),
        Place::Address(ip) => ip.to_string(),
    }
}

fn leads_to(route: Option<&Route>) -> String {
    let target = route.and_then(|route| route.phase.target());
    match target {
        Some(rehome_shared::api::proxy::Target::Local { addr }) => format!("it leads to {addr}"),
        Some(rehome_shared::api::proxy::Target::Remote { host, .. }) => {
            format!("it leads to {host}")
        }
        None => "it leads nowhere now".to_owned(),
    }
}
