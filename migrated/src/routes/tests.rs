//! Versions only grow, whatever is forgotten and heard again.

use std::net::IpAddr;

use rehome_shared::api::proxy::Content;
use rehome_shared::ids::Generation;

use super::*;
use crate::fixtures::{app, host};

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

fn status(version: RouteVersion, gate: Gate) -> RouteStatus {
    RouteStatus {
        key: "5432/tcp".parse().unwrap(),
        application: app("db"),
        version,
        gate,
        target: None,
        listen_error: None,
        active: 0,
        parked: 0,
        from_trunk: 0,
        resting: 0,
        content: Content::default(),
        fast_path: None,
    }
}

fn said(routes: &Routes) -> RouteVersion {
    routes.book().locals[&app("db")].0
}

#[test]
fn the_same_again_keeps_its_version_and_anything_else_gets_a_larger_one() {
    let routes = Routes::default();
    let open = routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into()));
    assert_eq!(
        routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into())),
        open
    );
    let park = routes.set(&app("db"), Epoch(1), LocalRoute::Park);
    assert!(park > open);
    let again = routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into()));
    assert!(
        again > park,
        "the way back is newer than any park that was sent"
    );
    assert!(routes.set(&app("db"), Epoch(2), LocalRoute::Open(ADDRESS.into())) > again);
}

#[test]
fn a_restart_goes_on_behind_what_others_repeat_of_this_host() {
    let routes = Routes::default();
    let ahead = Generation(u64::MAX / 2);
    let version = RouteVersion {
        epoch: Epoch(3),
        generation: ahead,
    };
    routes.hear(&[Advert {
        application: app("db"),
        version,
        host: host("h1"),
    }]);
    assert!(routes.set(&app("db"), Epoch(3), LocalRoute::Park) > version);
}

#[test]
fn what_the_proxy_has_from_a_clock_that_was_ahead_is_overtaken() {
    let routes = Routes::default();
    let before = routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into()));
    let ahead = Generation(u64::MAX / 2);
    let kept = RouteVersion {
        epoch: Epoch(1),
        generation: ahead,
    };
    routes.overtake(&[status(kept, Gate::Open)]);
    assert!(said(&routes) > kept && said(&routes) > before);
}

#[test]
fn an_equal_version_that_says_something_else_is_overtaken() {
    let routes = Routes::default();
    let open = routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into()));
    routes.overtake(&[status(open, Gate::Open)]);
    assert_eq!(said(&routes), open);
    routes.overtake(&[status(open, Gate::Closed)]);
    assert!(said(&routes) > open);
}

#[test]
fn the_version_of_a_park_stays_while_a_handoff_goes_by_it() {
    let routes = Routes::default();
    let park = routes.set(&app("db"), Epoch(1), LocalRoute::Park);
    routes.overtake(&[status(park, Gate::Closed)]);
    assert_eq!(said(&routes), park);
}

#[test]
fn what_another_owner_has_said_is_not_overtaken() {
    let routes = Routes::default();
    let open = routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into()));
    let next = RouteVersion {
        epoch: Epoch(2),
        generation: Generation(1),
    };
    routes.overtake(&[status(next, Gate::Open)]);
    assert_eq!(said(&routes), open);
}

#[test]
fn others_are_told_of_the_newest_owner() {
    let routes = Routes::default();
    let open = routes.set(&app("db"), Epoch(1), LocalRoute::Open(ADDRESS.into()));
    let told = routes.tell(&host("h1"));
    assert_eq!((told[0].host.clone(), told[0].version), (host("h1"), open));
    let version = RouteVersion {
        epoch: Epoch(2),
        generation: Generation(0),
    };
    routes.hear(&[Advert {
        application: app("db"),
        version,
        host: host("h2"),
    }]);
    assert_eq!(routes.tell(&host("h1"))[0].host, host("h2"));
    routes.forget(&app("db"));
    assert_eq!(routes.tell(&host("h1"))[0].host, host("h2"));
    assert_eq!(routes.advertised_hosts(), [host("h2")].into());
}
