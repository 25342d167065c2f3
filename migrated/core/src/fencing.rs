//! What it means that another host knows of a newer owner.
//!
//! An epoch grows by records that are durable, so a larger one is never a mistake: who hears of
//! one is not the owner any more, whatever its own journal says. Two of the same size can only
//! come of an operator's word, given without the host that the other one had gone to; then the
//! word counts, and the hosts that it calls fenced give way.

use std::collections::BTreeSet;

use rehome_shared::ids::{AppName, Epoch, HostAddr, MigrationId};

use crate::destination;
use crate::registry::{Registry, Role};
use crate::source::{AfterRelease, Phase};

/// What another host knows of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Who says it.
    pub speaker: HostAddr,
    /// The newest epoch that it knows.
    pub epoch: Epoch,
    /// Who owns it then.
    pub owner: HostAddr,
}

/// Where this host stands with an application after it heard the others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Standing {
    /// Nobody knows of anything newer.
    Clear,
    /// It is another host's: persist [`crate::record::Record::Fenced`].
    Fenced {
        /// At which epoch.
        epoch: Epoch,
        /// Whose.
        owner: HostAddr,
    },
    /// Another host says that it owns it at the same epoch, and nobody called either fenced.
    /// Neither can be told to give way: a person must.
    Contested {
        /// The epoch.
        epoch: Epoch,
        /// The other one.
        owner: HostAddr,
    },
    /// Others know it as this very host's at a larger epoch than its own journal does: the
    /// journal is an older one, and what it says must not be acted upon.
    Outdated {
        /// The epoch that they know.
        epoch: Epoch,
        /// One who says so.
        speaker: HostAddr,
    },
}

/// What counts when a host asks before it starts: what the others say, and what this host heard
/// itself before it fell and did not act upon. `first_hand` is what speakers say by their own
/// journals.
///
/// Who gives an application back says that it is its source's, and the source may have given way
/// to this very host in the meantime. What is said of a host that says itself that it is this
/// one's, as far as this one knows, is not so: nobody would own it.
#[must_use]
pub fn before_start(
    registry: &Registry,
    here: &HostAddr,
    application: &AppName,
    told: Vec<Word>,
    first_hand: &[Word],
) -> Vec<Word> {
    let heard = registry.heard(application);
    let heard = heard.filter(|(_, owner)| owner != here);
    let own = heard.map(|(epoch, owner)| Word {
        speaker: here.clone(),
        epoch: *epoch,
        owner: owner.clone(),
    });
    let known = registry.applications().get(application);
    let is_denied = |word: &Word| {
        let mut all = first_hand.iter();
        all.any(|other| {
            let newest = known.is_some_and(|known| known.epoch == other.epoch);
            other.speaker == word.owner && other.owner == *here && newest
        })
    };
    let all = told.into_iter().chain(own);
    all.filter(|word| !is_denied(word)).collect()
}

/// What the words of other hosts mean for an application of this host. `fenced` are the hosts
/// that an operator declared so.
pub fn stand(
    registry: &Registry,
    here: &HostAddr,
    application: &AppName,
    words: &[Word],
    fenced: &BTreeSet<HostAddr>,
) -> Standing {
    let Some(known) = registry.applications().get(application) else {
        return Standing::Clear;
    };
    let is_newer = |word: &Word| word.owner != *here && word.epoch > known.epoch;
    let released = is_handing_over(registry, application);
    let mine = match &known.role {
        // What was left open is another host's as soon as anybody knows of a newer owner.
        Role::Owner | Role::Left { .. } => here,
        Role::Gone { to } if released => {
            // It tells the outcome itself, as long as that is for this host to hear: of what went
            // on from there to anybody, itself included, nothing can come back here.
            let answers = words.iter().any(|word| word.speaker == *to);
            if answers && !words.iter().any(is_newer) {
                return Standing::Clear;
            }
            to
        }
        Role::Gone { .. } => return Standing::Clear,
    };
    let gives_way = fenced.contains(here) || fenced.contains(mine);
    let is_rival = |word: &Word| {
        let other = word.owner != *mine && word.owner != *here;
        other && gives_way && word.epoch == known.epoch
    };
    let newest = words
        .iter()
        .filter(|word| is_newer(word) || is_rival(word))
        .max_by_key(|word| word.epoch);
    let returned = words
        .iter()
        .filter(|word| word.owner == *here && word.epoch > known.epoch)
        .max_by_key(|word| word.epoch);
    match (newest, returned) {
        (Some(word), None) => Standing::Fenced {
            epoch: word.epoch,
            owner: word.owner.clone(),
        },
        // Who released it runs nothing of it: between two of one epoch it stays that way.
        (Some(word), Some(own))
            if word.epoch > own.epoch || (released && word.epoch == own.epoch) =>
        {
            Standing::Fenced {
                epoch: word.epoch,
                owner: word.owner.clone(),
            }
        }
        (_, Some(own)) => Standing::Outdated {
            epoch: own.epoch,
            speaker: own.speaker.clone(),
        },
        (None, None) => contested(known.epoch, mine, here, words, fenced),
    }
}

/// Of two owners of one epoch the one that was called fenced gives way by itself.
fn contested(
    epoch: Epoch,
    mine: &HostAddr,
    here: &HostAddr,
    words: &[Word],
    fenced: &BTreeSet<HostAddr>,
) -> Standing {
    let rival = words.iter().find(|word| {
        mine == here
            && word.epoch == epoch
            && word.owner != *here
            && word.owner == word.speaker
            && !fenced.contains(&word.owner)
    });
    match rival {
        Some(word) => Standing::Contested {
            epoch,
            owner: word.owner.clone(),
        },
        None => Standing::Clear,
    }
}

/// Whether this host has released an application and does not know the outcome yet.
fn is_handing_over(registry: &Registry, application: &AppName) -> bool {
    registry.source_of(application).is_some_and(|migration| {
        matches!(
            migration.phase,
            Phase::After(AfterRelease::Granting { .. } | AfterRelease::Handed { .. })
        )
    })
}

/// The promises to wait for a grant that can never come: the epoch that was promised is, or was,
/// another host's. They are called off.
#[must_use]
pub fn void_promises(
    registry: &Registry,
    here: &HostAddr,
    application: &AppName,
    words: &[Word],
) -> Vec<MigrationId> {
    registry
        .destinations_of(application)
        .filter(|handoff| {
            matches!(
                handoff.phase,
                destination::Phase::Reserved | destination::Phase::Verified { .. }
            )
        })
        .filter(|handoff| {
            words
                .iter()
                .any(|word| word.owner != *here && word.epoch >= handoff.epoch_here())
        })
        .map(|handoff| handoff.id.clone())
        .collect()
}

#[cfg(test)]
mod tests;
