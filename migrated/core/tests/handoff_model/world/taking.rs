//! The destination: what it does by itself, and what it makes of the source's messages.

use migrated_core::destination::Phase as Taking;

use super::pool::Stamped;
use super::state::{Place, State};
use super::{Label, Mutation, World};
use crate::machines::{DestinationTag, Message};
use crate::values;

impl World {
    /// What a destination does by itself.
    pub(super) fn take(&mut self, state: &State, place: Place, number: u8) {
        let Some(handoff) = self.machines.handoff(state.journal(place), number) else {
            return;
        };
        let phase = handoff.phase.clone();
        let label = |what| Label(what, place, Some(number));
        let mut next = *state;
        match phase {
            Taking::Reserved => {
                self.settle("expires", state, place, number, DestinationTag::Expired);
            }
            Taking::Verified { .. } => self.trust_a_promise(state, place, number),
            Taking::Owned { .. } => {
                let adopts = self.mutated(Mutation::StartsAdoptedUncleared);
                if adopts || self.is_cleared(state, place.at) {
                    self.start(state, place, number);
                }
            }
            Taking::Serving { .. } => {
                if self.mutated(Mutation::ReturnAfterServing) {
                    next.side_mut(place).instance = false;
                    next.side_mut(place).gate = false;
                    next.apps[place.app].returned_late = Some(number);
                    self.edge(label("returns too late"), next);
                }
            }
            Taking::Returned { .. } => {
                let said = &mut next.apps[place.app].said_returned[values::slot_of(number)];
                if self.bounds.losses > 0 && !std::mem::replace(said, true) {
                    let gone = Stamped::Gone(self.epoch_of(state, place));
                    next.side_mut(place).stamp = gone;
                    self.edge(label("stamps what it gives back"), next);
                }
                if self.mutated(Mutation::ForgetsReturned) {
                    self.settle("forgets", state, place, number, DestinationTag::Closed);
                }
            }
            Taking::Dropped => {
                self.settle("discards", state, place, number, DestinationTag::Discarded);
            }
        }
    }

    fn start(&mut self, state: &State, place: Place, number: u8) {
        let mut next = *state;
        if state.side(place).instance {
            self.settle("is healthy", state, place, number, DestinationTag::Healthy);
            if self.mutated(Mutation::GateBeforeServing) {
                self.open(&mut next, place);
                self.edge(Label("opens too early", place, Some(number)), next);
            }
        } else {
            next.side_mut(place).data = state.last(number);
            next.side_mut(place).retired = false;
            let label = Label("starts", place, Some(number));
            if self.may_run(&next, place, label) {
                next.side_mut(place).instance = true;
                self.edge(label, next);
            }
        }
        let mut stopped = *state;
        stopped.side_mut(place).instance = false;
        stopped.side_mut(place).retired = self.mutated(Mutation::RetiresBeforeStamp);
        self.close(&mut stopped, place);
        self.settle("returns", &stopped, place, number, DestinationTag::Failed);
    }

    /// With the guards of a promise taken out.
    fn trust_a_promise(&mut self, state: &State, place: Place, number: u8) {
        let label = |what| Label(what, place, Some(number));
        let mut next = *state;
        if self.mutated(Mutation::EarlyStart) {
            next.side_mut(place).instance = true;
            next.side_mut(place).data = state.last(number);
            self.edge(label("starts too early"), next);
        }
        if self.mutated(Mutation::GateBeforeAdopted) {
            self.open(&mut next, place);
            self.edge(label("opens on a promise"), next);
        }
        if self.mutated(Mutation::PromiseExpires) {
            let what = "forgets a promise";
            self.settle(what, state, place, number, DestinationTag::Aborted);
        }
    }

    fn settle(
        &mut self,
        what: &'static str,
        state: &State,
        place: Place,
        number: u8,
        tag: DestinationTag,
    ) {
        let journal = state.journal(place);
        if let Some(journal) = self
            .machines
            .destination_step(journal, place.at, number, tag)
        {
            let mut next = *state;
            next.hosts[place.at].journal = journal;
            self.edge(Label(what, place, Some(number)), next);
        }
    }

    /// A message of the source arrives at the destination.
    pub(super) fn hear(&mut self, state: &State, place: Place, number: u8, epoch: u8) {
        let source = place.there();
        self.stale = !self.says(state, source, number, Message::Prepare);
        let journal = state.journal(place);
        if let Some(journals) = self
            .machines
            .take(journal, [place.at, source.at], number, epoch)
            && let Some((last, partial)) = journals.split_last()
        {
            let label = Label("reserves", place, Some(number));
            self.crash_after(label, state, place, partial);
            let mut next = *state;
            next.hosts[place.at].journal = *last;
            self.edge(label, next);
        }
        let heard = [
            (Message::Verify, DestinationTag::Verified, "verifies"),
            (Message::Grant, DestinationTag::Granted(epoch + 1), "adopts"),
            (Message::Abort, DestinationTag::Aborted, "hears the abort"),
            (Message::Close, DestinationTag::Closed, "hears the close"),
        ];
        let app = &state.apps[place.app];
        for (message, tag, what) in heard {
            let sent = match message {
                Message::Verify => app.finals[values::slot_of(number)].is_some(),
                Message::Grant if app.granted_early == Some(number) => true,
                _ => self.machines.said(state.journal(source), number, message),
            };
            if sent {
                self.stale = !self.says(state, source, number, message);
                self.answer(what, state, place, number, tag);
            }
        }
        self.stale = false;
    }

    /// Whether a destination may have said something of a migration.
    pub(super) fn said_there(&self, journal: u16, number: u8, message: Message) -> bool {
        let any = self.mutated(Mutation::AnyMigration);
        values::numbers(values::app_of(number))
            .any(|m| (any || m == number) && self.machines.said(journal, m, message))
    }

    fn answer(
        &mut self,
        what: &'static str,
        state: &State,
        place: Place,
        number: u8,
        tag: DestinationTag,
    ) {
        if self.mutated(Mutation::AnyMigration) && matches!(tag, DestinationTag::Granted(_)) {
            for any in values::numbers(place.app) {
                self.settle(what, state, place, any, tag);
            }
        } else {
            self.settle(what, state, place, number, tag);
        }
    }
}
