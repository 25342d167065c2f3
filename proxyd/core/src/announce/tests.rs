use std::net::SocketAddr;

use proptest::prelude::*;

use super::{Announced, HeaderError, LONGEST, Seen, header, look};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, body].concat()
}

fn announced(bytes: &[u8]) -> Result<Announced, HeaderError> {
    match look(bytes)? {
        Seen::Whole { length, announced } => {
            assert_eq!(length, bytes.len());
            Ok(announced)
        }
        Seen::Part => panic!("{bytes:?} is not whole"),
    }
}

fn client(client: &str, destination: &str) -> Announced {
    Announced::Client {
        client: client.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

#[test]
fn lines_of_version_1_are_read() {
    let four = announced(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n");
    assert_eq!(four, Ok(client("192.0.2.1:56324", "198.51.100.1:443")));
    let six = announced(b"PROXY TCP6 2001:db8::1 ::ffff:10.0.0.1 0 65535\r\n");
    assert_eq!(six, Ok(client("[2001:db8::1]:0", "10.0.0.1:65535")));
    for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff:: anything \r\n"] {
        assert_eq!(announced(unknown.as_bytes()), Ok(Announced::Nobody));
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16));
    assert_eq!(announced(longest.as_bytes()), Ok(Announced::Nobody));
}

#[test]
fn what_is_no_line_of_version_1_is_refused() {
    for (line, error) in [
        ("PROXy TCP4", HeaderError::NotAHeader),
        ("POST / HTTP/1.1\r\n", HeaderError::NotAHeader),
        ("PROXY UNKNOWN\n", HeaderError::Line("end")),
        ("PROXY \r\n", HeaderError::Line("protocol")),
        (
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            HeaderError::Line("protocol"),
        ),
        (
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            HeaderError::Line("client address"),
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.04 1 2\r\n",
            HeaderError::Line("destination address"),
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            HeaderError::Line("client port"),
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 02\r\n",
            HeaderError::Line("destination port"),
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            HeaderError::Line("destination port"),
        ),
        (
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            HeaderError::Line("client address"),
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            HeaderError::Line("end"),
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            HeaderError::Line("destination port"),
        ),
    ] {
        assert_eq!(look(line.as_bytes()), Err(error), "{line:?}");
    }
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(108 - 16));
    assert_eq!(look(long.as_bytes()), Err(HeaderError::TooLong));
    assert_eq!(
        look(b"PROXY UNKNOWN \xff\r\n"),
        Err(HeaderError::Line("end"))
    );
}

#[test]
fn headers_of_version_2_are_read_whatever_fields_they_have() {
    let four = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];
    let told = Ok(client("192.0.2.1:56324", "198.51.100.1:443"));
    assert_eq!(announced(&v2(0x21, 0x11, &four)), told);
    let fields = [four.as_slice(), &[0xEA, 0, 2, 1, 2, 0x04, 0, 0]].concat();
    assert_eq!(announced(&v2(0x21, 0x11, &fields)), told);
    let largest = LONGEST - 16 - four.len() - 3;
    let [high, low] = u16::try_from(largest).unwrap().to_be_bytes();
    let fields = [&four, [0xEA, high, low].as_slice(), &vec![9; largest]].concat();
    assert_eq!(announced(&v2(0x21, 0x11, &fields)), told);
    assert_eq!(
        look(&v2(0x21, 0x11, &[fields, vec![9]].concat())),
        Err(HeaderError::TooLong)
    );
}

#[test]
fn who_speaks_for_nobody_keeps_its_own_address() {
    for bytes in [
        v2(0x20, 0x00, &[]),
        // A family has no meaning there.
        v2(0x20, 0x77, &[1, 2, 3]),
        v2(0x21, 0x00, &[9; 7]),
        v2(0x21, 0x31, &[0; 216]),
    ] {
        assert_eq!(announced(&bytes), Ok(Announced::Nobody));
    }
}

