use proptest::prelude::*;

use super::head::{self, Asks};
use super::*;

fn get() -> Request {
    whole(head::request(b"GET / HTTP/1.1\r\n\r\n"))
}

fn whole<T: std::fmt::Debug>(head: Head<T>) -> T {
    match head {
        Head::Whole { head, .. } => head,
        other => panic!("{other:?}"),
    }
}

fn asked(text: &str) -> Request {
    whole(head::request(text.as_bytes()))
}

fn answered(text: &str, asks: Asks) -> Reply {
    whole(head::response(text.as_bytes(), asks))
}

/// Requests, what follows their heads, whether the client goes on, and whether they may be repeated.
const REQUESTS: [(&str, Body, bool, bool); 12] = [
    ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Body::NONE, true, true),
    ("\r\nGET / HTTP/1.1\r\n\r\n", Body::NONE, true, true),
    ("GET / HTTP/1.0\r\n\r\n", Body::NONE, false, true),
    (
        "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        Body::NONE,
        true,
        true,
    ),
    (
        "HEAD / HTTP/1.1\r\nconnection: te, CLOSE\r\n\r\n",
        Body::NONE,
        false,
        true,
    ),
    (
        "OPTIONS * HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        Body::NONE,
        true,
        true,
    ),
    (
        "GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        Body::Length(3),
        true,
        false,
    ),
    ("POST / HTTP/1.1\r\n\r\n", Body::NONE, true, false),
    (
        "PUT / HTTP/1.1\r\ncontent-length:  12 \r\n\r\n",
        Body::Length(12),
        true,
        false,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n",
        Body::chunked(),
        true,
        false,
    ),
    (
        "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        Body::Length(5),
        true,
        false,
    ),
    (
        "GET / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        Body::NONE,
        true,
        true,
    ),
];

#[test]
fn requests_say_what_follows_them() {
    for (text, body, goes_on, repeatable) in REQUESTS {
        let said = asked(text);
        assert_eq!(
            (said.body, said.goes_on, said.repeatable),
            (body, goes_on, repeatable),
            "{text}"
        );
    }
    assert_eq!(asked("CONNECT a:1 HTTP/1.1\r\n\r\n").asks, Asks::Tunnel);
}

#[test]
fn what_can_be_read_in_two_ways_is_foreign() {
    for text in [
        "GET / HTTP/1.1\nHost: x\n\n",
        "GET / HTTP/1.1\r\nHost: x\n\r\n",
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00",
        "ping\r\n",
    ] {
        assert_eq!(head::request(text.as_bytes()), Head::Foreign, "{text:?}");
    }
    for text in [
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let said = head::response(text.as_bytes(), Asks::All);
        assert_eq!(said, Head::Foreign, "{text:?}");
    }
}

#[test]
fn a_head_is_waited_for_until_it_is_too_long() {
    let mut text = "GET / HTTP/1.1\r\nCookie: ".to_owned();
    assert_eq!(head::request(text.as_bytes()), Head::Partial);
    assert_eq!(head::request(b""), Head::Partial);
    text.extend(std::iter::repeat_n('x', HEAD_CAP - text.len() - 1));
    assert_eq!(head::request(text.as_bytes()), Head::Partial);
    text.push('x');
    assert_eq!(head::request(text.as_bytes()), Head::Foreign);
    let end = text.len() - 4;
    text.replace_range(end.., "\r\n\r\n");
    assert!(matches!(
        head::request(text.as_bytes()),
        Head::Whole {
            length: HEAD_CAP,
            ..
        }
    ));
    let many = "A: b\r\n".repeat(129);
    let many = format!("GET / HTTP/1.1\r\n{many}\r\n");
    assert_eq!(head::request(many.as_bytes()), Head::Foreign);
}

const fn last(body: Body, goes_on: bool) -> Reply {
    Reply::Final { body, goes_on }
}

