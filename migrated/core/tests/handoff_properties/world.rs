//! Hosts with a journal of real bytes each, and a network that forgets nothing.
//!
//! The machines, the guards, the plans of the reconcile loop, the journal's bytes and what they
//! mean are the real ones. Around them is what `migrated` does with the answers, as simple as it
//! can be said: records first, then the effect, and every effect twice.

use std::collections::{BTreeMap, BTreeSet};

use migrated_core::UnixMillis;
use migrated_core::journal::{self, MAGIC, Position};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use migrated_core::source::SourceMigration;
use rehome_shared::api::cluster::MigrationState;
use rehome_shared::ids::{Epoch, MigrationId};
use serde::{Deserialize, Serialize};

use crate::steps::{Crash, Event, Step};
use crate::values::{APPLICATIONS, HOSTS, application};

mod destination;
mod healing;
mod invariants;
mod network;
mod owner;
mod source;

use network::Message;

/// Something that `migrated` must not do, done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mutant {
    /// A disk that says "durable" and forgets: a crash takes the last frame with it.
    ForgetsDurable,
    /// The effect of a way back rolls the volume back to the final snapshot, each time.
    RollsBack,
    /// A destination takes whatever it is offered.
    TakesAnything,
    /// A destination promotes what it received again, although its application runs.
    PromotesAgain,
    /// What a former owner kept goes before the destination serves.
    RetiresEarly,
}

impl Mutant {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::ForgetsDurable,
        Self::RollsBack,
        Self::TakesAnything,
        Self::PromotesAgain,
        Self::RetiresEarly,
    ];
}

/// The writes that a volume holds.
type Data = BTreeSet<u32>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instance {
    epoch: Epoch,
    running: bool,
}

/// An application on a host.
#[derive(Debug, Clone, Default)]
struct Side {
    instance: Option<Instance>,
    gate: bool,
    live: Option<Data>,
    finals: BTreeMap<MigrationId, Data>,
}

#[derive(Debug, Clone)]
struct Host {
    disk: Vec<u8>,
    /// Where the next frame goes.
    position: Position,
    /// What was written and is durable.
    records: Vec<Record>,
    registry: Registry,
    up: bool,
    /// Whether the host was started since its instances ran.
    rebooted: bool,
    lives: BTreeMap<MigrationId, SourceMigration>,
    /// Applications whose move failed, in this deployment.
    failed: BTreeSet<usize>,
    sides: [Side; APPLICATIONS],
}

/// What a sequence has reached.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) done: usize,
    pub(crate) aborted: usize,
    pub(crate) returned: usize,
    /// Crashes that cut a frame in two.
    pub(crate) torn: usize,
    /// Crashes between the records of one step.
    pub(crate) between: usize,
    /// Messages that changed nothing, because they were old.
    pub(crate) stale: usize,
}

impl Reached {
    pub(crate) fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.aborted += other.aborted;
        self.returned += other.returned;
        self.torn += other.torn;
        self.between += other.between;
        self.stale += other.stale;
    }

    pub(crate) fn is_everything(&self) -> bool {
        let Self {
            done,
            aborted,
            returned,
            torn,
            between,
            stale,
        } = self;
        [done, aborted, returned, torn, between, stale]
            .into_iter()
            .all(|count| *count > 0)
    }
}

pub(crate) struct World {
    mutant: Option<Mutant>,
    hosts: [Host; HOSTS],
    desired: [usize; APPLICATIONS],
    messages: Vec<Message>,
    acknowledged: [Data; APPLICATIONS],
    /// Who owned each application at each epoch.
    owners: [BTreeMap<Epoch, usize>; APPLICATIONS],
    now: UnixMillis,
    writes: u32,
    migrations: usize,
    /// The crash that comes with the next records.
    crash: Option<Crash>,
    broken: Option<String>,
    reached: Reached,
}

