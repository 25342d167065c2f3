//! Points at which a test of crashes stops or kills a daemon: every durable write has one before
//! it and one after it, and every step of a migration one at its begin.
//!
//! Only the second binaries of the daemons (`migrated-faulty`, `proxyd-faulty`) have them. They
//! are built with the feature `failpoints`; without it [`hit`] does nothing at all.
//!
//! A point has a name like `journal/source/released/after`. What happens there says a file of
//! that name, with `__` for `/`, in `/run/rehome/failpoints` (or where `REHOME_FAILPOINTS` says):
//!
//! | it holds | the point |
//! |---|---|
//! | `kill` | removes it and kills the daemon, as `kill -9` would |
//! | `hold` | waits until the file is gone, for a minute at most |
//!
//! Either way it first writes a file of the same name with `.hit`, so that a test sees that the
//! daemon is there.

#[cfg(any(feature = "failpoints", test))]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::{hit, reach};

/// Does nothing: this is not a binary for tests of crashes.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_name: impl FnOnce() -> String) {}

/// Does nothing: this is not a binary for tests of crashes.
///
/// # Cancel safety
/// Cancel safe.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[expect(clippy::unused_async, reason = "where there are fail points, it waits")]
pub async fn reach(_name: impl FnOnce() -> String) {}
