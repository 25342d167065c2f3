//! What a user would build by hand, with more care than most: the store on a btrfs subvolume in
//! the same pool, HAProxy before it, shells that are logged in already, and one command after the
//! other without a pause to think.
//!
//! It is spared what Rehome does besides: nothing is encrypted or verified on its way, nothing is
//! synced at the destination, and nobody asks whether a second instance may run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::ensure;
use rehome_tests::lab::Lab;

use crate::window::contender::{DESTINATION, FRONT, Mover, SOURCE};
use crate::window::plan::{Contender, Kind};
use crate::window::record::{Moved, Part};
use crate::window::shell::Shell;
use crate::window::store::ByHand as Store;

/// Where HAProxy listens.
const DOOR: u16 = 7100;
/// Where the other host receives.
const COPY: u16 = 7102;
/// The subvolumes of all trials.
const PLACE: &str = "/var/lib/rehome/pool/by-hand";
/// HAProxy's own door.
const CONTROL: &str = "/run/by-hand-haproxy.sock";
/// What `rsync` sends to.
const RSYNC: &str = "/run/by-hand-rsync.conf";

/// Shells on the hosts of a lab, and HAProxy on the third.
#[derive(Debug)]
pub struct Hosts {
    source: Shell,
    destination: Shell,
    front: Shell,
    /// The addresses of source and destination.
    addresses: [String; 2],
    door: SocketAddr,
}

impl Hosts {
    /// Logs in, and starts HAProxy.
    ///
    /// # Errors
    /// When that fails.
    pub fn open(lab: &Lab) -> anyhow::Result<Self> {
        let host = |number| lab.host(number);
        let mut hosts = Self {
            source: Shell::open(lab, host(SOURCE)?)?,
            destination: Shell::open(lab, host(DESTINATION)?)?,
            front: Shell::open(lab, host(FRONT)?)?,
            addresses: [
                host(SOURCE)?.address().to_owned(),
                host(DESTINATION)?.address().to_owned(),
            ],
            door: host(FRONT)?.door(DOOR)?,
        };
        hosts.front.run(&format!(
            "cat >/run/by-hand-haproxy.cfg <<'END'\n{}END\n\
             haproxy -f /run/by-hand-haproxy.cfg -db >/run/by-hand-haproxy.log & \
             for turn in $(seq 200); do [ -S {CONTROL} ] && break; sleep 0.05; done",
            front_config(&hosts.addresses[0])
        ))?;
        Ok(hosts)
    }

    /// Leads HAProxy to a host. Its answer says whether it did.
    fn lead(&mut self, address: &str, port: u16) -> anyhow::Result<()> {
        let said = self.front.run(&format!(
            "echo 'set server by-hand/store addr {address} port {port}' \
             | socat - UNIX-CONNECT:{CONTROL}"
        ))?;
        ensure!(said.contains("change"), "HAProxy says: {said}");
        Ok(())
    }
}

/// HAProxy as its package configures it, but for TCP.
fn front_config(address: &str) -> String {
    format!(
        "global\n    stats socket {CONTROL} level admin\n    maxconn 4000\n\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 50s\n    \
         timeout server 50s\n\
         listen by-hand\n    bind :{DOOR}\n    server store {address}:1\n"
    )
}

/// A store that is moved by hand.
#[derive(Debug)]
pub struct ByHand<'a> {
    hosts: &'a mut Hosts,
    way: Contender,
    store: Store,
    /// The directory of this trial.
    place: String,
    /// Which host the store runs on.
    moved: bool,
}

impl<'a> ByHand<'a> {
    /// A trial; its name differs from that of every other one on the lab.
    #[must_use]
    pub fn new(hosts: &'a mut Hosts, way: Contender, kind: Kind, name: &str) -> Self {
        Self {
            hosts,
            way,
            store: Store::new(kind, name),
            place: format!("{PLACE}/{name}"),
            moved: false,
        }
    }

    fn live(&self) -> String {
        format!("{}/live", self.place)
    }

    /// A read-only snapshot of the live tree.
    fn snapshot(&mut self, name: &str) -> anyhow::Result<()> {
        let (live, place) = (self.live(), &self.place);
        self.hosts.source.run(&format!(
            "sync -f {live} && btrfs subvolume snapshot -r {live} {place}/{name}"
        ))?;
        Ok(())
    }

    /// Sends a snapshot over a TCP connection; with a base, only the difference.
    fn send(&mut self, base: Option<&str>, name: &str) -> anyhow::Result<()> {
        let place = &self.place;
        let base = base
            .map(|base| format!("-p {place}/{base} "))
            .unwrap_or_default();
        let to = &self.hosts.addresses[1];
        self.hosts.destination.begin(&format!(
            "socat -u -b 1048576 TCP-LISTEN:{COPY},reuseaddr STDOUT | btrfs receive -q {place}"
        ))?;
        self.hosts.source.run(&format!(
            "btrfs send -q {base}{place}/{name} \
             | socat -u -b 1048576 STDIN TCP:{to}:{COPY},retry=500,interval=0.01"
        ))?;
        self.hosts.destination.end()?;
        Ok(())
    }

