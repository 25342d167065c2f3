//! What other routes or other addresses mean for the sockets of external ports.
//!
//! A change is a transaction. Everything new is opened first, beside what it replaces; if
//! something cannot be had that must be, what was opened is closed again and nothing has changed.
//! Only then goes what is not wanted any more. Invariants: what is wanted and open is left alone;
//! a port that was open and is still wanted is open at every moment; an old socket outlives a new
//! one of its port that could not be had.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rehome_shared::api::proxy::RouteKey;
use rehome_shared::config::daemon::ListenOn;

/// Where on the host a socket listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// On every address of both families.
    Everywhere,
    /// On one address, which may stand for all of its family.
    Address(IpAddr),
}

impl Place {
    /// The places that a configuration names.
    #[must_use]
    pub fn all(on: &ListenOn) -> Vec<Self> {
        match on {
            ListenOn::DualStack => vec![Self::Everywhere],
            ListenOn::Addresses(addresses) => {
                addresses.iter().copied().map(Self::Address).collect()
            }
        }
    }

    /// Whether the kernel lets only one of the two have a port.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Everywhere, _) | (_, Self::Everywhere) => true,
            (Self::Address(one), Self::Address(two)) => {
                let whole = one.is_unspecified() || two.is_unspecified();
                one == two || (whole && one.is_ipv4() == two.is_ipv4())
            }
        }
    }
}

/// A socket that listens, or is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// Whose port.
    pub key: RouteKey,
    /// Where.
    pub place: Place,
}

/// What it means when a socket cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The change is refused.
    Must,
    /// The route is served as far as it goes, and says so.
    May,
}

/// A socket to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Which.
    pub spot: Spot,
    /// What it means when it cannot be had.
    pub need: Need,
    /// Sockets that have the same port where this one is to listen, and that go once it does.
    pub beside: Vec<Spot>,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Plan {
    /// What is opened, before anything is closed.
    pub open: Vec<Opening>,
    /// What goes on and notices nothing.
    pub keep: BTreeSet<Spot>,
    /// What goes when everything new is there.
    pub close: BTreeSet<Spot>,
}

/// Plans the way from what is open to what is wanted.
pub fn plan<'a>(open: impl IntoIterator<Item = &'a Spot>, wanted: &BTreeMap<Spot, Need>) -> Plan {
    let mut plan = Plan::default();
    for spot in open {
        let goes_on = wanted.contains_key(spot);
        let spots = if goes_on {
            &mut plan.keep
        } else {
            &mut plan.close
        };
        spots.insert(*spot);
    }
    let missing = wanted.iter().filter(|(spot, _)| !plan.keep.contains(spot));
    plan.open = missing
        .map(|(spot, need)| Opening {
            spot: *spot,
            need: *need,
            beside: in_the_way(*spot, &plan.close),
        })
        .collect();
    plan
}

fn in_the_way(spot: Spot, of: &BTreeSet<Spot>) -> Vec<Spot> {
    let first = Spot {
        key: spot.key,
        place: Place::Everywhere,
    };
    of.range(first..)
        .take_while(|other| other.key == spot.key)
        .filter(|other| other.place.overlaps(spot.place))
        .copied()
        .collect()
}

impl Plan {
    /// What goes, when so much could not be had: a port of which something new is missing keeps
    /// what it has.
    #[must_use]
    pub fn to_close(&self, missing: &BTreeSet<RouteKey>) -> BTreeSet<Spot> {
        self.close
            .iter()
            .filter(|spot| !missing.contains(&spot.key))
            .copied()
            .collect()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.close.is_empty()
    }
}
