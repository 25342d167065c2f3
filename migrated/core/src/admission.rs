//! Whether a handoff may begin: the guards of the first step, on the host that gives and on the
//! host that takes.
//!
//! Two facts carry them. Only an application's owner plans its moves, one at a time, each with a
//! larger id than the one before; and a change of owner makes the epoch grow. So an offer of a
//! larger epoch, or of the same epoch and a larger id, proves that an older handoff that was
//! merely promised here was called off, even if nobody came to say so; and an offer of a smaller
//! one is a message that wandered about for long.
//!
//! Decide and append under one lock.

use rehome_shared::ids::{AppName, Epoch, HostAddr, MigrationId};

use crate::destination::{DestinationHandoff, Phase};
use crate::record::{Plan, Reservation};
use crate::registry::{Registry, Role};

/// Why a host may not begin to give an application away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotGive {
    /// It is another host's.
    #[error("it is not this host's")]
    NotOwner,
    /// It is where it should go.
    #[error("it is on this host already")]
    ToSelf,
    /// The plan was made of another state of the journal.
    #[error("the plan is of another epoch or of other volumes than this host's")]
    Outdated,
    /// Some of its volumes were announced and perhaps not made yet.
    #[error("its volumes are still being made")]
    Unmade,
    /// Another move of it is not over.
    #[error("migration {0} of it is not over yet")]
    UnderWay(MigrationId),
    /// An earlier migration has a larger id.
    #[error("migration {0} of it is newer by its id: was this host's clock set back?")]
    IdNotNewer(MigrationId),
}

/// Whether this host may write the plan down.
///
/// # Errors
/// [`CannotGive`].
pub fn may_give(
    registry: &Registry,
    here: &HostAddr,
    id: &MigrationId,
    plan: &Plan,
) -> Result<(), CannotGive> {
    let owned = registry
        .owned(&plan.application)
        .ok_or(CannotGive::NotOwner)?;
    if plan.to == *here {
        return Err(CannotGive::ToSelf);
    }
    if owned.epoch != plan.epoch || owned.volumes != plan.volumes {
        return Err(CannotGive::Outdated);
    }
    if !owned.unmade.is_empty() {
        return Err(CannotGive::Unmade);
    }
    if let Some(open) = registry.source_of(&plan.application) {
        return Err(CannotGive::UnderWay(open.id.clone()));
    }
    if let Some(open) = registry.incoming(&plan.application) {
        return Err(CannotGive::UnderWay(open.id.clone()));
    }
    let newer = registry
        .history()
        .iter()
        .find(|past| past.application == plan.application && past.id >= *id);
    newer.map_or(Ok(()), |past| Err(CannotGive::IdNotNewer(past.id.clone())))
}

/// Why a host does not take an application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotTake {
    /// The source is the destination.
    #[error("a host cannot hand over to itself")]
    FromSelf,
    /// The same id stands for something else.
    #[error("another handoff of this id is known here")]
    Different,
    /// It is this host's already.
    #[error("it is this host's already, at epoch {0}")]
    OwnedHere(Epoch),
    /// This host has not finished to give it away.
    #[error("this host is still ending its own migration {0} of it")]
    StillGiving(MigrationId),
    /// This host knows of a newer owner, or of another one.
    #[error("it belongs to {owner} at epoch {epoch}, as far as this host knows")]
    NotTheOwner {
        /// The owner.
        owner: HostAddr,
        /// At which epoch.
        epoch: Epoch,
    },
    /// This host has promised to take it from a newer migration.
    #[error("the newer migration {0} of it comes here already")]
    Older(MigrationId),
}

/// What an offer leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It is known: answer with its state.
    Known,
    /// Persist the reservation, after each of these came to its end: one that is reserved or
    /// verified is aborted and discarded, one that is dropped is discarded, one that is returned
    /// is closed. The offer proves that their sources need nothing of them any more.
    Reserve {
        /// Older handoffs of the application.
        supersedes: Vec<MigrationId>,
    },
}