impl World {
    pub(crate) fn new(mutant: Option<Mutant>) -> Self {
        let host = Host {
            disk: MAGIC.to_vec(),
            position: journal::start(),
            records: Vec::new(),
            registry: Registry::default(),
            up: true,
            rebooted: false,
            lives: BTreeMap::new(),
            failed: BTreeSet::new(),
            sides: std::array::from_fn(|_| Side::default()),
        };
        Self {
            mutant,
            hosts: std::array::from_fn(|_| host.clone()),
            desired: std::array::from_fn(|app| app % HOSTS),
            messages: Vec::new(),
            acknowledged: std::array::from_fn(|_| Data::new()),
            owners: std::array::from_fn(|_| BTreeMap::new()),
            now: UnixMillis(1_700_000_000_000),
            writes: 0,
            migrations: 0,
            crash: None,
            broken: None,
            reached: Reached::default(),
        }
    }

    /// Runs a sequence, and then lets everything come to rest.
    pub(crate) fn run(mutant: Option<Mutant>, steps: &[Step]) -> Result<(Self, Reached), String> {
        let mut world = Self::new(mutant);
        for (number, step) in steps.iter().enumerate() {
            world.step(step);
            world
                .check()
                .map_err(|problem| format!("{problem} after step {number}: {step:?}"))?;
        }
        world.heal()?;
        let mut reached = world.reached.clone();
        for past in world.hosts.iter().flat_map(|h| h.registry.history()) {
            match past.state {
                MigrationState::Done => reached.done += 1,
                MigrationState::Aborted => reached.aborted += 1,
                MigrationState::Returned => reached.returned += 1,
                MigrationState::Running | MigrationState::Blocked => {}
            }
        }
        Ok((world, reached))
    }

    /// The bytes of the journals.
    pub(crate) fn journals(&self) -> impl Iterator<Item = (&[u8], &[Record])> {
        self.hosts
            .iter()
            .map(|host| (host.disk.as_slice(), host.records.as_slice()))
    }

