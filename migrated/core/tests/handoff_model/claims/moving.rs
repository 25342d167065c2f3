//! The migration from the source to the destination, and what each host runs.

use migrated_core::destination::Phase as Taking;
use migrated_core::source::{AfterRelease, BeforeRelease, Effect, Phase};

use super::state::{Power, State};
use super::{APP, DESTINATION, EPOCH, Label, MIGRATION, Mutation, SOURCE, World};
use crate::machines::{DestinationTag, Message, NONE, SourceTag, VIEWS, View};
use crate::values;

impl World {
    pub(super) fn crash(&mut self, state: &State, at: usize) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        let falls = [
            (Power::DaemonDown, "daemon crashes"),
            (Power::Gone, "host crashes"),
        ];
        for (power, what) in falls {
            if power == Power::Gone && !self.bounds.hosts_fall {
                continue;
            }
            let mut next = *state;
            next.crashes += 1;
            next.hosts[at].fall(power);
            self.fault(Label(what, at), next);
        }
    }

    pub(super) fn restart(&mut self, state: &State, at: usize) {
        if state.hosts[at].power == Power::Off {
            return;
        }
        let label = Label("restarts", at);
        let mut next = *state;
        let host = &mut next.hosts[at];
        host.power = Power::Up;
        host.cleared = self.mutated(Mutation::NoAsking);
        host.live = self.machines.recovered(host.journal, APP);
        let (journal, live) = (host.journal, host.live);
        let resumes = self.machines.live(live);
        if resumes.is_some_and(|migration| migration.resumed().is_some()) {
            self.source_step(label, next, SourceTag::Resumed);
        } else {
            next.hosts[at].journal = journal;
            self.edge(label, next);
        }
    }

    /// What the owner runs while no handoff has it in hand.
    pub(super) fn reconcile(&mut self, state: &State, at: usize) {
        let host = &state.hosts[at];
        let registry = self.machines.registry(host.journal);
        let name = values::application(APP);
        let busy = registry.incoming(&name).is_some() || registry.source_of(&name).is_some();
        if host.instance || !host.cleared || busy || !self.owns(state, at) {
            return;
        }
        let mut next = *state;
        next.hosts[at].instance = true;
        self.edge(Label("starts", at), next);
    }

    fn source_step(&mut self, label: Label, next: State, tag: SourceTag) {
        let (journal, live) = (next.hosts[SOURCE].journal, next.hosts[SOURCE].live);
        if let Some(stepped) = self.machines.source_step(journal, live, tag) {
            let mut next = next;
            next.hosts[SOURCE].live = stepped.live;
            self.write(label, next, SOURCE, &stepped.journals);
        }
    }

    /// What the source does by itself, and what it makes of the destination's answers.
    pub(super) fn give(&mut self, state: &State) {
        let host = &state.hosts[SOURCE];
        if host.power != Power::Up || !host.cleared {
            return;
        }
        self.begin(state);
        let Some(migration) = self.machines.live(host.live) else {
            return;
        };
        let (phase, effect) = (migration.phase.clone(), migration.effect());
        match effect {
            Some(Effect::Restore { .. } | Effect::Reclaim { .. }) => {
                let mut next = *state;
                next.hosts[SOURCE].instance = true;
                if host.instance {
                    self.source_step(Label("closes", SOURCE), next, SourceTag::Closed);
                } else {
                    self.edge(Label("brings it back", SOURCE), next);
                }
            }
            Some(Effect::Finish { .. }) => {
                self.source_step(Label("closes", SOURCE), *state, SourceTag::Closed);
            }
            Some(Effect::SendRound { .. }) => self.cut_over(state),
            _ => {}
        }
        if matches!(phase, Phase::Before(_)) && !matches!(effect, Some(Effect::Restore { .. })) {
            self.source_step(Label("gives up", SOURCE), *state, SourceTag::Failed);
        }
        self.hear_views(state, &phase);
    }

    fn begin(&mut self, state: &State) {
        if state.begun {
            return;
        }
        let journal = state.hosts[SOURCE].journal;
        let ends = [SOURCE, DESTINATION];
        if let Some((journal, live)) = self.machines.begin(journal, ends, MIGRATION) {
            let mut next = *state;
            next.begun = true;
            next.hosts[SOURCE].journal = journal;
            next.hosts[SOURCE].live = live;
            self.edge(Label("plans", SOURCE), next);
        }
    }

    /// The last round, and all that is done until the final snapshot.
    fn cut_over(&mut self, state: &State) {
        let there = self
            .machines
            .handoff(state.hosts[DESTINATION].journal, MIGRATION);
        let received = there.is_some_and(|handoff| handoff.phase == Taking::Reserved);
        if !received || !state.reaches(SOURCE, DESTINATION) {
            return;
        }
        let mut next = *state;
        let tags = [
            SourceTag::RoundCutOver,
            SourceTag::Parked,
            SourceTag::Drained,
            SourceTag::Stopped,
        ];
        for tag in tags {
            let host = &mut next.hosts[SOURCE];
            let stepped = self.machines.source_step(host.journal, host.live, tag);
            let stepped = stepped.unwrap();
            host.journal = *stepped.journals.last().unwrap();
            host.live = stepped.live;
        }
        next.hosts[SOURCE].instance = false;
        self.edge(Label("cuts over", SOURCE), next);
    }

    fn hear_views(&mut self, state: &State, phase: &Phase) {
        if state.hosts[SOURCE].cut {
            return;
        }
        let there = state.hosts[DESTINATION].journal;
        for view in VIEWS {
            if !self.machines.said(there, MIGRATION, Message::View(view)) {
                continue;
            }
            let now = self.machines.handoff(there, MIGRATION);
            let stale = !state.reaches(SOURCE, DESTINATION)
                || now.is_none_or(|handoff| !view.is(handoff.state()));
            let tags: &[SourceTag] = match (phase, view) {
                (Phase::Before(BeforeRelease::Preparing), View::Reserved) => &[SourceTag::Ready],
                (Phase::Before(BeforeRelease::CutOver { .. }), View::Verified) => {
                    &[SourceTag::VerifiedInTime, SourceTag::VerifiedLate]
                }
                (Phase::After(AfterRelease::Granting { .. }), View::Owned) => &[SourceTag::Adopted],
                (
                    Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }),
                    View::Serving,
                ) => &[SourceTag::Served],
                (
                    Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. }),
                    View::Returned,
                ) => &[SourceTag::Returned],
                _ => &[],
            };
            let from = self.edges.len();
            for tag in tags {
                self.source_step(Label(heard(view), SOURCE), *state, *tag);
            }
            self.mark(from, stale);
        }
    }

    /// What came of a message that wandered about.
    fn mark(&mut self, from: usize, stale: bool) {
        for edge in &mut self.edges[from..] {
            edge.fault |= stale;
        }
    }

    /// What the destination does by itself, and what it makes of the source's messages.
    pub(super) fn take(&mut self, state: &State) {
        let host = &state.hosts[DESTINATION];
        if host.power != Power::Up || host.cut || !state.begun {
            return;
        }
        self.hear_messages(state);
        let Some(handoff) = self.machines.handoff(host.journal, MIGRATION) else {
            return;
        };
        match &handoff.phase {
            Taking::Reserved => self.settle("expires", state, DestinationTag::Expired),
            Taking::Owned { .. } if host.cleared => {
                let mut next = *state;
                next.hosts[DESTINATION].instance = !host.instance;
                if host.instance {
                    self.settle("is healthy", state, DestinationTag::Healthy);
                    self.settle("returns", &next, DestinationTag::Failed);
                } else {
                    self.edge(Label("starts", DESTINATION), next);
                    self.settle("returns", state, DestinationTag::Failed);
                }
            }
            Taking::Dropped => self.settle("discards", state, DestinationTag::Discarded),
            Taking::Verified { .. }
            | Taking::Owned { .. }
            | Taking::Serving { .. }
            | Taking::Returned { .. } => {}
        }
    }

    fn settle(&mut self, what: &'static str, state: &State, tag: DestinationTag) {
        let journal = state.hosts[DESTINATION].journal;
        let stepped = self
            .machines
            .destination_step(journal, DESTINATION, MIGRATION, tag);
        if let Some(journal) = stepped {
            let mut next = *state;
            next.hosts[DESTINATION].journal = journal;
            self.edge(Label(what, DESTINATION), next);
        }
    }

    fn hear_messages(&mut self, state: &State) {
        let (host, source) = (&state.hosts[DESTINATION], &state.hosts[SOURCE]);
        let epoch = u8::try_from(EPOCH.0).unwrap();
        let says = |world: &Self, message| {
            let now = world.machines.says_now(source.live, MIGRATION, message);
            now && state.reaches(SOURCE, DESTINATION)
        };
        let from = self.edges.len();
        let ends = [DESTINATION, SOURCE];
        if let Some(journals) = self.machines.take(host.journal, ends, MIGRATION, epoch)
            && !journals.is_empty()
        {
            self.write(
                Label("reserves", DESTINATION),
                *state,
                DESTINATION,
                &journals,
            );
            self.mark(from, !says(self, Message::Prepare));
        }
        // A host that is called fenced gives nothing away.
        let named = host.follows.is_placed_on(DESTINATION);
        let excepted = named && self.mutated(Mutation::TakesGrantWhereNamed);
        let void = host.follows.fences(SOURCE) && !excepted;
        let void = void && !self.mutated(Mutation::TakesVoidGrant);
        let heard = [
            (Message::Verify, DestinationTag::Verified, "verifies"),
            (Message::Grant, DestinationTag::Granted(epoch + 1), "adopts"),
            (Message::Abort, DestinationTag::Aborted, "hears the abort"),
            (Message::Close, DestinationTag::Closed, "hears the close"),
        ];
        for (message, tag, what) in heard {
            let said = self.machines.said(source.journal, MIGRATION, message);
            if said && !(void && message == Message::Grant) {
                let from = self.edges.len();
                self.settle(what, state, tag);
                self.mark(from, !says(self, message));
            }
        }
    }

    /// Stops what is not this host's any more.
    pub(super) fn stop(next: &mut State, at: usize) {
        next.hosts[at].instance = false;
        next.hosts[at].live = NONE;
    }
}

fn heard(view: View) -> &'static str {
    match view {
        View::Reserved => "hears reserved",
        View::Verified => "hears verified",
        View::Owned => "hears owned",
        View::Serving => "hears serving",
        View::Returned => "hears returned",
    }
}