/// Whether this host may take what is offered.
///
/// # Errors
/// [`CannotTake`].
pub fn may_take(
    registry: &Registry,
    here: &HostAddr,
    id: &MigrationId,
    offer: &Reservation,
) -> Result<Admission, CannotTake> {
    if offer.from == *here {
        return Err(CannotTake::FromSelf);
    }
    if let Some(known) = registry.destinations().get(id) {
        return if is_same(&known.reservation, offer) {
            Ok(Admission::Known)
        } else {
            Err(CannotTake::Different)
        };
    }
    if let Some(open) = registry.source_of(&offer.application) {
        return Err(CannotTake::StillGiving(open.id.clone()));
    }
    if let Some(known) = registry.applications().get(&offer.application) {
        match &known.role {
            Role::Owner => return Err(CannotTake::OwnedHere(known.epoch)),
            Role::Gone { to } | Role::Left { owner: to, .. } => {
                let contradicts = known.epoch == offer.epoch && *to != offer.from;
                if known.epoch > offer.epoch || contradicts {
                    let (owner, epoch) = (to.clone(), known.epoch);
                    return Err(CannotTake::NotTheOwner { owner, epoch });
                }
            }
        }
    }
    // What it never had itself it may have heard of.
    if let Some((epoch, owner)) = registry.known_owner(here, &offer.application)
        && epoch > offer.epoch
    {
        return Err(CannotTake::NotTheOwner { owner, epoch });
    }
    let mut supersedes = Vec::new();
    for older in registry.destinations_of(&offer.application) {
        if supersede(older, id, offer)? {
            supersedes.push(older.id.clone());
        }
    }
    Ok(Admission::Reserve { supersedes })
}

/// Whether this host may take what it promised to wait for: not when the epoch that it would own
/// it at, or a later one, is another host's, as the grant is a message that wandered about then.
///
/// # Errors
/// [`CannotTake`].
pub fn may_adopt(
    registry: &Registry,
    here: &HostAddr,
    handoff: &DestinationHandoff,
) -> Result<(), CannotTake> {
    let waits = matches!(handoff.phase, Phase::Verified { .. });
    match registry.known_owner(here, &handoff.reservation.application) {
        Some((epoch, owner)) if waits && owner != *here && epoch >= handoff.epoch_here() => {
            Err(CannotTake::NotTheOwner { owner, epoch })
        }
        Some(_) | None => Ok(()),
    }
}

/// The handoffs of other applications that come to this host: their room is promised, and not all
/// of them is here yet, or they are being started.
pub fn coming<'a>(
    registry: &'a Registry,
    application: &AppName,
) -> impl Iterator<Item = &'a DestinationHandoff> {
    registry.destinations().values().filter(move |handoff| {
        handoff.reservation.application != *application
            && matches!(
                handoff.phase,
                Phase::Reserved | Phase::Verified { .. } | Phase::Owned { .. }
            )
    })
}

/// What makes two offers the same; how it should run may have changed in between.
fn is_same(known: &Reservation, offer: &Reservation) -> bool {
    known.from == offer.from
        && known.application == offer.application
        && known.epoch == offer.epoch
        && known
            .volumes
            .iter()
            .map(|v| &v.identity)
            .eq(offer.volumes.iter().map(|v| &v.identity))
}

/// Whether an offer ends an older handoff.
fn supersede(
    older: &DestinationHandoff,
    id: &MigrationId,
    offer: &Reservation,
) -> Result<bool, CannotTake> {
    match &older.phase {
        Phase::Reserved | Phase::Verified { .. } => {
            let newer = (offer.epoch, id) > (older.reservation.epoch, &older.id);
            if newer {
                Ok(true)
            } else {
                Err(CannotTake::Older(older.id.clone()))
            }
        }
        // The offer's epoch is larger than the one that was returned: the source took note.
        Phase::Returned { .. } | Phase::Dropped => Ok(true),
        Phase::Owned { .. } => Err(CannotTake::OwnedHere(older.epoch_here())),
        // Its source may still ask for the outcome, long after the application went on.
        Phase::Serving { .. } => Ok(false),
    }
}

#[cfg(test)]
mod tests;
