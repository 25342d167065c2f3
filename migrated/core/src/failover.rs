//! Whether, and how, a host takes over from an owner that an operator calls fenced.
//!
//! The operator names the owner and its epoch; the new owner's is the next one. What the journal
//! here says decides between three ways:
//!
//! | the journal says | way | what is lost |
//! |---|---|---|
//! | all of it is here and the grant did not come | [`Way::Grant`]: the operator's word is the grant | nothing that came before the grant |
//! | this host released it and never heard that it was served | [`Way::TakeBack`]: its own trees are untouched | what the fenced host served, if it did |
//! | it was here before, or rounds of it are here | [`Way::Claim`] | what was written since |
//!
//! Nothing here makes sure that the fenced host runs nothing: that is what the operator vouches
//! for. When it comes back, [`crate::fencing`] tells it.

use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::ids::{AppName, Attempt, Epoch, HostAddr, MigrationId, VolumeName};

use crate::destination::{DestinationHandoff, Phase as Taking};
use crate::registry::{Registry, Role};
use crate::source::{AfterRelease, Phase as Giving, SourceMigration};

/// What an operator wants.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Which application.
    pub application: &'a AppName,
    /// The owner that is fenced.
    pub fenced: &'a HostAddr,
    /// At which epoch it owned it.
    pub epoch: Epoch,
    /// The volumes that the application has by the deployment.
    pub volumes: &'a [VolumeName],
}

/// How it can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Way {
    /// It is done already.
    Done,
    /// Step the handoff by [`crate::destination::Event::Entrusted`].
    Grant {
        /// Which handoff.
        migration: MigrationId,
        /// Which try.
        attempt: Attempt,
        /// The epoch that is granted.
        epoch: Epoch,
    },
    /// Step the migration by [`crate::source::Event::Returned`].
    TakeBack {
        /// Which migration.
        migration: MigrationId,
        /// Whether the fenced host is known to have taken it.
        taken: bool,
    },
    /// Make the live trees from the newest snapshots, then persist
    /// [`crate::record::Record::Claimed`].
    Claim {
        /// Its volumes.
        volumes: Vec<VolumeIdentity>,
    },
}

/// Why it cannot be done here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotTakeOver {
    /// The host would be its own successor.
    #[error("a host cannot take over from itself")]
    FromSelf,
    /// It is this host's.
    #[error("it is this host's already, at epoch {0}")]
    OwnedHere(Epoch),
    /// A newer owner is known here.
    #[error("{owner} owned it at epoch {epoch}: fence that one, as {owner}@{epoch}")]
    NotTheOwner {
        /// The owner.
        owner: HostAddr,
        /// At which epoch.
        epoch: Epoch,
    },
    /// This host has not finished to give it away.
    #[error("this host is still ending its own migration {0} of it: try again in a moment")]
    StillGiving(MigrationId),
    /// Two volumes of one name are here.
    #[error(
        "it keeps two volumes that are called {0}, and nobody knows which is the one: move the other one's stamp out of `meta` in the pool and run `migrated --rebuild-journal` there, or have another host take over"
    )]
    Twice(VolumeName),
    /// Nothing of a volume is here.
    #[error("it keeps nothing of volume {0}")]
    NothingOf(VolumeName),
}

