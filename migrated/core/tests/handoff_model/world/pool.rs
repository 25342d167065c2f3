//! What stands on the volumes, and a journal that is lost and made again of it.
//!
//! The verdict is the real [`rebuild`]; when which stamp is written is as `migrated` does it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use migrated_core::destination::DestinationHandoff;
use migrated_core::rebuild::{self, Evidence, Volume, Word};
use migrated_core::record::Record;
use migrated_core::registry::Role;
use migrated_core::source::Phase;
use migrated_core::stamp::{Stamp, StampState};
use rehome_shared::api::cluster::{Desired, Migration, MigrationNow, MigrationState};
use rehome_shared::api::peer::{HandoffState, HandoffView};
use rehome_shared::config::model as config;
use rehome_shared::ids::{Attempt, Epoch, MigrationId};
use rehome_shared::units::Bytes;

use super::state::{Place, State};
use super::{Label, Mutation, World};
use crate::machines::{DestinationTag, NONE};
use crate::values;

/// Where a volume stands, as its stamp says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) enum Stamped {
    #[default]
    Not,
    Held(u8),
    Moving(u8, u8),
    Incoming(u8, u8),
    Gone(u8),
}

impl Stamped {
    fn real(self, place: Place) -> Option<Stamp> {
        let here = values::host(place.at);
        let there = values::host(1 - place.at);
        let (owner, epoch, migration, state) = match self {
            Self::Not => return None,
            Self::Held(epoch) => (here, epoch, None, StampState::Held),
            Self::Moving(epoch, migration) => {
                let to = there;
                (here, epoch, Some(migration), StampState::Moving { to })
            }
            Self::Incoming(epoch, migration) => {
                let from = there.clone();
                (there, epoch, Some(migration), StampState::Incoming { from })
            }
            Self::Gone(epoch) => {
                let to = there.clone();
                (there, epoch, None, StampState::Gone { to })
            }
        };
        let volumes = values::volumes(place.app);
        Some(Stamp {
            application: values::application(place.app),
            volume: volumes[0].name.clone(),
            owner,
            epoch: Epoch(epoch.into()),
            migration: migration.map(values::id),
            state: Some(state),
            volumes,
        })
    }

    /// A live tree is made when it is held, and retired when it is gone.
    fn is_live(self) -> bool {
        matches!(self, Self::Held(_) | Self::Moving(..))
    }
}

impl World {
    /// Stamps what may run here from now on; `false` while that is not durable yet.
    pub(super) fn may_run(&mut self, state: &State, place: Place, what: Label) -> bool {
        let owned = self.epoch_of(state, place);
        if state.side(place).retired {
            return false;
        }
        if self.mutated(Mutation::StampsLater)
            && let Some(migration) = what.2
            && state.hosts[1 - place.at].up
            && self
                .machines
                .handoff(state.journal(place.there()), migration)
                .is_none_or(|h| h.state() == HandoffState::Dropped)
        {
            return true;
        }
        let early = self.mutated(Mutation::StampAfterStart) && !state.side(place).instance;
        early || self.is_stamped(state, place, what, Stamped::Held(owned))
    }

    /// The same for any stamp.
    pub(super) fn is_stamped(
        &mut self,
        state: &State,
        place: Place,
        what: Label,
        stamp: Stamped,
    ) -> bool {
        if self.bounds.losses == 0 || state.side(place).stamp == stamp {
            return true;
        }
        let mut next = *state;
        next.side_mut(place).stamp = stamp;
        self.edge(Label("stamps", what.1, what.2), next);
        false
    }

    /// Before anything is stopped for a cut-over.
    pub(super) fn is_stamped_moving(
        &mut self,
        state: &State,
        place: Place,
        migration: u8,
        released: bool,
    ) -> bool {
        if self.mutated(Mutation::StampAfterRelease) != released {
            return true;
        }
        let live = self.machines.live(state.side(place).live);
        let Some(epoch) = live.map(|live| live.plan.epoch) else {
            return true;
        };
        let epoch = u8::try_from(epoch.0).unwrap();
        let label = Label("stamps", place, Some(migration));
        self.is_stamped(state, place, label, Stamped::Moving(epoch, migration))
    }

    /// A destination that gave it back says so when it is stamped: made again of an older stamp,
    /// its journal would say that it is held there.
    pub(super) fn may_say_returned(&self, state: &State, migration: u8) -> bool {
        let app = &state.apps[values::app_of(migration)];
        self.bounds.losses == 0
            || self.mutated(Mutation::SaysReturnedUnstamped)
            || app.said_returned[values::slot_of(migration)]
    }

    /// A round has come.
    pub(super) fn comes(&self, state: &mut State, place: Place, migration: u8) {
        let (_, epoch) = state.apps[place.app].begun[values::slot_of(migration)].unwrap();
        if self.bounds.losses > 0 {
            state.side_mut(place).stamp = Stamped::Incoming(epoch, migration);
        }
    }

    /// A journal is lost while its daemon is down.
    pub(super) fn lose(&mut self, state: &State, at: usize) {
        if state.losses == self.bounds.losses || state.hosts[at].lost {
            return;
        }
        let mut next = *state;
        next.losses += 1;
        next.hosts[at].lost = true;
        next.hosts[at].journal = self.machines.lose(state.hosts[at].journal);
        let place = Place { app: 0, at };
        self.fault(Label("loses its journal", place, None), next);
    }

