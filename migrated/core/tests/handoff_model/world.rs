//! The world around the machines: two hosts with an instance, a volume and a gate each, a network
//! that loses, repeats and reorders, and crashes.

use std::fmt;

use migrated_core::source::{BeforeRelease, Phase};
use rehome_shared::api::cluster::MigrationState;

use crate::machines::{EMPTY, Machines, NONE, SourceTag};
use crate::values;

mod giving;
mod taking;

/// How far the exploration goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) writes: u8,
    pub(crate) crashes: u8,
    pub(crate) migrations: u8,
}

/// A guard that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The final snapshot does not wait for the page cache.
    NoFlush,
    /// The final snapshot does not wait for the last process.
    Straggler,
    /// Messages are not told apart by their migration.
    AnyMigration,
    /// The source calls it off after C1.
    AbortAfterRelease,
    /// The destination starts on a promise.
    EarlyStart,
    /// The runtime starts the instance when its host boots.
    RestartPolicy,
    /// The destination gives it back after clients were served.
    ReturnAfterServing,
    /// The grant is sent before the release is durable.
    GrantBeforeRecord,
    /// The way back after a return rolls the volume back, each time it is tried.
    ReclaimRollsBack,
    /// The destination forgets a return before the source knows of it.
    ForgetsReturned,
    /// The destination drops a promise that nobody asked for in a while.
    PromiseExpires,
}

/// An invariant that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// 1: two instances run.
    TwoInstances,
    /// 2: two hosts own it, or have owned it at the same epoch.
    TwoOwners,
    /// 3: an instance runs on a volume without an acknowledged write.
    WriteLost,
    /// 4: a gate is open where nobody is the owner.
    GateWithoutOwner,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent facts of a host"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct HostState {
    journal: u16,
    /// The migration that the daemon drives, with what it knows beyond the journal.
    live: u16,
    up: bool,
    instance: bool,
    gate: bool,
    /// The newest write in the volume.
    data: u8,
    /// Whether that one is only in the page cache yet.
    unflushed: bool,
}

/// A state of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    hosts: [HostState; 2],
    /// Where each migration comes from, and at which epoch.
    begun: [Option<(u8, u8)>; 2],
    /// The newest write in the final snapshot of each migration.
    finals: [Option<u8>; 2],
    acknowledged: u8,
    crashes: u8,
    /// With [`Mutation::GrantBeforeRecord`]: the migration that was granted without a record.
    granted_early: Option<u8>,
    /// With [`Mutation::ReturnAfterServing`]: the migration that was returned without a right.
    returned_late: Option<u8>,
}

/// What happened, where, and in which migration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label(&'static str, usize, u8);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@h{} m{}", self.0, self.1 + 1, self.2 + 1)
    }
}

/// One step of the world.
pub(crate) struct Edge {
    pub(crate) label: Label,
    pub(crate) next: State,
    /// Whether it is a fault, a client's doing or a message that wandered about: nothing may rest
    /// on its coming.
    pub(crate) fault: bool,
}

pub(crate) struct World {
    machines: Machines,
    mutation: Option<Mutation>,
    bounds: Bounds,
    edges: Vec<Edge>,
    /// Whether the message being heard is one that its sender would not say any more.
    stale: bool,
}

impl World {
    pub(crate) fn new(mutation: Option<Mutation>, bounds: Bounds) -> Self {
        Self {
            machines: Machines::new(),
            mutation,
            bounds,
            edges: Vec::new(),
            stale: false,
        }
    }

    pub(crate) fn first(&mut self) -> State {
        let host = HostState {
            journal: EMPTY,
            live: NONE,
            up: true,
            instance: false,
            gate: false,
            data: 0,
            unflushed: false,
        };
        let owner = HostState {
            journal: self.machines.born(),
            instance: true,
            gate: true,
            ..host
        };
        State {
            hosts: [owner, host],
            begun: [None; 2],
            finals: [None; 2],
            acknowledged: 0,
            crashes: 0,
            granted_early: None,
            returned_late: None,
        }
    }

    pub(crate) fn journals(&self) -> usize {
        self.machines.journals()
    }

    pub(crate) fn broken(&self) -> Option<&str> {
        self.machines.broken.as_deref()
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The first invariant that a state breaks.
    pub(crate) fn violation(&self, state: &State) -> Option<Violation> {
        let [one, other] = &state.hosts;
        if one.instance && other.instance {
            return Some(Violation::TwoInstances);
        }
        let both = |look: &dyn Fn(&HostState) -> bool| look(one) && look(other);
        let epochs = |host: &HostState| self.machines.owned_epochs(host.journal);
        if both(&|host| self.machines.owns(host.journal)) || epochs(one) & epochs(other) != 0 {
            return Some(Violation::TwoOwners);
        }
        for host in &state.hosts {
            if host.instance && host.data < state.acknowledged {
                return Some(Violation::WriteLost);
            }
            if host.gate && !self.machines.owns(host.journal) {
                return Some(Violation::GateWithoutOwner);
            }
        }
        None
    }

    /// Whether clients are served.
    pub(crate) fn serves(&self, state: &State) -> bool {
        state
            .hosts
            .iter()
            .any(|host| host.up && host.instance && host.gate && self.machines.owns(host.journal))
    }

    /// How migrations ended up to a state.
    pub(crate) fn outcomes(&self, state: &State) -> Vec<&'static str> {
        let mut outcomes = Vec::new();
        for (number, host) in state.hosts.iter().enumerate() {
            for past in self.machines.registry(host.journal).history() {
                outcomes.push(match past.state {
                    MigrationState::Done if number == 1 => "moved back",
                    MigrationState::Done => "done",
                    MigrationState::Aborted => "aborted",
                    MigrationState::Returned => "returned",
                    MigrationState::Running | MigrationState::Blocked => "open",
                });
            }
        }
        outcomes
    }

