//! The source: it performs the effects of the real machine, and answers with events.

use migrated_core::destination::Phase as Taking;
use migrated_core::source::{AfterRelease, BeforeRelease, Effect, Phase};

use super::pool::Stamped;
use super::state::{Place, State};
use super::{Label, Mutation, World};
use crate::machines::{Message, SourceTag, Stepped, VIEWS, View};
use crate::values;

impl World {
    /// Steps the migration that a host drives, and crashes between the step's records.
    pub(super) fn step(&mut self, label: Label, state: &State, place: Place, tag: SourceTag) {
        let (journal, live) = (state.journal(place), state.side(place).live);
        if let Some(stepped) = self.machines.source_step(journal, live, tag) {
            self.stepped(label, state, place, &stepped);
        }
    }

    pub(super) fn stepped(&mut self, label: Label, state: &State, place: Place, stepped: &Stepped) {
        let (last, partial) = stepped.journals.split_last().unwrap();
        self.crash_after(label, state, place, partial);
        let mut next = *state;
        next.hosts[place.at].journal = *last;
        next.side_mut(place).live = stepped.live;
        self.edge(label, next);
    }

    pub(super) fn crash_after(
        &mut self,
        label: Label,
        state: &State,
        place: Place,
        partial: &[u16],
    ) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        for journal in partial {
            let mut next = *state;
            next.crashes += 1;
            next.hosts[place.at].journal = *journal;
            self.forget(&mut next, place.at);
            self.fault(label, next);
        }
    }

    /// Performs the effect of the migration that a host drives, or fails to.
    pub(super) fn drive(&mut self, state: &State, place: Place) {
        let side = *state.side(place);
        let Some(migration) = self.machines.live(side.live) else {
            return;
        };
        let number = values::number(&migration.id);
        let label = |what| Label(what, place, Some(number));
        let rounds = migration.rounds.len();
        let Some(effect) = migration.effect() else {
            return;
        };
        let fails = matches!(migration.phase, Phase::Before(_))
            && !matches!(effect, Effect::Restore { .. });
        if fails {
            self.step(label("gives up"), state, place, SourceTag::Failed);
        }
        let mut next = *state;
        match effect {
            // Whoever is in a state says what it says; see `Message`.
            Effect::Prepare | Effect::AwaitOutcome { .. } => {}
            Effect::SendRound { .. } => self.send_round(state, place, number, rounds),
            Effect::StartThere { .. } => {
                panic!("an application with a volume is not started early")
            }
            Effect::Park => {
                if !self.is_stamped_moving(state, place, number, false) {
                    return;
                }
                if self.park(&mut next, place) {
                    self.step(label("parks"), &next, place, SourceTag::Parked);
                } else {
                    self.edge(label("is not heard by its proxy"), next);
                }
            }
            Effect::Drain => self.step(label("drains"), &next, place, SourceTag::Drained),
            Effect::Stop => {
                next.side_mut(place).instance = self.mutated(Mutation::Straggler);
                self.step(label("stops"), &next, place, SourceTag::Stopped);
            }
            Effect::SendFinal { .. } => {
                let lost = side.unflushed && self.mutated(Mutation::NoFlush);
                next.side_mut(place).unflushed = false;
                next.apps[place.app].finals[values::slot_of(number)]
                    .get_or_insert(side.data - u8::from(lost));
                self.edge(label("takes the final snapshot"), next);
            }
            Effect::Grant { .. } => {
                self.is_stamped_moving(state, place, number, true);
                self.call_off_too_late(state, place, number);
            }
            Effect::Finish { .. } => self.finish(state, place, number),
            Effect::Restore { .. } => self.bring_back(state, place, number),
            Effect::Reclaim { .. } => {
                if self.mutated(Mutation::ReclaimRollsBack) {
                    next.side_mut(place).data = state.last(number);
                }
                self.bring_back(&next, place, number);
            }
        }
    }

    fn finish(&mut self, state: &State, place: Place, number: u8) {
        let label = Label("closes", place, Some(number));
        let gone = Stamped::Gone(self.epoch_of(state, place));
        if self.is_stamped(state, place, label, gone) {
            let mut next = *state;
            self.lead_away(&mut next, place, number);
            self.step(label, &next, place, SourceTag::Closed);
        }
    }

    /// With [`Mutation::AbortAfterRelease`].
    fn call_off_too_late(&mut self, state: &State, place: Place, number: u8) {
        if self.mutated(Mutation::AbortAfterRelease) {
            let (journal, live) = (state.journal(place), state.side(place).live);
            let stepped = self.machines.force_abort(journal, live).unwrap();
            let label = Label("calls off too late", place, Some(number));
            self.stepped(label, state, place, &stepped);
        }
    }

    fn send_round(&mut self, state: &State, place: Place, number: u8, rounds: usize) {
        let there = place.there();
        let received = state.hosts[there.at].up
            && self
                .machines
                .handoff(state.journal(there), number)
                .is_some_and(|handoff| handoff.phase == Taking::Reserved);
        if received {
            let label = |what| Label(what, place, Some(number));
            let mut next = *state;
            self.comes(&mut next, there, number);
            if rounds == 0 && values::slot_of(number) == 0 {
                self.step(label("sends a round"), &next, place, SourceTag::RoundAgain);
            }
            self.step(label("cuts over"), &next, place, SourceTag::RoundCutOver);
        }
    }

    /// Instance and gate; it may be closed before the destination heard of it.
    fn bring_back(&mut self, state: &State, place: Place, number: u8) {
        let label = Label("brings it back", place, Some(number));
        if !self.may_run(state, place, label) {
            return;
        }
        let mut next = *state;
        next.side_mut(place).instance = true;
        self.open(&mut next, place);
        self.edge(label, next);
        if state.side(place).instance && self.wants_open(state, place) {
            let label = Label("closes", place, Some(number));
            self.step(label, state, place, SourceTag::Closed);
        }
    }

    /// What the destination says of a migration arrives at its source.
    pub(super) fn hear_views(&mut self, state: &State, place: Place, number: u8) {
        let Some(migration) = self.machines.live(state.side(place).live) else {
            return;
        };
        if migration.id != values::id(number) && !self.mutated(Mutation::AnyMigration) {
            return;
        }
        let phase = migration.phase.clone();
        let there = place.there();
        for view in VIEWS {
            let late =
                view == View::Returned && state.apps[place.app].returned_late == Some(number);
            let journal = state.journal(there);
            let said = late || self.said_there(journal, number, Message::View(view));
            if !said || (view == View::Returned && !self.may_say_returned(state, number)) {
                continue;
            }
            self.stale = !state.hosts[there.at].up
                || self
                    .machines
                    .handoff(journal, number)
                    .is_none_or(|h| !view.is(h.state()));
            self.hear_view(state, place, number, (&phase, view));
        }
        self.stale = false;
    }

    fn hear_view(&mut self, state: &State, place: Place, number: u8, heard: (&Phase, View)) {
        let label = |what| Label(what, place, Some(number));
        match heard {
            (Phase::Before(BeforeRelease::Preparing), View::Reserved) => {
                self.step(label("hears"), state, place, SourceTag::Ready);
            }
            (Phase::Before(BeforeRelease::CutOver { .. }), View::Verified) => {
                self.step(label("releases"), state, place, SourceTag::VerifiedInTime);
                self.step(label("is late"), state, place, SourceTag::VerifiedLate);
                if self.mutated(Mutation::GrantBeforeRecord) {
                    let mut next = *state;
                    next.apps[place.app].granted_early = Some(number);
                    self.edge(label("grants too early"), next);
                }
            }
            (Phase::After(AfterRelease::Granting { .. }), View::Owned) => {
                self.step(label("hears"), state, place, SourceTag::Adopted);
            }
            (
                Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }),
                View::Serving,
            ) => self.step(label("hears"), state, place, SourceTag::Served),
            (
                Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }),
                View::Returned,
            ) => self.step(label("hears"), state, place, SourceTag::Returned),
            _ => {}
        }
    }

    /// Whether a source says this of a migration now.
    pub(super) fn says(&self, state: &State, place: Place, number: u8, message: Message) -> bool {
        let live = state.side(place).live;
        self.machines.says_now(live, number, message)
    }
}
