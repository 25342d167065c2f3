//! The decisions of `migrated`, pure: no I/O, no clock, no randomness, nothing spawned.
//!
//! | module | decides |
//! |---|---|
//! | [`record`] | what the journal says |
//! | [`journal`] | how records become bytes, and which bytes of a file may be believed |
//! | [`registry`] | what a sequence of records means: who owns what, which handoffs are open |
//! | [`admission`] | whether a handoff may begin, on either host |
//! | [`source`] | the next step of a handoff on the host that gives |
//! | [`destination`] | the next step of a handoff on the host that takes |
//! | [`convergence`] | one more round, cut over, or give up |
//! | [`garbage`] | what nobody needs of what lies on a host |
//! | [`fencing`] | what it means that another host knows of a newer owner |
//! | [`failover`] | whether, and how, a host takes over from a dead owner |
//! | [`reconcile`] | what a host does next for an application |
//! | [`stamp`] | what stands on a volume of its owner |
//! | [`rebuild`] | who owns what, by the stamps and the other hosts' word |
//! | [`routes`] | where each external port leads on this host |
//! | [`stream`] | how a volume's stream travels, and goes on after a cut |
//!
//! The contract of both machines is the same: `step` takes what happened and returns the
//! records to persist; only when they are durable does the caller take the next state and
//! perform its one effect. Every effect may be performed again, so recovery is: replay the
//! records, perform the effect of the state that results.

#![forbid(unsafe_code)]

pub mod admission;
pub mod convergence;
pub mod destination;
pub mod failover;
pub mod fencing;
pub mod garbage;
pub mod journal;
pub mod rebuild;
pub mod reconcile;
pub mod record;
pub mod registry;
pub mod routes;
pub mod source;
pub mod stamp;
pub mod stream;

#[cfg(test)]
mod fixtures;

/// A point in time on a host's clock, in milliseconds since the Unix epoch. It is only compared
/// with times of the same host.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This time and a while later.
    #[must_use]
    pub fn after(self, delay: std::time::Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long until `later`; zero when it has passed.
    #[must_use]
    pub fn until(self, later: Self) -> std::time::Duration {
        std::time::Duration::from_millis(later.0.saturating_sub(self.0))
    }
}
