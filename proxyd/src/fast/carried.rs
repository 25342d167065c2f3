//! What the kernel carries, as everybody but the keeper sees it: how routes are carried, and the
//! flows, which verbs count, wait for and cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use proxyd_core::fast::{Found, Policy, element};
use proxyd_core::table::Route;
use rehome_runtime::report::Report;
use rehome_shared::api::proxy::{Carrier, ClientAddress, FastPathStatus, RouteKey};
use rehome_shared::ids::AppName;
use rustix::io::Errno;
use tokio::time::sleep;

use super::flows::{Flow, Life};
use super::netlink::KernelError;
use super::tracked::{count, forget_all, in_thread, is_counted, list, nudge_all};

/// After how long a drain looks first, and at last: a table of many flows is long.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// What a nudged client gets to answer.
const ANSWER: Duration = Duration::from_millis(20);
/// How often one is nudged.
const NUDGES: usize = 3;
/// The most that a freeze takes; each round takes next to no time.
const CUT: Duration = Duration::from_secs(5);

/// Why the kernel is not used as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It refused something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Nothing may be in the kernel that nobody would know of after a crash.
    #[error("cannot note in the state directory what the kernel has: {0}")]
    Marker(Errno),
}

/// Whether the kernel can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Availability {
    /// Nobody wants it.
    Off,
    There,
    Missing(Trouble),
}

impl Availability {
    const WORDS: [&str; 3] = ["off", "on", "unavailable"];

    fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::There => "on",
            Self::Missing(_) => "unavailable",
        }
    }
}

/// How flows have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Over {
    /// By themselves.
    pub(crate) ended: u64,
    /// By a freeze.
    pub(crate) cut: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// What the kernel carries.
#[derive(Debug)]
pub(crate) struct Carried {
    /// The kernel has, or had, something of ours.
    used: AtomicBool,
    view: Mutex<View>,
    state: Family<StateLabel, Gauge>,
    routes: Gauge,
    repairs: Counter,
    failures: Counter,
    cut: Counter,
    given_up: Counter,
}

#[derive(Debug)]
struct View {
    policy: Policy,
    availability: Availability,
    there: BTreeMap<RouteKey, ClientAddress>,
    /// Flows of applications as they were counted last, since their gates were prepared.
    counted: BTreeMap<AppName, u64>,
    /// Those that were to be cut since then.
    cut: BTreeMap<AppName, u64>,
}

impl Carried {
    /// Of a kernel that has nothing of ours.
    pub(crate) fn new() -> Self {
        let view = View {
            policy: Policy::default(),
            availability: Availability::Off,
            there: BTreeMap::new(),
            counted: BTreeMap::new(),
            cut: BTreeMap::new(),
        };
        Self {
            used: AtomicBool::new(false),
            view: Mutex::new(view),
            state: Family::default(),
            routes: Gauge::default(),
            repairs: Counter::default(),
            failures: Counter::default(),
            cut: Counter::default(),
            given_up: Counter::default(),
        }
    }

    #[rustfmt::skip]
    pub(crate) fn register(&self, to: &mut Registry) {
        self.show_state(Availability::Off);
        to.register("proxy_fast_path", "Whether the kernel carries routes; 1 for what is so", self.state.clone());
        to.register("proxy_fast_path_routes", "Routes that the kernel carries now", self.routes.clone());
        to.register("proxy_fast_path_repairs", "Times that our tables in the kernel were gone or changed by others, and were made anew", self.repairs.clone());
        to.register("proxy_fast_path_failures", "Times that the kernel could not be used as wanted", self.failures.clone());
        to.register("proxy_fast_path_given_up", "Times that a route went back to user space because nothing got through by the kernel", self.given_up.clone());
        to.register("proxy_fast_path_cut", "Flows of the kernel that a freeze ended", self.cut.clone());
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        // Each change of it is a single one.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    pub(super) fn use_it(&self) {
        self.used.store(true, Ordering::Release);
    }

    pub(super) fn leave_it(&self) {
        self.used.store(false, Ordering::Release);
    }

    pub(super) fn set_policy(&self, policy: &Policy) {
        self.lock().policy = policy.clone();
    }

