//! An operator who tells the truth: a host is off, another one takes over, and the first one
//! comes back.
//!
//! The way by which a host takes over is that of the real [`failover::way`], and what a host makes
//! of what another one says that of the real [`fencing`](migrated_core::fencing); what they lead
//! to is written as the records that `migrated` writes. A host asks before it starts anything, and
//! goes on alone only where nobody can be there. The operator accepts what the copy that is taken
//! lacks.

use migrated_core::destination::Phase as Taking;
use migrated_core::failover::{self, Way, Wish};
use migrated_core::fencing::{Standing, Word};
use migrated_core::record::Record;

use super::state::{Place, State};
use super::{Label, Mutation, World};
use crate::machines::{DestinationTag, NONE, SourceTag, known};
use crate::values;

const TAKES_OVER: &str = "takes over";

impl World {
    /// Whether a host may start, or take up, anything.
    pub(super) fn is_cleared(&self, state: &State, at: usize) -> bool {
        self.bounds.failovers == 0 || state.hosts[at].cleared
    }

    /// Somebody takes a host off for certain.
    pub(super) fn fence(&mut self, state: &State, at: usize) {
        if state.failovers == self.bounds.failovers || state.hosts[at].off {
            return;
        }
        let mut next = *state;
        next.failovers += 1;
        self.forget(&mut next, at);
        next.hosts[at].off = true;
        next.hosts[at].gone = true;
        let place = Place { app: 0, at };
        let side = next.side_mut(place);
        side.instance = false;
        side.unflushed = false;
        side.gate = false;
        self.fault(Label("is taken off", place, None), next);
    }

    /// It comes back; before that or after, another host takes over.
    pub(super) fn come_back(&mut self, state: &State, at: usize) {
        let mut next = *state;
        next.hosts[at].off = false;
        self.edge(Label("comes back", Place { app: 0, at }, None), next);
    }

    /// A host takes over from the one that is off, by what its own journal says.
    pub(super) fn take_over(&mut self, state: &State, place: Place) {
        let gone = place.there().at;
        if !state.hosts[gone].off {
            return;
        }
        let (here, fenced) = (values::host(place.at), values::host(gone));
        let application = values::application(place.app);
        let registry = self.machines.registry(state.journal(place));
        // The operator names the newest owner that is known, and vouches for that one only.
        let newest = known(registry, &here, &application);
        let Some((epoch, owner)) = newest.filter(|(_, owner)| *owner == fenced) else {
            return;
        };
        let names = values::volumes(place.app).into_iter();
        let names: Vec<_> = names.map(|volume| volume.name).collect();
        let wish = Wish {
            application: &application,
            fenced: &owner,
            epoch,
            volumes: &names,
        };
        // A copy is here only where it was owned once.
        let keeps_copy = registry.applications().contains_key(&application);
        let mut next = *state;
        next.hosts[place.at].fenced |= 1 << gone;
        match failover::way(registry, &here, wish) {
            Ok(Way::Grant { migration, .. }) => {
                self.grant_by_word(&next, place, values::number(&migration));
            }
            Ok(Way::TakeBack { migration, .. }) if state.side(place).live != NONE => {
                let last = state.last(values::number(&migration));
                let accepted = accept(&next, place, last);
                self.step(
                    Label(TAKES_OVER, place, None),
                    &accepted,
                    place,
                    SourceTag::Returned,
                );
            }
            Ok(Way::Claim { volumes }) if keeps_copy => {
                let claimed = Record::Claimed {
                    application,
                    epoch: epoch.next(),
                    volumes,
                    fenced,
                };
                let mut next = accept(&next, place, state.side(place).data);
                let journal = state.journal(place);
                next.hosts[place.at].journal = self.machines.append_all(journal, &[claimed]);
                self.edge(Label(TAKES_OVER, place, None), next);
            }
            Ok(Way::Done | Way::TakeBack { .. } | Way::Claim { .. }) | Err(_) => {}
        }
    }

    fn grant_by_word(&mut self, state: &State, place: Place, number: u8) {
        let epoch = self.machines.handoff(state.journal(place), number);
        let epoch = u8::try_from(epoch.unwrap().epoch_here().0).unwrap();
        let tag = if self.mutated(Mutation::ReturnsToFenced) {
            DestinationTag::Granted(epoch)
        } else {
            DestinationTag::Entrusted
        };
        let mut next = accept(state, place, state.last(number));
        let journal = state.journal(place);
        let granted = self
            .machines
            .destination_step(journal, place.at, number, tag);
        if let Some(journal) = granted {
            next.hosts[place.at].journal = journal;
            self.edge(Label(TAKES_OVER, place, None), next);
        }
    }

