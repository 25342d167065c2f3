//! Which routes the kernel carries: the fast path.
//!
//! An *element* sends what comes for a port of this host straight to the application. User space
//! listens on the port all the same, so an element that is not there makes a route slower and
//! nothing else, and taking it out is the park. Invariants: an element is asked to be there only
//! for a route that is open, and leads where the route leads; it goes in only when nobody waits
//! for the application; whatever a change makes wrong goes out with that change, all of one change
//! together.
//!
//! The *fence* of a port ends what still flows on it by the kernel; it is lifted by the element
//! that follows.

#[cfg(test)]
mod tests;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;

use rehome_shared::api::proxy::{Announce, ClientAddress, Content, RouteKey, Target};

use crate::table::{Owner, Phase, Route, RouteTable};
pub use trial::{Noted, Trials};

/// What the configuration says of the fast path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Whether there is to be one.
    pub wanted: bool,
    /// Something is set that only user space does to connections: places of client addresses, or an
    /// end after some time.
    pub per_connection: bool,
    /// Some proxies in front of this one announce their clients, on every TCP route but
    /// [`Policy::unannounced`].
    pub announced: bool,
    /// Routes of the file whose clients nobody announces.
    pub unannounced: BTreeSet<RouteKey>,
    /// Routes of the file that are to be carried in user space.
    pub kept_out: BTreeSet<RouteKey>,
}

/// Why a route is carried in user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The configuration says so.
    Off,
    /// Its gate is not open.
    NotOpen,
    /// It leads through the trunk of another host.
    Elsewhere,
    /// Its requests are followed.
    Http,
    /// Each connection is counted or timed.
    PerConnection,
    /// Its connections may begin with a header that is not the application's.
    Announced,
    /// Its application gets a header in front of each connection.
    Announces,
    /// The kernel sends nothing from outside to a loopback address.
    Loopback,
}

impl Why {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "the configuration says so",
            Self::NotOpen => "its gate is not open",
            Self::Elsewhere => "it leads to another host's trunk",
            Self::Http => "its requests are followed",
            Self::PerConnection => {
                "limits.per_source, timeouts.idle or timeouts.lifetime is set, which needs every \
                 connection"
            }
            Self::Announced => {
                "proxy_protocol.accept_from is set: its connections may begin with a header"
            }
            Self::Announces => "its application is told of each client (send_proxy)",
            Self::Loopback => "its target is a loopback address",
        }
    }
}

/// Where the kernel sends what comes for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The application.
    pub target: SocketAddr,
    /// Whose address the application sees.
    pub client: ClientAddress,
}

/// The element that a route may have.
///
/// # Errors
/// Why it may have none.
pub fn element(key: RouteKey, route: &Route, policy: &Policy) -> Result<Element, Why> {
    // Whatever a route comes to say of its connections has to be looked at here.
    let Route {
        owner,
        version: _,
        phase,
        limits: _,
        content,
        announce,
    } = route;
    if !policy.wanted || policy.kept_out.contains(&key) {
        return Err(Why::Off);
    }
    if policy.per_connection {
        return Err(Why::PerConnection);
    }
    match content {
        Content::Bytes => {}
        Content::Http => return Err(Why::Http),
    }
    match announce {
        Announce::Nothing => {}
        Announce::ProxyV2 => return Err(Why::Announces),
    }
    if policy.announced && !key.is_udp() && !policy.unannounced.contains(&key) {
        return Err(Why::Announced);
    }
    let target = match phase {
        Phase::Open(Target::Local { addr }) => *addr,
        Phase::Open(Target::Remote { .. }) => return Err(Why::Elsewhere),
        Phase::Parked(_) | Phase::Closed => return Err(Why::NotOpen),
    };
    if target.ip().is_loopback() || target.ip().is_unspecified() {
        return Err(Why::Loopback);
    }
    // An instance of this host answers through it, whoever asks. Where a backend of the file answers
    // through, nobody knows: it has to answer this host.
    let client = match owner {
        Owner::Application(_) => ClientAddress::Kept,
        Owner::File => ClientAddress::Replaced,
    };
    Ok(Element { target, client })
}

/// What is changed in the kernel, together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Flip {
    /// Elements that go.
    pub remove: Vec<(RouteKey, Element)>,
    /// Elements that come.
    pub add: Vec<(RouteKey, Element)>,
    /// Ports of which what flows is ended from now on.
    pub fence: Vec<RouteKey>,
    /// Ports of which it is not any more.
    pub lift: Vec<RouteKey>,
}

impl Flip {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            remove,
            add,
            fence,
            lift,
        } = self;
        remove.is_empty() && add.is_empty() && fence.is_empty() && lift.is_empty()
    }
}

