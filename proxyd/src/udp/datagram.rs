//! A datagram between its receiving and its sending.

use std::io;
use std::ops::Deref;

use crate::metrics::{Metrics, Shed};
use crate::relay::{Spent, Stores};

/// One datagram, which counts as memory for as long as it waits.
#[derive(Debug)]
pub(super) struct Datagram {
    bytes: Box<[u8]>,
    _spent: Spent,
}

impl Datagram {
    /// Keeps a datagram. `None` where there is no memory for it: it is lost, as on a network
    /// that is full, and counted.
    pub(super) fn keep(bytes: &[u8], stores: &Stores, metrics: &Metrics) -> Option<Self> {
        let Some(spent) = stores.datagram(bytes.len()) else {
            metrics.shed(Shed::Datagram);
            return None;
        };
        Some(Self {
            bytes: bytes.into(),
            _spent: spent,
        })
    }

    /// Its length, as a trunk says it.
    ///
    /// # Errors
    /// When it is too long to be one.
    pub(super) fn length(&self) -> io::Result<u16> {
        u16::try_from(self.bytes.len()).map_err(io::Error::other)
    }
}

impl Deref for Datagram {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
