//! The bytes on the wire: golden ones, and any others.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rehome_shared::ids::{Epoch, Generation, RouteVersion};

use super::super::*;
use super::hello;

fn identity() -> Identity {
    Identity {
        id: 7,
        route: "5432/tcp".parse().unwrap(),
        application: Some("db".parse().unwrap()),
        client: "10.0.0.9:40000".parse().unwrap(),
        destination: "10.0.0.1:5432".parse().unwrap(),
        age: 1_500_000,
        flowing: 1_000_000,
        upstream: Some(Upstream::Local("172.17.0.2:5432".parse().unwrap())),
        bytes_in: 10,
        bytes_out: 20,
        quiet: 3,
        answered: true,
        origin: Origin::Client,
    }
}

fn table() -> Part {
    Part::Table {
        form: 1,
        missing: vec![],
    }
}

fn relay() -> Part {
    Part::Relay(Relay {
        identity: identity(),
        inward: Half {
            done: false,
            load: Bytes::Here(3),
            bulk: false,
        },
        outward: Half {
            done: true,
            load: Bytes::Piped(9),
            bulk: true,
        },
        goodbye: Some(Goodbye::Drain),
        broken: false,
    })
}

fn held() -> Part {
    let mut identity = identity();
    identity.upstream = Some(Upstream::Trunk("h2:7421".to_owned()));
    identity.origin = Origin::Trunk {
        application: "db".parse().unwrap(),
        known: RouteVersion {
            epoch: Epoch(2),
            generation: Generation(1),
        },
        hops: 1,
    };
    Part::Held(Held {
        identity,
        parked: true,
    })
}

fn rest() -> Part {
    Part::Rest(Rest {
        identity: identity(),
        reaches: true,
        begun: 3,
        waited: None,
    })
}

