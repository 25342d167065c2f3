//! Whether another connection may be accepted.
//!
//! A connection is *held* from its accept until bytes flow: while it is parked and while its
//! connect is under way, because a connect that fails becomes a park. Counting both is what
//! makes "parked never exceeds the limit" true by construction.

use rehome_shared::api::proxy::ParkLimits;

/// The limits of the whole proxy and of each route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections altogether.
    pub connections: u64,
    /// Connections of one route.
    pub per_route: u64,
    /// Bytes that held clients have sent and nobody has read.
    pub parked_bytes: u64,
}

/// How many connections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Held by the route.
    pub route_held: u64,
    /// Relayed by the route.
    pub route_active: u64,
    /// Held and relayed by all routes.
    pub all: u64,
    /// What the route's held clients have sent and nobody has read.
    pub route_unread: u64,
    /// The same of all routes.
    pub unread: u64,
}

/// The limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Full {
    /// The route's `park_limit`.
    RouteParked,
    /// `limits.per_route`.
    RouteConnections,
    /// `limits.connections`.
    Connections,
    /// `limits.parked_bytes`.
    ParkedBytes,
}

impl Full {
    /// The word for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RouteParked => "route_parked",
            Self::RouteConnections => "route_connections",
            Self::Connections => "connections",
            Self::ParkedBytes => "parked_bytes",
        }
    }
}

/// Whether one more connection fits. If not, the listener stops accepting and the kernel's
/// backlog holds what comes. Unread bytes stop only routes that have some: clients of the others
/// are not held for long.
///
/// # Errors
/// The limit that is reached.
pub fn admit(limits: &Limits, route: &ParkLimits, load: &Load) -> Result<(), Full> {
    if load.route_held >= u64::from(route.park_limit) {
        Err(Full::RouteParked)
    } else if load.route_held.saturating_add(load.route_active) >= limits.per_route {
        Err(Full::RouteConnections)
    } else if load.all >= limits.connections {
        Err(Full::Connections)
    } else if load.route_unread > 0 && load.unread >= limits.parked_bytes {
        Err(Full::ParkedBytes)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_limit_is_named_when_it_is_reached() {
        let limits = Limits {
            connections: 10,
            per_route: 6,
            parked_bytes: 1000,
        };
        let route = ParkLimits {
            park_limit: 4,
            park_timeout: Duration::from_secs(1),
        };
        let load = |route_held, route_active, all| Load {
            route_held,
            route_active,
            all,
            ..Load::default()
        };
        assert_eq!(admit(&limits, &route, &load(3, 2, 9)), Ok(()));
        assert_eq!(
            admit(&limits, &route, &load(4, 0, 4)),
            Err(Full::RouteParked)
        );
        assert_eq!(
            admit(&limits, &route, &load(3, 3, 6)),
            Err(Full::RouteConnections)
        );
        assert_eq!(
            admit(&limits, &route, &load(0, 0, 10)),
            Err(Full::Connections)
        );
        let unread = |route_unread, unread| Load {
            route_unread,
            unread,
            ..Load::default()
        };
        assert_eq!(admit(&limits, &route, &unread(999, 999)), Ok(()));
        assert_eq!(
            admit(&limits, &route, &unread(1, 1000)),
            Err(Full::ParkedBytes)
        );
        let others = admit(&limits, &route, &unread(0, 1000));
        assert_eq!(others, Ok(()), "a route whose clients flow goes on");
    }
}
