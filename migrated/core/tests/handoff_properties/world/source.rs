//! The host that gives.

use migrated_core::record::{Record, SourceRecord};
use migrated_core::source::{AfterRound, Effect, Event, Phase, SourceMigration};
use rehome_shared::api::cluster::Round;
use rehome_shared::api::peer::HandoffState;
use rehome_shared::ids::{Epoch, MigrationId};
use rehome_shared::units::Bytes;

use super::network::Body;
use super::{Data, Instance, Mutant, World};
use crate::steps::How;
use crate::values::{self, HOSTS};

impl World {
    /// Steps a migration, as far as its state allows.
    pub(super) fn source_event(&mut self, at: usize, id: &MigrationId, event: Event) {
        let Some(live) = self.hosts[at].lives.get(id).cloned() else {
            self.reached.stale += 1;
            return;
        };
        let Ok(step) = live.step(self.now, event) else {
            self.reached.stale += 1;
            return;
        };
        let released = |record: &SourceRecord| matches!(record, SourceRecord::Released { .. });
        let late = live.deadline().is_some_and(|deadline| self.now > deadline);
        if late && step.records.iter().any(released) {
            self.broken = Some(format!("{id} is released after its deadline"));
        }
        let records: Vec<Record> = step
            .records
            .iter()
            .map(|step| Record::Source {
                migration: id.clone(),
                step: step.clone(),
            })
            .collect();
        if !self.persist(at, &records) {
            return;
        }
        let over = matches!(step.next.phase, Phase::Ended(_));
        let next = (!over).then_some(step.next);
        let host = &mut self.hosts[at];
        if !records.is_empty() && host.registry.sources().get(id) != next.as_ref() {
            self.broken = Some(format!("replay and step disagree about {next:?}"));
        }
        if let Some(next) = next {
            host.lives.insert(id.clone(), next);
            return;
        }
        host.lives.remove(id);
        if host.registry.owned(&live.plan.application).is_some() {
            host.failed.insert(values::app_of(&live.plan.application));
        }
    }

    pub(super) fn call_off(&mut self, which: u8) -> Option<usize> {
        let (at, id) = self.nth_live(which)?;
        let reason = "called off".to_owned();
        self.source_event(at, &id, Event::AbortRequested { reason });
        Some(at)
    }

    fn nth_live(&self, which: u8) -> Option<(usize, MigrationId)> {
        let lives: Vec<_> = (0..HOSTS)
            .flat_map(|at| self.hosts[at].lives.keys().map(move |id| (at, id.clone())))
            .collect();
        let index = usize::from(which) % lives.len().max(1);
        lives.into_iter().nth(index)
    }

    pub(super) fn drive_one(&mut self, which: u8, how: How) -> Option<usize> {
        let (at, id) = self.nth_live(which)?;
        self.drive(at, &id, how);
        Some(at)
    }

    /// Performs the effect of a migration's state twice, and says what came of it.
    pub(super) fn drive(&mut self, at: usize, id: &MigrationId, how: How) {
        let Some(live) = self.hosts[at].lives.get(id).cloned() else {
            return;
        };
        let Some(effect) = live.effect() else {
            self.broken = Some(format!("{id} is over and still driven"));
            return;
        };
        self.perform(at, &live, &effect);
        self.perform(at, &live, &effect);
        if how == How::Late
            && let Some(deadline) = live.deadline()
        {
            self.now = migrated_core::UnixMillis(self.now.0.max(deadline.0 + 1));
        }
        if let Some(event) = self.answer(at, &live, &effect, how) {
            self.source_event(at, id, event);
        }
    }