/// What version 1 writes. An older or newer proxyd reads these: they never change.
#[test]
fn the_bytes_of_messages_stay_as_they_are() {
    let golden = [
        (
            Message::Hello(hello(1, 1)),
            r#"{"hello":{"protocol":1,"oldest":1,"version":"0.1","table":1,"sockets":{"trunk.listen":"[::]:7421"},"fast_path":false}}"#,
        ),
        (
            Message::Batch(Batch {
                ids: vec![PartId(1), PartId(2)],
                records: 300,
                bytes: 5,
            }),
            r#"{"batch":{"ids":[1,2],"records":300,"bytes":5}}"#,
        ),
        (
            Message::Ack {
                refused: vec![Refusal {
                    id: PartId(2),
                    reason: "no".to_owned(),
                }],
            },
            r#"{"ack":{"refused":[{"id":2,"reason":"no"}]}}"#,
        ),
        (Message::Equipped, r#""equipped""#),
        (Message::Ready, r#""ready""#),
        (
            Message::Failed {
                reason: "no".to_owned(),
            },
            r#"{"failed":{"reason":"no"}}"#,
        ),
        (Message::Go, r#""go""#),
        (
            Message::Release {
                ids: vec![PartId(1)],
            },
            r#"{"release":{"ids":[1]}}"#,
        ),
        (
            Message::End(End {
                left: vec!["db".parse().unwrap()],
            }),
            r#"{"end":{"left":["db"]}}"#,
        ),
        (Message::Serving, r#""serving""#),
    ];
    for (message, bytes) in golden {
        assert_eq!(String::from_utf8(encode(&message).unwrap()).unwrap(), bytes);
        assert_eq!(decode(bytes.as_bytes()).unwrap(), message);
    }
}

/// What a newer version may add, and an older one may lack.
#[test]
fn words_of_other_versions_are_understood() {
    let same = |bytes: &str, message: Message| {
        assert_eq!(decode(bytes.as_bytes()), Ok(message), "{bytes}");
    };
    let tomorrow = r#"{"hello":{"protocol":9,"oldest":1,"version":"9.0","table":3,
        "sockets":{"admin":"x"},"fast_path":true,"stores":{"size":7}}}"#;
    let hello = Hello {
        protocol: 9,
        oldest: 1,
        version: "9.0".to_owned(),
        table: 3,
        sockets: BTreeMap::from([("admin".to_owned(), "x".to_owned())]),
        fast_path: true,
    };
    let own = super::hello(1, 1);
    let terms = Terms {
        protocol: 1,
        table: 1,
        fast_path: false,
    };
    assert_eq!(own.agree(&hello), Ok(terms));
    assert_eq!(hello.agree(&own), Ok(terms));
    same(tomorrow, Message::Hello(hello));
    let yesterday = r#"{"hello":{"protocol":1,"oldest":1,"version":"0.1","table":1}}"#;
    let hello = Hello {
        sockets: BTreeMap::new(),
        ..super::hello(1, 1)
    };
    assert!(own.agree(&hello).is_ok());
    same(yesterday, Message::Hello(hello));
    same(r#"{"ack":{}}"#, Message::Ack { refused: vec![] });
    same(r#"{"ack":{"room":5}}"#, Message::Ack { refused: vec![] });
    same(r#"{"end":{"later":[1]}}"#, Message::End(End::default()));
    let more = r#"{"batch":{"ids":[1],"records":2,"bytes":3,"sealed":true}}"#;
    let batch = Batch {
        ids: vec![PartId(1)],
        records: 2,
        bytes: 3,
    };
    same(more, Message::Batch(batch));
    let less = serde_json::from_str::<Part>(r#"{"counts":{"last_id":9}}"#).unwrap();
    let counts = Counts {
        last_id: 9,
        ..Counts::default()
    };
    assert_eq!(less, Part::Counts(counts));
    let less = serde_json::from_str::<Part>(r#"{"socket":{"port":{"key":"53/udp"}}}"#);
    assert!(matches!(
        less,
        Ok(Part::Socket(Socket::Port { at: None, .. }))
    ));
    // A word that this version does not know is an error and no guess.
    assert!(decode(br#"{"rewind":{}}"#).is_err());
}

#[test]
fn the_bytes_of_records_stay_as_they_are() {
    let records = [
        (
            Part::Table {
                form: 1,
                missing: vec!["80/tcp".parse().unwrap()],
            },
            0,
            r#"{"table":{"form":1,"missing":["80/tcp"]}}"#,
        ),
        (Part::Socket(Socket::Control), 1, r#"{"socket":"control"}"#),
        (
            Part::Socket(Socket::Port {
                key: "53/udp".parse().unwrap(),
                at: None,
            }),
            1,
            r#"{"socket":{"port":{"key":"53/udp","at":null}}}"#,
        ),
        (
            Part::Socket(Socket::Port {
                key: "80/tcp".parse().unwrap(),
                at: Some("10.0.0.1".parse().unwrap()),
            }),
            1,
            r#"{"socket":{"port":{"key":"80/tcp","at":"10.0.0.1"}}}"#,
        ),
        (
            Part::Counts(Counts {
                last_id: 9,
                coming: BTreeMap::from([(
                    "80/tcp".parse().unwrap(),
                    Coming { held: 1, active: 2 },
                )]),
                ..Counts::default()
            }),
            0,
            r#"{"counts":{"last_id":9,"tallies":{},"heard":{},"coming":{"80/tcp":{"held":1,"active":2}}}}"#,
        ),
    ];
    for (part, descriptors, bytes) in records {
        let mut packer = Packer::default();
        packer.add(PartId(4), &part, descriptors, &[]).unwrap();
        let content = String::from_utf8(packer.finish().unwrap().content).unwrap();
        assert_eq!(
            content,
            format!(r#"[{{"id":4,"descriptors":{descriptors},"bytes":0,"part":{bytes}}}]"#)
        );
    }
}

/// A relay and a held client as version 1 wrote them, and as one that knew less would.
#[test]
fn connections_of_version_1_are_read() {
    let relay_then = r#"{"relay":{"broken":false,"identity":{"age":1500000,"answered":true,
        "application":"db","bytes_in":10,"bytes_out":20,"client":"10.0.0.9:40000",
        "destination":"10.0.0.1:5432","flowing":1000000,"id":7,"origin":"client","quiet":3,"route":"5432/tcp",
        "upstream":{"local":"172.17.0.2:5432"}},"inward":{"bulk":false,"done":false,"load":{"here":3}},
        "outward":{"bulk":true,"done":true,"load":{"piped":9}},"goodbye":"drain"}}"#;
    let held_then = r#"{"held":{"identity":{"age":1500000,"answered":true,"application":"db",
        "bytes_in":10,"bytes_out":20,"client":"10.0.0.9:40000","destination":"10.0.0.1:5432",
        "flowing":1000000,"id":7,"origin":{"trunk":{"application":"db","hops":1,"known":{"epoch":2,
        "generation":1}}},"quiet":3,"route":"5432/tcp","upstream":{"trunk":"h2:7421"}},
        "parked":true}}"#;
    let rest_then = r#"{"rest":{"begun":3,"identity":{"age":1500000,"answered":true,"application":"db",
        "bytes_in":10,"bytes_out":20,"client":"10.0.0.9:40000","destination":"10.0.0.1:5432",
        "flowing":1000000,"id":7,"origin":"client","quiet":3,"route":"5432/tcp",
        "upstream":{"local":"172.17.0.2:5432"}},"reaches":true}}"#;
    let all = [
        (relay(), relay_then),
        (held(), held_then),
        (rest(), rest_then),
    ];
    let newcomer = Part::Newcomer(Newcomer {
        route: "5432/tcp".parse().unwrap(),
        age: 9,
    });
    let newcomer_then = r#"{"newcomer":{"route":"5432/tcp","age":9}}"#;
    let all = all.into_iter().chain([(newcomer, newcomer_then)]);
    for (part, then) in all {
        assert_eq!(serde_json::from_str::<Part>(then).unwrap(), part);
        let now = serde_json::to_value(&part).unwrap();
        let then: serde_json::Value = serde_json::from_str(then).unwrap();
        assert_eq!(now, then);
    }
    let less = r#"{"relay":{"identity":{"id":7,"route":"5432/tcp","application":null,
        "client":"10.0.0.9:40000","destination":"10.0.0.1:5432","age":0},"inward":{},
        "outward":{},"of_tomorrow":1}}"#;
    assert!(matches!(serde_json::from_str(less), Ok(Part::Relay(_))));
}

