//! Where each application is, as far as this host knows, and what its `proxyd` is told of it.
//!
//! `proxyd` is told the whole set, at once when something changes and again every few seconds.
//! What is open or parked here is not on disk: after a restart it follows from the journal and
//! the instances, under a generation that has grown.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrated_core::routes::{self, Adverts, LocalRoute, Locals};
use rehome_runtime::backoff::Backoff;
use rehome_runtime::http_client::ClientError;
use rehome_shared::api::peer::Advert;
use rehome_shared::api::proxy::{Gate, RouteKey, RouteStatus, SetRoutes};
use rehome_shared::ids::{AppName, DeploymentGeneration, Epoch, HostAddr, RouteVersion};
use tokio::sync::watch;

use crate::clock;
use crate::host::Host;

/// How often `proxyd` is told again what it should know.
const REPEAT: Duration = Duration::from_secs(3);
/// How soon one that did not hear it: it may be handing over to its successor, and clients wait.
const AGAIN: Duration = Duration::from_millis(100);

/// The routes of a host.
#[derive(Debug)]
pub struct Routes {
    book: Mutex<Book>,
    /// Counts up with every change.
    changed: watch::Sender<u64>,
    /// What `proxyd` answered last, or why it did not.
    answer: watch::Sender<Result<Vec<RouteStatus>, String>>,
    /// The deployment and the count of changes that `proxyd` has taken.
    told: Mutex<(DeploymentGeneration, u64)>,
    /// Held while the set is computed and sent, so that an older set never follows a newer one.
    sending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Book {
    locals: Locals,
    adverts: Adverts,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            book: Mutex::default(),
            changed: watch::Sender::new(0),
            answer: watch::Sender::new(Err("proxyd was not asked yet".to_owned())),
            told: Mutex::default(),
            sending: tokio::sync::Mutex::new(()),
        }
    }
}

impl Routes {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what this host wants of an application that it owns. The same again changes nothing.
    pub fn set(&self, application: &AppName, epoch: Epoch, route: LocalRoute) -> RouteVersion {
        let mut book = self.book();
        let last = match book.locals.get(application) {
            Some((version, known)) if version.epoch == epoch && *known == route => return *version,
            Some((version, _)) if version.epoch == epoch => version.generation,
            _ => book
                .adverts
                .get(application)
                .filter(|advert| advert.version.epoch == epoch)
                .map(|advert| advert.version.generation)
                .unwrap_or_default(),
        };
        let version = RouteVersion {
            epoch,
            generation: routes::next_generation(last, clock::now()),
        };
        book.locals.insert(application.clone(), (version, route));
        drop(book);
        self.touch();
        version
    }

    /// This host has nothing to say of an application any more.
    pub fn forget(&self, application: &AppName) {
        if self.book().locals.remove(application).is_some() {
            self.touch();
        }
    }

    /// Whether this host says anything of an application.
    #[must_use]
    pub fn is_set(&self, application: &AppName) -> bool {
        self.book().locals.contains_key(application)
    }

    /// What `proxyd` has may be newer than what it is told: by a clock that was set back while
    /// this daemon was down. Then what is said is said again under a larger generation.
    fn overtake(&self, statuses: &[RouteStatus]) {
        let mut book = self.book();
        let mut grew = false;
        for status in statuses {
            let Some((version, route)) = book.locals.get_mut(&status.application) else {
                continue;
            };
            // A parked gate is a handoff's, whose verbs go by the version as it is.
            let ignored = status.version == *version
                && *route != LocalRoute::Park
                && status.gate != gate_of(route);
            if status.version.epoch == version.epoch && (status.version > *version || ignored) {
                let generation = routes::next_generation(status.version.generation, clock::now());
                *version = RouteVersion {
                    epoch: version.epoch,
                    generation,
                };
                grew = true;
            }
        }
        drop(book);
        if grew {
            self.touch();
        }
    }

    /// Takes up what another host says.
    pub fn hear(&self, adverts: &[Advert]) {
        let mut book = self.book();
        let mut news = false;
        for advert in adverts {
            news |= routes::merge(&mut book.adverts, advert);
        }
        drop(book);
        if news {
            self.touch();
        }
    }

