//! Where one connection goes.
//!
//! A trunk never leads to another trunk: a proxy that is not the owner says where the owner is
//! and the sender dials again, so that no connection crosses a host that it does not need.

use std::net::SocketAddr;

use rehome_shared::api::proxy::Target;
use rehome_shared::ids::{AppName, HostAddr, RouteVersion};
use rehome_shared::trunk::{MAX_HOPS, Refusal};

use crate::table::{Phase, Route};

/// What becomes of a client's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way<'a> {
    /// Try this target.
    Go(&'a Target),
    /// Hold it.
    Hold,
    /// Turn it away.
    Refuse,
}

/// The way of a client's connection.
#[must_use]
pub fn for_client(route: &Route) -> Way<'_> {
    match &route.phase {
        Phase::Open(target) => Way::Go(target),
        Phase::Parked(_) => Way::Hold,
        Phase::Closed => Way::Refuse,
    }
}

/// The way of the next request of a connection that has reached its application before: wherever
/// the route leads by now, also when the connection came by a trunk.
#[must_use]
pub fn for_next<'a>(route: &'a Route, application: Option<&AppName>) -> Way<'a> {
    if route.application() == application {
        for_client(route)
    } else {
        Way::Refuse
    }
}

/// What a trunk connection says about itself, as far as the decision needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Whose route the sender means.
    pub application: AppName,
    /// The version that the sender went by.
    pub known: RouteVersion,
    /// How many trunks said "moved" before.
    pub hops: u8,
}

/// What becomes of a trunk connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrunkWay {
    /// Try the application here.
    Go(SocketAddr),
    /// Hold it: the gate is parked, or the sender knows something that this host will learn.
    Hold,
    /// Say where the application is.
    Moved {
        /// Its host.
        host: HostAddr,
        /// That host's trunk.
        trunk: String,
        /// The version that says so.
        version: RouteVersion,
    },
    /// Turn it away.
    Refuse(Refusal),
}

/// The way of a trunk connection.
///
/// A sender that is ahead of this host was told that the application is here. It is believed:
/// the connection is held until this host has learned the same.
#[must_use]
pub fn for_trunk(route: Option<&Route>, arrival: &Arrival) -> TrunkWay {
    if arrival.hops > MAX_HOPS {
        return TrunkWay::Refuse(Refusal::TooManyHops);
    }
    let Some(route) = route.filter(|route| route.application() == Some(&arrival.application))
    else {
        return TrunkWay::Hold;
    };
    let behind = route.version < arrival.known;
    match &route.phase {
        Phase::Open(Target::Local { addr }) => TrunkWay::Go(*addr),
        Phase::Parked(_) => TrunkWay::Hold,
        Phase::Open(Target::Remote { .. }) | Phase::Closed if behind => TrunkWay::Hold,
        Phase::Open(Target::Remote { host, trunk }) => TrunkWay::Moved {
            host: host.clone(),
            trunk: trunk.clone(),
            version: route.version,
        },
        Phase::Closed => TrunkWay::Refuse(Refusal::Closed),
    }
}

/// What a sender does about "moved".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redial {
    /// Dial what the answer names, at once.
    Follow,
    /// The answer is not newer than what is known, or there were too many: wait, then begin
    /// again with the route as it is then.
    StartOver,
}

/// Whether an answer that names another host is to be followed.
#[must_use]
pub fn redial(went_by: RouteVersion, answer: RouteVersion, hops: u8) -> Redial {
    if answer > went_by && hops < MAX_HOPS {
        Redial::Follow
    } else {
        Redial::StartOver
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::proxy::{Announce, Content, ParkLimits};
    use rehome_shared::ids::{Epoch, Generation};

    use super::*;
    use crate::table::Owner;

    fn version(epoch: u64) -> RouteVersion {
        RouteVersion {
            epoch: Epoch(epoch),
            generation: Generation(0),
        }
    }

    fn route(epoch: u64, phase: Phase) -> Route {
        let limits = ParkLimits {
            park_limit: 1,
            park_timeout: std::time::Duration::from_secs(1),
        };
        let owner = Owner::Application(AppName::try_new("db").unwrap());
        Route {
            owner,
            version: version(epoch),
            phase,
            limits,
            content: Content::default(),
            announce: Announce::default(),
        }
    }

    fn elsewhere() -> Phase {
        let host = HostAddr::try_new("h2").unwrap();
        Phase::Open(Target::Remote {
            host,
            trunk: "h2:7421".into(),
        })
    }

    fn arrival(epoch: u64, hops: u8) -> Arrival {
        Arrival {
            application: AppName::try_new("db").unwrap(),
            known: version(epoch),
            hops,
        }
    }

    #[test]
    fn a_sender_that_is_behind_learns_where_the_application_is() {
        let way = for_trunk(Some(&route(3, elsewhere())), &arrival(2, 0));
        assert!(matches!(way, TrunkWay::Moved { version: v, .. } if v == version(3)));
    }

    #[test]
    fn a_sender_that_is_ahead_is_held_instead_of_sent_back() {
        let ahead = arrival(4, 0);
        assert_eq!(
            for_trunk(Some(&route(3, elsewhere())), &ahead),
            TrunkWay::Hold
        );
        assert_eq!(
            for_trunk(Some(&route(3, Phase::Closed)), &ahead),
            TrunkWay::Hold
        );
        assert_eq!(for_trunk(None, &ahead), TrunkWay::Hold);
    }

    #[test]
    fn a_route_of_another_application_is_unknown() {
        let addr = "127.0.0.1:1".parse().unwrap();
        let mut other = arrival(1, 0);
        other.application = AppName::try_new("web").unwrap();
        let here = route(1, Phase::Open(Target::Local { addr }));
        assert_eq!(for_trunk(Some(&here), &other), TrunkWay::Hold);
        assert_eq!(for_trunk(Some(&here), &arrival(1, 0)), TrunkWay::Go(addr));
    }

    #[test]
    fn a_next_request_goes_where_its_route_leads_and_to_no_other_application() {
        let application = arrival(1, 0).application;
        let led = route(2, elsewhere());
        let Way::Go(target) = for_next(&led, Some(&application)) else {
            panic!("not led on");
        };
        assert_eq!(Some(target), elsewhere().target());
        let other = AppName::try_new("web").unwrap();
        assert_eq!(for_next(&led, Some(&other)), Way::Refuse);
        assert_eq!(for_next(&led, None), Way::Refuse);
    }

    #[test]
    fn hops_are_bounded_on_both_sides() {
        let way = for_trunk(Some(&route(3, elsewhere())), &arrival(2, MAX_HOPS + 1));
        assert_eq!(way, TrunkWay::Refuse(Refusal::TooManyHops));
        assert_eq!(redial(version(1), version(2), 0), Redial::Follow);
        assert_eq!(redial(version(1), version(2), MAX_HOPS), Redial::StartOver);
        assert_eq!(redial(version(2), version(2), 0), Redial::StartOver);
    }
}