    fn perform(&mut self, at: usize, live: &SourceMigration, effect: &Effect) {
        let (id, plan) = (&live.id, &live.plan);
        let app = values::app_of(&plan.application);
        let side = &mut self.hosts[at].sides[app];
        let body = match effect {
            Effect::Prepare => Body::Offer(Box::new(values::reservation(at, plan))),
            Effect::SendRound { .. } | Effect::Drain => return,
            Effect::StartThere { attempt } => Body::Start {
                attempt: *attempt,
                epoch: plan.epoch,
            },
            Effect::Park => {
                side.gate = false;
                return;
            }
            Effect::Stop => {
                side.instance = None;
                return;
            }
            Effect::SendFinal { attempt } => {
                let Some(data) = self.take_final(at, app, id) else {
                    return;
                };
                Body::Verify {
                    attempt: *attempt,
                    epoch: plan.epoch,
                    finals: values::finals(app, id),
                    data,
                }
            }
            Effect::Grant { attempt, epoch } => {
                if self.mutant == Some(Mutant::RetiresEarly) {
                    side.live = None;
                    side.finals.clear();
                }
                Body::Grant {
                    attempt: *attempt,
                    epoch: *epoch,
                }
            }
            Effect::AwaitOutcome { .. } => Body::Ask,
            Effect::Finish { .. } => {
                self.finish(at, app, id);
                Body::Close
            }
            Effect::Restore { .. } => {
                self.run_again(at, app, plan.epoch);
                Body::Abort
            }
            Effect::Reclaim { epoch, .. } => {
                self.roll_back(at, app, id);
                self.run_again(at, app, *epoch);
                Body::Close
            }
        };
        self.send(at, values::number_of(&plan.to), id, body);
    }

    fn take_final(&mut self, at: usize, app: usize, id: &MigrationId) -> Option<Data> {
        let side = &mut self.hosts[at].sides[app];
        let Some(live) = side.live.clone() else {
            self.broken = Some("there is nothing to take a snapshot of".to_owned());
            return None;
        };
        Some(side.finals.entry(id.clone()).or_insert(live).clone())
    }

    /// The destination serves from the final snapshot: the live tree can go.
    fn finish(&mut self, at: usize, app: usize, id: &MigrationId) {
        let side = &mut self.hosts[at].sides[app];
        side.gate = false;
        side.instance = None;
        if side.finals.contains_key(id) {
            side.live = None;
        }
    }

    /// With [`Mutant::RollsBack`].
    fn roll_back(&mut self, at: usize, app: usize, id: &MigrationId) {
        let side = &mut self.hosts[at].sides[app];
        if self.mutant == Some(Mutant::RollsBack)
            && let Some(data) = side.finals.get(id)
        {
            side.live = Some(data.clone());
        }
    }

    /// The way back: the live tree is as it was left.
    fn run_again(&mut self, at: usize, app: usize, epoch: Epoch) {
        if app != values::WITHOUT_VOLUME && self.hosts[at].sides[app].live.is_none() {
            self.broken = Some("the way back leads to a volume that is gone".to_owned());
        }
        let side = &mut self.hosts[at].sides[app];
        side.instance = Some(Instance {
            epoch,
            running: true,
        });
        side.gate = true;
    }

    /// What an effect answers, when nobody else has to.
    fn answer(
        &self,
        at: usize,
        live: &SourceMigration,
        effect: &Effect,
        how: How,
    ) -> Option<Event> {
        let fails = how == How::Fails;
        let failed = || {
            let reason = "failed".to_owned();
            fails.then_some(Event::Failed { reason })
        };
        match effect {
            Effect::Prepare | Effect::StartThere { .. } | Effect::SendFinal { .. } => failed(),
            Effect::SendRound { .. } => Some(self.round(live, how)),
            Effect::Park => failed().or(Some(Event::Parked)),
            Effect::Drain => failed().or(Some(Event::Drained { rounds: Vec::new() })),
            Effect::Stop => failed().or(Some(Event::Stopped)),
            Effect::Grant { .. } | Effect::AwaitOutcome { .. } => None,
            // Tried until it succeeds.
            Effect::Finish { .. } | Effect::Restore { .. } | Effect::Reclaim { .. } => (!fails)
                .then(|| Event::Closed {
                    report: values::report(at, live),
                }),
        }
    }

    fn round(&self, live: &SourceMigration, how: How) -> Event {
        let there = &self.hosts[values::number_of(&live.plan.to)];
        let takes = there.up
            && there
                .registry
                .destinations()
                .get(&live.id)
                .is_some_and(|handoff| handoff.state() == HandoffState::Reserved);
        let again = how != How::Fails;
        if !takes || !again {
            let reason = "it does not arrive".to_owned();
            return Event::RoundFailed { reason, again };
        }
        let round = Round {
            bytes: Bytes(1 << 20),
            seconds: 0.25,
        };
        let next = match how {
            How::Slowly => AfterRound::Again,
            How::Late => AfterRound::Abort {
                reason: "it does not converge".to_owned(),
            },
            How::Well | How::Fails => AfterRound::CutOver,
        };
        Event::RoundSent { round, next }
    }
}
