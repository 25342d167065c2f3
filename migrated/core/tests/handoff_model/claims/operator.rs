//! An operator who lets a host take over: the request is checked against what all hosts know that
//! must answer, a deployment names the new place, and when all follow it the host takes over. The
//! host that is asked is the one that takes over.

use std::cmp::Ordering;

use migrated_core::destination::Phase as Taking;
use migrated_core::failover::{self, CannotTakeOver, Way, Wish};
use migrated_core::record::Record;
use migrated_core::source::Phase;
use rehome_shared::ids::{Epoch, HostAddr};

use super::state::{Deployment, HOSTS, Power, Request, State, bit};
use super::{APP, Label, Mutation, World};
use crate::machines::{DestinationTag, NONE, SourceTag, known};
use crate::values;

impl World {
    /// An operator calls a host fenced that is away. Whoever else does not answer is called so,
    /// too, if it is away.
    pub(super) fn fail_over(&mut self, state: &State, at: usize) {
        let host = &state.hosts[at];
        if state.operators == self.bounds.operators || host.cut || host.request.is_some() {
            return;
        }
        for gone in State::others(at).filter(|gone| state.hosts[*gone].is_away()) {
            let third = 3 - at - gone;
            let answers = state.reaches(at, third);
            if !answers && !state.hosts[third].is_away() {
                continue;
            }
            let newer = state.hosts[third].follows.generation > host.follows.generation;
            if answers && newer {
                continue;
            }
            let (speakers, fenced) = if answers {
                (vec![at, third], bit(gone))
            } else {
                (vec![at], bit(gone) | bit(third))
            };
            self.check(state, (at, gone), &speakers, fenced);
        }
    }

    fn check(&mut self, state: &State, (at, gone): (usize, usize), speakers: &[usize], fenced: u8) {
        let own_only = self.mutated(Mutation::ClaimsOldEpoch);
        let mut newest: Option<(Epoch, HostAddr)> = None;
        for speaker in speakers.iter().filter(|s| !own_only || **s == at) {
            let registry = self.machines.registry(state.hosts[*speaker].journal);
            let told = known(registry, &values::host(*speaker), &values::application(APP));
            let is_newer = |told: &(Epoch, HostAddr)| newest.as_ref().is_none_or(|n| told.0 > n.0);
            if let Some(told) = told.filter(is_newer) {
                newest = Some(told);
            }
        }
        let Some((epoch, _)) = newest.filter(|(_, owner)| *owner == values::host(gone)) else {
            return;
        };
        let host = &state.hosts[at];
        let request = Request {
            gone: u8::try_from(gone).unwrap(),
            epoch: u8::try_from(epoch.0).unwrap(),
            fenced: host.follows.fenced | fenced,
            named: false,
            agreed: 0,
        };
        let way = self.way(state, at, request);
        let claims = matches!(way, Ok(Way::Claim { .. }));
        let others = speakers.iter().filter(|speaker| **speaker != at);
        let is_better = |other: &usize| self.is_better(state, *other, request);
        if matches!(way, Err(_) | Ok(Way::Done)) || (claims && others.clone().any(is_better)) {
            return;
        }
        let mut next = *state;
        next.operators += 1;
        next.hosts[at].request = Some(request);
        self.fault(Label("is told to take over", at), next);
    }

    /// A deployment names the host that takes over, unless another one came in between.
    pub(super) fn name(&mut self, state: &State, at: usize) {
        let Some(request) = state.hosts[at].request.filter(|request| !request.named) else {
            return;
        };
        let mut next = *state;
        let host = &mut next.hosts[at];
        let named = Deployment {
            place: u8::try_from(at).unwrap(),
            fenced: request.fenced,
            ..host.follows
        };
        if named != host.follows {
            host.follows = named;
            host.follows.generation += 1;
        }
        host.request = Some(Request {
            named: true,
            ..request
        });
        self.fault(Label("names itself", at), next);
    }