#[test]
fn a_batch_comes_as_it_was_packed_and_what_is_unknown_is_refused_alone() {
    let mut packer = Packer::default();
    packer.add(PartId(1), &relay(), 4, b"abc").unwrap();
    packer.add(PartId(2), &held(), 1, &[]).unwrap();
    packer.add(PartId(3), &table(), 0, b"{}").unwrap();
    // A relay whose descriptors are not those that it needs.
    packer.add(PartId(4), &relay(), 1, b"abc").unwrap();
    let packed = packer.finish().unwrap();
    let content = String::from_utf8(packed.content).unwrap();
    let content = content.replacen("\"held\"", "\"helm\"", 1);
    let parts = unpack(&packed.batch, content.as_bytes(), 6).unwrap();
    assert_eq!(parts[0].part, Ok(relay()));
    assert_eq!(parts[0].descriptors, 0..4);
    assert_eq!(&content.as_bytes()[parts[0].bytes.clone()], b"abc");
    assert!(parts[1].part.is_err() && parts[3].part.is_err());
    assert_eq!(parts[2].part, Ok(table()));
    assert_eq!(&content.as_bytes()[parts[2].bytes.clone()], b"{}");
    assert_eq!(parts[3].descriptors, 5..6);
    for descriptors in [0, 5, 7] {
        assert!(unpack(&packed.batch, content.as_bytes(), descriptors).is_err());
    }
    let cut = &content.as_bytes()[..content.len() - 1];
    assert!(unpack(&packed.batch, cut, 6).is_err());
}

#[test]
fn a_batch_holds_what_one_message_can_carry_and_any_part_alone() {
    let mut packer = Packer::default();
    assert!(packer.fits(1000, MOST_BYTES + 1));
    for id in 0..125 {
        assert!(packer.fits(2, 0));
        packer.add(PartId(id), &table(), 2, &[]).unwrap();
    }
    assert!(!packer.fits(1, 0) && packer.fits(0, MOST_BYTES) && !packer.fits(0, MOST_BYTES + 1));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(
        content in proptest::collection::vec(any::<u8>(), 0..200),
        records in 0_u64..300,
        bytes in 0_u64..300,
        descriptors in 0_usize..300,
    ) {
        let batch = Batch { ids: vec![], records, bytes };
        drop(unpack(&batch, &content, descriptors));
        drop(decode(&content));
    }

    #[test]
    fn numbers_that_are_too_large_are_refused(descriptors in any::<u64>(), bytes in any::<u64>()) {
        let content = format!(
            r#"[{{"id":1,"descriptors":{descriptors},"bytes":{bytes},"part":{{"table":{{"form":1}}}}}}]"#
        );
        let batch = Batch {
            ids: vec![PartId(1)],
            records: u64::try_from(content.len()).unwrap(),
            bytes: 0,
        };
        let parts = unpack(&batch, content.as_bytes(), 3);
        // A table has no descriptors: this one is refused, if the batch can be read at all.
        prop_assert!(parts.is_err() || parts.is_ok_and(|parts| parts[0].part.is_err()));
    }
}
