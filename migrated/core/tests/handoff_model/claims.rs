//! Who may take over from a host that is gone, among three hosts.
//!
//! One application, which has been on all of them: on `h2` at epoch 1 and 2 before, on `h3` then,
//! and now on `h1`, from where it moves to `h2` again. Hosts are taken off, or cut off and go on
//! alone, and come back at any moment; operators let `h2`, `h3` or `h1` take over from them, one
//! or two at once. Registry, handoff machines, [`failover::way`](migrated_core::failover::way),
//! [`fencing`](migrated_core::fencing) and admission are the real ones. What belongs to `migrated`
//! is modelled as it does it: of two deployments the one of the larger generation is followed, or
//! of the larger hash; who takes over asks every host that is not fenced whether it follows the
//! very deployment that names it and knows of no newer owner, and writes its claim while it still
//! follows that one itself; and a destination takes no grant of a host that the deployment which
//! it follows calls fenced.
//!
//! Every message that was sent may arrive at any later time, any number of times, or never; what
//! hosts say of owners and deployments they hear from each other at any time, or never. All
//! states are visited within [`Bounds`], which are the claim: so many absences, crashes and
//! operators, one migration. The steps of a source between its last round and its final snapshot
//! are one step, since a crash in any of them leads to the same; data and routes are left out, as
//! are the trees that a claim is made of.

use std::fmt;

use migrated_core::destination::Phase as Taking;
use migrated_core::record::Record;
use migrated_core::registry::Role;
use rehome_shared::ids::Epoch;

use crate::explorer::{self, Model};
use crate::machines::{EMPTY, Machines, Message, View};
use crate::values;

mod hearing;
mod moving;
mod operator;
mod state;
mod tests;

use state::{Deployment, HOSTS, Host, Power, State};

/// The source, the destination and the third one.
const SOURCE: usize = 0;
const DESTINATION: usize = 1;
const THIRD: usize = 2;

/// The only application, and its only migration.
const APP: usize = 0;
const MIGRATION: u8 = 0;

/// The epoch at which the source owns it.
const EPOCH: Epoch = Epoch(3);

/// How far the exploration goes.
#[expect(clippy::struct_excessive_bools, reason = "they are independent bounds")]
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Which hosts may go away.
    going: &'static [usize],
    /// How often one of them does.
    absences: u8,
    /// Whether one that goes away may be cut off only, and go on.
    cuts: bool,
    /// How often an operator begins to let a host take over.
    operators: u8,
    /// Crashes of a daemon or a host.
    crashes: u8,
    /// Whether whole hosts fall. A new owner that does, before those that it was not told of come
    /// back, leaves them alone: one of them may go on with an old grant, as none has heard.
    hosts_fall: bool,
    /// Whether a host may come back while another one is still taking over from it.
    returns_early: bool,
    /// Whether somebody may deploy again, so that who is back is not called fenced any more, while
    /// another one is still taking over from it.
    redeploys_early: bool,
    /// Whether two may own it at one epoch because an operator vouched without the host that it
    /// had gone to, and called that one fenced, too.
    rivals: bool,
    /// Whether of two deployments of one generation that of the smaller host is preferred.
    reversed: bool,
}

/// A guard that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// A host agrees to a claim without following the deployment that names the new owner.
    AgreesUnfollowing,
    /// Who takes over does not mind that another host has heard of a newer owner.
    IgnoresHeard,
    /// The claim is written although another deployment is followed meanwhile.
    ClaimsUnfollowing,
    /// A destination takes the grant of a host that is called fenced.
    TakesVoidGrant,
    /// It takes such a grant where the deployment has the application on it.
    TakesGrantWhereNamed,
    /// The operator names the owner that the new one knows, whatever others know and say.
    ClaimsOldEpoch,
    /// Nobody is asked before anything starts.
    NoAsking,
    /// Who asks before it starts does not count what it heard itself.
    ForgetsWhatItHeard,
    /// It takes the word of another host for whose it is, although that one itself says that it is
    /// this one's.
    BelievesWhatIsDenied,
    /// A host is not called fenced any more before it has heard of who took over from it.
    LiftsUnaware,
}

/// An invariant that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Violation {
    /// Two hosts own it, or have owned it, at one epoch.
    TwoOwners,
    /// Two instances run on hosts that have both heard of the newest epoch.
    TwoInstances,
    /// An instance runs on a host that knows that it is not the owner.
    RunsUnowned,
    /// A source owns again what it released, at an epoch that it had given away.
    ReleaseUndone,
}

/// What happened, and on which host.
#[derive(Debug, Clone, Copy)]
struct Label(&'static str, usize);

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@h{}", self.0, self.1 + 1)
    }
}

type Edge = explorer::Edge<State, Label>;

struct World {
    machines: Machines,
    mutation: Option<Mutation>,
    bounds: Bounds,
    edges: Vec<Edge>,
}

impl Model for World {
    type State = State;
    type Label = Label;
    type Violation = Violation;

    fn first(&mut self) -> State {
        let held = |epoch, role| Record::Held {
            application: values::application(APP),
            epoch,
            role,
            volumes: values::volumes(APP),
            unmade: Vec::new(),
        };
        let gone = |to| Role::Gone {
            to: values::host(to),
        };
        let roles = [
            held(EPOCH, Role::Owner),
            held(Epoch(2), gone(THIRD)),
            held(EPOCH, gone(SOURCE)),
        ];
        let hosts = roles.map(|record| Host::of(self.machines.append_all(EMPTY, &[record])));
        let mut state = State::of(hosts, Deployment::first(DESTINATION));
        state.hosts[SOURCE].instance = true;
        state
    }

