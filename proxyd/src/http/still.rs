//! A connection between two requests that stands still: on its way to another process, or back to
//! work.
//!
//! As with a relay, nothing is said on its sockets, and dropping it closes descriptors and no more.

use std::io;
use std::net::TcpStream as Plain;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::net::TcpStream;

use super::Talk;
use crate::leg::Leg;

/// What such a connection is made of.
#[derive(Debug)]
pub(crate) struct Sides {
    pub(super) client: Leg,
    pub(super) upstream: Option<Leg>,
    /// What was read of its next request.
    pub(super) begun: Vec<u8>,
}

/// The same, taken from this process's event loop.
#[derive(Debug)]
pub(crate) struct Still {
    client: Plain,
    upstream: Option<Plain>,
    begun: Vec<u8>,
}

impl<A: Into<Leg>, B: Into<Leg>> From<(A, B)> for Sides {
    fn from((client, upstream): (A, B)) -> Self {
        Self {
            client: client.into(),
            upstream: Some(upstream.into()),
            begun: Vec::new(),
        }
    }
}

impl Talk {
    /// Takes it from this process's event loop, where it rests and nothing of an answer is in hand.
    /// A way over TLS is given up: the next request finds another one.
    pub(super) fn stand_still(self) -> io::Result<Still> {
        let upstream = self.upstream.map(|upstream| upstream.stream);
        let upstream = upstream.filter(|leg| leg.plain().is_some());
        let upstream = upstream.map(Leg::into_std);
        Ok(Still {
            client: self.client.into_std()?,
            upstream: upstream.transpose()?,
            begun: self.inbox.bytes().to_vec(),
        })
    }
}

impl Still {
    /// Of another process's; none, where a descriptor is missing.
    pub(crate) fn of(reaches: bool, descriptors: Vec<OwnedFd>, begun: &[u8]) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let client = descriptors.next()?.into();
        let upstream = if reaches {
            Some(descriptors.next()?.into())
        } else {
            None
        };
        Some(Self {
            client,
            upstream,
            begun: begun.to_vec(),
        })
    }

    pub(crate) fn reaches(&self) -> bool {
        self.upstream.is_some()
    }

    pub(crate) fn begun(&self) -> &[u8] {
        &self.begun
    }

    /// The client, and the application where there is one.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let upstream = self.upstream.iter().map(AsFd::as_fd);
        std::iter::once(self.client.as_fd())
            .chain(upstream)
            .collect()
    }

    /// Watches its sockets again.
    pub(crate) fn wake(self) -> io::Result<Sides> {
        Ok(Sides {
            client: TcpStream::from_std(self.client)?.into(),
            upstream: match self.upstream {
                Some(upstream) => Some(TcpStream::from_std(upstream)?.into()),
                None => None,
            },
            begun: self.begun,
        })
    }
}