    fn mutated(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn step(&mut self, step: &Step) {
        self.now = UnixMillis(self.now.0 + 1);
        self.crash = step.crash;
        let at = self.happens(&step.event);
        if let Some(crash) = self.crash.take()
            && let Some(at) = at
            && self.hosts[at].up
        {
            self.stop(at, crash.whole);
        }
    }

    /// Where it happened, if it happened.
    fn happens(&mut self, event: &Event) -> Option<usize> {
        let at = |host: u8| usize::from(host) % HOSTS;
        let chosen = |host: u8| match usize::from(host) {
            at @ 0..HOSTS => at..at + 1,
            _ => 0..HOSTS,
        };
        let one = |app: u8| usize::from(app) % APPLICATIONS;
        match *event {
            Event::Place { app, host } => {
                self.desired[one(app)] = at(host);
                for host in &mut self.hosts {
                    host.failed.remove(&one(app));
                }
                None
            }
            Event::Reconcile { app, host } => {
                let app = one(app);
                let owner = self.owners_of(app).first().copied();
                let chosen = Some(usize::from(host)).filter(|at| *at < HOSTS);
                self.reconcile(chosen.or(owner).unwrap_or(self.desired[app]), app)
            }
            Event::Turn { host, how } => {
                let hosts = chosen(host);
                self.turn_some(hosts.clone(), how);
                Some(hosts.start)
            }
            Event::Drive { which, how } => self.drive_one(which, how),
            Event::CallOff { which } => self.call_off(which),
            Event::Settle { which, how } => self.settle_one(which, how),
            Event::Deliver { back, how } => self.deliver_one(back, how),
            Event::Write { app } => self.write(one(app)),
            Event::Crash { host, whole } => {
                self.stop(at(host), whole);
                None
            }
            Event::Restart { host } => {
                let hosts = chosen(host);
                for at in hosts.clone() {
                    self.restart(at);
                }
                Some(hosts.start)
            }
        }
    }

    /// A client writes where a gate is open.
    fn write(&mut self, app: usize) -> Option<usize> {
        let at = (0..HOSTS).find(|at| self.serves(*at, app))?;
        self.writes += 1;
        let number = self.writes;
        if let Some(live) = &mut self.hosts[at].sides[app].live {
            live.insert(number);
            self.acknowledged[app].insert(number);
        }
        Some(at)
    }

    fn serves(&self, at: usize, app: usize) -> bool {
        let side = &self.hosts[at].sides[app];
        side.gate && side.instance.is_some_and(|instance| instance.running)
    }

    /// Writes records down; `false` when the host went down over it.
    fn persist(&mut self, at: usize, records: &[Record]) -> bool {
        if records.is_empty() {
            return true;
        }
        let host = &mut self.hosts[at];
        let mut bytes = Vec::new();
        let mut position = host.position;
        let mut ends = Vec::new();
        for record in records {
            let (frame, next) = journal::encode(position, record).unwrap();
            bytes.extend(frame);
            ends.push(bytes.len());
            position = next;
        }
        if let Some(crash) = self.crash.take() {
            let cut = usize::from(crash.bytes) % (bytes.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            host.disk.extend(&bytes[..cut]);
            host.records.extend_from_slice(&records[..whole]);
            self.reached.torn += usize::from(cut > 0 && !ends.contains(&cut));
            self.reached.between += usize::from(0 < whole && whole < records.len());
            self.stop(at, crash.whole);
            return false;
        }
        host.disk.extend(bytes);
        host.position = position;
        host.records.extend_from_slice(records);
        for record in records {
            host.registry.apply(record);
        }
        true
    }

    /// A daemon or a host stops without a word.
    fn stop(&mut self, at: usize, whole: bool) {
        let forgets = self.mutated(Mutant::ForgetsDurable);
        let host = &mut self.hosts[at];
        if forgets && host.up {
            host.records.pop();
            host.disk = bytes_of(&host.records);
        }
        host.up = false;
        host.lives.clear();
        // What the journal says from now on, for whoever looks from outside.
        host.registry = Registry::replay(&host.records);
        if whole {
            host.rebooted = true;
            for side in &mut host.sides {
                if let Some(instance) = &mut side.instance {
                    instance.running = false;
                }
            }
        }
    }

    /// A daemon finds itself by what is on its disk.
    fn restart(&mut self, at: usize) {
        if self.hosts[at].up {
            return;
        }
        let host = &mut self.hosts[at];
        let read = match journal::scan(&host.disk) {
            Ok(read) => read,
            Err(corrupt) => {
                self.broken = Some(format!("a crash makes the journal corrupt: {corrupt}"));
                return;
            }
        };
        if read.records != host.records {
            self.broken = Some(format!(
                "{} records were durable and {} are read",
                host.records.len(),
                read.records.len()
            ));
            return;
        }
        host.disk.truncate(read.believed);
        host.position = read.position;
        host.registry = Registry::replay(&read.records);
        let twice = Registry::replay(read.records.iter().chain(&read.records));
        if twice != host.registry {
            self.broken = Some("replaying the journal twice differs".to_owned());
        }
        let compacted = host.registry.compacted();
        if Registry::replay(&compacted) != host.registry {
            self.broken = Some("the journal made anew means something else".to_owned());
        }
        // Every other start makes it anew.
        if self.now.0.is_multiple_of(2) {
            host.disk = bytes_of(&compacted);
            host.position = end_of(&compacted);
            host.records = compacted;
        }
        host.up = true;
        host.failed.clear();
        host.lives = host.registry.sources().clone();
        let resumed: Vec<_> = host
            .lives
            .iter()
            .filter_map(|(id, live)| Some((id.clone(), live.resumed()?)))
            .collect();
        for (id, event) in resumed {
            if self.hosts[at].up {
                self.source_event(at, &id, event);
            }
        }
    }

    fn epoch_here(&self, at: usize, app: usize) -> Option<Epoch> {
        let registry = &self.hosts[at].registry;
        registry.owned(&application(app)).map(|owned| owned.epoch)
    }
}

fn bytes_of(records: &[Record]) -> Vec<u8> {
    write(records).0
}

fn end_of(records: &[Record]) -> Position {
    write(records).1
}

fn write(records: &[Record]) -> (Vec<u8>, Position) {
    let mut bytes = MAGIC.to_vec();
    let mut position = journal::start();
    for record in records {
        let (frame, next) = journal::encode(position, record).unwrap();
        bytes.extend(frame);
        position = next;
    }
    (bytes, position)
}