/// What of ours is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The elements.
    pub elements: BTreeMap<RouteKey, Element>,
    /// The fences.
    pub fences: BTreeSet<RouteKey>,
}

impl Found {
    /// What it is after a change.
    pub fn apply(&mut self, flip: &Flip) {
        for (key, _) in &flip.remove {
            self.elements.remove(key);
        }
        self.elements.extend(flip.add.iter().copied());
        for key in &flip.lift {
            self.fences.remove(key);
        }
        self.fences.extend(&flip.fence);
    }
}

/// What is in the kernel, and what is to be.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    policy: Policy,
    there: Found,
    /// Routes that may have an element and have none.
    waiting: BTreeSet<RouteKey>,
    /// The last of them that was looked at.
    looked_at: Option<RouteKey>,
}

impl Plan {
    /// Goes by another configuration from now on; a [`Plan::change`] of all routes follows.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What the configuration says.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is in the kernel, as far as is known.
    #[must_use]
    pub fn there(&self) -> &Found {
        &self.there
    }

    /// Learns what is in the kernel; a [`Plan::change`] of all routes follows.
    pub fn learn(&mut self, found: Found) {
        self.there = found;
    }

    /// A flip was made.
    pub fn done(&mut self, flip: &Flip) {
        self.there.apply(flip);
        for (key, _) in &flip.add {
            self.waiting.remove(key);
        }
    }

    /// What has to go because these routes are what they are now.
    pub fn change(&mut self, table: &RouteTable, keys: impl IntoIterator<Item = RouteKey>) -> Flip {
        let mut flip = Flip::default();
        for key in keys {
            let wanted = self.wanted(table, key);
            let there = self.there.elements.get(&key).copied();
            if let Some(there) = there.filter(|there| wanted != Some(*there)) {
                flip.remove.push((key, there));
            }
            if wanted.is_some() && wanted != there {
                self.waiting.insert(key);
            } else {
                self.waiting.remove(&key);
            }
            if table.route(key).is_none() && self.there.fences.contains(&key) {
                flip.lift.push(key);
            }
        }
        flip
    }

    /// What has to go because all routes are what they are now.
    pub fn change_all(&mut self, table: &RouteTable) -> Flip {
        let mut keys: BTreeSet<RouteKey> = table.routes().keys().copied().collect();
        keys.extend(self.there.elements.keys().chain(&self.there.fences));
        self.waiting.clear();
        self.change(table, keys)
    }

    /// Whether some route waits for an element.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What may come now, of so many of the routes that wait: those of which it is known that
    /// nobody waits there for the application.
    pub fn promote(
        &mut self,
        table: &RouteTable,
        at_most: usize,
        mut is_steady: impl FnMut(RouteKey) -> bool,
    ) -> Flip {
        let after = self.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let looked_at = self.waiting.range((after, Bound::Unbounded)).take(at_most);
        let looked_at: Vec<RouteKey> = looked_at.copied().collect();
        // From the start again once all were looked at.
        self.looked_at = looked_at.last().copied();
        let mut flip = Flip::default();
        for key in looked_at {
            let Some(element) = self.wanted(table, key) else {
                continue;
            };
            if !self.there.elements.contains_key(&key) && is_steady(key) {
                flip.add.push((key, element));
                flip.lift
                    .extend(self.there.fences.get(&key).into_iter().copied());
            }
        }
        flip
    }

    /// Gives these routes back to user space; they wait again.
    pub fn give_up(&mut self, keys: &BTreeSet<RouteKey>) -> Flip {
        let there = &self.there.elements;
        let remove = keys.iter().filter_map(|key| Some((*key, *there.get(key)?)));
        let remove: Vec<_> = remove.collect();
        self.waiting.extend(remove.iter().map(|(key, _)| *key));
        Flip {
            remove,
            ..Flip::default()
        }
    }

    /// Ends what flows on these ports.
    pub fn fence(&self, keys: impl IntoIterator<Item = RouteKey>) -> Flip {
        let new = keys.into_iter();
        let new = new.filter(|key| !self.there.fences.contains(key));
        Flip {
            fence: new.collect(),
            ..Flip::default()
        }
    }

    /// Takes every element out.
    pub fn leave(&self) -> Flip {
        let elements = self.there.elements.iter();
        Flip {
            remove: elements.map(|(key, element)| (*key, *element)).collect(),
            ..Flip::default()
        }
    }

    fn wanted(&self, table: &RouteTable, key: RouteKey) -> Option<Element> {
        element(key, table.route(key)?, &self.policy).ok()
    }
}
