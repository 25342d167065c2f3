//! The world around the machines: two hosts with a daemon and a proxy each, an instance, a volume
//! and a gate of every application on each, a network that loses, repeats and reorders, and
//! crashes.

use std::fmt;

use migrated_core::source::{BeforeRelease, Phase};
use rehome_shared::api::cluster::MigrationState;

use crate::explorer::{self, Model};
use crate::machines::{EMPTY, Machines, NONE};
use crate::values::{self, APPLICATIONS, EACH, Symmetry};

mod failover;
mod faults;
mod giving;
mod mutation;
mod pool;
mod routing;
mod state;
mod taking;

pub(crate) use mutation::{Mutation, Violation};
use routing::Route;
pub(crate) use state::State;
use state::{App, HostState, Place, Side};

/// How far the exploration goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Applications.
    pub(crate) applications: usize,
    /// Whether the second application begins on the second host, so that the two cross.
    pub(crate) crossing: bool,
    /// Writes of clients to each application.
    pub(crate) writes: u8,
    /// Crashes of a daemon or a host.
    pub(crate) crashes: u8,
    /// Journals that are lost; without any the stamps do not matter.
    pub(crate) losses: u8,
    /// Failovers by an operator; without any nobody asks before it starts.
    pub(crate) failovers: u8,
    /// Migrations of each application.
    pub(crate) migrations: u8,
    /// What is known of routes, and when.
    pub(crate) routing: Routing,
}

/// How routes come to the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Routing {
    /// At once: a gate is what its owner wants it to be.
    AtOnce,
    /// By versions that daemons and proxies tell each other, over clocks that go on.
    Told,
    /// The same over a clock that stands still, so that only what is remembered grows.
    ClockStands,
}

/// What happened, where, to which application and in which migration. Where applications may
/// change places (see [`Symmetry`]), the names are those that the step had before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label(&'static str, Place, Option<u8>);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(what, place, migration) = self;
        write!(f, "{what}@h{}", place.at + 1)?;
        match migration {
            Some(migration) => write!(f, " m{}", migration + 1),
            None => write!(f, " {}", ["a", "b"][place.app]),
        }
    }
}

type Edge = explorer::Edge<State, Label>;

pub(crate) struct World {
    machines: Machines,
    routing: routing::Book,
    mutation: Option<Mutation>,
    bounds: Bounds,
    edges: Vec<Edge>,
    /// Whether the message being heard is one that its sender would not say any more.
    stale: bool,
}

impl Model for World {
    type State = State;
    type Label = Label;
    type Violation = Violation;

    fn first(&mut self) -> State {
        let mut state = State {
            hosts: [HostState {
                journal: EMPTY,
                up: true,
                lost: false,
                cleared: true,
                gone: false,
                off: false,
                fenced: 0,
            }; 2],
            apps: [App::default(); APPLICATIONS],
            crashes: 0,
            losses: 0,
            failovers: 0,
        };
        for app in 0..self.bounds.applications {
            let at = usize::from(app == 1 && self.bounds.crossing);
            let place = Place { app, at };
            let journal = self.machines.born(state.journal(place), app);
            state.hosts[at].journal = journal;
            state.side_mut(place).instance = true;
            state.side_mut(place).gate = true;
            if self.bounds.losses > 0 {
                state.side_mut(place).stamp = pool::Stamped::Held(1);
            }
            if self.bounds.routing != Routing::AtOnce {
                state.side_mut(place).route = Route::of_owner();
                state.side_mut(place.there()).route = Route::of_stranger(at);
            }
        }
        self.canonical(state)
    }

    /// All that can happen next.
    fn edges(&mut self, state: &State) -> Vec<Edge> {
        self.edges = Vec::new();
        for at in 0..2 {
            self.fence(state, at);
            if state.hosts[at].up {
                self.crash(state, at);
                self.ask_before_start(state, at);
            } else if state.hosts[at].off {
                self.come_back(state, at);
            } else if state.hosts[at].lost {
                self.rebuild(state, at);
            } else {
                self.restart(state, at);
                self.lose(state, at);
            }
        }
        for place in self.places() {
            if state.hosts[place.at].up {
                self.act(state, place);
            }
        }
        let mut edges = std::mem::take(&mut self.edges);
        for edge in &mut edges {
            edge.next = self.canonical(edge.next);
        }
        edges
    }

