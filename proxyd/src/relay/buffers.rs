//! Buffers that are lent to a relay while it carries bytes and given back when it waits.

use std::sync::{Arc, Mutex, PoisonError};

/// Large enough that a system call costs little beside the copy.
const SIZE: usize = 64 << 10;
/// Kept for the next one; more are freed. 16 MiB.
const KEPT: usize = 256;

/// The spare buffers. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer on loan.
pub(crate) struct Lent {
    bytes: Box<[u8]>,
    home: Buffers,
}

impl Buffers {
    pub(crate) fn take(&self) -> Lent {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        Lent {
            bytes,
            home: self.clone(),
        }
    }
}

impl Lent {
    /// Room to read into.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// What was read.
    pub(crate) fn filled(&self, length: usize) -> &[u8] {
        self.bytes.get(..length).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEPT {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}
