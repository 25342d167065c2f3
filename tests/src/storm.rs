//! A storm: more clients than a proxy holds come to a gate that is parked, and are then released
//! to an application that accepts slowly.
//!
//! They are held in three tiers: those that the proxy has accepted, those that its kernel has
//! completed, and those whose SYNs the kernel drops, which send them again. What is promised:
//! everybody is served once, and nobody is refused. The held ones are called in the order in which
//! they came, up to 128 at once, so one of them is overtaken by those of its own crowd, again when
//! its try fails, and not by who came much later: this insists on 512 places. The kernel's queue
//! follows in its order. Who is in no queue has no place in
//! one: that depends on when its kernel sends its SYN again.

mod application;
mod client;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use self::application::Application;
use self::client::{Clients, Visit};
use crate::network;
use crate::proxy::{PATIENCE, Proxy, Setup, Version, local, park_limits, route};
use crate::wait::{wait_for, wait_until};

const PORT: u16 = 5000;
/// Tries of a line at once.
const AT_ONCE: usize = 128;
/// The queue of the application.
const QUEUE: i32 = 128;

/// A storm.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// How many clients come.
    pub clients: usize,
    /// How many the gate holds.
    pub held: u32,
    /// How many the kernel holds.
    pub backlog: u32,
    /// What the application takes to accept one.
    pub pace: Duration,
    /// How long each client waits.
    pub patience: Duration,
}

/// What came of a storm.
#[derive(Debug)]
pub struct Summary {
    storm: Storm,
    refused_syns: u64,
    /// What the proxy's memory grew by when its gate was full, in KiB.
    memory: u64,
    /// Processor time of the proxy in a second of waiting.
    waiting: Duration,
    released: Duration,
    /// The farthest that a held client was from its place.
    farthest: usize,
    longest: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            storm,
            refused_syns,
            memory,
            waiting,
            released,
            farthest,
            longest,
        } = self;
        let each = memory * 1024 / u64::from(storm.held.max(1));
        write!(
            f,
            "{} clients, {} held, {} in the kernel's queue, the rest sent their SYNs again \
             ({refused_syns} dropped): all served, the last one {:.1} s after the release, after \
             {:.1} s at most; no held client was more than {farthest} places from its own; \
             {each} bytes of memory for each that is held; {:.2} s of processor time in a second \
             of waiting",
            storm.clients,
            storm.held,
            storm.backlog,
            released.as_secs_f64(),
            longest.as_secs_f64(),
            waiting.as_secs_f64(),
        )
    }
}

impl Storm {
    /// Lets it happen, in a network of its own.
    ///
    /// # Errors
    /// When a promise was broken.
    pub fn run(self) -> anyhow::Result<Summary> {
        network::own()?;
        network::set("ipv4/ip_local_port_range", "2048 65000")?;
        network::set("core/somaxconn", &self.backlog.to_string())?;
        let proxy = Proxy::start(1, Setup::default())?;
        let application = Application::start(QUEUE, self.pace)?;
        let target = local(application.address());
        self.park(&proxy, &target)?;
        let base = proxy.used()?;

        let clients = self.let_come(&proxy)?;
        let order = order(&proxy)?;
        let memory = proxy.memory()?.saturating_sub(base.memory);
        let waiting = self.wait_a_second(&proxy)?;
        let refused_syns = network::counter("TcpExt:", "ListenOverflows")?;
        let all = usize::try_from(self.held + self.backlog)?;
        ensure!(
            self.clients <= all || refused_syns > 0,
            "the kernel held more than {all} clients"
        );
        ensure!(application.accepted() == 0, "the gate let clients through");

        let release = Instant::now();
        proxy.commit("db", Version(2, 0), PORT, &target)?;
        let visits = clients.finish()?;
        let released = release.elapsed();
        let farthest = self.check(&visits, &order);
        let farthest = farthest.with_context(|| said(&proxy))?;
        ensure!(
            application.accepted() == self.clients,
            "{} came to the application",
            application.accepted()
        );
        nothing_is_left(&proxy, base.descriptors)?;
        let longest = visits.values().map(|visit| visit.ended).max();
        Ok(Summary {
            storm: self,
            refused_syns,
            memory,
            waiting,
            released,
            farthest,
            longest: longest.unwrap_or_default(),
        })
    }

    fn park(self, proxy: &Proxy, target: &serde_json::Value) -> anyhow::Result<()> {
        proxy.set(&[route(PORT, "db", Version(1, 0), target)])?;
        let limits = park_limits(self.held, self.patience);
        proxy.try_prepare("db", Version(1, 1), &limits)?.ok()?;
        Ok(())
    }

