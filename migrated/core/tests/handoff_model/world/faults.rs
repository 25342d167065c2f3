//! Crashes, what a daemon finds when it starts again, and clients.

use super::state::{Place, State};
use super::{Label, Mutation, Routing, World};
use crate::machines::{NONE, SourceTag};

impl World {
    /// What a daemon knew beyond its journal is lost.
    pub(super) fn forget(&self, state: &mut State, at: usize) {
        state.hosts[at].up = false;
        for app in 0..self.bounds.applications {
            let side = state.side_mut(Place { app, at });
            side.live = NONE;
            side.route.forget();
        }
    }

    pub(super) fn crash(&mut self, state: &State, at: usize) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        let place = Place { app: 0, at };
        let mut next = *state;
        next.crashes += 1;
        self.forget(&mut next, at);
        self.fault(Label("daemon crashes", place, None), next);
        for app in 0..self.bounds.applications {
            let side = next.side_mut(Place { app, at });
            side.instance = false;
            side.unflushed = false;
            // A proxy that is told of routes keeps them on disk.
            side.gate &= self.bounds.routing != Routing::AtOnce;
        }
        next.hosts[at].gone = self.bounds.failovers > 0;
        self.fault(Label("host crashes", place, None), next);
    }

    pub(super) fn restart(&mut self, state: &State, at: usize) {
        let mut next = *state;
        next.hosts[at].up = true;
        next.hosts[at].gone = false;
        next.hosts[at].cleared = self.bounds.failovers == 0 || self.mutated(Mutation::NoAsking);
        let label = Label("restarts", Place { app: 0, at }, None);
        let mut found = false;
        for app in 0..self.bounds.applications {
            let place = Place { app, at };
            let live = self.machines.recovered(next.journal(place), app);
            if live == NONE || (found && self.mutated(Mutation::ResumesOne)) {
                continue;
            }
            found = true;
            next.side_mut(place).live = live;
            if self.mutated(Mutation::RestartPolicy) {
                next.side_mut(place).instance = true;
            }
            let resumed = self
                .machines
                .live(live)
                .is_some_and(|m| m.resumed().is_some());
            if !resumed {
                continue;
            }
            let journal = next.journal(place);
            let stepped = self
                .machines
                .source_step(journal, live, SourceTag::Resumed)
                .unwrap();
            let (last, partial) = stepped.journals.split_last().unwrap();
            self.crash_after(label, &next, place, partial);
            next.hosts[at].journal = *last;
            next.side_mut(place).live = stepped.live;
        }
        self.edge(label, next);
    }

    pub(super) fn write(&mut self, state: &State, place: Place) {
        let side = state.side(place);
        if !side.gate || !side.instance || state.apps[place.app].acknowledged == self.bounds.writes
        {
            return;
        }
        let mut next = *state;
        next.apps[place.app].acknowledged += 1;
        next.side_mut(place).data += 1;
        next.side_mut(place).unflushed = true;
        self.fault(Label("client writes", place, None), next);
    }
}