    /// And made again, when the other host answers.
    pub(super) fn rebuild(&mut self, state: &State, at: usize) {
        let place = Place { app: 0, at };
        let alone = self.mutated(Mutation::RebuildsAlone);
        let there = place.there();
        if !alone && (!state.hosts[there.at].up || state.hosts[there.at].lost) {
            return;
        }
        let mut next = *state;
        let volumes = vec![Volume {
            dataset: values::volumes(place.app)[0].dataset.clone(),
            stamp: state.side(place).stamp.real(place),
            live: state.side(place).stamp.is_live() && !state.side(place).retired,
        }];
        let here = values::host(at);
        let handoffs = self.ask(&mut next, place, &volumes);
        let words = if alone {
            Vec::new()
        } else {
            vec![self.word(&next, there)]
        };
        let evidence = Evidence {
            here: &here,
            desired: &desired(place.app),
            limits: &BTreeMap::new(),
            now: values::NOW,
            volumes: &volumes,
            words: &words,
            handoffs: &handoffs,
            leave: &BTreeSet::new(),
        };
        let verdicts = rebuild::decide(&evidence, &mut || {
            panic!("every volume is known by its stamp")
        });
        let Ok(verdicts) = verdicts else {
            self.edge_if_new(Label("cannot decide", place, None), state, next);
            return;
        };
        let records: Vec<Record> = verdicts.into_iter().flat_map(|v| v.records).collect();
        next.hosts[at].journal = self.machines.append_all(next.hosts[at].journal, &records);
        next.hosts[at].lost = false;
        next.side_mut(place).live = NONE;
        self.edge(Label("makes its journal again", place, None), next);
    }

    /// Asks where a handoff would have gone to, and calls off what was merely reserved.
    fn ask(
        &mut self,
        next: &mut State,
        place: Place,
        volumes: &[Volume],
    ) -> BTreeMap<MigrationId, HandoffView> {
        let there = place.there();
        let mut views = BTreeMap::new();
        for question in rebuild::questions(&values::host(place.at), volumes) {
            let migration = values::number(&question.migration);
            let trusts = self.mutated(Mutation::TrustsMoving);
            let reserved = DestinationTag::Aborted;
            let handoff = self.machines.handoff(next.journal(there), migration);
            if handoff.is_some_and(|h| h.state() == HandoffState::Reserved)
                && !trusts
                && let Some(journal) = self.machines.destination_step(
                    next.journal(there),
                    there.at,
                    migration,
                    reserved,
                )
            {
                next.hosts[there.at].journal = journal;
            }
            let handoff = self.machines.handoff(next.journal(there), migration);
            let state = handoff
                .filter(|_| !trusts)
                .map_or(HandoffState::Unknown, DestinationHandoff::state);
            views.insert(
                question.migration.clone(),
                HandoffView {
                    migration: question.migration,
                    attempt: Attempt(1),
                    state,
                    phases: BTreeMap::new(),
                    reason: None,
                },
            );
        }
        views
    }

    /// What the other host knows: owners by its registry, and the migrations that it coordinates.
    fn word(&self, state: &State, there: Place) -> Word {
        let registry = self.machines.registry(state.journal(there));
        let known = registry.applications().iter();
        let owners = known.map(|(name, known)| {
            let owner = match &known.role {
                Role::Owner => values::host(there.at),
                Role::Gone { to } | Role::Left { owner: to, .. } => to.clone(),
            };
            (name.clone(), known.epoch, owner)
        });
        let live = self.machines.live(state.side(there).live);
        let open = live.map(|live| {
            let (released, window) = match &live.phase {
                Phase::Before(before) => (
                    false,
                    matches!(before, migrated_core::source::BeforeRelease::CutOver { .. }),
                ),
                Phase::After(_) | Phase::Ended(_) => (true, false),
            };
            Migration {
                state: MigrationState::Running,
                epoch: if released {
                    live.plan.epoch.next()
                } else {
                    live.plan.epoch
                },
                phases: released
                    .then(|| ("release".to_owned(), 0.0))
                    .into_iter()
                    .collect(),
                now: window.then(|| MigrationNow {
                    phase: "stop".to_owned(),
                    round: 0,
                    bytes: Bytes(0),
                    rate: Bytes(0),
                    predicted_window: None,
                    waits: None,
                    elapsed: Duration::ZERO,
                }),
                ..*values::report(live)
            }
        });
        let past = registry.history().iter().cloned();
        Word {
            host: values::host(there.at),
            owners: owners.collect(),
            migrations: past.chain(open).collect(),
        }
    }
}

fn desired(app: usize) -> Desired {
    let name = values::application(app);
    let mut spec = values::reservation(app, 0, 1).spec;
    let volume = &values::volumes(app)[0];
    spec.volumes = vec![config::Volume {
        name: volume.name.clone(),
        mountpoint: "/data".to_owned(),
        maximum_size: None,
        dataset_id: Some(volume.dataset.clone()),
    }];
    Desired {
        applications: BTreeMap::from([(name.clone(), spec)]),
        placement: BTreeMap::from([(values::host(0), vec![name]), (values::host(1), Vec::new())]),
        ..Desired::default()
    }
}
