//! Messages: whatever was sent can arrive at any time, any number of times, or never.

use migrated_core::destination::{DestinationHandoff, Event as Taken};
use migrated_core::record::Reservation;
use migrated_core::source::{AfterRelease, BeforeRelease, Event as Given, Phase};
use rehome_shared::api::peer::{FinalSnapshot, HandoffState};
use rehome_shared::ids::{Attempt, Epoch, MigrationId};

use super::{Data, World};
use crate::steps::How;
use crate::values;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) id: MigrationId,
    pub(super) body: Body,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    Offer(Box<Reservation>),
    /// Without a volume: start it there.
    Start {
        attempt: Attempt,
        epoch: Epoch,
    },
    /// The last difference, and what must have arrived then.
    Verify {
        attempt: Attempt,
        epoch: Epoch,
        finals: Vec<FinalSnapshot>,
        data: Data,
    },
    Grant {
        attempt: Attempt,
        epoch: Epoch,
    },
    Ask,
    Abort,
    Close,
    /// The answers to an offer.
    Ready,
    Refused,
    /// The answer to everything else.
    View(HandoffState),
}

impl World {
    pub(super) fn send(&mut self, from: usize, to: usize, id: &MigrationId, body: Body) {
        self.messages.push(Message {
            from,
            to,
            id: id.clone(),
            body,
        });
    }

    pub(super) fn deliver_one(&mut self, back: u8, how: How) -> Option<usize> {
        let index = usize::from(back) % self.messages.len().max(1);
        let message = self.messages.iter().rev().nth(index)?.clone();
        self.deliver(message, how)
    }

    pub(super) fn deliver(&mut self, message: Message, how: How) -> Option<usize> {
        let Message { from, to, id, body } = message;
        if !self.hosts[to].up {
            return None;
        }
        match body {
            Body::View(state) => self.hear_view(to, &id, state, how),
            Body::Ready => self.source_event(to, &id, Given::Ready),
            Body::Refused => {
                let reason = "refused".to_owned();
                self.source_event(to, &id, Given::Refused { reason });
            }
            Body::Offer(offer) => self.hear_offer(to, from, &id, &offer),
            body => self.hear(to, from, &id, body),
        }
        Some(to)
    }

    /// What a destination says arrives at the source.
    fn hear_view(&mut self, at: usize, id: &MigrationId, state: HandoffState, how: How) {
        use HandoffState as S;
        let Some(live) = self.hosts[at].lives.get(id) else {
            self.reached.stale += 1;
            return;
        };
        let without = live.plan.volumes.is_empty();
        let waits = matches!(
            live.phase,
            Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. })
        );
        let event = match (&live.phase, state) {
            (
                Phase::Before(BeforeRelease::StartingThere | BeforeRelease::CutOver { .. }),
                S::Dropped | S::Unknown,
            ) => Given::Failed {
                reason: "the destination dropped it".to_owned(),
            },
            (Phase::Before(BeforeRelease::StartingThere), S::Verified) if without => {
                Given::StartedThere
            }
            (Phase::Before(BeforeRelease::CutOver { deadline, .. }), S::Verified) => {
                if how == How::Late {
                    self.now = migrated_core::UnixMillis(self.now.0.max(deadline.0 + 1));
                }
                Given::Verified
            }
            (Phase::After(AfterRelease::Granting { .. }), S::Owned) => Given::Adopted,
            (_, S::Serving) if waits => Given::Served,
            (_, S::Returned) if waits => Given::Returned {
                reason: "returned".to_owned(),
            },
            _ => {
                self.reached.stale += 1;
                return;
            }
        };
        self.source_event(at, id, event);
    }

    /// What a source says of a handoff arrives at its destination.
    fn hear(&mut self, at: usize, from: usize, id: &MigrationId, body: Body) {
        let Some(handoff) = self.hosts[at].registry.destinations().get(id).cloned() else {
            self.reached.stale += 1;
            self.send(at, from, id, Body::View(HandoffState::Unknown));
            return;
        };
        if handoff.reservation.from != values::host(from) {
            self.broken = Some(format!("{id} is of {}", handoff.reservation.from));
            return;
        }
        let app = values::app_of(&handoff.reservation.application);
        let event = match body {
            Body::Start { attempt, epoch } => {
                self.start_early(at, &handoff);
                Taken::Verified {
                    attempt,
                    epoch,
                    finals: Vec::new(),
                }
            }
            Body::Verify {
                attempt,
                epoch,
                finals,
                data,
            } => {
                if handoff.state() == HandoffState::Reserved {
                    let kept = &mut self.hosts[at].sides[app].finals;
                    kept.entry(id.clone()).or_insert(data);
                }
                Taken::Verified {
                    attempt,
                    epoch,
                    finals,
                }
            }
            Body::Grant { attempt, epoch } => Taken::Granted { attempt, epoch },
            Body::Abort => Taken::Aborted,
            Body::Close => Taken::Closed,
            Body::Ask | Body::Offer(_) | Body::View(_) | Body::Ready | Body::Refused => {
                self.send(at, from, id, Body::View(handoff.state()));
                return;
            }
        };
        if self.destination_event(at, id, event) {
            let known = self.hosts[at].registry.destinations().get(id);
            let state = known.map_or(HandoffState::Unknown, DestinationHandoff::state);
            self.send(at, from, id, Body::View(state));
        }
    }
}
