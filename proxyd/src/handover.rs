//! How this process hands everything over to its successor, or takes it from its predecessor.
//!
//! What is said, and in which order, is `proxyd_core::handover`. Here are the hands: [`give`]
//! starts the successor, stops accepting and stops connections, a batch at a time, and lets go of
//! what was released; [`take`] holds what comes, and passes on what is its own. A connection
//! stops by itself, between two polls of its task, and comes here as a [`Departure`]; putting it
//! to work again is the same here, when a handover failed, and there, when it did not.
//!
//! A process that stops has no successor yet: [`leave`] writes it letters instead, which the
//! service manager keeps, and [`Mail`] is what the next one reads.

mod channel;
mod departure;
mod give;
mod leave;
mod letters;
mod mail;
mod moving;
mod process;
mod take;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proxyd_core::handover::{Hello, OLDEST, PROTOCOL, Socket};
use proxyd_core::saved;
use proxyd_core::table::RouteTable;
use rehome_runtime::descriptor_store;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::config::daemon::ProxydConfig;
use rehome_shared::ids::AppName;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::context::Context;
use crate::greet::StillGuest;
use channel::Channel;

pub(crate) use departure::Departure;
pub use give::GiveError;
pub(crate) use give::hand_over;
pub(crate) use leave::leave;
pub(crate) use mail::Mail;
pub use take::TakeError;
pub(crate) use take::take_over;

/// Connections that stop at the same time. Each is still for about as long as a batch takes.
const AT_ONCE: usize = 100;

/// A socket that is open here and goes to the successor as well.
#[derive(Clone)]
pub(crate) struct Shared(Arc<dyn AsFd + Send + Sync>);

impl<T: AsFd + Send + Sync + 'static> From<Arc<T>> for Shared {
    fn from(socket: Arc<T>) -> Self {
        Self(socket)
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_fd().fmt(f)
    }
}

/// What a successor is built of.
#[derive(Debug)]
pub(crate) struct Equipment {
    pub(crate) table: RouteTable,
    pub(crate) sockets: Vec<(Socket, Shared)>,
    /// Ports that could not be had.
    pub(crate) missing: Vec<RouteKey>,
    /// How many milliseconds ago somebody spoke of each gate.
    pub(crate) heard: BTreeMap<AppName, u64>,
}

/// How far this process is with handing over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// It does not.
    Serving,
    /// A successor is being started.
    Starting,
    /// Nothing changes any more.
    Frozen,
    /// Nobody is taken in any more, and connections leave.
    Moving,
    /// All has gone that could.
    Gone,
}

/// The state of a handover, of both kinds. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Handover(Arc<State>);

#[derive(Debug)]
struct State {
    phase: watch::Sender<Phase>,
    /// Who collects those that leave.
    collector: Mutex<Option<mpsc::Sender<Departure>>>,
    /// Clients that were accepted and are not in the book yet.
    arriving: TaskTracker,
    /// Clients that leave before they are announced, while somebody will take them.
    guests: Mutex<Option<Vec<StillGuest>>>,
    /// While a predecessor lives on: the applications whose connections it passes on.
    behind: watch::Sender<Option<BTreeSet<AppName>>>,
    /// The way to the successor; its end tells that this process is no more.
    successor: Mutex<Option<Channel>>,
    /// The UDP ports of a process that stops.
    ports: Mutex<Vec<(Socket, Shared)>>,
}

impl Default for Handover {
    fn default() -> Self {
        Self(Arc::new(State {
            phase: watch::Sender::new(Phase::Serving),
            collector: Mutex::new(None),
            arriving: TaskTracker::new(),
            guests: Mutex::default(),
            behind: watch::Sender::new(None),
            successor: Mutex::new(None),
            ports: Mutex::default(),
        }))
    }
}