/// Responses, what was asked, and what they say.
const RESPONSES: [(&str, Asks, Reply); 16] = [
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
        Asks::All,
        last(Body::Length(7), true),
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
        Asks::Head,
        last(Body::NONE, true),
    ),
    (
        "HTTP/1.1 204 No\r\nContent-Length: 7\r\n\r\n",
        Asks::All,
        last(Body::NONE, true),
    ),
    (
        "HTTP/1.1 304 No\r\nContent-Length: 7\r\n\r\n",
        Asks::All,
        last(Body::NONE, true),
    ),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        Asks::All,
        last(Body::chunked(), true),
    ),
    (
        "HTTP/1.1 200 OK\r\n\r\n",
        Asks::All,
        last(Body::UntilEnd, false),
    ),
    (
        "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n",
        Asks::All,
        last(Body::Length(7), false),
    ),
    (
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\n",
        Asks::All,
        last(Body::Length(7), false),
    ),
    ("HTTP/1.1 100 Continue\r\n\r\n", Asks::All, Reply::Interim),
    (
        "HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n",
        Asks::All,
        Reply::Interim,
    ),
    (
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
        Asks::All,
        Reply::Tunnel,
    ),
    ("HTTP/1.1 200 OK\r\n\r\n", Asks::Tunnel, Reply::Tunnel),
    (
        "HTTP/1.1 407 No\r\nContent-Length: 7\r\n\r\n",
        Asks::Tunnel,
        last(Body::Length(7), true),
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream ;charset=utf-8\r\n\r\n",
        Asks::All,
        Reply::Tunnel,
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        Asks::Head,
        last(Body::NONE, true),
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-streams\r\nContent-Length: 7\r\n\r\n",
        Asks::All,
        last(Body::Length(7), true),
    ),
];

#[test]
fn responses_say_what_follows_them() {
    for (text, asks, reply) in RESPONSES {
        assert_eq!(answered(text, asks), reply, "{text}");
    }
}

fn eaten(body: Body, bytes: &[u8]) -> (usize, Progress) {
    let mut body = body;
    let eaten = body.eat(bytes);
    (eaten.bytes, eaten.progress)
}

#[test]
fn chunks_are_counted_with_all_that_belongs_to_them() {
    for text in [
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "00000a;name=\"va;lue\"\r\n0123456789\r\n0;x\r\n\r\n",
        "1 \r\nx\r\n0\r\nTrailer: x\r\nOther:\r\n\r\n",
        "2\r\n\r\n\r\n0\r\n\r\n",
    ] {
        let followed = format!("{text}GET");
        let length = text.len();
        assert_eq!(
            eaten(Body::chunked(), followed.as_bytes()),
            (length, Progress::Whole),
            "{text:?}"
        );
        let but_one = &text.as_bytes()[..length - 1];
        assert_eq!(
            eaten(Body::chunked(), but_one),
            (length - 1, Progress::More),
            "{text:?}"
        );
    }
    for (text, good) in [
        ("\r\n", 0),
        ("x\r\n", 0),
        ("3\n", 1),
        ("3\r\nabcd", 6),
        ("3\r\nabc\rx", 7),
        ("3;a\nb", 3),
        ("0\r\nA: b\n", 7),
        ("0\r\n\n", 3),
        ("11111111111111111\r\n", 16),
    ] {
        let seen = eaten(Body::chunked(), text.as_bytes());
        assert_eq!(seen, (good, Progress::Foreign), "{text:?}");
    }
}

#[test]
fn an_answer_is_followed_through_interim_heads() {
    let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP";
    let mut flight = Flight::new(18, &get());
    assert_eq!(flight.ask(b"GET / HTTP/1.1\r\n\r\nGET").bytes, 18);
    assert!(flight.is_asked());
    let taken = flight.answer(text);
    assert_eq!((taken.bytes, taken.then), (text.len() - 4, Then::Whole));
    assert_eq!(flight.after(), After::Boundary);
}