    /// The first invariant that a state breaks.
    fn violation(&self, state: &State) -> Option<Violation> {
        (0..self.bounds.applications).find_map(|app| self.violation_of(state, app))
    }

    /// Whether clients are served, of every application.
    fn serves(&self, state: &State) -> bool {
        (0..self.bounds.applications).all(|app| {
            [0, 1].into_iter().any(|at| {
                let place = Place { app, at };
                let side = state.side(place);
                let here = state.hosts[at].up && side.instance && side.gate;
                here && self.owns(state, place) && self.leads_here(state, place)
            })
        })
    }

    /// How migrations ended up to a state.
    fn outcomes(&self, state: &State) -> Vec<&'static str> {
        let mut outcomes = Vec::new();
        for (number, host) in state.hosts.iter().enumerate() {
            for past in self.machines.registry(host.journal).history() {
                let crossing = past.application == values::application(1) && self.bounds.crossing;
                let back = (number == 1) != crossing;
                outcomes.push(match past.state {
                    MigrationState::Done if back => "moved back",
                    MigrationState::Done => "done",
                    MigrationState::Aborted => "aborted",
                    MigrationState::Returned => "returned",
                    MigrationState::Running | MigrationState::Blocked => "open",
                });
            }
        }
        outcomes
    }

    fn broken(&self) -> Option<&str> {
        self.machines.broken()
    }

    fn journals(&self) -> usize {
        self.machines.journals()
    }
}

impl World {
    pub(crate) fn new(mutation: Option<Mutation>, bounds: Bounds) -> Self {
        Self {
            machines: Machines::new(),
            routing: routing::Book::new(bounds.routing),
            mutation,
            bounds,
            edges: Vec::new(),
            stale: false,
        }
    }

    /// Of the worlds that differ only in names, the one that is visited.
    fn canonical(&mut self, mut state: State) -> State {
        if self.bounds.routing == Routing::Told {
            state.apps.iter_mut().for_each(routing::rank);
        }
        if self.bounds.applications < 2 {
            return state;
        }
        let symmetry = if self.bounds.crossing {
            Symmetry::Both
        } else {
            Symmetry::Applications
        };
        let mut mirrored = state;
        for at in 0..2 {
            let from = symmetry.host(at);
            mirrored.hosts[at] = HostState {
                journal: self
                    .machines
                    .mirror_journal(state.hosts[from].journal, symmetry),
                ..state.hosts[from]
            };
        }
        for app in 0..2 {
            mirrored.apps[app] = self.mirror(&state.apps[1 - app], symmetry);
        }
        state.min(mirrored)
    }

