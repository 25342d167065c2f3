//! Buffers that are lent to a relay while it carries bytes and given back when it waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxyd_core::gait::{LARGE, SMALL, TINY};

use super::budget::{Budget, Spent};

/// What is kept of each size for the next one; more is freed. 8 MiB of small ones, 8 MiB of
/// large ones.
const KEPT_SMALL: usize = 512;
const KEPT_LARGE: usize = 128;

/// The spare buffers. Clones share.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    spare: Arc<Spare>,
    budget: Budget,
}

#[derive(Debug, Default)]
struct Spare {
    small: Shelf,
    large: Shelf,
}

type Shelf = Mutex<Vec<Box<[u8]>>>;

/// A buffer on loan.
#[derive(Debug)]
pub(crate) struct Lent {
    bytes: Box<[u8]>,
    home: Arc<Spare>,
    /// Absent for what is only held for a moment.
    _spent: Option<Spent>,
}

impl Buffers {
    pub(super) fn new(budget: &Budget) -> Self {
        Self {
            spare: Arc::default(),
            budget: budget.clone(),
        }
    }

    /// A buffer of [`SMALL`] bytes, or of [`LARGE`] when that is asked for and to be had. Where
    /// the budget is spent it has [`TINY`] bytes.
    pub(super) fn take(&self, size: usize) -> Lent {
        let large = (size > SMALL)
            .then(|| self.lend(&self.spare.large, LARGE))
            .flatten();
        large
            .or_else(|| self.lend(&self.spare.small, SMALL))
            .unwrap_or_else(|| self.beyond(TINY))
    }

    /// A buffer of [`SMALL`] bytes, also beyond the budget.
    pub(super) fn small(&self) -> Lent {
        self.lend(&self.spare.small, SMALL)
            .unwrap_or_else(|| self.beyond(SMALL))
    }

    /// These are made when they are needed: they are held for long, by those who do not read.
    fn beyond(&self, size: usize) -> Lent {
        Lent {
            bytes: vec![0; size].into_boxed_slice(),
            home: Arc::clone(&self.spare),
            _spent: Some(self.budget.overdraw(size)),
        }
    }

    /// A buffer with these bytes, which begin it. It is had whatever the budget: they were read.
    pub(super) fn with(&self, bytes: &[u8]) -> Lent {
        let mut sizes = [TINY, SMALL, LARGE].into_iter();
        // Another version may have larger ones.
        let size = sizes.find(|size| bytes.len() <= *size);
        let mut space = vec![0; size.unwrap_or(bytes.len())];
        if let Some(begin) = space.get_mut(..bytes.len()) {
            begin.copy_from_slice(bytes);
        }
        Lent {
            _spent: Some(self.budget.spend_anyway(space.len())),
            bytes: space.into_boxed_slice(),
            home: Arc::clone(&self.spare),
        }
    }

    /// A buffer of [`LARGE`] bytes that is given back before anything is waited for: there are
    /// never more than threads, so they are no part of the budget.
    pub(super) fn scratch(&self) -> Lent {
        self.lent(&self.spare.large, LARGE, None)
    }

    fn lend(&self, shelf: &Shelf, size: usize) -> Option<Lent> {
        let spent = self.budget.spend(size)?;
        Some(self.lent(shelf, size, Some(spent)))
    }

    fn lent(&self, shelf: &Shelf, size: usize, spent: Option<Spent>) -> Lent {
        let spare = lock(shelf).pop();
        Lent {
            bytes: spare.unwrap_or_else(|| vec![0; size].into_boxed_slice()),
            home: Arc::clone(&self.spare),
            _spent: spent,
        }
    }
}

fn lock(shelf: &Shelf) -> MutexGuard<'_, Vec<Box<[u8]>>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lent {
    /// Room to read into.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// A part of what was read.
    pub(crate) fn part(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let (shelf, kept) = match bytes.len() {
            LARGE => (&self.home.large, KEPT_LARGE),
            SMALL => (&self.home.small, KEPT_SMALL),
            _ => return,
        };
        let mut shelf = lock(shelf);
        if shelf.len() < kept {
            shelf.push(bytes);
        }
    }
}
