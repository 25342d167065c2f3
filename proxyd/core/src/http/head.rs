//! The heads of requests and responses, as far as the ends of messages depend on them.
//!
//! Stricter than the standard asks of a server: what one program could read in one way and the next
//! one in another way is foreign.

use httparse::{EMPTY_HEADER, Header, Status};

use super::body::Body;

/// The longest head that is looked at.
pub const HEAD_CAP: usize = 16 << 10;

/// The most fields in a head.
const FIELDS: usize = 128;

/// What stands at the begin of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Head<T> {
    /// A part of a head, perhaps.
    Partial,
    /// A head of this length.
    Whole {
        /// Its length with the empty line at its end.
        length: usize,
        /// What it says.
        head: T,
    },
    /// Nothing that is understood.
    Foreign,
}

/// What a request says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What it asks for, as far as the end of its response depends on it.
    pub asks: Asks,
    /// What follows the head.
    pub body: Body,
    /// Whether the client means to go on afterwards.
    pub goes_on: bool,
    /// Whether it is safe, and carries nothing: it may then be sent again.
    pub repeatable: bool,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// An answer with a body.
    All,
    /// The head of an answer alone.
    Head,
    /// A tunnel.
    Tunnel,
}

/// What the head of a response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Another head follows.
    Interim,
    /// From here on both sides speak as they like. A stream of events is as good as that: it has
    /// no end that could be waited for.
    Tunnel,
    /// It is the answer.
    Final {
        /// What follows the head.
        body: Body,
        /// Whether the application means to go on afterwards.
        goes_on: bool,
    },
}

/// Reads a request.
pub fn request(bytes: &[u8]) -> Head<Request> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let status = parsed.parse(bytes);
    let said = |fields: &[Header<'_>]| {
        let (method, version) = (parsed.method?, parsed.version?);
        Request::of(method, version, &Fields::of(fields)?)
    };
    let head = match &status {
        Ok(Status::Complete(_)) => said(parsed.headers),
        Ok(Status::Partial) | Err(_) => None,
    };
    conclude(bytes, status, head)
}

/// Reads a response to a request that asked for this.
pub fn response(bytes: &[u8], asked: Asks) -> Head<Reply> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let status = parsed.parse(bytes);
    let said = |fields: &[Header<'_>]| {
        let (code, version) = (parsed.code?, parsed.version?);
        Reply::of(code, version, asked, &Fields::of(fields)?)
    };
    let head = match &status {
        Ok(Status::Complete(_)) => said(parsed.headers),
        Ok(Status::Partial) | Err(_) => None,
    };
    conclude(bytes, status, head)
}

fn conclude<T>(
    bytes: &[u8],
    status: Result<Status<usize>, httparse::Error>,
    head: Option<T>,
) -> Head<T> {
    let length = match status {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => bytes.len(),
        Err(_) => return Head::Foreign,
    };
    let read = bytes.get(..length).unwrap_or_default();
    if has_bare_line_feed(read) || length > HEAD_CAP {
        return Head::Foreign;
    }
    match (status, head) {
        (Ok(Status::Complete(_)), Some(head)) => Head::Whole { length, head },
        (Ok(Status::Partial), _) if length < HEAD_CAP => Head::Partial,
        (_, _) => Head::Foreign,
    }
}

/// A line feed by itself ends a line for some and not for others.
fn has_bare_line_feed(bytes: &[u8]) -> bool {
    let mut before = 0;
    bytes.iter().any(|byte| {
        let bare = *byte == b'\n' && before != b'\r';
        before = *byte;
        bare
    })
}

/// What the fields of a head say of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    media: Media,
}

/// What a body is, as far as its end depends on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Media {
    #[default]
    Any,
    /// A stream of events.
    Events,
}

impl Fields {
    /// None, when they contradict themselves.
    fn of(fields: &[Header<'_>]) -> Option<Self> {
        let mut said = Self::default();
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                if said.length.is_some() {
                    return None;
                }
                said.length = Some(length(field.value)?);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                if said.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                said.chunked = true;
            } else if field.name.eq_ignore_ascii_case("connection") {
                for word in field.value.split(|byte| *byte == b',') {
                    let word = word.trim_ascii();
                    said.close |= word.eq_ignore_ascii_case(b"close");
                    said.keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if field.name.eq_ignore_ascii_case("content-type") {
                let mut words = field.value.split(|byte| *byte == b';');
                let media = words.next().unwrap_or_default().trim_ascii();
                if media.eq_ignore_ascii_case(b"text/event-stream") {
                    said.media = Media::Events;
                }
            }
        }
        // The way to have a request read as two by the one and as one by the other.
        (!(said.chunked && said.length.is_some())).then_some(said)
    }

    fn goes_on(&self, version: u8) -> bool {
        !self.close && (version > 0 || self.keep_alive)
    }
}

/// Digits and nothing else; a length that fits.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl Request {
    fn of(method: &str, version: u8, fields: &Fields) -> Option<Self> {
        let body = match (fields.chunked, fields.length) {
            (true, _) if version == 0 => return None,
            (true, _) => Body::chunked(),
            (false, length) => Body::Length(length.unwrap_or(0)),
        };
        let asks = match method {
            "HEAD" => Asks::Head,
            // Whether what follows is a body or the tunnel is in dispute.
            "CONNECT" if !body.is_none() => return None,
            "CONNECT" => Asks::Tunnel,
            _ => Asks::All,
        };
        let safe = matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
        Some(Self {
            asks,
            body,
            goes_on: fields.goes_on(version),
            repeatable: safe && body.is_none(),
        })
    }
}

impl Reply {
    fn of(code: u16, version: u8, asked: Asks, fields: &Fields) -> Option<Self> {
        let empty = matches!(code, 204 | 304) || asked == Asks::Head;
        let body = match (code, asked) {
            (101, _) | (200..=299, Asks::Tunnel) => return Some(Self::Tunnel),
            (100..=199, _) => return Some(Self::Interim),
            (0..=99, _) => return None,
            (_, _) if empty => Body::NONE,
            (_, _) if fields.media == Media::Events => return Some(Self::Tunnel),
            (_, _) if fields.chunked && version == 0 => return None,
            (_, _) if fields.chunked => Body::chunked(),
            (_, _) => fields.length.map_or(Body::UntilEnd, Body::Length),
        };
        Some(Self::Final {
            body,
            goes_on: fields.goes_on(version) && body != Body::UntilEnd,
        })
    }
}
