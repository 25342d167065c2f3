//! What the clients did: every request with its times, what was sent, and what was acknowledged.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::demo) enum Kind {
    /// A log line to the receiver.
    Log,
    /// A line written into the store with SQL.
    Write,
    /// A full-text search in the store for the line that was acknowledged last.
    Search,
    /// The same search on the page.
    Page,
}

impl Kind {
    /// All kinds.
    pub(in crate::demo) const ALL: [Self; 4] = [Self::Log, Self::Write, Self::Search, Self::Page];

    /// What people call it, in the plural.
    pub(in crate::demo) fn name(self) -> &'static str {
        match self {
            Self::Log => "log lines",
            Self::Write => "writes",
            Self::Search => "searches",
            Self::Page => "pages",
        }
    }

    /// The external port of what answers it.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Log => 5000,
            Self::Write | Self::Search => 5432,
            Self::Page => 80,
        }
    }

    /// From one request to the next. A laptop's two cores carry them, in a debug build.
    pub(super) fn pace(self) -> Duration {
        Duration::from_millis(match self {
            Self::Log => 40,
            Self::Write | Self::Search => 60,
            Self::Page => 200,
        })
    }

    /// What names the line that a request adds, and occurs in no other line.
    pub(super) fn token(self, number: usize) -> Option<String> {
        match self {
            Self::Log => Some(format!("log{number:06}")),
            Self::Write => Some(format!("sql{number:06}")),
            Self::Search | Self::Page => None,
        }
    }
}

/// A request that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Request {
    /// Its kind.
    pub(in crate::demo) kind: Kind,
    /// The host that it went to.
    pub(in crate::demo) host: IpAddr,
    /// When it began, from the beginning of the load.
    pub(in crate::demo) begun: Duration,
    /// When it was over.
    pub(in crate::demo) ended: Duration,
    /// Why it was not served.
    pub(in crate::demo) failure: Option<String>,
}

impl Request {
    /// How long the client waited.
    pub(in crate::demo) fn took(&self) -> Duration {
        self.ended.saturating_sub(self.begun)
    }
}

/// What the clients did in all.
#[derive(Debug, Clone)]
pub(in crate::demo) struct Record {
    /// When the load began.
    pub(in crate::demo) began: SystemTime,
    /// The requests, in the order of their ends.
    pub(in crate::demo) requests: Vec<Request>,
    /// The tokens of all lines that were sent.
    pub(in crate::demo) sent: BTreeSet<String>,
    /// Those of the lines that were acknowledged: a line written with SQL by the answer to it, a
    /// log line by the receiver's closing the connection after it has read the last byte.
    pub(in crate::demo) acknowledged: BTreeSet<String>,
}

impl Record {
    /// The requests that were not served.
    pub(in crate::demo) fn failed(&self) -> impl Iterator<Item = &Request> {
        self.requests
            .iter()
            .filter(|request| request.failure.is_some())
    }

    /// The longest time that a client waited for an answer.
    pub(in crate::demo) fn longest(&self) -> Duration {
        self.requests
            .iter()
            .map(Request::took)
            .max()
            .unwrap_or_default()
    }
}

/// The record while it grows.
#[derive(Debug)]
pub(super) struct Book(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    record: Record,
    /// The line that was acknowledged last.
    write: Option<String>,
}

impl Book {
    pub(super) fn new(began: SystemTime) -> Self {
        Self(Mutex::new(Inner {
            record: Record {
                began,
                requests: Vec::new(),
                sent: BTreeSet::new(),
                acknowledged: BTreeSet::new(),
            },
            write: None,
        }))
    }

    /// Notes a line before it is sent.
    pub(super) fn sent(&self, token: &str) {
        self.inner().record.sent.insert(token.to_owned());
    }

    /// Notes the end of a request, and the token of the line that it added.
    pub(super) fn note(&self, request: Request, token: Option<String>) {
        let mut inner = self.inner();
        if request.failure.is_none()
            && let Some(token) = token
        {
            if request.kind == Kind::Write {
                inner.write = Some(token.clone());
            }
            inner.record.acknowledged.insert(token);
        }
        inner.record.requests.push(request);
    }

    /// The token of the line written with SQL that was acknowledged last.
    pub(super) fn acknowledged_write(&self) -> Option<String> {
        self.inner().write.clone()
    }

    /// The record so far.
    pub(super) fn take(&self) -> Record {
        self.inner().record.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn request(kind: Kind, failure: Option<&str>) -> Request {
        Request {
            kind,
            host: Ipv4Addr::LOCALHOST.into(),
            begun: Duration::from_millis(100),
            ended: Duration::from_millis(350),
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn only_lines_that_were_served_are_acknowledged() {
        let book = Book::new(SystemTime::UNIX_EPOCH);
        let (first, second) = (Kind::Write.token(1), Kind::Write.token(2));
        book.note(request(Kind::Write, None), first.clone());
        book.note(request(Kind::Write, Some("reset")), second);
        book.note(request(Kind::Log, None), Kind::Log.token(1));
        assert_eq!(book.acknowledged_write(), first);
        let record = book.take();
        assert_eq!(
            record.acknowledged,
            BTreeSet::from(["log000001".to_owned(), "sql000001".to_owned()])
        );
        assert_eq!(record.failed().count(), 1);
        assert_eq!(record.longest(), Duration::from_millis(250));
    }
}