    fn mirror(&mut self, app: &App, symmetry: Symmetry) -> App {
        let mut mirrored = *app;
        for at in 0..2 {
            let side = app.sides[symmetry.host(at)];
            mirrored.sides[at] = Side {
                live: self.machines.mirror_live(side.live, symmetry),
                route: side.route.mirror(symmetry),
                ..side
            };
        }
        for begun in mirrored.begun.iter_mut().flatten() {
            begun.0 = u8::try_from(symmetry.host(usize::from(begun.0))).unwrap();
        }
        mirrored.lingering = app.lingering.map(|advert| advert.mirror(symmetry));
        let other = |migration: u8| (migration + EACH) % (2 * EACH);
        mirrored.granted_early = app.granted_early.map(other);
        mirrored.returned_late = app.returned_late.map(other);
        mirrored
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.bounds.applications).flat_map(|app| (0..2).map(move |at| Place { app, at }))
    }

    fn owns(&self, state: &State, place: Place) -> bool {
        self.machines.owns(state.journal(place), place.app)
    }

    fn violation_of(&self, state: &State, app: usize) -> Option<Violation> {
        let [one, other] = [0, 1].map(|at| Place { app, at });
        let both = |look: &dyn Fn(Place) -> bool| look(one) && look(other);
        if both(&|place| state.side(place).instance) {
            return Some(Violation::TwoInstances);
        }
        let epochs = |place| self.machines.owned_epochs(state.journal(place), app);
        // A fenced host owns what it owned until it has asked; it acts on nothing of that before.
        let acts = |place: Place| {
            let fenced = self.bounds.failovers > 0 && !state.hosts[place.at].up;
            self.owns(state, place) && self.is_cleared(state, place.at) && !fenced
        };
        if both(&acts) || epochs(one) & epochs(other) != 0 {
            return Some(Violation::TwoOwners);
        }
        for place in [one, other] {
            let side = state.side(place);
            if side.instance && side.data < state.apps[app].acknowledged {
                return Some(Violation::WriteLost);
            }
            // Who has lost his journal does not know what he owns; his gate stays as it was.
            let knows = !state.hosts[place.at].lost;
            if side.gate && knows && !self.owns(state, place) {
                return Some(Violation::GateWithoutOwner);
            }
        }
        state.apps[app]
            .went_back
            .then_some(Violation::RouteWentBack)
    }

    fn act(&mut self, state: &State, place: Place) {
        self.write(state, place);
        self.tell_routes(state, place);
        self.take_over(state, place);
        self.hear_of_owners(state, place);
        // Nothing is started, and nothing that goes is taken up, before others were asked.
        let is_cleared = self.is_cleared(state, place.at);
        if is_cleared {
            self.reconcile(state, place);
            self.begin(state, place);
            self.drive(state, place);
        }
        for migration in values::numbers(place.app) {
            let begun = state.apps[place.app].begun[values::slot_of(migration)];
            let Some((from, epoch)) = begun else { continue };
            if usize::from(from) != place.at {
                self.take(state, place, migration);
                self.hear(state, place, migration, epoch);
            } else if is_cleared {
                self.hear_views(state, place, migration);
            }
        }
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

    /// What the owner runs while no handoff has it in hand, or has not stopped it yet.
    fn reconcile(&mut self, state: &State, place: Place) {
        let side = state.side(place);
        let registry = self.machines.registry(state.journal(place));
        let free = match self.machines.live(side.live).map(|live| &live.phase) {
            None => true,
            Some(Phase::Before(before)) => {
                matches!(
                    before,
                    BeforeRelease::Preparing | BeforeRelease::PreCopy { .. }
                )
            }
            Some(Phase::After(_) | Phase::Ended(_)) => false,
        };
        let application = values::application(place.app);
        // With a guard taken out nobody may drive what is open in the journal.
        let free = free && (side.live != NONE || registry.source_of(&application).is_none());
        let incoming = registry.incoming(&application).is_some();
        let wanted = side.instance && self.wants_open(state, place);
        if !self.owns(state, place) || !free || incoming || wanted {
            return;
        }
        let label = Label("reconciles", place, None);
        if !self.may_run(state, place, label) {
            return;
        }
        let mut next = *state;
        next.side_mut(place).instance = true;
        self.open(&mut next, place);
        self.edge(label, next);
    }

    fn begin(&mut self, state: &State, place: Place) {
        let begun = &state.apps[place.app].begun;
        let Some(slot) = begun.iter().position(Option::is_none) else {
            return;
        };
        if slot == usize::from(self.bounds.migrations) {
            return;
        }
        let migration = values::numbers(place.app).start + u8::try_from(slot).unwrap();
        let journal = state.journal(place);
        let Some((journal, live)) =
            self.machines
                .begin(journal, [place.at, 1 - place.at], migration)
        else {
            return;
        };
        let epoch = self.machines.live(live).unwrap().plan.epoch.0;
        let mut next = *state;
        next.hosts[place.at].journal = journal;
        next.side_mut(place).live = live;
        next.apps[place.app].begun[slot] = Some((
            u8::try_from(place.at).unwrap(),
            u8::try_from(epoch).unwrap(),
        ));
        self.edge(Label("plans", place, Some(migration)), next);
    }
}
