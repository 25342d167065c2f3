use proptest::prelude::*;

use super::*;

fn header() -> Header {
    Header {
        client: "192.0.2.7:40000".parse().unwrap(),
        destination: "10.77.0.12:5432".parse().unwrap(),
        route: "5432/tcp".parse().unwrap(),
        application: AppName::try_new("db").unwrap(),
        hops: 1,
        sender: HostAddr::try_new("10.77.0.12").unwrap(),
        version: RouteVersion {
            epoch: Epoch(3),
            generation: Generation(7),
        },
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// These bytes are the protocol: a daemon of another version reads and writes them.
#[test]
fn the_bytes_of_a_header_are_fixed() {
    let golden = hex("0d0a0d0a000d0a515549540a 21 11 0044 \
         c0000207 0a4d000c 9c40 1538 \
         e0 0001 01 \
         e1 0008 353433322f746370 \
         e2 0002 6462 \
         e3 0001 01 \
         e4 000a 31302e37372e302e3132 \
         e5 0010 0000000000000003 0000000000000007");
    assert_eq!(header().encode(), golden);
    assert_eq!(Header::decode(&golden), Ok(Decoded::Done(header())));
}

#[test]
fn the_bytes_of_answers_are_fixed() {
    let moved = Answer::Moved {
        host: HostAddr::try_new("h2").unwrap(),
        trunk: "h2:7421".into(),
        version: RouteVersion {
            epoch: Epoch(4),
            generation: Generation(0),
        },
    };
    let cases = [
        (Answer::Connected, "01 0000"),
        (
            moved,
            "02 001b 0000000000000004 0000000000000000 02 6832 07 68323a37343231",
        ),
        (Answer::Refused(Refusal::Full), "03 0001 03"),
    ];
    for (answer, golden) in cases {
        let golden = hex(golden);
        assert_eq!(answer.encode(), golden, "{answer:?}");
        assert_eq!(Answer::decode(&golden), Ok(Decoded::Done(answer)));
    }
}

#[test]
fn a_header_that_arrives_byte_by_byte_is_asked_for_exactly() {
    let bytes = header().encode();
    let mut have = 0;
    loop {
        match Header::decode(&bytes[..have]).unwrap() {
            Decoded::Need(more) => have += more,
            Decoded::Done(got) => {
                assert_eq!(got, header());
                break;
            }
        }
    }
    assert_eq!(have, bytes.len());
    for cut in 0..bytes.len() {
        assert!(
            matches!(Header::decode(&bytes[..cut]), Ok(Decoded::Need(_))),
            "{cut}"
        );
    }
}

#[test]
fn families_are_kept_and_mixed_ones_are_mapped() {
    let mut v6 = header();
    v6.client = "[2001:db8::1]:9".parse().unwrap();
    v6.route = "53/udp".parse().unwrap();
    let bytes = v6.encode();
    assert_eq!(bytes[13], 0x22);
    assert_eq!(Header::decode(&bytes), Ok(Decoded::Done(v6)));
}

#[test]
fn lies_about_lengths_are_refused_before_they_are_believed() {
    let mut long = header().encode();
    long[14..16].copy_from_slice(&[0xFF, 0xFF]);
    assert_eq!(
        Header::decode(&long),
        Err(FrameError::TooLong {
            length: 0xFFFF,
            cap: HEADER_CAP
        })
    );
    let mut field = header().encode();
    field[HEADER_FIXED + 12 + 1] = 0x7F;
    assert_eq!(Header::decode(&field), Err(FrameError::Truncated));
    assert_eq!(
        Answer::decode(&[2, 0xFF, 0xFF]),
        Err(FrameError::TooLong {
            length: 0xFFFF,
            cap: ANSWER_CAP
        })
    );
}

#[test]
fn another_protocol_is_refused_at_once() {
    assert_eq!(
        Header::decode(b"GET / HTTP/1.1"),
        Err(FrameError::NotAHeader)
    );
    assert_eq!(Answer::decode(b"HTTP"), Err(FrameError::NotAnAnswer(b'H')));
    let mut newer = header().encode();
    newer[HEADER_FIXED + 12 + 3] = 2;
    assert_eq!(Header::decode(&newer), Err(FrameError::Protocol(2)));
}

#[test]
fn an_unknown_field_is_skipped_and_a_double_one_refused() {
    let mut bytes = header().encode();
    let grow = |bytes: &mut Vec<u8>, field: &[u8]| {
        bytes.extend_from_slice(field);
        let length = u16::try_from(bytes.len() - HEADER_FIXED).unwrap();
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
    };
    grow(&mut bytes, &[0xEA, 0, 2, 1, 2]);
    assert_eq!(Header::decode(&bytes), Ok(Decoded::Done(header())));
    grow(&mut bytes, &[TYPE_HOPS, 0, 1, 9]);
    assert_eq!(Header::decode(&bytes), Err(FrameError::Twice(TYPE_HOPS)));
}

#[test]
fn a_route_must_fit_its_family() {
    let mut bytes = header().encode();
    bytes[13] = 0x12;
    assert_eq!(Header::decode(&bytes), Err(FrameError::Wrong("route")));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), family in any::<u8>()) {
        drop(Header::decode(&bytes));
        drop(Answer::decode(&bytes));
        // The same behind a true beginning, so that the inner decoders are reached.
        let mut framed = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
        framed.push(family);
        framed.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&bytes);
        drop(Header::decode(&framed));
        let mut answer = vec![family % 4];
        answer.extend_from_slice(&framed[14..]);
        drop(Answer::decode(&answer));
    }

    #[test]
    fn one_changed_byte_never_panics_and_the_rest_comes_back(at in 0_usize..84, to in any::<u8>()) {
        let mut bytes = header().encode();
        prop_assert_eq!(Header::decode(&bytes), Ok(Decoded::Done(header())));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        drop(Header::decode(&bytes));
    }
}