    /// Has all clients come, and waits until the gate holds what it may.
    fn let_come(self, proxy: &Proxy) -> anyhow::Result<Clients> {
        let clients = Clients::begin(proxy.door(PORT), self.clients, self.patience)?;
        let held = u64::from(self.held);
        wait_until("the gate is full", PATIENCE, || {
            let parked = proxy.parked(PORT)?;
            ensure!(parked <= held, "{parked} are held");
            Ok(parked == held)
        })?;
        Ok(clients)
    }

    fn wait_a_second(self, proxy: &Proxy) -> anyhow::Result<Duration> {
        let (begin, before) = (Instant::now(), proxy.processor()?);
        wait_for("a second passes", PATIENCE, || {
            let parked = proxy.parked(PORT)?;
            ensure!(parked == u64::from(self.held), "{parked} are held");
            Ok((begin.elapsed() >= Duration::from_secs(1)).then_some(()))
        })?;
        let used = proxy.processor()?.saturating_sub(before);
        Ok(used.div_f64(begin.elapsed().as_secs_f64()))
    }

    /// Everybody was served once, and the held ones in their order; how far that was missed.
    fn check(
        self,
        visits: &BTreeMap<SocketAddr, Visit>,
        order: &[SocketAddr],
    ) -> anyhow::Result<usize> {
        ensure!(visits.len() == self.clients, "{} clients", visits.len());
        let failed = visits.iter().filter(|(_, visit)| visit.answer.is_err());
        let failed: Vec<_> = failed.collect();
        ensure!(
            failed.is_empty(),
            "{} were not served, {} of them held ones, for example {:?}",
            failed.len(),
            failed.iter().filter(|(at, _)| order.contains(at)).count(),
            failed.iter().take(5).collect::<Vec<_>>()
        );
        let mut numbers: Vec<u64> = Vec::new();
        numbers.extend(
            visits
                .values()
                .filter_map(|visit| visit.answer.as_ref().ok()),
        );
        numbers.sort_unstable();
        ensure!(
            numbers
                .iter()
                .zip(0..)
                .all(|(number, wanted)| *number == wanted),
            "the application's numbers were not given once each"
        );
        let number = |client: &SocketAddr| {
            let answer = visits.get(client).map(|visit| &visit.answer);
            answer.and_then(|answer| answer.as_ref().ok()).copied()
        };
        let mut served: Vec<(Option<u64>, usize)> = Vec::new();
        served.extend(
            order
                .iter()
                .enumerate()
                .map(|(place, at)| (number(at), place)),
        );
        served.sort_unstable();
        let places = served.iter().enumerate();
        let farthest = places.map(|(now, (_, place))| now.abs_diff(*place)).max();
        let farthest = farthest.unwrap_or_default();
        let last = served
            .last()
            .and_then(|(number, _)| *number)
            .context("nobody was held")?;
        let behind = usize::try_from(last)?.saturating_sub(order.len());
        ensure!(
            farthest <= 4 * AT_ONCE && behind <= 4 * AT_ONCE,
            "a held client was {farthest} places from its own; {behind} of other tiers came before"
        );
        Ok(farthest.max(behind))
    }
}

/// The held clients, the oldest first.
fn order(proxy: &Proxy) -> anyhow::Result<Vec<SocketAddr>> {
    let reply = proxy.send(("GET", "/v1/connections"), None)?.ok()?;
    let all = reply["connections"].as_array().context("no connections")?;
    let clients = all
        .iter()
        .map(|one| one["client"].as_str().unwrap_or_default().parse());
    Ok(clients.collect::<Result<_, _>>()?)
}

fn nothing_is_left(proxy: &Proxy, descriptors: u64) -> anyhow::Result<()> {
    let mut now = 0;
    wait_until("nothing is left", PATIENCE, || {
        now = proxy.used()?.descriptors;
        let left = proxy.parked(PORT)? + proxy.active(PORT)?;
        Ok(left == 0 && now <= descriptors)
    })
    .with_context(|| format!("{now} descriptors, {descriptors} at first"))
}

/// What the proxy says of what it did.
fn said(proxy: &Proxy) -> String {
    let page = proxy.metrics().unwrap_or_default();
    let kinds = [
        "rehome_proxy_connections_total",
        "rehome_proxy_shed",
        "rehome_proxy_connect_f",
    ];
    let lines = page
        .lines()
        .filter(|line| kinds.iter().any(|kind| line.starts_with(kind)));
    let lines = lines.filter(|line| !line.ends_with(" 0"));
    let log = proxy.log().unwrap_or_default();
    let tail = log.lines().rev().take(10);
    lines.chain(tail).collect::<Vec<_>>().join("\n")
}