impl Handover {
    /// Waits until this process has begun to hand over, so that it changes nothing any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn begun(&self) {
        self.at_least(Phase::Frozen).await;
    }

    /// Waits until this process takes in nobody any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn moved(&self) {
        self.at_least(Phase::Moving).await;
    }

    /// Whether a successor has everything.
    pub(crate) fn is_over(&self) -> bool {
        *self.0.phase.borrow() == Phase::Gone
    }

    async fn at_least(&self, phase: Phase) {
        let mut phases = self.0.phase.subscribe();
        if phases.wait_for(|now| *now >= phase).await.is_err() {
            // The sender lives as long as this.
            std::future::pending::<()>().await;
        }
    }

    fn set(&self, phase: Phase) {
        self.0.phase.send_replace(phase);
    }

    /// Begins; false while another one goes on.
    fn begin(&self) -> bool {
        self.0.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::Starting;
            }
            first
        })
    }

    /// Held by a client from when it was accepted until it is in the book.
    pub(crate) fn arriving(&self) -> TaskTrackerToken {
        self.0.arriving.token()
    }

    /// Keeps one that leaves before it is announced. With nobody to take it any more, it is given
    /// back and stays.
    pub(crate) fn guest_leaves(&self, guest: StillGuest) -> Option<StillGuest> {
        match &mut *lock(&self.0.guests) {
            Some(guests) => {
                guests.push(guest);
                None
            }
            None => Some(guest),
        }
    }

    /// From here on they are kept until [`Self::take_guests`].
    fn keep_guests(&self) {
        *lock(&self.0.guests) = Some(Vec::new());
    }

    /// Those that have left so, all of them once everyone has arrived. Later ones stay.
    fn take_guests(&self) -> Vec<StillGuest> {
        lock(&self.0.guests).take().unwrap_or_default()
    }

    /// How many there are.
    pub(crate) fn arrivals(&self) -> usize {
        self.0.arriving.len()
    }

    /// Waits until everyone who was accepted is in the book or gone.
    async fn arrived(&self, limit: Duration) -> bool {
        self.0.arriving.close();
        let all = tokio::time::timeout(limit, self.0.arriving.wait()).await;
        self.0.arriving.reopen();
        all.is_ok()
    }

    /// Whether the predecessor still passes on connections of this application.
    pub(crate) fn is_behind(&self, application: &AppName) -> bool {
        let behind = self.0.behind.borrow();
        behind
            .as_ref()
            .is_some_and(|applications| applications.contains(application))
    }

    /// Whether a predecessor still passes on anything.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.0.behind.borrow().is_some()
    }

    /// Waits until there is no predecessor, so long at most, and says whether that came.
    async fn is_alone(&self, limit: Duration) -> bool {
        let mut behind = self.0.behind.subscribe();
        let alone = tokio::time::timeout(limit, behind.wait_for(Option::is_none)).await;
        matches!(alone, Ok(Ok(_)))
    }

    fn set_behind(&self, applications: Option<BTreeSet<AppName>>) {
        self.0.behind.send_replace(applications);
    }

    fn collector(&self) -> MutexGuard<'_, Option<mpsc::Sender<Departure>>> {
        lock(&self.0.collector)
    }

    /// This process stops, and these are open still. Those that the service manager would not keep
    /// by themselves stay so, where there is one.
    pub(crate) fn leave_ports(&self, ports: Vec<(Socket, Shared)>) {
        if descriptor_store::is_there() {
            let is_udp =
                |socket: &Socket| matches!(socket, Socket::Port { key, .. } if key.is_udp());
            let ports = ports.into_iter().filter(|(socket, _)| is_udp(socket));
            *lock(&self.0.ports) = ports.collect();
        }
    }

    /// UDP ports that were open when this process stopped.
    fn take_ports(&self) -> Vec<(Socket, Shared)> {
        std::mem::take(&mut lock(&self.0.ports))
    }

    /// Keeps the way to the successor open until this process ends.
    fn keep(&self, channel: Channel) {
        *lock(&self.0.successor) = Some(channel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under these locks leaves whole values.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a connection that leaves to who collects them. With nobody there, it stays.
pub(crate) fn depart(context: &Context, departure: Departure) {
    if let Some(stays) = offer(&context.handover, departure) {
        stays.resume(context);
    }
}

/// Under the lock, so that who collects for the last time finds it.
fn offer(handover: &Handover, departure: Departure) -> Option<Departure> {
    let collector = handover.collector();
    let Some(collector) = &*collector else {
        return Some(departure);
    };
    // There is room for all that were asked to leave.
    match collector.try_send(departure) {
        Ok(()) => None,
        Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
            Some(back)
        }
    }
}

/// What this program says of itself, with this configuration: only of what a reload cannot change.
pub(crate) fn hello(config: &ProxydConfig) -> Hello {
    let sockets = [
        ("socket", config.socket.display().to_string()),
        ("state", config.state.display().to_string()),
        ("metrics", config.metrics.to_string()),
        ("trunk.listen", config.trunk.listen.to_string()),
    ];
    let own = |(key, value): (&str, String)| (key.to_owned(), value);
    Hello {
        protocol: PROTOCOL,
        oldest: OLDEST,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        table: saved::FORM,
        sockets: sockets.into_iter().map(own).collect(),
        fast_path: true,
    }
}