    /// Says so when it is another one.
    pub(super) fn set_availability(&self, now: Availability) {
        if let Availability::Missing(_) = now {
            self.failures.inc();
        }
        let before = std::mem::replace(&mut self.lock().availability, now);
        if before == now {
            return;
        }
        self.show_state(now);
        match now {
            Availability::Off => {
                tracing::info!("no fast path: all routes are carried in user space");
            }
            Availability::There => tracing::info!("fast path: the kernel carries steady routes"),
            Availability::Missing(error) if self.is_used() => {
                let error = Report(&error).to_string();
                tracing::error!(
                    error,
                    "the kernel may lead clients past gates: no gate is moved until it can be asked"
                );
            }
            Availability::Missing(error) => {
                let error = Report(&error).to_string();
                tracing::warn!(error, "no fast path: all routes are carried in user space");
            }
        }
    }

    fn show_state(&self, now: Availability) {
        for state in Availability::WORDS {
            let gauge = self.state.get_or_create(&StateLabel { state });
            gauge.set(i64::from(state == now.as_str()));
        }
    }

    pub(super) fn set_there(&self, found: &Found) {
        let there = found.elements.iter();
        let there: BTreeMap<_, _> = there.map(|(key, element)| (*key, element.client)).collect();
        self.routes
            .set(i64::try_from(there.len()).unwrap_or(i64::MAX));
        self.lock().there = there;
    }

    /// Our tables were made; whether they had been there.
    pub(super) fn made(&self, again: bool) {
        if again {
            self.repairs.inc();
            tracing::warn!("the fast path was taken from the kernel, and is there again");
        }
    }

    /// What the kernel carries there gets nowhere.
    pub(super) fn given_up(&self, keys: &BTreeSet<RouteKey>) {
        let routes = u64::try_from(keys.len()).unwrap_or(u64::MAX);
        self.given_up.inc_by(routes);
        let first = keys.first().map(ToString::to_string);
        tracing::warn!(
            routes,
            route = first,
            "packets of the fast path get no answer: user space carries these routes"
        );
    }

    /// Whether the kernel may carry routes.
    pub(crate) fn is_wanted(&self) -> bool {
        self.lock().policy.wanted
    }

    /// How a route is carried, where the kernel may carry routes.
    pub(crate) fn status(&self, key: RouteKey, route: &Route) -> Option<FastPathStatus> {
        let view = self.lock();
        if !view.policy.wanted {
            return None;
        }
        if let Some(client) = view.there.get(&key) {
            return Some(FastPathStatus {
                carrier: Carrier::Kernel,
                reason: None,
                client_address: Some(*client),
            });
        }
        let reason = match (element(key, route, &view.policy), view.availability) {
            (Err(why), _) => why.as_str().to_owned(),
            (Ok(_), Availability::Missing(error)) => error.to_string(),
            (Ok(_), Availability::Off | Availability::There) => {
                "nothing has reached its target yet, nothing got through by the kernel, or this host does not forward packets"
                    .to_owned()
            }
        };
        Some(FastPathStatus {
            carrier: Carrier::UserSpace,
            reason: Some(reason),
            client_address: None,
        })
    }

    /// A new count begins for an application: its gate was prepared.
    pub(crate) fn begin_count(&self, application: &AppName) {
        let mut view = self.lock();
        view.counted.remove(application);
        view.cut.remove(application);
    }

    /// So many of an application's flows were counted now; answers how those have ended that are
    /// gone since the last time.
    pub(crate) fn over(&self, application: &AppName, now: u64) -> Over {
        let mut view = self.lock();
        let cut = view.cut.remove(application).unwrap_or(0);
        let before = view.counted.remove(application);
        if now > 0 {
            view.counted.insert(application.clone(), now);
        }
        let gone = before.map_or(0, |before| before.saturating_sub(now));
        Over {
            ended: gone.saturating_sub(cut),
            cut,
        }
    }

    /// Whether a flow waits for an answer and no element leads there any more.
    fn is_stranded(&self, flow: &Flow) -> bool {
        flow.life == Life::Begun && !self.lock().there.contains_key(&flow.key)
    }

