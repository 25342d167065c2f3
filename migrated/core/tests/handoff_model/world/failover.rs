//! An operator who tells the truth: a host is off, another one takes over, and the first one
//! comes back.
//!
//! A claim, and the end of what a host owned, are written as [`Record::Held`]; what it means for
//! open handoffs is written by the steps that end them. A host asks before it starts anything,
//! goes on alone only where nobody can be there, and ends what it owns when it hears of a newer
//! owner. The operator accepts what the copy that is taken lacks.

use migrated_core::destination::{DestinationHandoff, Phase as Taking};
use migrated_core::record::Record;
use migrated_core::registry::Role;
use migrated_core::source::{AfterRelease, Phase};
use rehome_shared::ids::Epoch;

use super::state::{Place, State};
use super::{Label, Mutation, World};
use crate::machines::{DestinationTag, NONE, SourceTag};
use crate::values;

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
        let fenced = place.there();
        if !state.hosts[fenced.at].off || self.owns(state, place) {
            return;
        }
        let label = Label("takes over", place, None);
        let registry = self.machines.registry(state.journal(place));
        let application = values::application(place.app);
        if let Some(open) = registry.source_of(&application) {
            let waits = matches!(
                open.phase,
                Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. })
            );
            if waits && state.side(place).live != NONE {
                let last = state.last(values::number(&open.id));
                let accepted = accept(state, place, last);
                self.step(label, &accepted, place, SourceTag::Returned);
            }
            return;
        }
        let incoming = registry.incoming(&application).cloned();
        if let Some(handoff) = &incoming
            && let Taking::Verified { .. } = handoff.phase
        {
            let number = values::number(&handoff.id);
            let epoch = u8::try_from(handoff.epoch_here().0).unwrap();
            let accepted = accept(state, place, state.last(number));
            let journal = state.journal(place);
            let granted = DestinationTag::Granted(epoch);
            if let Some(journal) = self.machines.destination_step(journal, number, granted) {
                let mut next = accepted;
                next.hosts[place.at].journal = journal;
                next.apps[place.app].granted_by_word[values::slot_of(number)] = true;
                self.edge(label, next);
            }
            return;
        }
        // A copy is here only where it was owned once.
        let Some(known) = registry.applications().get(&application).cloned() else {
            return;
        };
        let newest = incoming.map_or(known.epoch, |h| h.reservation.epoch.max(known.epoch));
        let epoch = if self.mutated(Mutation::ClaimsOldEpoch) {
            newest
        } else {
            newest.next()
        };
        let mut next = accept(state, place, state.side(place).data);
        self.end_incoming(&mut next, place);
        let claimed = held(place, epoch, Role::Owner);
        next.hosts[place.at].journal = self
            .machines
            .append_all(next.hosts[place.at].journal, &[claimed]);
        self.edge(label, next);
    }

    /// What only came here is dropped, and what was given back is over.
    fn end_incoming(&mut self, next: &mut State, place: Place) {
        use DestinationTag as T;
        for migration in values::numbers(place.app) {
            for tag in [T::Aborted, T::Discarded, T::Closed] {
                let journal = next.journal(place);
                if let Some(journal) = self.machines.destination_step(journal, migration, tag) {
                    next.hosts[place.at].journal = journal;
                }
            }
        }
    }

    /// A host that was started asks the other one.
    pub(super) fn ask_before_start(&mut self, state: &State, at: usize) {
        if self.is_cleared(state, at) {
            return;
        }
        let label = Label("is cleared", Place { app: 0, at }, None);
        let mut cleared = *state;
        cleared.hosts[at].cleared = true;
        let there = &state.hosts[1 - at];
        // A daemon that is down is no proof that nothing runs there.
        let refused = !there.off && !there.gone;
        // A host that comes back while the new owner is down, longer than it waits for an answer,
        // would go on alone: that nobody asks for.
        let place = Place { app: 0, at };
        let alone = self.mutated(Mutation::GoesOnAlone);
        let newer = self.hears_of_a_newer(state, place);
        let silent = if refused {
            self.mutated(Mutation::TakesRefusalForSilence)
        } else {
            !newer || alone
        };
        if !there.up {
            if silent {
                self.edge(label, cleared);
            }
            return;
        }
        if newer {
            return self.end_what_is_old(state, place);
        }
        self.edge(label, cleared);
    }

    /// Gossip says the same while both are up.
    pub(super) fn hear_of_owners(&mut self, state: &State, place: Place) {
        let both = state.hosts.iter().all(|host| host.up);
        if self.bounds.failovers > 0 && both && self.hears_of_a_newer(state, place) {
            self.end_what_is_old(state, place);
        }
    }

    /// Whether the other host knows of a newer owner than what this one owns, or waits to own.
    fn hears_of_a_newer(&self, state: &State, place: Place) -> bool {
        let application = values::application(place.app);
        let there = self.machines.registry(state.journal(place.there()));
        let here = self.machines.registry(state.journal(place));
        let mut told = there.owned(&application).map(|owned| owned.epoch);
        if self.mutated(Mutation::TakesPromiseForOwner) {
            let promised = there.incoming(&application);
            let verified = promised.filter(|h| matches!(h.phase, Taking::Verified { .. }));
            told = told.max(verified.map(DestinationHandoff::epoch_here));
        }
        let Some(told) = told else { return false };
        let owned = here.owned(&application).map(|owned| owned.epoch);
        let waits = here.incoming(&application);
        let waits = waits.map(DestinationHandoff::epoch_here);
        // Who released it waits for the next epoch's outcome, not for a later one's.
        let given = here.source_of(&application);
        let given = given.map(|source| source.plan.epoch.next());
        let outdated = |epoch: Option<Epoch>| epoch.is_some_and(|epoch| told > epoch);
        outdated(owned) || outdated(waits) || outdated(given)
    }

    /// What is open here ends, and what runs here is stopped.
    fn end_what_is_old(&mut self, state: &State, place: Place) {
        let application = values::application(place.app);
        let there = self.machines.registry(state.journal(place.there()));
        let told = there.owned(&application).map(|owned| owned.epoch);
        let waiting = there
            .incoming(&application)
            .map(DestinationHandoff::epoch_here);
        let epoch = told.max(waiting.filter(|_| self.mutated(Mutation::TakesPromiseForOwner)));
        let mut next = *state;
        self.end_incoming(&mut next, place);
        let keeps_driver = self.mutated(Mutation::DriverGoesOn);
        if !keeps_driver {
            for tag in [SourceTag::Failed, SourceTag::Served, SourceTag::Closed] {
                let (journal, live) = (next.journal(place), next.side(place).live);
                if let Some(stepped) = self.machines.source_step(journal, live, tag) {
                    next.hosts[place.at].journal = *stepped.journals.last().unwrap();
                    next.side_mut(place).live = stepped.live;
                }
            }
        }
        for migration in values::numbers(place.app) {
            let failed = DestinationTag::Failed;
            let journal = next.journal(place);
            if let Some(journal) = self.machines.destination_step(journal, migration, failed) {
                next.hosts[place.at].journal = journal;
            }
        }
        let owner = values::host(1 - place.at);
        // Written down even where it never was owned: an older offer finds who knows better.
        let forgets = self.mutated(Mutation::ForgetsWhatItHeard) && !self.owns(&next, place);
        if let Some(epoch) = epoch.filter(|_| !forgets) {
            let gone = held(place, epoch, Role::Gone { to: owner });
            next.hosts[place.at].journal = self
                .machines
                .append_all(next.hosts[place.at].journal, &[gone]);
        }
        let side = next.side_mut(place);
        side.instance = false;
        side.gate = false;
        self.edge_if_new(Label("is fenced", place, None), state, next);
    }
}

fn held(place: Place, epoch: Epoch, role: Role) -> Record {
    Record::Held {
        application: values::application(place.app),
        epoch,
        role,
        volumes: values::volumes(place.app),
        unmade: Vec::new(),
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
