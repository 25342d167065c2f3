//! Three hosts, two applications, and what is known of both.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::instance::{self, Instance};
use crate::http::Answer;
use crate::proxy::{Proxy, Setup, Version, address, local, remote, route};
use crate::soak::diary::{Diary, Stop};

/// How many hosts there are.
pub(super) const HOSTS: usize = 3;
/// A proxy that is away is back within it.
const BACK: Duration = Duration::from_secs(30);

/// All of it. Hosts and applications are counted from 0.
#[derive(Debug)]
pub(super) struct World {
    proxies: Vec<RwLock<Proxy>>,
    /// Descriptors of each proxy when it was new and had nothing to do.
    pub(super) descriptors: Vec<AtomicU64>,
    /// Odd while a proxy is away, or may be.
    away: Vec<AtomicU64>,
    pub(super) applications: Vec<Application>,
    pub(super) diary: Diary,
    pub(super) stop: Stop,
    wrong: Mutex<Vec<String>>,
    /// What has happened that may cut connections, begun and ended.
    begun: AtomicU64,
    ended: AtomicU64,
    kills: AtomicU64,
    stops: AtomicU64,
    upgrades: AtomicU64,
    reloads: AtomicU64,
}

/// An application.
#[derive(Debug)]
pub(super) struct Application {
    pub(super) name: &'static str,
    pub(super) port: u16,
    place: Mutex<Place>,
    pub(super) instance: Mutex<Option<Instance>>,
}

/// Where an application is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) host: usize,
    pub(super) epoch: u64,
}

/// Something that may cut connections goes on.
#[derive(Debug)]
pub(super) struct Disturbance<'a>(&'a World);

impl Drop for Disturbance<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// What had happened when a connection began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since(u64);

impl World {
    pub(super) fn begin(diary: Diary) -> anyhow::Result<Self> {
        let numbers = || 1_u8..=u8::try_from(HOSTS).unwrap_or(u8::MAX);
        let proxies = numbers().map(|number| Proxy::start(number, Setup::default()));
        let proxies = proxies.collect::<anyhow::Result<Vec<_>>>()?;
        let application = |(number, (name, port))| {
            let place = Place {
                host: number,
                epoch: 1,
            };
            Ok(Application {
                name,
                port,
                instance: Mutex::new(Some(Instance::start(number, number)?)),
                place: Mutex::new(place),
            })
        };
        let applications = [("db", 5000), ("web", 5001)].into_iter().enumerate();
        let applications = applications.map(application);
        let world = Self {
            descriptors: proxies.iter().map(|_| AtomicU64::new(0)).collect(),
            away: proxies.iter().map(|_| AtomicU64::new(0)).collect(),
            proxies: proxies.into_iter().map(RwLock::new).collect(),
            applications: applications.collect::<anyhow::Result<_>>()?,
            diary,
            stop: Stop::default(),
            wrong: Mutex::default(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            kills: AtomicU64::new(0),
            stops: AtomicU64::new(0),
            upgrades: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
        };
        for host in 0..HOSTS {
            world.tell(host)?;
            let new = world.proxy(host).used()?.descriptors;
            // The first answer for metrics may have been still open, and a few more are opened
            // with the first connections: what the runtime needs for them.
            world.descriptors[host].store(new + 4, Ordering::Relaxed);
        }
        Ok(world)
    }

    pub(super) fn proxy(&self, host: usize) -> RwLockReadGuard<'_, Proxy> {
        self.proxies[host]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn proxy_mut(&self, host: usize) -> RwLockWriteGuard<'_, Proxy> {
        self.proxies[host]
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Where clients of an application come to a host. No lock: a proxy that is away has one too.
    pub(super) fn proxy_door(&self, host: usize, application: usize) -> SocketAddr {
        let number = u8::try_from(host + 1).unwrap_or(u8::MAX);
        (address(number), self.applications[application].port).into()
    }

    /// A proxy goes away, or is back.
    pub(super) fn set_away(&self, host: usize) {
        self.away[host].fetch_add(1, Ordering::SeqCst);
    }

    /// A number that differs once a proxy was away; none while it is.
    pub(super) fn there(&self, host: usize) -> Option<u64> {
        let number = self.away[host].load(Ordering::SeqCst);
        number.is_multiple_of(2).then_some(number)
    }

    /// Something begins that may cut connections.
    pub(super) fn disturb(&self) -> Disturbance<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Disturbance(self)
    }

    /// What a connection that begins now may have to suffer from.
    pub(super) fn since(&self) -> Since {
        Since(self.ended.load(Ordering::SeqCst))
    }

    /// Whether nothing has happened since, and nothing goes on, that may cut connections.
    pub(super) fn was_calm(&self, since: Since) -> bool {
        self.begun.load(Ordering::SeqCst) == since.0
    }

    pub(super) fn complain(&self, what: String) {
        self.diary.note(&format!("WRONG: {what}"));
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push(what);
    }

    pub(super) fn wrong(&self) -> Vec<String> {
        self.wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn count_kill(&self) {
        self.kills.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_stop(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_upgrade(&self) {
        self.upgrades.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_reload(&self) {
        self.reloads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> String {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        format!(
            "{} kills, {} restarts, {} upgrades, {} reloads",
            count(&self.kills),
            count(&self.stops),
            count(&self.upgrades),
            count(&self.reloads)
        )
    }

    /// Has a proxy do something, again and again while it is away or hands over.
    pub(super) fn insist(
        &self,
        host: usize,
        what: &str,
        ask: impl Fn(&Proxy) -> anyhow::Result<Answer>,
    ) -> anyhow::Result<Value> {
        let begin = Instant::now();
        loop {
            let answer = ask(&self.proxy(host));
            match answer {
                Ok(answer) if answer.status == 503 => ensure!(
                    begin.elapsed() < BACK,
                    "{what} on host {host} was not carried out: {answer:?}"
                ),
                Ok(answer) => {
                    return answer
                        .ok()
                        .with_context(|| format!("{what} on host {host}"));
                }
                Err(error) => ensure!(
                    begin.elapsed() < BACK,
                    "{what} on host {host} was not answered: {error:#}"
                ),
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Tells a proxy all that is known, as its `migrated` does.
    pub(super) fn tell(&self, host: usize) -> anyhow::Result<()> {
        let known = self.applications.iter().enumerate().map(|(number, one)| {
            let Place { host: at, epoch } = one.place();
            let target = if at == host {
                local(instance::address(host, number))
            } else {
                remote(u8::try_from(at + 1).unwrap_or(u8::MAX))
            };
            route(one.port, one.name, Version(epoch, 0), &target)
        });
        let known: Vec<Value> = known.collect();
        self.insist(host, "the routes", |proxy| proxy.try_set(&known))?;
        Ok(())
    }
}

impl Application {
    pub(super) fn place(&self) -> Place {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_place(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    pub(super) fn instance(&self) -> MutexGuard<'_, Option<Instance>> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
