//! Buffers that are lent to a relay while it carries bytes and given back when it waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxyd_core::gait::{LARGE, SMALL};

/// What is kept of each size for the next one; more is freed. 8 MiB of small ones, 8 MiB of
/// large ones.
const KEPT_SMALL: usize = 512;
const KEPT_LARGE: usize = 128;

/// The spare buffers. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Spare>);

#[derive(Debug, Default)]
struct Spare {
    small: Shelf,
    large: Shelf,
}

type Shelf = Mutex<Vec<Box<[u8]>>>;

/// A buffer on loan.
#[derive(Debug)]
pub(super) struct Lent {
    bytes: Box<[u8]>,
    home: Buffers,
}

impl Buffers {
    /// A buffer of [`SMALL`] bytes, or of [`LARGE`] when that is asked for.
    pub(super) fn take(&self, size: usize) -> Lent {
        let (shelf, size) = if size > SMALL {
            (&self.0.large, LARGE)
        } else {
            (&self.0.small, SMALL)
        };
        let spare = lock(shelf).pop();
        Lent {
            bytes: spare.unwrap_or_else(|| vec![0; size].into_boxed_slice()),
            home: self.clone(),
        }
    }
}

fn lock(shelf: &Shelf) -> MutexGuard<'_, Vec<Box<[u8]>>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lent {
    /// Room to read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// A part of what was read.
    pub(super) fn part(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let home = &self.home.0;
        let (shelf, kept) = if bytes.len() > SMALL {
            (&home.large, KEPT_LARGE)
        } else {
            (&home.small, KEPT_SMALL)
        };
        let mut shelf = lock(shelf);
        if shelf.len() < kept {
            shelf.push(bytes);
        }
    }
}
