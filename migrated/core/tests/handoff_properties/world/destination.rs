//! The host that takes.

use migrated_core::admission::{Admission, may_take};
use migrated_core::destination::{DestinationHandoff, Event, Phase};
use migrated_core::record::{DestinationRecord, Record, Reservation};
use rehome_shared::ids::MigrationId;

use super::network::Body;
use super::{Instance, Mutant, World};
use crate::steps::Settling;
use crate::values::{self, HOSTS};

impl World {
    /// Steps a handoff, as far as its state allows; `false` when the host went down over it.
    pub(super) fn destination_event(&mut self, at: usize, id: &MigrationId, event: Event) -> bool {
        let Some(handoff) = self.hosts[at].registry.destinations().get(id).cloned() else {
            self.reached.stale += 1;
            return true;
        };
        let Ok(step) = handoff.step(event) else {
            self.reached.stale += 1;
            return true;
        };
        let records: Vec<Record> = step
            .records
            .iter()
            .map(|step| Record::Destination {
                migration: id.clone(),
                step: step.clone(),
            })
            .collect();
        if !self.persist(at, &records) {
            return false;
        }
        if self.hosts[at].registry.destinations().get(id) != step.next.as_ref() {
            self.broken = Some(format!("replay and step disagree about {:?}", step.next));
        }
        true
    }

    pub(super) fn hear_offer(
        &mut self,
        at: usize,
        from: usize,
        id: &MigrationId,
        offer: &Reservation,
    ) {
        let registry = &self.hosts[at].registry;
        let admission = if self.mutated(Mutant::TakesAnything) {
            Ok(Admission::Reserve {
                supersedes: Vec::new(),
            })
        } else {
            may_take(registry, &values::host(at), id, offer)
        };
        match admission {
            Err(_) => self.send(at, from, id, Body::Refused),
            Ok(Admission::Known) => self.send(at, from, id, Body::Ready),
            Ok(Admission::Reserve { supersedes }) => {
                for older in supersedes {
                    if !self.end(at, &older) {
                        return;
                    }
                }
                let reserved = Record::Destination {
                    migration: id.clone(),
                    step: DestinationRecord::Reserved(Box::new(offer.clone())),
                };
                if self.persist(at, &[reserved]) {
                    self.send(at, from, id, Body::Ready);
                }
            }
        }
    }

    /// Brings an older handoff to its end; `false` when the host went down over it.
    fn end(&mut self, at: usize, id: &MigrationId) -> bool {
        for event in [Event::Aborted, Event::Discarded, Event::Closed] {
            if event == Event::Discarded {
                self.discard(at, id);
            }
            if !self.destination_event(at, id, event) {
                return false;
            }
        }
        if self.hosts[at].registry.destinations().contains_key(id) {
            self.broken = Some(format!("{id} does not come to its end"));
        }
        true
    }

    /// What came of a handoff that was called off goes, and nothing else.
    fn discard(&mut self, at: usize, id: &MigrationId) {
        let host = &mut self.hosts[at];
        let Some(handoff) = host.registry.destinations().get(id) else {
            return;
        };
        if handoff.phase != Phase::Dropped {
            return;
        }
        let side = &mut host.sides[values::app_of(&handoff.reservation.application)];
        side.finals.remove(id);
        let epoch = handoff.epoch_here();
        side.instance = side.instance.filter(|instance| instance.epoch != epoch);
    }

    /// Without a volume it is started before it is granted.
    pub(super) fn start_early(&mut self, at: usize, handoff: &DestinationHandoff) {
        let promised = matches!(handoff.phase, Phase::Reserved | Phase::Verified { .. });
        if promised && handoff.reservation.volumes.is_empty() {
            let app = values::app_of(&handoff.reservation.application);
            self.hosts[at].sides[app].instance = Some(Instance {
                epoch: handoff.epoch_here(),
                running: true,
            });
        }
    }

    pub(super) fn settle_one(&mut self, which: u8, how: Settling) -> Option<usize> {
        let open: Vec<_> = (0..HOSTS)
            .filter(|at| self.hosts[*at].up)
            .flat_map(|at| {
                let open = self.hosts[at].registry.destinations();
                open.keys().map(move |id| (at, id.clone()))
            })
            .collect();
        let index = usize::from(which) % open.len().max(1);
        let (at, id) = open.into_iter().nth(index)?;
        self.settle(at, &id, how);
        Some(at)
    }

    pub(super) fn settle(&mut self, at: usize, id: &MigrationId, how: Settling) {
        let Some(handoff) = self.hosts[at].registry.destinations().get(id).cloned() else {
            return;
        };
        let app = values::app_of(&handoff.reservation.application);
        let epoch = handoff.epoch_here();
        let runs = Instance {
            epoch,
            running: true,
        };
        let healthy = self.hosts[at].sides[app].instance == Some(runs);
        match (&handoff.phase, how) {
            (Phase::Owned { .. }, Settling::Start) => {
                self.promote(at, &handoff);
                self.promote(at, &handoff);
            }
            (Phase::Serving { .. }, Settling::Start) if self.mutated(Mutant::PromotesAgain) => {
                self.promote(at, &handoff);
            }
            (Phase::Owned { .. }, Settling::Healthy) if healthy => {
                self.destination_event(at, id, Event::Healthy);
            }
            (Phase::Owned { .. }, Settling::Fail) => {
                self.hosts[at].sides[app].instance = None;
                let reason = "it does not start".to_owned();
                self.destination_event(at, id, Event::Failed { reason });
            }
            (Phase::Reserved, Settling::Expire) => {
                self.destination_event(at, id, Event::Expired);
            }
            (Phase::Dropped, Settling::Discard) => {
                self.discard(at, id);
                self.discard(at, id);
                self.destination_event(at, id, Event::Discarded);
            }
            _ => {}
        }
    }

    /// Makes the live tree from the final snapshot and starts on it, unless it runs already.
    fn promote(&mut self, at: usize, handoff: &DestinationHandoff) {
        let app = values::app_of(&handoff.reservation.application);
        let again = self.mutated(Mutant::PromotesAgain);
        let runs = Instance {
            epoch: handoff.epoch_here(),
            running: true,
        };
        let side = &mut self.hosts[at].sides[app];
        if side.instance == Some(runs) && !again {
            return;
        }
        if app != values::WITHOUT_VOLUME {
            let Some(data) = side.finals.get(&handoff.id) else {
                self.broken = Some("the final snapshot of an adopted volume is gone".to_owned());
                return;
            };
            side.live = Some(data.clone());
        }
        side.instance = Some(runs);
    }
}