    /// A host that was started asks the other one.
    pub(super) fn ask_before_start(&mut self, state: &State, at: usize) {
        if self.is_cleared(state, at) {
            return;
        }
        let place = Place { app: 0, at };
        let there = &state.hosts[1 - at];
        let words = self.words(state, place);
        if there.up {
            self.consider(state, place, &words, true);
            return;
        }
        // A daemon that is down is no proof that nothing runs there.
        let refused = !there.off && !there.gone;
        // A host that comes back while the new owner is down, longer than it waits for an answer,
        // would go on alone: that nobody asks for.
        let alone = self.mutated(Mutation::GoesOnAlone);
        let silent = if refused {
            self.mutated(Mutation::TakesRefusalForSilence)
        } else {
            alone || !self.is_news(state, place, &words)
        };
        if silent {
            let mut cleared = *state;
            cleared.hosts[at].cleared = true;
            self.edge(Label("is cleared", place, None), cleared);
        }
    }

    /// Gossip says the same while both are up. Nobody gives way on hearsay, unless the deployment
    /// calls it fenced.
    pub(super) fn hear_of_owners(&mut self, state: &State, place: Place) {
        let both = state.hosts.iter().all(|host| host.up);
        if self.bounds.failovers == 0 || !both {
            return;
        }
        let mut words = self.words(state, place);
        let is_fenced = state.hosts[place.at].fenced & (1 << place.at) != 0;
        words.retain(|word| is_fenced || word.speaker == word.owner);
        self.consider(state, place, &words, false);
    }

    /// What the other host says of the owner.
    fn words(&self, state: &State, place: Place) -> Vec<Word> {
        let there = place.there();
        let journal = state.journal(there);
        let mut word = self.machines.word(journal, there.at, place.app);
        if self.mutated(Mutation::TakesPromiseForOwner) {
            let registry = self.machines.registry(journal);
            let promised = registry.incoming(&values::application(place.app));
            let verified = promised.filter(|h| matches!(h.phase, Taking::Verified { .. }));
            word = verified.map_or(word, |handoff| {
                Some(Word {
                    speaker: values::host(there.at),
                    epoch: handoff.epoch_here(),
                    owner: values::host(there.at),
                })
            });
        }
        word.into_iter().collect()
    }

    fn is_news(&mut self, state: &State, place: Place, words: &[Word]) -> bool {
        let fenced = values::hosts(state.hosts[place.at].fenced);
        let (journal, here) = (state.journal(place), [place.at, place.app]);
        let considered = self.machines.consider(journal, here, words, &fenced, false);
        !considered.journals.is_empty()
    }

    /// What is open here ends, and what runs here is stopped, where the other one knows better.
    fn consider(&mut self, state: &State, place: Place, words: &[Word], asked: bool) {
        let mut next = *state;
        next.hosts[place.at].fenced |= state.hosts[1 - place.at].fenced;
        let fenced = values::hosts(next.hosts[place.at].fenced);
        let forgets = self.mutated(Mutation::ForgetsWhatItHeard);
        let (journal, here) = (state.journal(place), [place.at, place.app]);
        let considered = self
            .machines
            .consider(journal, here, words, &fenced, forgets);
        let label = Label("hears of owners", place, None);
        if let Some((last, partial)) = considered.journals.split_last() {
            self.crash_after(label, state, place, partial);
            next.hosts[place.at].journal = *last;
        }
        match considered.standing {
            Standing::Clear => next.hosts[place.at].cleared |= asked,
            Standing::Fenced { .. } => {
                next.hosts[place.at].cleared |= asked;
                let side = next.side_mut(place);
                side.instance = false;
                side.gate = false;
                if !self.mutated(Mutation::DriverGoesOn) {
                    side.live = NONE;
                }
            }
            // It is withheld.
            Standing::Contested { .. } | Standing::Outdated { .. } => {}
        }
        self.edge_if_new(label, state, next);
    }
}

/// The operator accepts what a copy lacks.
fn accept(state: &State, place: Place, data: u8) -> State {
    let mut next = *state;
    let app = &mut next.apps[place.app];
    app.acknowledged = app.acknowledged.min(data);
    app.sides[place.at].data = data;
    // What the fenced host has beyond that is a diverged copy.
    next
}