    /// So many are to be cut. A try that failed had counted those among them that are left of it.
    fn note_cut(&self, application: &AppName, flows: u64) {
        let mut view = self.lock();
        let noted = view.cut.entry(application.clone()).or_default();
        self.cut.inc_by(flows.saturating_sub(*noted));
        *noted = flows.max(*noted);
    }

    /// How many flows of these routes the kernel carries now; datagrams are not counted.
    ///
    /// # Errors
    /// When the kernel does not say.
    ///
    /// # Cancel safety
    /// Cancel safe: it only looks.
    pub(crate) async fn flows(&self, keys: &[RouteKey]) -> Result<u64, KernelError> {
        let flows = list(keys).await?;
        Ok(count(flows.iter().filter(|flow| is_counted(flow))))
    }

    /// Waits until none flows, or until the deadline. Who has no answer yet finds user space when it
    /// comes again.
    ///
    /// # Errors
    /// When the kernel does not say.
    ///
    /// # Cancel safety
    /// Cancel safe: it waits, and forgets what nobody has answered.
    pub(crate) async fn drain(
        &self,
        keys: &[RouteKey],
        deadline: Duration,
    ) -> Result<(), KernelError> {
        let began = Instant::now();
        let (mut pause, at_last) = LOOKS;
        loop {
            let (flows, others): (Vec<Flow>, _) =
                list(keys).await?.into_iter().partition(is_counted);
            let stranded: Vec<Flow> = others.into_iter().filter(|f| self.is_stranded(f)).collect();
            if !stranded.is_empty() {
                in_thread("forget", move || forget_all(&stranded)).await?;
            }
            let left = deadline.saturating_sub(began.elapsed());
            if flows.is_empty() || left.is_zero() {
                return Ok(());
            }
            sleep(pause.min(left)).await;
            pause = pause.saturating_mul(2).min(at_last);
        }
    }

    /// Ends the flows of routes that are fenced: their clients are nudged, so that they hear of it,
    /// and then their entries go, until none comes any more. [`Carried::over`] says how many could
    /// have had bytes to pass on.
    ///
    /// # Errors
    /// When the kernel does not end them.
    ///
    /// # Cancel safety
    /// Cancel safe: what was ended stays ended.
    pub(crate) async fn cut(
        &self,
        application: &AppName,
        keys: &[RouteKey],
    ) -> Result<(), KernelError> {
        let began = Instant::now();
        let mut flows = list(keys).await?;
        let cut = count(flows.iter().filter(|flow| is_counted(flow)));
        self.note_cut(application, cut);
        for _ in 0..NUDGES {
            let idle: Vec<Flow> = flows.iter().filter(|f| is_counted(f)).cloned().collect();
            if idle.is_empty() {
                break;
            }
            in_thread("nudge", move || {
                nudge_all(&idle);
                Ok(())
            })
            .await?;
            sleep(ANSWER).await;
            flows = list(keys).await?;
        }
        // A packet that was on its way may bring an entry back: until none is left.
        while !flows.is_empty() {
            if began.elapsed() >= CUT {
                return Err(KernelError::of("end all flows in time")(Errno::TIMEDOUT));
            }
            in_thread("forget", move || forget_all(&flows)).await?;
            sleep(ANSWER).await;
            flows = list(keys).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_freeze_ends_counts_as_cut_also_when_it_took_two_tries() {
        let (carried, db) = (Carried::new(), AppName::try_new("db").unwrap());
        assert_eq!(carried.over(&db, 5), Over { ended: 0, cut: 0 });
        assert_eq!(carried.over(&db, 4), Over { ended: 1, cut: 0 });
        // The first try ended two and failed.
        carried.note_cut(&db, 4);
        carried.note_cut(&db, 2);
        assert_eq!(carried.over(&db, 0), Over { ended: 0, cut: 4 });
        assert_eq!(carried.cut.get(), 4);
        carried.note_cut(&db, 0);
        assert_eq!(carried.over(&db, 0), Over { ended: 0, cut: 0 });
    }
}
