//! What an idle connection holds. Thousands are idle at the same time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::handover::Identity;
use proxyd_core::table::{Owner, Phase, Route};
use rehome_shared::api::proxy::{Announce, Content, ParkLimits, RouteKey};
use rehome_shared::ids::{Protocol, RouteVersion};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::book::Origin;
use crate::http::{Sides, converse};
use crate::relay::Relay;
use crate::serve::carry;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

fn known() -> Identity {
    let key = RouteKey::new(80, Protocol::Tcp);
    let nobody = (Ipv4Addr::LOCALHOST, 1).into();
    let limits = ParkLimits {
        park_limit: 0,
        park_timeout: Duration::ZERO,
    };
    let route = Route {
        owner: Owner::File,
        version: RouteVersion::default(),
        phase: Phase::Closed,
        limits,
        content: Content::default(),
        announce: Announce::default(),
    };
    let by = (key, Arc::new(route));
    Connection::new(1, by, nobody, nobody, Arc::default()).identity(&Origin::Client)
}

/// The bounds are what there is, and a little more: what needs more room says so here.
#[tokio::test]
async fn an_idle_connection_holds_little() {
    let context = Context::of_file(|_| {});
    let book = size_of::<Connection>();
    assert!(book <= 240, "what the book knows of it: {book}");

    let ((client, _other), (upstream, _application)) = (pair().await, pair().await);
    let active = context.book.adopt_active(&known());
    let connection = Arc::clone(active.connection());
    let relay = carry(context.clone(), active, Relay::new(client, upstream));
    let held = size_of_val(&*relay.0);
    assert!(held <= 480, "a relay: {held}");

    let task = size_of_val(&relay.task(&connection, Place::default()));
    assert!(task <= 96, "its task: {task}");

    let ((client, _other), (upstream, _application)) = (pair().await, pair().await);
    let active = context.book.adopt_resting(&known(), None);
    let sides = Sides::from((client, upstream));
    let talk = converse(context.clone(), active, sides);
    let held = size_of_val(&*talk.0);
    assert!(held <= 704, "one whose requests are followed: {held}");
}