#[test]
fn an_answer_before_the_request_is_whole_is_the_last_one() {
    let text = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut flight = Flight::new(text.len(), &asked(text));
    assert_eq!(flight.ask(text.as_bytes()).progress, Progress::More);
    let taken = flight.answer(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(taken.then, Then::Whole);
    assert_eq!(flight.after(), After::End);
}

#[test]
fn a_tunnel_is_plain_after_its_head_and_an_end_ends_only_what_has_no_length() {
    let mut flight = Flight::new(18, &get());
    let head = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n";
    let taken = flight.answer(format!("{head}\u{1}\u{2}").as_bytes());
    assert_eq!((taken.bytes, taken.then), (head.len(), Then::Plain));
    for (text, ends) in [
        ("HTTP/1.1 200 OK\r\n\r\nsome", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome", false),
        ("HTTP/1.1 200 OK\r\n", false),
    ] {
        let mut flight = Flight::new(18, &get());
        assert_eq!(flight.answer(text.as_bytes()).then, Then::More);
        assert_eq!(flight.end(), ends, "{text}");
        assert_eq!(flight.after(), After::End);
    }
}

/// A message of a length that is known without looking at it.
#[derive(Debug, Clone)]
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.body].concat()
    }
}

fn body() -> impl Strategy<Value = (String, Vec<u8>)> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let chunks = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..4);
    prop_oneof![
        Just((String::new(), Vec::new())),
        bytes().prop_map(|bytes| (format!("Content-Length: {}\r\n", bytes.len()), bytes)),
        (chunks, any::<bool>()).prop_map(|(chunks, trailer)| {
            let mut body = Vec::new();
            for chunk in chunks {
                body.extend(format!("{:x};e=1\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n");
            body.extend(if trailer {
                b"T: x\r\n\r\n".as_slice()
            } else {
                b"\r\n"
            });
            ("Transfer-Encoding: chunked\r\n".to_owned(), body)
        }),
    ]
}

fn ask() -> impl Strategy<Value = Message> {
    (prop::sample::select(vec!["GET", "POST", "HEAD"]), body()).prop_map(
        |(method, (field, body))| {
            let head = format!("{method} /path HTTP/1.1\r\nHost: x\r\n{field}\r\n");
            Message { head, body }
        },
    )
}

/// A request and its response.
fn turn() -> impl Strategy<Value = (Message, Message)> {
    let interim = prop::sample::select(vec!["", "HTTP/1.1 100 Continue\r\n\r\n"]);
    let code = prop::sample::select(vec![200_u16, 204, 304, 500]);
    (ask(), interim, code, body()).prop_map(|(ask, interim, code, (field, body))| {
        let field = if field.is_empty() {
            "Content-Length: 0\r\n".to_owned()
        } else {
            field
        };
        let head = format!("{interim}HTTP/1.1 {code} Word\r\n{field}\r\n");
        let none = matches!(code, 204 | 304) || ask.head.starts_with("HEAD");
        let body = if none { Vec::new() } else { body };
        (ask, Message { head, body })
    })
}

/// One side of a connection: bytes that come in pieces.
struct Side {
    bytes: Vec<u8>,
    /// What has come.
    came: usize,
    /// What was passed on.
    passed: usize,
}

impl Side {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            came: 0,
            passed: 0,
        }
    }

    fn come(&mut self, piece: usize) {
        self.came = self.came.saturating_add(piece).min(self.bytes.len());
    }

    fn here(&self) -> &[u8] {
        &self.bytes[self.passed..self.came]
    }
}

/// What is seen of a connection: the ends of requests and of responses, and whether it became plain.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    requests: Vec<usize>,
    responses: Vec<usize>,
    plain: bool,
}

