//! Pipes that are lent to a direction that carries bulk and given back when it waits.
//!
//! A pipe that still holds bytes is closed instead: what it holds belongs to one connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use super::budget::{Budget, Spent};
use crate::metrics::Shed;

/// What a pipe holds where the kernel allows it.
const WANTED: usize = 256 << 10;
/// A pipe that holds less is worse than copying. A user over the limit of
/// `/proc/sys/fs/pipe-user-pages-soft` gets such ones.
const LEAST: usize = 64 << 10;
/// Kept for the next one; more are closed.
const KEPT: usize = 64;

/// The pipes of a proxy. Clones share.
#[derive(Debug, Clone)]
pub(super) struct Pipes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    spare: Mutex<Vec<Pipe>>,
    /// What all pipes together hold at most now, lent and spare.
    bytes: AtomicUsize,
    limit: AtomicUsize,
    shown: Gauge,
    budget: Budget,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// A pipe on loan.
#[derive(Debug)]
pub(super) struct Lent {
    /// Absent only while it is dropped.
    pipe: Option<Pipe>,
    /// What is in it.
    held: usize,
    home: Pipes,
    _spent: Spent,
}

impl Pipes {
    /// Pipes that hold so many bytes together, which are shown. What is lent is of the budget too.
    pub(super) fn new(limit: usize, shown: Gauge, budget: &Budget) -> Self {
        Self(Arc::new(Shared {
            spare: Mutex::new(Vec::new()),
            bytes: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            shown,
            budget: budget.clone(),
        }))
    }

    /// Another limit, for pipes that are made from now on.
    pub(super) fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// What all pipes together hold at most now.
    fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// An empty pipe, unless a limit is reached or the kernel has none.
    pub(super) fn take(&self) -> Option<Lent> {
        let spent = self.0.budget.spend(WANTED)?;
        let spare = self.spare().pop();
        let pipe = spare.or_else(|| self.make())?;
        Some(Lent {
            pipe: Some(pipe),
            held: 0,
            home: self.clone(),
            _spent: spent,
        })
    }

    /// A pipe that another proxy filled. It counts, whatever the limit.
    pub(super) fn adopt(&self, read: OwnedFd, write: OwnedFd, held: usize) -> io::Result<Lent> {
        let size = fcntl_getpipe_size(&write)?;
        self.0.bytes.fetch_add(size, Ordering::Relaxed);
        self.show();
        Ok(Lent {
            pipe: Some(Pipe { read, write, size }),
            held,
            home: self.clone(),
            _spent: self.0.budget.spend_anyway(size),
        })
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Pipe>> {
        self.0.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Option<Pipe> {
        let limit = self.0.limit.load(Ordering::Relaxed);
        if self.bytes().saturating_add(WANTED) > limit {
            return None;
        }
        let made = pipe().inspect_err(|error| tracing::debug!(%error, "no pipe, copying instead"));
        let Some(pipe) = made.ok().filter(|pipe| pipe.size >= LEAST) else {
            self.0.budget.tell(Shed::Pipes);
            return None;
        };
        self.0.bytes.fetch_add(pipe.size, Ordering::Relaxed);
        self.show();
        Some(pipe)
    }

    fn close(&self, pipe: Pipe) {
        self.0.bytes.fetch_sub(pipe.size, Ordering::Relaxed);
        self.show();
        drop(pipe);
    }

    fn show(&self) {
        self.0
            .shown
            .set(i64::try_from(self.bytes()).unwrap_or(i64::MAX));
    }
}

fn pipe() -> rustix::io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A pipe that stays smaller is looked at below.
    let _size = fcntl_setpipe_size(&write, WANTED);
    let size = fcntl_getpipe_size(&write)?;
    Ok(Pipe { read, write, size })
}

impl Lent {
    /// What is in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what a socket has into the pipe, which is empty: so "would block" speaks of the
    /// socket alone. Zero is the end of the socket's bytes.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        let pipe = self.pipe()?;
        let moved = splice(from, pipe.write.as_fd(), pipe.size)?;
        self.held = moved;
        Ok(moved)
    }

    /// Moves what the pipe has to a socket. It is not empty: so "would block" speaks of the
    /// socket alone.
    pub(super) fn empty(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let pipe = self.pipe()?;
        let moved = splice(pipe.read.as_fd(), to, self.held)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }

    /// Its ends: the one to read from, and the one to write to.
    pub(super) fn ends(&self) -> Option<[BorrowedFd<'_>; 2]> {
        let pipe = self.pipe.as_ref()?;
        Some([pipe.read.as_fd(), pipe.write.as_fd()])
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        self.pipe.as_ref().ok_or(io::ErrorKind::BrokenPipe.into())
    }
}

/// No `SPLICE_F_MORE`: what it holds back is sent 200 ms late when nothing follows.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    Ok(rustix::pipe::splice(from, None, to, None, bytes, flags)?)
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take() else {
            return;
        };
        let mut spare = self.home.spare();
        if self.held == 0 && spare.len() < KEPT {
            spare.push(pipe);
        } else {
            drop(spare);
            self.home.close(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::Metrics;

    fn pipes(limit: usize) -> Pipes {
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let budget = Budget::new(usize::MAX, &metrics.relay_bytes, &metrics);
        Pipes::new(limit, Gauge::default(), &budget)
    }

    #[test]
    fn what_goes_in_comes_out_and_the_pipe_is_used_again() {
        let pipes = pipes(WANTED);
        let (mut sender, from) = UnixStream::pair().unwrap();
        let (to, mut receiver) = UnixStream::pair().unwrap();
        for round in 0..2 {
            let mut lent = pipes.take().unwrap();
            sender.write_all(b"hello").unwrap();
            assert_eq!(lent.fill(from.as_fd()).unwrap(), 5, "{round}");
            assert_eq!(lent.empty(to.as_fd()).unwrap(), 5);
            assert_eq!(lent.held(), 0);
            let mut said = [0; 5];
            receiver.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"hello");
        }
        assert_eq!(pipes.bytes(), WANTED);
    }

    #[test]
    fn the_limit_holds_for_lent_and_spare_pipes() {
        let pipes = pipes(2 * WANTED);
        let lent = [pipes.take().unwrap(), pipes.take().unwrap()];
        assert!(pipes.take().is_none());
        drop(lent);
        assert_eq!(pipes.bytes(), 2 * WANTED);
        let _again = pipes.take().unwrap();
        pipes.set_limit(0);
        assert!(pipes.take().is_some() && pipes.make().is_none());
    }

    #[test]
    fn bytes_of_one_connection_never_reach_another() {
        let pipes = pipes(WANTED);
        let (mut sender, from) = UnixStream::pair().unwrap();
        sender.write_all(b"secret").unwrap();
        let mut lent = pipes.take().unwrap();
        lent.fill(from.as_fd()).unwrap();
        drop(lent);
        assert_eq!(pipes.bytes(), 0, "it was closed");
        assert!(pipes.take().is_some());
    }
}