    fn way(&self, state: &State, at: usize, request: Request) -> Result<Way, CannotTakeOver> {
        let names = values::volumes(APP).into_iter();
        let names: Vec<_> = names.map(|volume| volume.name).collect();
        let wish = Wish {
            application: &values::application(APP),
            fenced: &values::host(request.gone.into()),
            epoch: Epoch(request.epoch.into()),
            volumes: &names,
        };
        let registry = self.machines.registry(state.hosts[at].journal);
        failover::way(registry, &values::host(at), wish)
    }

    /// Whether another host has all of it, or released it to the one that is gone.
    fn is_better(&self, state: &State, other: usize, request: Request) -> bool {
        let registry = self.machines.registry(state.hosts[other].journal);
        let name = values::application(APP);
        let epoch = Epoch(request.epoch.into());
        let promised = registry.incoming(&name).is_some_and(|handoff| {
            matches!(handoff.phase, Taking::Verified { .. }) && handoff.epoch_here() > epoch
        });
        let released = registry.source_of(&name).is_some_and(|migration| {
            matches!(migration.phase, Phase::After(_))
                && migration.plan.to == values::host(request.gone.into())
                && migration.plan.epoch.next() == epoch
        });
        promised || released
    }

    /// Another host is asked whether it agrees; the one that is fenced must be silent. For how long
    /// they are asked is bounded.
    pub(super) fn agree(&mut self, state: &State, at: usize) {
        let host = &state.hosts[at];
        let Some(request) = host.request else { return };
        let mut gives_up = *state;
        gives_up.hosts[at].request = None;
        self.edge(Label("gives up", at), gives_up);
        if !request.named {
            return;
        }
        let gone = usize::from(request.gone);
        for other in State::others(at).filter(|other| request.agreed & bit(*other) == 0) {
            let there = &state.hosts[other];
            let silent = host.cut || there.is_silent();
            let answer = if other == gone {
                silent.then_some(true).or(Some(false))
            } else if host.follows.fences(other) {
                Some(true)
            } else if state.reaches(at, other) {
                self.answer(state, [at, other], request)
            } else {
                None
            };
            let mut next = *state;
            let (what, request) = match answer {
                None => continue,
                Some(false) => ("is refused", None),
                Some(true) => {
                    let agreed = request.agreed | bit(other);
                    ("is agreed with", Some(Request { agreed, ..request }))
                }
            };
            next.hosts[at].request = request;
            self.fault(Label(what, at), next);
        }
    }

    /// What a host says that must agree: not yet, never, or yes.
    fn answer(&self, state: &State, [at, other]: [usize; 2], request: Request) -> Option<bool> {
        let there = &state.hosts[other];
        let follows = there.follows == state.hosts[at].follows;
        if !follows && !self.mutated(Mutation::AgreesUnfollowing) {
            return None;
        }
        let registry = self.machines.registry(there.journal);
        let known = known(registry, &values::host(other), &values::application(APP));
        let newer = known.is_some_and(|(epoch, owner)| {
            epoch > Epoch(request.epoch.into()) && owner != values::host(at)
        });
        let ignores = [Mutation::IgnoresHeard, Mutation::ClaimsOldEpoch];
        Some(!newer || ignores.into_iter().any(|guard| self.mutated(guard)))
    }