/// The way by which this host can take an application over.
///
/// # Errors
/// [`CannotTakeOver`].
pub fn way(registry: &Registry, here: &HostAddr, wish: Wish<'_>) -> Result<Way, CannotTakeOver> {
    let known = registry.applications().get(wish.application);
    let left = known.is_some_and(|known| matches!(known.role, Role::Left { .. }));
    // What was left open here may be this host's own: it goes on then with what it has of it.
    if wish.fenced == here && !left {
        return Err(CannotTakeOver::FromSelf);
    }
    if let Some(known) = known.filter(|known| known.role == Role::Owner) {
        // At the same epoch the fenced host is the other one of two owners: this one stays.
        return if known.epoch == wish.epoch.next() || known.epoch == wish.epoch {
            Ok(Way::Done)
        } else {
            Err(CannotTakeOver::OwnedHere(known.epoch))
        };
    }
    if let Some(migration) = registry.source_of(wish.application) {
        return take_back(migration, wish);
    }
    if let Some((owner, epoch)) = known.map(|known| (known.role.owner(here), known.epoch)) {
        let another = epoch == wish.epoch && owner != wish.fenced;
        if epoch > wish.epoch || another {
            let owner = owner.clone();
            return Err(CannotTakeOver::NotTheOwner { owner, epoch });
        }
    }
    let coming = registry.incoming(wish.application);
    if let Some(newer) = coming.filter(|handoff| handoff.reservation.epoch > wish.epoch) {
        return Err(CannotTakeOver::NotTheOwner {
            owner: newer.reservation.from.clone(),
            epoch: newer.reservation.epoch,
        });
    }
    let from_the_fenced = coming.filter(|handoff| {
        handoff.reservation.from == *wish.fenced && handoff.reservation.epoch == wish.epoch
    });
    if let Some(granted) = from_the_fenced.and_then(grant) {
        return Ok(granted);
    }
    let volumes = match (from_the_fenced, known) {
        (Some(handoff), _) => identities(handoff),
        (None, Some(known)) => known.volumes.clone(),
        (None, None) => Vec::new(),
    };
    let missing = wish
        .volumes
        .iter()
        .find(|name| volumes.iter().all(|volume| volume.name != **name));
    if let Some(name) = missing {
        return Err(CannotTakeOver::NothingOf(name.clone()));
    }
    match twice(&volumes) {
        Some(name) => Err(CannotTakeOver::Twice(name.clone())),
        None => Ok(Way::Claim { volumes }),
    }
}

/// A name that two volumes bear: of what was left open nobody knows which is the one.
fn twice(volumes: &[VolumeIdentity]) -> Option<&VolumeName> {
    let mut names: Vec<&VolumeName> = volumes.iter().map(|volume| &volume.name).collect();
    names.sort_unstable();
    let mut pairs = names.windows(2);
    pairs.find_map(|pair| match pair {
        [one, other] if one == other => Some(*one),
        _ => None,
    })
}

/// Only what waits for the fenced host to adopt or to serve can be taken back.
fn take_back(migration: &SourceMigration, wish: Wish<'_>) -> Result<Way, CannotTakeOver> {
    let plan = &migration.plan;
    if plan.to != *wish.fenced || plan.epoch.next() != wish.epoch {
        return match migration.phase {
            Giving::After(_) => Err(CannotTakeOver::NotTheOwner {
                owner: plan.to.clone(),
                epoch: plan.epoch.next(),
            }),
            Giving::Before(_) | Giving::Ended(_) => {
                Err(CannotTakeOver::StillGiving(migration.id.clone()))
            }
        };
    }
    let taken = match migration.phase {
        Giving::After(AfterRelease::Granting { .. }) => false,
        Giving::After(AfterRelease::Handed { .. }) => true,
        Giving::After(AfterRelease::Finishing { .. } | AfterRelease::Reclaiming { .. })
        | Giving::Before(_)
        | Giving::Ended(_) => return Err(CannotTakeOver::StillGiving(migration.id.clone())),
    };
    Ok(Way::TakeBack {
        migration: migration.id.clone(),
        taken,
    })
}

fn grant(handoff: &DestinationHandoff) -> Option<Way> {
    match &handoff.phase {
        Taking::Verified { attempt, .. } => Some(Way::Grant {
            migration: handoff.id.clone(),
            attempt: *attempt,
            epoch: handoff.epoch_here(),
        }),
        Taking::Reserved
        | Taking::Owned { .. }
        | Taking::Serving { .. }
        | Taking::Returned { .. }
        | Taking::Dropped => None,
    }
}

fn identities(handoff: &DestinationHandoff) -> Vec<VolumeIdentity> {
    let offered = &handoff.reservation.volumes;
    offered.iter().map(|v| v.identity.clone()).collect()
}

/// The snapshot to go on from: the newest final one that every volume has. All finals of a handoff
/// are of one moment, when nothing ran; the rounds of a copy are not, and a database whose log and
/// data are of different moments is worse than an old one. Each volume is given with the names of
/// its snapshots, oldest first.
#[must_use]
pub fn choose(kept: &[Vec<String>]) -> Option<&str> {
    let (first, others) = kept.split_first()?;
    first
        .iter()
        .rev()
        .filter(|name| name.contains("-final-"))
        .find(|name| others.iter().all(|other| other.contains(name)))
        .map(String::as_str)
}

#[cfg(test)]
mod tests;