    /// A writable tree of what arrived.
    fn promote(&mut self, name: &str) -> anyhow::Result<()> {
        let (live, place) = (self.live(), &self.place);
        let line = format!("btrfs subvolume snapshot {place}/{name} {live}");
        self.hosts.destination.run(&line)?;
        Ok(())
    }

    /// Sends all files to a daemon of rsync, which waits for them already.
    fn rsync(&mut self) -> anyhow::Result<()> {
        let (live, to) = (self.live(), &self.hosts.addresses[1]);
        let line = format!("rsync -a --numeric-ids {live}/ rsync://{to}:{COPY}/live/");
        self.hosts.source.run(&line)?;
        Ok(())
    }

    /// What is done before anything stops.
    fn prepare(&mut self) -> anyhow::Result<()> {
        let (live, place) = (self.live(), self.place.clone());
        let there = &mut self.hosts.destination;
        there.run(&format!("mkdir -p {place}"))?;
        match self.way {
            Contender::TwoPhase => {
                self.snapshot("whole")?;
                self.send(None, "whole")?;
            }
            Contender::Rsync => {
                let config = rsync_config(&live);
                there.run(&format!(
                    "btrfs subvolume create {live} && cat >{RSYNC} <<'END'\n{config}END\n\
                     rsync --daemon --no-detach --port {COPY} --config {RSYNC} & receiver=$!; \
                     for turn in $(seq 200); do rsync rsync://127.0.0.1:{COPY}/ >/dev/null 2>&1 \
                     && break; sleep 0.05; done"
                ))?;
            }
            Contender::Send
            | Contender::Rehome
            | Contender::RehomeNoDrain
            | Contender::RehomeThrottle => {}
        }
        Ok(())
    }

    /// Everything that is not on the destination yet.
    fn copy(&mut self) -> anyhow::Result<()> {
        match self.way {
            Contender::TwoPhase => self.send(Some("whole"), "last"),
            Contender::Send => self.send(None, "last"),
            Contender::Rsync
            | Contender::Rehome
            | Contender::RehomeNoDrain
            | Contender::RehomeThrottle => self.rsync(),
        }
    }
}

fn rsync_config(live: &str) -> String {
    format!(
        "use chroot = no\nreverse lookup = no\nuid = root\ngid = root\n\
         [live]\n    path = {live}\n    read only = no\n"
    )
}

impl Mover for ByHand<'_> {
    fn open(&mut self) -> anyhow::Result<SocketAddr> {
        let (live, place) = (self.live(), &self.place);
        let source = &mut self.hosts.source;
        source.run(&format!(
            "mkdir -p {place} && btrfs subvolume create {live}"
        ))?;
        source.run(&self.store.start(&live))?;
        source.run(&self.store.healthy())?;
        let address = self.hosts.addresses[0].clone();
        self.hosts.lead(&address, self.store.port())?;
        Ok(self.hosts.door)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        self.hosts.source.run("sync -f /var/lib/rehome/pool")?;
        Ok(())
    }

    fn go(&mut self) -> anyhow::Result<Moved> {
        let began = Instant::now();
        self.prepare()?;
        let before = began.elapsed().as_secs_f64();
        let mut clock = Clock::new();
        let snapshots = self.way != Contender::Rsync;
        self.hosts.source.run(&self.store.stop())?;
        clock.lap(Part::Stop);
        if snapshots {
            self.snapshot("last")?;
            clock.lap(Part::Flush);
        }
        self.copy()?;
        clock.lap(Part::Copy);
        if snapshots {
            self.promote("last")?;
            clock.lap(Part::Own);
        }
        let live = self.live();
        self.hosts.destination.run(&self.store.start(&live))?;
        self.hosts.destination.run(&self.store.healthy())?;
        clock.lap(Part::Start);
        let address = self.hosts.addresses[1].clone();
        self.hosts.lead(&address, self.store.port())?;
        clock.lap(Part::Route);
        self.moved = true;
        Ok(Moved {
            before,
            parts: clock.parts,
            ..Moved::default()
        })
    }

    fn close(&mut self) -> anyhow::Result<()> {
        let Hosts {
            source,
            destination,
            ..
        } = &mut *self.hosts;
        if self.moved {
            destination.run(&self.store.stop())?;
            destination.run(&self.store.forget())?;
        } else {
            source.run(&self.store.stop())?;
        }
        source.run(&self.store.forget())?;
        if self.way == Contender::Rsync {
            destination.run("kill $receiver; wait $receiver || true")?;
        }
        let remove = format!(
            "for tree in {0}/*; do btrfs subvolume delete $tree; done; rmdir {0}; \
             btrfs subvolume sync {PLACE}",
            self.place
        );
        source.run(&remove)?;
        destination.run(&remove)?;
        Ok(())
    }
}

/// Takes the time of one part after the other.
#[derive(Debug)]
struct Clock {
    since: Instant,
    parts: BTreeMap<Part, f64>,
}

impl Clock {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            parts: BTreeMap::new(),
        }
    }

    fn lap(&mut self, part: Part) {
        let now = Instant::now();
        self.parts.insert(part, (now - self.since).as_secs_f64());
        self.since = now;
    }
}
