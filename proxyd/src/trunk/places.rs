//! Places of sealed connections that other hosts keep ready here.

use std::net::IpAddr;
use std::num::NonZeroU32;

use rehome_shared::config::daemon::MOST_READY;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::sources::{Place, Sources};

/// Those of one host: what it may keep, twice, because at an upgrade two processes of it do.
const OF_A_HOST: NonZeroU32 = match NonZeroU32::new(2 * MOST_READY) {
    Some(places) => places,
    None => NonZeroU32::MIN,
};

/// The places, of all hosts together and of each.
#[derive(Debug)]
pub(super) struct Places {
    all: Semaphore,
    each: Sources,
}

impl Places {
    pub(super) fn new(all: usize) -> Self {
        Self {
            all: Semaphore::new(all),
            each: Sources::new(Some(OF_A_HOST)),
        }
    }

    /// A place for a connection of this host, while there is one.
    pub(super) fn take(&self, host: IpAddr) -> Option<(SemaphorePermit<'_>, Place)> {
        Some((self.all.try_acquire().ok()?, self.each.take(host)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_share_and_no_more() {
        let places = Places::new(300);
        let host = |number| IpAddr::from([10, 0, 0, number]);
        let mut first: Vec<_> = std::iter::from_fn(|| places.take(host(1))).collect();
        assert_eq!(first.len(), 128);
        assert!(places.take(host(2)).is_some());
        first.pop();
        let second: Vec<_> = std::iter::from_fn(|| places.take(host(2))).collect();
        assert!(places.take(host(1)).is_some());
        let third: Vec<_> = std::iter::from_fn(|| places.take(host(3))).collect();
        assert_eq!((second.len(), third.len()), (128, 45));
        drop((second, third));
        assert!(places.take(host(3)).is_some());
    }
}
