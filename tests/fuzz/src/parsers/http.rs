//! The requests of a connection and their responses. The first byte says in which pieces the others
//! come; what the client says goes as far as the first zero, behind that is what the application
//! says.

use proxyd_core::http::{After, Flight, HEAD_CAP, Head, Progress, Then, head};

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let mut sides = bytes.splitn(2, |byte| *byte == 0);
    let client = sides.next().unwrap_or_default();
    let server = sides.next().unwrap_or_default();
    let whole = follow(client, server, bytes.len().max(1));
    let pieces = follow(client, server, usize::from(*size) + 1);
    assert_eq!(whole, pieces, "pieces of {size} make a difference");
}

/// What is seen of a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Where requests end.
    requests: Vec<usize>,
    /// Where responses do.
    responses: Vec<usize>,
    /// It is not followed any more.
    plain: bool,
    /// An end of the application would be that of its response.
    ends: bool,
}

/// One side, of which so much has come, and so much was passed on.
struct Side<'a> {
    bytes: &'a [u8],
    came: usize,
    passed: usize,
}

impl<'a> Side<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            came: 0,
            passed: 0,
        }
    }

    fn come(&mut self, piece: usize) {
        self.came = self.came.saturating_add(piece).min(self.bytes.len());
    }

    fn is_over(&self) -> bool {
        self.came == self.bytes.len()
    }

    fn here(&self) -> &'a [u8] {
        self.bytes.get(self.passed..self.came).unwrap_or_default()
    }

    fn pass(&mut self, bytes: usize) {
        assert!(bytes <= self.here().len(), "more is passed on than came");
        self.passed += bytes;
    }
}

/// Follows a connection as the proxy does: one request at a time, each of which is answered once it
/// is whole.
fn follow(client: &[u8], server: &[u8], piece: usize) -> Seen {
    let (mut client, mut server) = (Side::new(client), Side::new(server));
    let (mut seen, mut flight) = (Seen::default(), None);
    loop {
        client.come(piece);
        server.come(piece);
        while step(&mut client, &mut server, &mut flight, &mut seen) {}
        if seen.plain {
            return seen;
        }
        if client.is_over() && server.is_over() {
            seen.ends = flight.as_mut().is_some_and(Flight::end);
            return seen;
        }
    }
}

/// Whether there is more to do.
fn step(
    client: &mut Side<'_>,
    server: &mut Side<'_>,
    flight: &mut Option<Flight>,
    seen: &mut Seen,
) -> bool {
    let Some(now) = flight else {
        *flight = begin(client.here(), seen);
        return flight.is_some();
    };
    let asking = !now.is_asked();
    let eaten = now.ask(client.here());
    client.pass(eaten.bytes);
    if !now.is_asked() {
        seen.plain = eaten.progress == Progress::Foreign;
        return false;
    }
    if asking {
        seen.requests.push(client.passed);
    }
    let taken = now.answer(server.here());
    server.pass(taken.bytes);
    match taken.then {
        Then::More => return false,
        Then::Plain => {
            seen.plain = true;
            return false;
        }
        Then::Whole => {}
    }
    seen.responses.push(server.passed);
    seen.plain = now.after() == After::End;
    *flight = None;
    !seen.plain
}

/// The next request, once its head is whole.
fn begin(bytes: &[u8], seen: &mut Seen) -> Option<Flight> {
    match head::request(bytes) {
        Head::Partial => None,
        Head::Foreign => {
            seen.plain = true;
            None
        }
        Head::Whole { length, head } => {
            let fits = (1..=HEAD_CAP.min(bytes.len())).contains(&length);
            assert!(fits, "a head of {length} in {} bytes", bytes.len());
            Some(Flight::new(length, &head))
        }
    }
}
