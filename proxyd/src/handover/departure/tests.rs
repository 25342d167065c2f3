//! Clients that are not announced yet, at the edge of a process. The rest is in `tests/traffic`.

use std::io::Read;
use std::net::TcpListener;

use rehome_shared::api::proxy::RouteKey;

use super::*;

/// Longer than any test.
const AGE: Duration = Duration::from_hours(2);

fn key() -> RouteKey {
    "80/tcp".parse().unwrap()
}

/// A client, and what was accepted of it.
fn pair() -> (Plain, Plain) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Plain::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    accepted.set_nonblocking(true).unwrap();
    (client, accepted)
}

fn guest(context: &Context) -> (Plain, StillGuest) {
    let (client, accepted) = pair();
    let newcomer = context.book.adopt_newcomer(key(), AGE);
    (client, StillGuest::of(newcomer, accepted))
}

#[tokio::test]
async fn the_time_that_a_newcomer_has_had_goes_over_with_it() {
    // It would have twenty minutes left of what is its due, were it new.
    let context = Context::of_file(|config| {
        config.proxy_protocol.header_timeout = AGE / 6;
    });
    let (_client, guest) = guest(&context);
    let (part, bytes) = Departure::Guest(guest).part().unwrap();
    let Part::Newcomer(known) = part else {
        panic!("{part:?}");
    };
    assert!(known.route == key() && bytes.is_empty());
    assert!(Duration::from_micros(known.age) >= AGE);

    let (mut client, accepted) = pair();
    Arrival::Guest(known, accepted).pass(&context);
    let limit = Some(Duration::from_secs(20));
    let read = tokio::task::spawn_blocking(move || {
        client.set_read_timeout(limit).unwrap();
        client.read(&mut [0; 1])
    });
    let error = read.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_newcomer_that_leaves_when_nobody_collects_any_more_is_given_back() {
    let context = Context::of_file(|_| {});
    let handover = &context.handover;
    let leave = || handover.guest_leaves(guest(&context).1);
    assert!(leave().is_some());
    handover.keep_guests();
    assert!(leave().is_none());
    assert_eq!(handover.take_guests().len(), 1);
    assert!(leave().is_some());
}