    /// All agreed: the change of owner itself, while no other deployment is followed.
    pub(super) fn take_over(&mut self, state: &State, at: usize) {
        let host = &state.hosts[at];
        let Some(request) = host.request else { return };
        if State::others(at).any(|other| request.agreed & bit(other) == 0) {
            return;
        }
        let way = self.way(state, at, request);
        let label = Label("takes over", at);
        let mut next = *state;
        next.hosts[at].request = None;
        match way {
            Ok(Way::Grant { migration, .. }) => {
                let number = values::number(&migration);
                let entrusted = DestinationTag::Entrusted;
                let stepped = self
                    .machines
                    .destination_step(host.journal, at, number, entrusted);
                if let Some(journal) = stepped {
                    next.hosts[at].journal = journal;
                }
            }
            Ok(Way::TakeBack { .. }) if host.live != NONE => {
                let returned = SourceTag::Returned;
                let stepped = self.machines.source_step(host.journal, host.live, returned);
                let stepped = stepped.unwrap();
                next.hosts[at].live = stepped.live;
                next.hosts[at].journal = *stepped.journals.last().unwrap();
            }
            Ok(Way::Claim { volumes }) => {
                let claimed = Record::Claimed {
                    application: values::application(APP),
                    epoch: Epoch(request.epoch.into()).next(),
                    volumes,
                    fenced: values::host(request.gone.into()),
                };
                next.hosts[at].journal = self.machines.append_all(host.journal, &[claimed]);
            }
            Ok(Way::Done | Way::TakeBack { .. }) | Err(_) => {}
        }
        self.fault(label, next);
    }

    /// Somebody deploys again when all are back: who is not overtaken and has heard, as has who waits
    /// for a grant of it, of who took over is not called fenced any more.
    pub(super) fn deploy_again(&mut self, state: &State, at: usize) {
        let follows = state.hosts[at].follows;
        let all = State::others(at)
            .all(|other| state.reaches(at, other) && state.hosts[other].follows == follows);
        let idle = HOSTS.iter().all(|at| state.hosts[*at].power == Power::Up);
        let settled = !Self::is_asked(state) || self.bounds.redeploys_early;
        if !all || !idle || follows.fenced == 0 || !settled {
            return;
        }
        let still = |at: &usize| {
            let unaware = !self.mutated(Mutation::LiftsUnaware) && self.is_unaware(state, *at);
            unaware || self.is_overtaken(state, *at)
        };
        let still = HOSTS.into_iter().filter(still);
        let fenced = still.map(bit).sum::<u8>() & follows.fenced;
        if fenced != follows.fenced {
            let mut next = *state;
            next.hosts[at].request = None;
            next.hosts[at].follows = Deployment {
                generation: follows.generation + 1,
                fenced,
                ..follows
            };
            self.edge(Label("deploys again", at), next);
        }
    }

    /// Whether a host and another one have still to hear from each other whose it is.
    fn is_unaware(&self, state: &State, at: usize) -> bool {
        let (journal, here) = (state.hosts[at].journal, values::host(at));
        let Some(knows) = self.machines.word(journal, at, APP) else {
            return false;
        };
        let giving = self.machines.registry(journal);
        let giving = giving.source_of(&values::application(APP));
        let gives = giving.is_some_and(|migration| matches!(migration.phase, Phase::After(_)));
        State::others(at).any(|other| {
            let there = state.hosts[other].journal;
            let Some(told) = self.machines.word(there, other, APP) else {
                return false;
            };
            let waits = self.machines.registry(there);
            let waits = waits.incoming(&values::application(APP)).is_some();
            let is_news_here = told.owner != here;
            let is_news_there = knows.owner != here && knows.owner != told.speaker;
            match told.epoch.cmp(&knows.epoch) {
                _ if told.owner == knows.owner => false,
                Ordering::Greater => is_news_here,
                Ordering::Equal => is_news_here && gives,
                Ordering::Less => is_news_there && waits,
            }
        })
    }

    /// Whether another host knows of another owner at an epoch as large as that of an owner.
    fn is_overtaken(&self, state: &State, at: usize) -> bool {
        let registry = self.machines.registry(state.hosts[at].journal);
        let name = values::application(APP);
        let Some(owned) = registry.owned(&name) else {
            return false;
        };
        State::others(at).any(|other| {
            let there = self.machines.registry(state.hosts[other].journal);
            let known = known(there, &values::host(other), &name);
            known.is_some_and(|(epoch, owner)| epoch >= owned.epoch && owner != values::host(at))
        })
    }
}