    /// All that can happen next.
    pub(crate) fn edges(&mut self, state: &State) -> Vec<Edge> {
        self.edges = Vec::new();
        for at in 0..2 {
            self.crash(state, at);
            if state.hosts[at].up {
                self.write(state, at);
                self.reconcile(state, at);
                self.begin(state, at);
                self.drive(state, at);
                for migration in 0..self.bounds.migrations {
                    match state.begun[usize::from(migration)] {
                        Some((from, _)) if usize::from(from) == at => {
                            self.hear_views(state, at, migration);
                        }
                        Some((_, epoch)) => {
                            self.take(state, at, migration);
                            self.hear(state, at, migration, epoch);
                        }
                        None => {}
                    }
                }
            } else {
                self.restart(state, at);
            }
        }
        std::mem::take(&mut self.edges)
    }

    fn edge(&mut self, label: Label, next: State) {
        self.edges.push(Edge {
            label,
            next,
            fault: self.stale,
        });
    }

    fn fault(&mut self, label: Label, next: State) {
        self.edges.push(Edge {
            label,
            next,
            fault: true,
        });
    }

    // Faults and clients.

    fn crash(&mut self, state: &State, at: usize) {
        if state.crashes == self.bounds.crashes || !state.hosts[at].up {
            return;
        }
        let mut next = *state;
        next.crashes += 1;
        next.hosts[at].up = false;
        next.hosts[at].live = NONE;
        self.fault(Label("daemon crashes", at, 0), next);
        next.hosts[at].instance = false;
        next.hosts[at].gate = false;
        next.hosts[at].unflushed = false;
        self.fault(Label("host crashes", at, 0), next);
    }

    fn restart(&mut self, state: &State, at: usize) {
        let mut next = *state;
        let journal = next.hosts[at].journal;
        next.hosts[at].up = true;
        next.hosts[at].live = self.machines.recovered(journal);
        if self.mutated(Mutation::RestartPolicy)
            && self.machines.live(next.hosts[at].live).is_some()
        {
            next.hosts[at].instance = true;
        }
        let label = Label("restarts", at, 0);
        let live = next.hosts[at].live;
        let resumed = self
            .machines
            .live(live)
            .is_some_and(|m| m.resumed().is_some());
        if resumed {
            self.step(label, &next, at, SourceTag::Resumed);
        } else {
            self.edge(label, next);
        }
    }

    fn write(&mut self, state: &State, at: usize) {
        let host = &state.hosts[at];
        if !host.gate || !host.instance || state.acknowledged == self.bounds.writes {
            return;
        }
        let mut next = *state;
        next.acknowledged += 1;
        next.hosts[at].data += 1;
        next.hosts[at].unflushed = true;
        self.fault(Label("client writes", at, 0), next);
    }

    // The host by itself.

    /// What the owner runs while no handoff has it in hand, or has not stopped it yet.
    fn reconcile(&mut self, state: &State, at: usize) {
        let host = &state.hosts[at];
        let registry = self.machines.registry(host.journal);
        let free = match self.machines.live(host.live).map(|live| &live.phase) {
            None => true,
            Some(Phase::Before(before)) => {
                matches!(
                    before,
                    BeforeRelease::Preparing | BeforeRelease::PreCopy { .. }
                )
            }
            Some(Phase::After(_) | Phase::Ended(_)) => false,
        };
        let incoming = registry.incoming(&values::application()).is_some();
        if !self.machines.owns(host.journal) || !free || incoming || (host.instance && host.gate) {
            return;
        }
        let mut next = *state;
        next.hosts[at].instance = true;
        next.hosts[at].gate = true;
        self.edge(Label("reconciles", at, 0), next);
    }

    fn begin(&mut self, state: &State, at: usize) {
        let Some(slot) = state.begun.iter().position(Option::is_none) else {
            return;
        };
        let migration = u8::try_from(slot).unwrap();
        if migration == self.bounds.migrations {
            return;
        }
        let journal = state.hosts[at].journal;
        let Some((journal, live)) = self.machines.begin(journal, at, migration) else {
            return;
        };
        let epoch = self.machines.live(live).unwrap().plan.epoch.0;
        let mut next = *state;
        next.hosts[at].journal = journal;
        next.hosts[at].live = live;
        next.begun[slot] = Some((u8::try_from(at).unwrap(), u8::try_from(epoch).unwrap()));
        self.edge(Label("plans", at, migration), next);
    }
}