#[test]
fn what_is_no_header_of_version_2_is_refused() {
    let four = [1; 12];
    for (bytes, error) in [
        (v2(0x11, 0x11, &four), HeaderError::Command(0x11)),
        (v2(0x22, 0x11, &four), HeaderError::Command(0x22)),
        (v2(0x21, 0x12, &four), HeaderError::Family(0x12)),
        (v2(0x21, 0x41, &four), HeaderError::Family(0x41)),
        (v2(0x21, 0x11, &four[1..]), HeaderError::Truncated),
        (v2(0x21, 0x21, &[1; 35]), HeaderError::Truncated),
        (v2(0x21, 0x11, &[1; 14]), HeaderError::Truncated),
        (
            v2(0x21, 0x11, &[&four[..], &[4, 0, 2, 0]].concat()),
            HeaderError::Truncated,
        ),
        (
            v2(0x21, 0x11, &[&four[..], &[3, 0, 1, 0]].concat()),
            HeaderError::Checksum,
        ),
        (b"\r\n\r\n\0\r\nQUIX".to_vec(), HeaderError::NotAHeader),
        (b"GET / HTTP/1.1\r\n".to_vec(), HeaderError::NotAHeader),
    ] {
        assert_eq!(look(&bytes), Err(error), "{bytes:?}");
    }
}

/// As HAProxy writes it with `send-proxy-v2 proxy-v2-options crc32c`, by the words of the
/// specification: the sum over the header with zeros in its own place.
#[test]
fn a_checksum_is_checked_where_there_is_one() {
    let body = [
        192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb, 3, 0, 4,
    ];
    let mut bytes = v2(0x21, 0x11, &[&body[..], &[0; 4]].concat());
    let own = plain_crc(&bytes).to_be_bytes();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&own);
    let told = Ok(client("192.0.2.1:56324", "198.51.100.1:443"));
    assert_eq!(announced(&bytes), told);
    for at in 16..bytes.len() - 7 {
        let mut other = bytes.clone();
        other[at] ^= 1;
        assert_eq!(look(&other), Err(HeaderError::Checksum), "at {at}");
    }
}

/// By polynomial division, bit by bit from the other end.
fn plain_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            let carry = crc & 0x8000_0000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1EDC_6F41;
            }
        }
    }
    !crc.reverse_bits()
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        v2(0x20, 0, &[]),
        v2(0x21, 0x11, &[7; 15]),
        header(
            "[2001:db8::1]:5".parse().unwrap(),
            "10.0.0.1:6".parse().unwrap(),
        ),
    ]
}

/// A header that was changed somewhere, with something behind it.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let seed = proptest::sample::select(seeds());
    let change = proptest::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (seed, change, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(mut bytes, change, behind)| {
            if let Some((at, byte)) = change {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.extend(behind);
            bytes
        },
    )
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>())
        .prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

proptest! {
    /// The verdict on a beginning is kept, or it is "not whole yet": nothing depends on how the
    /// bytes were cut, and nothing behind the header is looked at.
    #[test]
    fn however_the_bytes_are_cut_the_verdict_is_the_same(
        bytes in prop_oneof![nearly(), proptest::collection::vec(any::<u8>(), 0..200)],
    ) {
        let verdict = look(&bytes);
        let mut before = Ok(Seen::Part);
        for end in 0..=bytes.len() {
            let now = look(&bytes[..end]);
            if before != Ok(Seen::Part) {
                prop_assert_eq!(now, before);
            }
            if let Ok(Seen::Whole { length, .. }) = now {
                prop_assert!(length <= end && length <= LONGEST);
            }
            before = now;
        }
        prop_assert_eq!(before, verdict);
    }

    #[test]
    fn what_is_announced_is_read_as_it_was_meant(
        who in address(), to in address(), behind in proptest::collection::vec(any::<u8>(), 0..9),
    ) {
        let mut bytes = header(who, to);
        let length = bytes.len();
        let announced = Announced::Client { client: who, destination: to };
        bytes.extend(behind);
        prop_assert_eq!(look(&bytes), Ok(Seen::Whole { length, announced }));
    }
}