    fn edges(&mut self, state: &State) -> Vec<Edge> {
        self.edges = Vec::new();
        for at in HOSTS {
            self.go_away(state, at);
            self.come_back(state, at);
            if state.hosts[at].power == Power::Up {
                self.crash(state, at);
                self.hear_deployments(state, at);
                self.hear_of_owners(state, at);
                self.ask(state, at);
                self.fail_over(state, at);
                self.name(state, at);
                self.agree(state, at);
                self.take_over(state, at);
                self.deploy_again(state, at);
                self.reconcile(state, at);
            } else {
                self.restart(state, at);
            }
        }
        self.give(state);
        self.take(state);
        std::mem::take(&mut self.edges)
    }

    fn violation(&self, state: &State) -> Option<Violation> {
        let hosts = || HOSTS.into_iter();
        let pairs = || hosts().flat_map(|one| (0..one).map(move |other| [one, other]));
        let epochs = |at: usize| {
            let journal = state.hosts[at].journal;
            self.machines.owned_epochs(journal, APP)
        };
        let shared = pairs().any(|[one, other]| epochs(one) & epochs(other) != 0);
        if shared && !self.bounds.rivals {
            return Some(Violation::TwoOwners);
        }
        // What a daemon does not know, because it is down or has not asked, it does not act upon.
        let acts = |at: usize| state.hosts[at].power == Power::Up && state.hosts[at].cleared;
        let runs = |at: usize| state.hosts[at].instance && acts(at);
        let newest = hosts().filter_map(|at| self.newest(state, at)).max();
        let runs_aware = |at: usize| runs(at) && self.newest(state, at) == newest;
        if pairs().any(|pair| pair.into_iter().all(runs_aware)) {
            return Some(Violation::TwoInstances);
        }
        if hosts().any(|at| runs(at) && !self.owns(state, at)) {
            return Some(Violation::RunsUnowned);
        }
        let source = state.hosts[SOURCE].journal;
        let released = self.machines.said(source, MIGRATION, Message::Grant);
        let owned = self.machines.registry(source);
        let owned = owned.owned(&values::application(APP));
        let undone = released && owned.is_some_and(|owned| owned.epoch <= EPOCH.next());
        undone.then_some(Violation::ReleaseUndone)
    }

    fn serves(&self, state: &State) -> bool {
        let newest = HOSTS.into_iter().filter_map(|at| self.newest(state, at));
        let newest = newest.max();
        HOSTS.into_iter().any(|at| {
            let host = &state.hosts[at];
            let here = host.power == Power::Up && !host.cut && host.cleared && host.instance;
            let newest = self.bounds.rivals || self.newest(state, at) == newest;
            here && self.owns(state, at) && newest
        })
    }

    fn outcomes(&self, state: &State) -> Vec<&'static str> {
        let mut outcomes = Vec::new();
        let [source, destination, third] = HOSTS.map(|at| self.owns(state, at));
        if source && self.newest(state, SOURCE) > Some(EPOCH) {
            outcomes.push("given back");
        }
        if third {
            outcomes.push("claimed by the third");
        }
        if destination {
            let journal = state.hosts[DESTINATION].journal;
            let adopted = Message::View(View::Owned);
            let handoff = self.machines.handoff(journal, MIGRATION);
            outcomes.push(match handoff {
                Some(handoff) if handoff.entrusted => "granted by word",
                Some(handoff) if matches!(handoff.phase, Taking::Serving { .. }) => "moved",
                _ if !self.machines.said(journal, MIGRATION, adopted) => {
                    "claimed by the destination"
                }
                Some(_) | None => "adopted",
            });
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
    fn new(mutation: Option<Mutation>, bounds: Bounds) -> Self {
        Self {
            machines: Machines::new(),
            mutation,
            bounds,
            edges: Vec::new(),
        }
    }

    fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn owns(&self, state: &State, at: usize) -> bool {
        self.machines.owns(state.hosts[at].journal, APP)
    }

    /// The newest epoch that a host's journal knows.
    fn newest(&self, state: &State, at: usize) -> Option<Epoch> {
        let registry = self.machines.registry(state.hosts[at].journal);
        let known = registry.known_owner(&values::host(at), &values::application(APP));
        known.map(|(epoch, _)| epoch)
    }

    fn edge(&mut self, label: Label, next: State) {
        let fault = false;
        self.edges.push(Edge { label, next, fault });
    }

    /// Nothing may rest on its coming.
    fn fault(&mut self, label: Label, next: State) {
        let fault = true;
        self.edges.push(Edge { label, next, fault });
    }

    /// Whether an operator's request is still being carried out.
    fn is_asked(state: &State) -> bool {
        state.hosts.iter().any(|host| host.request.is_some())
    }

    /// A step that writes several records, and crashes between them.
    fn write(&mut self, label: Label, next: State, at: usize, journals: &[u16]) {
        let Some((last, partial)) = journals.split_last() else {
            return self.edge(label, next);
        };
        self.crash_between(label, &next, at, partial);
        let mut next = next;
        next.hosts[at].journal = *last;
        self.edge(label, next);
    }

    fn crash_between(&mut self, label: Label, state: &State, at: usize, partial: &[u16]) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        for journal in partial {
            let mut next = *state;
            next.crashes += 1;
            next.hosts[at].journal = *journal;
            next.hosts[at].fall(Power::DaemonDown);
            self.fault(label, next);
        }
    }
}