    /// Everything that this host can tell others.
    #[must_use]
    pub fn tell(&self, here: &HostAddr) -> Vec<Advert> {
        let book = self.book();
        let mut known = book.adverts.clone();
        for advert in routes::own_adverts(&book.locals, here) {
            routes::merge(&mut known, &advert);
        }
        known.into_values().collect()
    }

    /// The hosts that adverts name.
    #[must_use]
    pub fn advertised_hosts(&self) -> BTreeSet<HostAddr> {
        self.book()
            .adverts
            .values()
            .map(|advert| advert.host.clone())
            .collect()
    }

    /// Counts up with every change, to wait on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What `proxyd` answered last.
    ///
    /// # Errors
    /// Why it did not.
    pub fn statuses(&self) -> Result<Vec<RouteStatus>, String> {
        self.answer.borrow().clone()
    }

    /// Ports that `proxyd` should listen on and cannot.
    #[must_use]
    pub fn listen_errors(&self) -> Vec<(RouteKey, String)> {
        let statuses = self.statuses().unwrap_or_default();
        statuses
            .into_iter()
            .filter_map(|s| s.listen_error.map(|error| (s.key, error)))
            .collect()
    }

    /// Whether `proxyd` has taken all that is to be said under a deployment. One that does not
    /// answer is a problem of its own and not waited for here.
    #[must_use]
    pub fn is_told(&self, generation: DeploymentGeneration) -> bool {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told == (generation, *self.changed.borrow()) || self.answer.borrow().is_err()
    }

    fn touch(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn gate_of(route: &LocalRoute) -> Gate {
    match route {
        LocalRoute::Open(_) => Gate::Open,
        LocalRoute::Park => Gate::Parked,
        LocalRoute::Closed => Gate::Closed,
    }
}

/// Tells `proxyd` now, and returns when it has taken it.
///
/// # Errors
/// [`ClientError`]; the loop of [`follow`] says it again.
///
/// # Cancel safety
/// May have taken effect; say it again.
pub async fn push(host: &Host) -> Result<(), ClientError> {
    let _sending = host.routes.sending.lock().await;
    let config = host.config();
    let (mark, set) = {
        let desired = host.desired.get();
        let mark = (desired.generation, *host.routes.changed.borrow());
        let book = host.routes.book();
        // What others repeat of this host leads nowhere but here: it says itself what is true,
        // or nothing yet, and then the proxy keeps what it has.
        let mut adverts = book.adverts.clone();
        adverts.retain(|_, advert| advert.host != host.address);
        let set = SetRoutes {
            host: host.address.clone(),
            peers: desired
                .placement
                .keys()
                .filter(|h| **h != host.address)
                .cloned()
                .collect(),
            routes: routes::compute(
                &desired,
                &book.locals,
                &adverts,
                config.proxy.trunk_port,
                config.migration,
            ),
        };
        (mark, set)
    };
    let answer = host.proxy.set_routes(&set).await;
    let seen = match &answer {
        Ok(reply) => {
            *host
                .routes
                .told
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = mark;
            host.routes.overtake(&reply.routes);
            Ok(reply.routes.clone())
        }
        Err(error) => Err(rehome_runtime::report::Report(error).to_string()),
    };
    drop(host.routes.answer.send_replace(seen));
    answer.map(drop)
}

/// Keeps `proxyd` told. Runs until the stop.
///
/// # Cancel safety
/// Cancel safe: nothing is lost but a push, which is repeated.
pub async fn follow(host: std::sync::Arc<Host>) {
    let stop = host.supervisor.token().clone();
    let mut routes = host.routes.changes();
    let mut desired = host.desired.watch();
    let mut failing = false;
    let mut again = Backoff::new(AGAIN, REPEAT);
    loop {
        let mut pause = REPEAT;
        match push(&host).await {
            Ok(()) => {
                failing = false;
                again.reset();
            }
            // Said once, not at every try.
            Err(error) if !failing => {
                failing = true;
                pause = again.next_delay();
                let error = rehome_runtime::report::Report(&error).to_string();
                tracing::warn!(
                    error,
                    "proxyd cannot be told its routes; it goes on with the last"
                );
            }
            Err(_) => pause = again.next_delay(),
        }
        // Every arm waits on a level: what is missed here is seen at the next turn.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = routes.changed() => {}
            _ = desired.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests;
