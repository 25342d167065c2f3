//! The places of client addresses: each takes one for a connection and gives it back by itself.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxyd_core::sources::{self, Answer};

/// The client addresses that have connections. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources(Arc<Mutex<sources::Sources>>);

/// What a connection holds while it lasts: a place, where places are counted. Boxed: mostly they
/// are not.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<Box<(Sources, IpAddr)>>);

impl Sources {
    pub(crate) fn new(limit: Option<NonZeroU32>) -> Self {
        let sources = Self::default();
        sources.set_limit(limit);
        sources
    }

    /// Another limit, for connections from now on.
    pub(crate) fn set_limit(&self, limit: Option<NonZeroU32>) {
        self.lock().set_limit(limit);
    }

    /// A place, unless the address has as many as it may.
    pub(crate) fn take(&self, source: IpAddr) -> Option<Place> {
        let answer = self.lock().take(source);
        match answer {
            Answer::Free => Some(Place::default()),
            Answer::Counted => Some(Place(Some(Box::new((self.clone(), source))))),
            Answer::Full => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, sources::Sources> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(counted) = self.0.take() {
            let (sources, source) = *counted;
            sources.lock().give_back(source);
        }
    }
}
