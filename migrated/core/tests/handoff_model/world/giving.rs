//! The source: it performs the effects of the real machine, and answers with events.

use migrated_core::destination::Phase as Taking;
use migrated_core::source::{AfterRelease, BeforeRelease, Effect, Phase};

use super::{Label, Mutation, State, World};
use crate::machines::{Message, NONE, SourceTag, Stepped, VIEWS, View};
use crate::values;

impl World {
    /// Steps the migration that a host drives, and crashes between the step's records.
    pub(super) fn step(&mut self, label: Label, state: &State, at: usize, tag: SourceTag) {
        let host = &state.hosts[at];
        if let Some(stepped) = self.machines.source_step(host.journal, host.live, tag) {
            self.stepped(label, state, at, &stepped);
        }
    }

    pub(super) fn stepped(&mut self, label: Label, state: &State, at: usize, stepped: &Stepped) {
        let (last, partial) = stepped.journals.split_last().unwrap();
        self.crash_after(label, state, at, partial);
        let mut next = *state;
        next.hosts[at].journal = *last;
        next.hosts[at].live = stepped.live;
        self.edge(label, next);
    }

    pub(super) fn crash_after(&mut self, label: Label, state: &State, at: usize, partial: &[u16]) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        for journal in partial {
            let mut next = *state;
            next.crashes += 1;
            next.hosts[at].journal = *journal;
            next.hosts[at].live = NONE;
            next.hosts[at].up = false;
            self.fault(label, next);
        }
    }

    /// Performs the effect of the migration that a host drives, or fails to.
    pub(super) fn drive(&mut self, state: &State, at: usize) {
        let live = state.hosts[at].live;
        let Some(migration) = self.machines.live(live) else {
            return;
        };
        let number =
            u8::try_from((0..2).position(|m| values::id(m) == migration.id).unwrap()).unwrap();
        let rounds = migration.rounds.len();
        let Some(effect) = migration.effect() else {
            return;
        };
        let fails = matches!(migration.phase, Phase::Before(_))
            && !matches!(effect, Effect::Restore { .. });
        if fails {
            self.step(Label("gives up", at, number), state, at, SourceTag::Failed);
        }
        let mut next = *state;
        match effect {
            // Whoever is in a state says what it says; see `Message`.
            Effect::Prepare | Effect::AwaitOutcome { .. } => {}
            Effect::SendRound { .. } => self.send_round(state, at, number, rounds),
            Effect::StartThere { .. } => {
                panic!("an application with a volume is not started early")
            }
            Effect::Park => {
                next.hosts[at].gate = false;
                self.step(Label("parks", at, number), &next, at, SourceTag::Parked);
            }
            Effect::Drain => self.step(Label("drains", at, number), &next, at, SourceTag::Drained),
            Effect::Stop => {
                next.hosts[at].instance = self.mutated(Mutation::Straggler);
                self.step(Label("stops", at, number), &next, at, SourceTag::Stopped);
            }
            Effect::SendFinal { .. } => {
                let lost = state.hosts[at].unflushed && self.mutated(Mutation::NoFlush);
                next.hosts[at].unflushed = false;
                next.finals[usize::from(number)]
                    .get_or_insert(state.hosts[at].data - u8::from(lost));
                self.edge(Label("takes the final snapshot", at, number), next);
            }
            Effect::Grant { .. } => self.call_off_too_late(state, at, number),
            Effect::Finish { .. } => {
                self.step(Label("closes", at, number), state, at, SourceTag::Closed);
            }
            Effect::Restore { .. } => self.bring_back(state, at, number),
            Effect::Reclaim { .. } => {
                if self.mutated(Mutation::ReclaimRollsBack) {
                    next.hosts[at].data = state.finals[usize::from(number)].unwrap();
                }
                self.bring_back(&next, at, number);
            }
        }
    }

    /// With [`Mutation::AbortAfterRelease`].
    pub(super) fn call_off_too_late(&mut self, state: &State, at: usize, number: u8) {
        if self.mutated(Mutation::AbortAfterRelease) {
            let host = state.hosts[at];
            let stepped = self.machines.force_abort(host.journal, host.live).unwrap();
            self.stepped(Label("calls off too late", at, number), state, at, &stepped);
        }
    }

    pub(super) fn send_round(&mut self, state: &State, at: usize, number: u8, rounds: usize) {
        let there = &state.hosts[1 - at];
        let received = there.up
            && self
                .machines
                .handoff(there.journal, number)
                .is_some_and(|handoff| handoff.phase == Taking::Reserved);
        if received {
            if rounds == 0 && number == 0 {
                self.step(
                    Label("sends a round", at, number),
                    state,
                    at,
                    SourceTag::RoundAgain,
                );
            }
            self.step(
                Label("cuts over", at, number),
                state,
                at,
                SourceTag::RoundCutOver,
            );
        }
    }

    /// Instance and gate; it may be closed before the destination heard of it.
    pub(super) fn bring_back(&mut self, state: &State, at: usize, number: u8) {
        let mut next = *state;
        next.hosts[at].instance = true;
        next.hosts[at].gate = true;
        self.edge(Label("brings it back", at, number), next);
        if state.hosts[at].instance && state.hosts[at].gate {
            self.step(Label("closes", at, number), state, at, SourceTag::Closed);
        }
    }

    /// What the destination says of a migration arrives at its source.
    pub(super) fn hear_views(&mut self, state: &State, at: usize, number: u8) {
        let live = state.hosts[at].live;
        let Some(migration) = self.machines.live(live) else {
            return;
        };
        if migration.id != values::id(number) && !self.mutated(Mutation::AnyMigration) {
            return;
        }
        let phase = migration.phase.clone();
        for view in VIEWS {
            let late = view == View::Returned && state.returned_late == Some(number);
            let there = state.hosts[1 - at].journal;
            if !late && !self.said_there(there, number, Message::View(view)) {
                continue;
            }
            self.stale = !state.hosts[1 - at].up
                || self
                    .machines
                    .handoff(there, number)
                    .is_none_or(|h| !view.is(h.state()));
            let label = Label("hears", at, number);
            match (&phase, view) {
                (Phase::Before(BeforeRelease::Preparing), View::Reserved) => {
                    self.step(label, state, at, SourceTag::Ready);
                }
                (Phase::Before(BeforeRelease::CutOver { .. }), View::Verified) => {
                    self.step(
                        Label("releases", at, number),
                        state,
                        at,
                        SourceTag::VerifiedInTime,
                    );
                    self.step(
                        Label("is late", at, number),
                        state,
                        at,
                        SourceTag::VerifiedLate,
                    );
                    if self.mutated(Mutation::GrantBeforeRecord) {
                        let next = State {
                            granted_early: Some(number),
                            ..*state
                        };
                        self.edge(Label("grants too early", at, number), next);
                    }
                }
                (Phase::After(AfterRelease::Granting { .. }), View::Owned) => {
                    self.step(label, state, at, SourceTag::Adopted);
                }
                (
                    Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }),
                    View::Serving,
                ) => self.step(label, state, at, SourceTag::Served),
                (
                    Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }),
                    View::Returned,
                ) => self.step(label, state, at, SourceTag::Returned),
                _ => {}
            }
        }
        self.stale = false;
    }
}
