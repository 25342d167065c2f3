//! One direction of a relay, as plain state that is polled.
//!
//! ```text
//!   Empty ── source readable ──► Copied or Piped ── sink has taken all ──► Empty
//!     └─ source at its end or broken: Stop          └─ sink broken: Stop
//! ```
//!
//! Whatever is between its read and its write is in [`Load`]. Only an empty direction waits for
//! its source, so a slow sink stops the reading; and an empty one that waits holds nothing.
//!
//! Readiness: a system call that would block, and a read that was shorter than its buffer, clear
//! it, under the runtime's own check that nothing came meanwhile. A socket that has more after a
//! short read wakes again. That saves the read that would only say so.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use proxyd_core::gait::Gait;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Rest, Stores, buffers, pipes};
use crate::book::connection::{Connection, Direction};
use crate::book::orders::Order;
use crate::leg::Leg;

/// After so many bytes without a pause a direction lets others run.
const TURN: usize = 1 << 20;

/// Why a direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its source has finished and everything is passed on.
    Finished,
    /// Its source is broken.
    Source,
    /// Its sink is broken.
    Sink,
}

/// What a direction is between.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) from: &'a Leg,
    pub(super) to: &'a Leg,
    pub(super) direction: Direction,
    pub(super) connection: &'a Connection,
    pub(super) stores: &'a Stores,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Pump {
    load: Load,
    gait: Gait,
}

/// What the next bytes go through.
enum Means<'a> {
    Buffer(buffers::Lent),
    /// Out of this socket, and into one too.
    Pipe(&'a TcpStream, pipes::Lent),
}

/// What a direction has read and not yet written.
#[derive(Debug, Default)]
pub(super) enum Load {
    #[default]
    Empty,
    Copied {
        buffer: buffers::Lent,
        /// What the sink has taken.
        taken: usize,
        length: usize,
    },
    Piped(pipes::Lent),
}

impl From<Option<Rest>> for Load {
    fn from(rest: Option<Rest>) -> Self {
        rest.map_or(Self::Empty, |rest| Self::Copied {
            buffer: rest.buffer,
            taken: rest.taken,
            length: rest.length,
        })
    }
}

impl Pump {
    /// One that begins with what another one had read, and had seen.
    pub(super) fn with(load: Load, gait: Gait) -> Self {
        Self { load, gait }
    }

    pub(super) fn gait(&self) -> Gait {
        self.gait
    }

    /// What it has read and not yet written.
    pub(super) fn into_load(self) -> Load {
        self.load
    }

    /// Whether it has bytes that its sink has not taken: so it does not read, and does not see
    /// what becomes of its source.
    pub(super) fn is_loaded(&self) -> bool {
        match self.load {
            Load::Empty => false,
            Load::Copied { .. } | Load::Piped(_) => true,
        }
    }

    /// Passes bytes on until there is nothing to do but wait.
    pub(super) fn poll(&mut self, ends: &Ends<'_>, cx: &mut Context<'_>) -> Poll<Stop> {
        let mut passed = 0_usize;
        loop {
            let step = match &self.load {
                // Only what the kernel has is passed on.
                Load::Empty if ready!(ends.to.poll_flush(cx)).is_err() => Err(Stop::Sink),
                Load::Empty => ready!(self.poll_fill(ends, cx)).map(|()| 0),
                Load::Copied { .. } | Load::Piped(_) => ready!(self.poll_empty(ends, cx)),
            };
            match step {
                Ok(bytes) => passed = passed.saturating_add(bytes),
                Err(stop) => return Poll::Ready(stop),
            }
            if passed >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Takes what the source has.
    fn poll_fill(&mut self, ends: &Ends<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        loop {
            if ready!(ends.from.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Err(Stop::Source));
            }
            // Only now: an idle direction holds nothing.
            let outcome = match self.means(ends) {
                Means::Pipe(from, pipe) => self.splice(from, pipe),
                Means::Buffer(buffer) => self.copy(ends.from, buffer),
            };
            match outcome {
                Ok(0) => return Poll::Ready(Err(Stop::Finished)),
                Ok(length) => {
                    self.gait.took(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Stop::Source)),
            }
        }
    }

    fn means<'a>(&mut self, ends: &Ends<'a>) -> Means<'a> {
        let stores = ends.stores;
        if self.gait.wants_pipe()
            && let (Some(from), Some(_)) = (ends.from.plain(), ends.to.plain())
        {
            if let Some(pipe) = stores.pipes.take() {
                return Means::Pipe(from, pipe);
            }
            self.gait.no_pipe();
        }
        Means::Buffer(stores.buffers.take(self.gait.room()))
    }

    fn splice(&mut self, from: &TcpStream, mut pipe: pipes::Lent) -> io::Result<usize> {
        let fill = || pipe.fill(from.as_fd());
        let length = from.try_io(Interest::READABLE, fill)?;
        if length > 0 {
            self.load = Load::Piped(pipe);
        }
        Ok(length)
    }

    fn copy(&mut self, from: &Leg, mut buffer: buffers::Lent) -> io::Result<usize> {
        let read = match from.plain() {
            Some(socket) => read_all(socket, buffer.space())?,
            None => from.try_read(buffer.space())?,
        };
        if read > 0 {
            self.load = Load::Copied {
                buffer,
                taken: 0,
                length: read,
            };
        }
        Ok(read)
    }

    /// Gives the sink what was taken, at least a part of it.
    fn poll_empty(&mut self, ends: &Ends<'_>, cx: &mut Context<'_>) -> Poll<Result<usize, Stop>> {
        loop {
            if ends.direction == Direction::Out && is_told_goodbye(ends.connection) {
                // The client was told that nothing comes any more: what an application says to
                // a goodbye has no reader.
                self.load = Load::Empty;
                return Poll::Ready(Ok(0));
            }
            if ready!(ends.to.poll_write_ready(cx)).is_err() {
                return Poll::Ready(Err(Stop::Sink));
            }
            match self.empty(ends.to) {
                Ok(bytes) => {
                    ends.connection.passed(ends.direction, bytes);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Stop::Sink)),
            }
        }
    }

    fn empty(&mut self, to: &Leg) -> io::Result<usize> {
        let (written, is_empty) = match &mut self.load {
            Load::Empty => (0, true),
            Load::Copied {
                buffer,
                taken,
                length,
            } => {
                let written = to.try_write(buffer.part(*taken, *length))?;
                *taken = taken.saturating_add(written);
                (written, *taken >= *length)
            }
            Load::Piped(pipe) => {
                // A pipe is filled for a socket alone.
                let to = to.socket();
                let written = to.try_io(Interest::WRITABLE, || pipe.empty(to.as_fd()))?;
                (written, pipe.held() == 0)
            }
        };
        if is_empty {
            self.load = Load::Empty;
        }
        Ok(written)
    }
}

/// Reads what there is. A read that was short says that nothing more is there: the runtime is told
/// so, and wakes when something comes.
fn read_all(from: &TcpStream, space: &mut [u8]) -> io::Result<usize> {
    let room = space.len();
    let mut read = 0;
    let outcome = from.try_io(Interest::READABLE, || {
        read = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *space))?;
        if (1..room).contains(&read) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    });
    match outcome {
        Err(error) if read == 0 => Err(error),
        Ok(()) | Err(_) => Ok(read),
    }
}

fn is_told_goodbye(connection: &Connection) -> bool {
    connection.orders.given() == Order::ClosePolitely
}