/// Follows a connection whose sides speak in these pieces, as the proxy does: one request at a time.
/// What does not come in them comes at the end.
fn follow(client: &[u8], server: &[u8], pieces: &[(bool, usize)]) -> Seen {
    let (mut client, mut server) = (Side::new(client.to_vec()), Side::new(server.to_vec()));
    let (mut seen, mut flight) = (Seen::default(), None);
    for (from_client, piece) in pieces
        .iter()
        .copied()
        .chain([(true, usize::MAX), (false, usize::MAX)])
    {
        if from_client {
            client.come(piece);
        } else {
            server.come(piece);
        }
        while step(&mut client, &mut server, &mut flight, &mut seen) {}
        if seen.plain {
            break;
        }
    }
    seen
}

/// Whether there is more to do.
fn step(
    client: &mut Side,
    server: &mut Side,
    flight: &mut Option<Flight>,
    seen: &mut Seen,
) -> bool {
    let Some(now) = flight else {
        match head::request(client.here()) {
            Head::Partial => return false,
            Head::Foreign => seen.plain = true,
            Head::Whole { length, head } => *flight = Some(Flight::new(length, &head)),
        }
        return !seen.plain;
    };
    let asking = !now.is_asked();
    let eaten = now.ask(client.here());
    client.passed += eaten.bytes;
    if asking && now.is_asked() {
        seen.requests.push(client.passed);
    }
    // An application answers a request that it has.
    if !now.is_asked() {
        seen.plain = eaten.progress == Progress::Foreign;
        return false;
    }
    let taken = now.answer(server.here());
    server.passed += taken.bytes;
    match taken.then {
        Then::More => false,
        Then::Plain => {
            seen.plain = true;
            false
        }
        Then::Whole => {
            seen.responses.push(server.passed);
            seen.plain = now.after() == After::End;
            *flight = None;
            !seen.plain
        }
    }
}

fn pieces() -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop::collection::vec((any::<bool>(), 1_usize..60), 0..60)
}

fn ends(messages: impl Iterator<Item = usize>) -> Vec<usize> {
    messages
        .scan(0, |at, length| {
            *at += length;
            Some(*at)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_pieces_each_message_ends_where_it_does(
        turns in prop::collection::vec(turn(), 1..6),
        pieces in pieces(),
    ) {
        let client: Vec<u8> = turns.iter().flat_map(|(ask, _)| ask.bytes()).collect();
        let server: Vec<u8> = turns.iter().flat_map(|(_, answer)| answer.bytes()).collect();
        let seen = follow(&client, &server, &pieces);
        prop_assert_eq!(&seen.requests, &ends(turns.iter().map(|(ask, _)| ask.bytes().len())));
        prop_assert_eq!(&seen.responses, &ends(turns.iter().map(|(_, answer)| answer.bytes().len())));
        prop_assert!(!seen.plain);
    }

    #[test]
    fn a_broken_stream_is_seen_alike_whatever_its_pieces(
        turns in prop::collection::vec(turn(), 1..4),
        pieces in pieces(),
        (at, byte) in (any::<prop::sample::Index>(), any::<u8>()),
    ) {
        let mut client: Vec<u8> = turns.iter().flat_map(|(ask, _)| ask.bytes()).collect();
        let mut server: Vec<u8> = turns.iter().flat_map(|(_, answer)| answer.bytes()).collect();
        let at = at.index(client.len() + server.len());
        let of = if at < client.len() { &mut client[at] } else { &mut server[at - client.len()] };
        *of = byte;
        let (one, other) = (follow(&client, &server, &pieces), follow(&client, &server, &[]));
        prop_assert_eq!(one, other);
    }

    #[test]
    fn no_bytes_are_too_strange(
        client in prop::collection::vec(any::<u8>(), 0..200),
        server in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _seen = follow(&client, &server, &[]);
        let mut flight = Flight::new(0, &get());
        let taken = flight.answer(&server);
        prop_assert!(taken.bytes <= server.len());
        prop_assert!(flight.ask(&client).bytes <= client.len());
    }
}
