//! What happened to an application's connections since its gate was last prepared.

use std::time::Duration;

use rehome_shared::api::proxy::GateCounts;
use serde::{Deserialize, Serialize};

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// Both sides said goodbye.
    Finished,
    /// A drain closed it while it was idle.
    Drained,
    /// The client reset it.
    ClientReset,
    /// The application, or the trunk, reset it.
    UpstreamReset,
    /// No byte for the idle timeout.
    Idle,
    /// It had lasted for as long as a connection may.
    Lifetime,
    /// One side had finished and the other one stayed silent.
    HalfCloseTimeout,
    /// A freeze cut it.
    Cut,
    /// It was held for too long.
    ParkTimeout,
    /// Its client went away while it was held.
    ClientGone,
    /// The host that sent it was told where the application is.
    Moved,
    /// The gate is closed.
    Refused,
    /// The application could not be reached.
    ConnectFailed,
    /// What was to announce its client did not.
    BadHeader,
    /// It did not do so in time.
    HeaderTimeout,
    /// The proxy stopped.
    Stopped,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Finished,
        Self::Drained,
        Self::ClientReset,
        Self::UpstreamReset,
        Self::Idle,
        Self::Lifetime,
        Self::HalfCloseTimeout,
        Self::Cut,
        Self::ParkTimeout,
        Self::ClientGone,
        Self::Moved,
        Self::Refused,
        Self::ConnectFailed,
        Self::BadHeader,
        Self::HeaderTimeout,
        Self::Stopped,
    ];

    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Drained => "drained",
            Self::ClientReset => "client_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::Cut => "cut",
            Self::ParkTimeout => "park_timeout",
            Self::ClientGone => "client_gone",
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::ConnectFailed => "connect_failed",
            Self::BadHeader => "proxy_header",
            Self::HeaderTimeout => "proxy_header_timeout",
            Self::Stopped => "stopped",
        }
    }
}

/// The counts that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    parked: u64,
    drained: u64,
    cut: u64,
    refused: u64,
    longest: Duration,
}

impl Tally {
    /// A connection is held from now on.
    pub fn parked(&mut self) {
        self.parked = self.parked.saturating_add(1);
    }

    /// A connection is held no longer.
    pub fn unparked(&mut self, held: Duration) {
        self.longest = self.longest.max(held);
    }

    /// A connection ended after bytes could flow.
    pub fn relay_ended(&mut self, end: End) {
        let count = match end {
            End::Cut | End::UpstreamReset | End::Stopped => &mut self.cut,
            End::Finished
            | End::Drained
            | End::ClientReset
            | End::Idle
            | End::Lifetime
            | End::HalfCloseTimeout
            | End::ParkTimeout
            | End::ClientGone
            | End::Moved
            | End::Refused
            | End::ConnectFailed
            | End::BadHeader
            | End::HeaderTimeout => &mut self.drained,
        };
        *count = count.saturating_add(1);
    }

    /// A connection ended before a byte could flow.
    pub fn held_ended(&mut self, end: End) {
        if matches!(
            end,
            End::ParkTimeout | End::Refused | End::ConnectFailed | End::Stopped
        ) {
            self.refused = self.refused.saturating_add(1);
        }
    }

    /// The answer to a verb. `oldest` is how long the oldest of the held ones has waited.
    #[must_use]
    pub fn counts(&self, active: u64, parked: u64, oldest: Duration) -> GateCounts {
        GateCounts {
            active,
            parked,
            parked_total: self.parked,
            drained: self.drained,
            cut: self.cut,
            refused: self.refused,
            longest_park_seconds: self.longest.max(oldest).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_count_as_drained_or_cut_and_held_ones_as_refused() {
        let mut tally = Tally::default();
        tally.parked();
        tally.parked();
        tally.unparked(Duration::from_millis(30));
        tally.held_ended(End::ParkTimeout);
        tally.held_ended(End::ClientGone);
        tally.relay_ended(End::Finished);
        tally.relay_ended(End::Drained);
        tally.relay_ended(End::Cut);
        let counts = tally.counts(4, 1, Duration::from_millis(70));
        assert_eq!(
            (counts.active, counts.parked, counts.parked_total),
            (4, 1, 2)
        );
        assert_eq!((counts.drained, counts.cut, counts.refused), (2, 1, 1));
        assert_eq!(
            counts.longest_park_seconds.as_duration(),
            Duration::from_millis(70)
        );
    }
}
