//! The destination: what it does by itself, and what it makes of the source's messages.

use migrated_core::destination::Phase as Taking;
use migrated_core::source::Effect;

use super::{Label, Mutation, State, World};
use crate::machines::{DestinationTag, Message};
use crate::values;

impl World {
    /// What a destination does by itself.
    pub(super) fn take(&mut self, state: &State, at: usize, number: u8) {
        let host = state.hosts[at];
        let Some(handoff) = self.machines.handoff(host.journal, number) else {
            return;
        };
        let phase = handoff.phase.clone();
        let mut next = *state;
        match phase {
            Taking::Reserved => self.settle("expires", state, at, number, DestinationTag::Expired),
            Taking::Verified { .. } => {
                if self.mutated(Mutation::EarlyStart) {
                    next.hosts[at].instance = true;
                    next.hosts[at].data = state.finals[usize::from(number)].unwrap();
                    self.edge(Label("starts too early", at, number), next);
                }
                if self.mutated(Mutation::PromiseExpires) {
                    self.settle(
                        "forgets a promise",
                        state,
                        at,
                        number,
                        DestinationTag::Aborted,
                    );
                }
            }
            Taking::Owned { .. } => {
                if host.instance {
                    self.settle("is healthy", state, at, number, DestinationTag::Healthy);
                } else {
                    next.hosts[at].instance = true;
                    next.hosts[at].data = state.finals[usize::from(number)].unwrap();
                    self.edge(Label("starts", at, number), next);
                }
                let mut stopped = *state;
                stopped.hosts[at].instance = false;
                self.settle("returns", &stopped, at, number, DestinationTag::Failed);
            }
            Taking::Serving { .. } => {
                if self.mutated(Mutation::ReturnAfterServing) {
                    next.hosts[at].instance = false;
                    next.hosts[at].gate = false;
                    next.returned_late = Some(number);
                    self.edge(Label("returns too late", at, number), next);
                }
            }
            Taking::Returned { .. } => {
                if self.mutated(Mutation::ForgetsReturned) {
                    self.settle("forgets", state, at, number, DestinationTag::Closed);
                }
            }
            Taking::Dropped => {
                self.settle("discards", state, at, number, DestinationTag::Discarded);
            }
        }
    }

    pub(super) fn settle(
        &mut self,
        what: &'static str,
        state: &State,
        at: usize,
        number: u8,
        tag: DestinationTag,
    ) {
        if let Some(journal) = self
            .machines
            .destination_step(state.hosts[at].journal, number, tag)
        {
            let mut next = *state;
            next.hosts[at].journal = journal;
            self.edge(Label(what, at, number), next);
        }
    }

    /// A message of the source arrives at the destination.
    pub(super) fn hear(&mut self, state: &State, at: usize, number: u8, epoch: u8) {
        let journal = state.hosts[at].journal;
        let source = state.hosts[1 - at].journal;
        self.stale = !self.says(state, 1 - at, number, Message::Prepare);
        if let Some(journals) = self.machines.take(journal, at, number, epoch)
            && let Some((last, partial)) = journals.split_last()
        {
            let label = Label("reserves", at, number);
            self.crash_after(label, state, at, partial);
            let mut next = *state;
            next.hosts[at].journal = *last;
            self.edge(label, next);
        }
        let heard = [
            (Message::Verify, DestinationTag::Verified, "verifies"),
            (Message::Grant, DestinationTag::Granted(epoch + 1), "adopts"),
            (Message::Abort, DestinationTag::Aborted, "hears the abort"),
            (Message::Close, DestinationTag::Closed, "hears the close"),
        ];
        for (message, tag, what) in heard {
            let sent = match message {
                Message::Verify => state.finals[usize::from(number)].is_some(),
                Message::Grant if state.granted_early == Some(number) => true,
                _ => self.machines.said(source, number, message),
            };
            if sent {
                self.stale = !self.says(state, 1 - at, number, message);
                self.answer(what, state, at, number, tag);
            }
        }
        self.stale = false;
    }

    /// Whether a source says this of a migration now.
    pub(super) fn says(&self, state: &State, at: usize, number: u8, message: Message) -> bool {
        let live = self.machines.live(state.hosts[at].live);
        let Some(effect) = live
            .filter(|m| m.id == values::id(number))
            .and_then(migrated_core::source::SourceMigration::effect)
        else {
            return false;
        };
        match effect {
            Effect::Prepare => message == Message::Prepare,
            Effect::SendFinal { .. } => message == Message::Verify,
            Effect::Grant { .. } => message == Message::Grant,
            Effect::Restore { .. } => message == Message::Abort,
            Effect::Finish { .. } | Effect::Reclaim { .. } => message == Message::Close,
            Effect::SendRound { .. }
            | Effect::StartThere { .. }
            | Effect::Park
            | Effect::Drain
            | Effect::Stop
            | Effect::AwaitOutcome { .. } => false,
        }
    }

    /// Whether a destination may have said something of a migration.
    pub(super) fn said_there(&self, journal: u16, number: u8, message: Message) -> bool {
        let any = self.mutated(Mutation::AnyMigration);
        (0..2).any(|m| (any || m == number) && self.machines.said(journal, m, message))
    }

    pub(super) fn answer(
        &mut self,
        what: &'static str,
        state: &State,
        at: usize,
        number: u8,
        tag: DestinationTag,
    ) {
        if self.mutated(Mutation::AnyMigration) && matches!(tag, DestinationTag::Granted(_)) {
            for any in 0..self.bounds.migrations {
                self.settle(what, state, at, any, tag);
            }
        } else {
            self.settle(what, state, at, number, tag);
        }
    }
}
