//! Both sides against each other, and the bytes of what they say.

mod bytes;
mod schedules;

use std::collections::BTreeMap;

use super::*;

fn hello(protocol: u32, oldest: u32) -> Hello {
    Hello {
        protocol,
        oldest,
        version: format!("0.{protocol}"),
        table: protocol,
        sockets: BTreeMap::from([("trunk.listen".to_owned(), "[::]:7421".to_owned())]),
        fast_path: protocol > 1,
    }
}

#[test]
fn versions_meet_in_the_older_form_or_not_at_all_whoever_is_newer() {
    let both = |a: &Hello, b: &Hello| (a.agree(b), b.agree(a));
    let (old, new, newest) = (hello(1, 1), hello(3, 1), hello(9, 4));
    let terms = Ok(Terms {
        protocol: 1,
        table: 1,
        fast_path: false,
    });
    assert_eq!(both(&old, &new), (terms.clone(), terms));
    assert!(new.agree(&new).unwrap().fast_path);
    let (a, b) = both(&new, &newest);
    assert!(matches!(a, Err(Disagreement::Protocol { .. })) && b.is_err());
}

#[test]
fn sockets_that_would_have_to_be_others_are_named_and_new_keys_are_not_minded() {
    let (mut own, mut theirs) = (hello(1, 1), hello(1, 1));
    theirs.sockets.insert("admin".to_owned(), "x".to_owned());
    assert!(own.agree(&theirs).is_ok() && theirs.agree(&own).is_ok());
    own.sockets
        .insert("trunk.listen".to_owned(), "[::]:1".to_owned());
    let error = own.agree(&theirs).unwrap_err();
    assert!(error.to_string().contains("trunk.listen"), "{error}");
}

#[test]
fn a_giver_whose_table_or_socket_is_refused_fails_before_anything_has_changed() {
    let mut giver = Giver::new(hello(1, 1));
    let _greeted = giver.hear(Message::Hello(hello(1, 1))).unwrap();
    giver.offer([PartId(1), PartId(2)]).unwrap();
    let refused = vec![Refusal {
        id: PartId(2),
        reason: "no".to_owned(),
    }];
    let failed = giver.hear(Message::Ack { refused });
    assert!(matches!(failed, Err(Broken::Refused { .. })), "{failed:?}");
    assert!(!giver.has_let_go());
}

#[test]
fn what_does_not_belong_where_it_comes_fails() {
    let mut giver = Giver::new(hello(1, 1));
    assert!(giver.hear(Message::Ready).is_err());
    assert!(giver.go().is_err() && giver.equipped().is_err() && giver.release().is_err());
    let mut taker = Taker::new(hello(1, 1));
    for message in [
        Message::Go,
        Message::Equipped,
        Message::Release { ids: vec![] },
        Message::End(End::default()),
    ] {
        assert!(taker.hear(message).is_err());
    }
    let _terms = taker.hear(Message::Hello(hello(1, 1))).unwrap();
    let _build = taker.hear(Message::Equipped).unwrap();
    let _ready = taker.built();
    let _accept = taker.hear(Message::Go).unwrap();
    let ids = vec![PartId(7)];
    assert_eq!(
        taker.hear(Message::Release { ids }),
        Err(Broken::Unknown(PartId(7)))
    );
}
