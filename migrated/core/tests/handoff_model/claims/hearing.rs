//! Hosts that go away and come back, and what hosts tell each other of deployments and owners.

use migrated_core::fencing::{Standing, Word};

use super::state::{Power, State};
use super::{APP, Label, Mutation, World};
use crate::values;

impl World {
    /// Somebody takes a host off for certain, or the network does no more than that nobody hears
    /// of it.
    pub(super) fn go_away(&mut self, state: &State, at: usize) {
        let may = self.bounds.going.contains(&at) && state.absences < self.bounds.absences;
        if !may || state.hosts[at].is_away() {
            return;
        }
        let mut next = *state;
        next.absences += 1;
        if self.bounds.cuts {
            let mut next = next;
            next.hosts[at].cut = true;
            self.fault(Label("is cut off", at), next);
        }
        next.hosts[at].fall(Power::Off);
        self.fault(Label("is taken off", at), next);
    }

    pub(super) fn come_back(&mut self, state: &State, at: usize) {
        let early = Self::is_asked(state) && !self.bounds.returns_early;
        if !state.hosts[at].is_away() || early {
            return;
        }
        let mut next = *state;
        let host = &mut next.hosts[at];
        if host.cut {
            host.cut = false;
        } else {
            host.power = Power::Gone;
        }
        self.edge(Label("comes back", at), next);
    }

    /// The larger deployment of another host is followed.
    pub(super) fn hear_deployments(&mut self, state: &State, at: usize) {
        for other in State::others(at) {
            let mut next = *state;
            if state.reaches(at, other) && self.follow(&mut next, at, other) {
                self.edge(Label("follows", at), next);
            }
        }
    }

    fn follow(&self, next: &mut State, at: usize, other: usize) -> bool {
        let there = next.hosts[other].follows;
        let rank = |one: super::Deployment| one.rank(self.bounds.reversed);
        let newer = rank(there) > rank(next.hosts[at].follows);
        if newer {
            let host = &mut next.hosts[at];
            host.follows = there;
            if !self.mutated(Mutation::ClaimsUnfollowing) {
                host.request = None;
            }
        }
        newer
    }

    /// A host hears what another one says of the owner. Nobody gives way on hearsay, unless the
    /// deployment calls it fenced.
    pub(super) fn hear_of_owners(&mut self, state: &State, at: usize) {
        if !state.hosts[at].cleared {
            return;
        }
        for other in State::others(at) {
            if !state.reaches(at, other) {
                continue;
            }
            let mut words = self.words(state, &[other]);
            let is_fenced = state.hosts[at].follows.fences(at);
            words.retain(|word| is_fenced || word.speaker == word.owner);
            self.consider(state, at, &words, false);
        }
    }

    /// A host that was started asks all others. Whose daemon refuses is waited for, and nobody
    /// waits for a host that is silent.
    pub(super) fn ask(&mut self, state: &State, at: usize) {
        if state.hosts[at].cleared {
            return;
        }
        let refuses = |other: usize| {
            let there = &state.hosts[other];
            !state.hosts[at].cut && !there.cut && there.power == Power::DaemonDown
        };
        if State::others(at).any(refuses) {
            return;
        }
        let answering: Vec<usize> = State::others(at)
            .filter(|other| state.reaches(at, *other))
            .collect();
        let mut next = *state;
        for other in &answering {
            self.follow(&mut next, at, *other);
        }
        let words = self.words_before_start(state, at, &answering);
        self.consider(&next, at, &words, true);
    }

    fn words_before_start(&self, state: &State, at: usize, speakers: &[usize]) -> Vec<Word> {
        let journal = |at: usize| state.hosts[at].journal;
        let by_journal = |at: &usize| self.machines.first_hand(journal(*at), *at, APP);
        let mut first_hand: Vec<Word> = speakers.iter().filter_map(by_journal).collect();
        if self.mutated(Mutation::BelievesWhatIsDenied) {
            first_hand.clear();
        }
        let told = self.words(state, speakers);
        let mut words = self
            .machines
            .before_start(journal(at), [at, APP], told, &first_hand);
        let forgets = self.mutated(Mutation::ForgetsWhatItHeard);
        words.retain(|word| !forgets || word.speaker != values::host(at));
        words
    }

    fn words(&self, state: &State, speakers: &[usize]) -> Vec<Word> {
        let word = |at: &usize| self.machines.word(state.hosts[*at].journal, *at, APP);
        speakers.iter().filter_map(word).collect()
    }

    fn consider(&mut self, state: &State, at: usize, words: &[Word], asked: bool) {
        let host = &state.hosts[at];
        let fenced = values::hosts(host.follows.fenced);
        let considered = self
            .machines
            .consider(host.journal, [at, APP], words, &fenced, false);
        let mut next = *state;
        match considered.standing {
            Standing::Clear => next.hosts[at].cleared |= asked,
            Standing::Fenced { .. } => {
                next.hosts[at].cleared |= asked;
                Self::stop(&mut next, at);
            }
            // It is withheld.
            Standing::Contested { .. } | Standing::Outdated { .. } => {}
        }
        let label = Label("hears of owners", at);
        if next != *state || !considered.journals.is_empty() {
            self.write(label, next, at, &considered.journals);
        }
    }
}
