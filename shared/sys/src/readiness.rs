//! Descriptors that an async task waits for: process descriptors, for example.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor registered with the async runtime. It is never replaced or given away while it
/// is registered.
#[derive(Debug)]
pub struct ReadyFd(AsyncFd<OwnedFd>);

impl ReadyFd {
    /// Registers a descriptor. Call it within an async runtime with its I/O enabled.
    ///
    /// # Errors
    /// When the kernel cannot poll such a descriptor.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped. The
        // `AsyncFd` owns it, and this type hands out neither a `&mut` to it nor the descriptor
        // itself, so it cannot be replaced or closed before the registration ends.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// Waits until it is readable. It stays so: this is for descriptors that become readable
    /// once, such as that of a process.
    ///
    /// # Errors
    /// When the async runtime is shutting down.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::ReadyFd;

    #[test]
    fn a_descriptor_that_became_readable_stays_so() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let ready = ReadyFd::new(reader.into()).unwrap();
            let soon = tokio::time::timeout(Duration::from_millis(1), ready.readable()).await;
            assert!(soon.is_err());
            writer.write_all(b"x").unwrap();
            ready.readable().await.unwrap();
            ready.readable().await.unwrap();
        });
    }
}
