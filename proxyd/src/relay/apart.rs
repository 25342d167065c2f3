//! A relay that stands still, in its parts: what another one is put together of.
//!
//! Taking it apart only takes the sockets from this process's event loop. Nothing is said on
//! them, no option of theirs is changed, and dropping the parts closes descriptors and no more:
//! sockets and pipes may be another process's by then.

use std::io;
use std::net::TcpStream as Plain;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proxyd_core::gait::Gait;
use proxyd_core::handover;
use proxyd_core::tally::End;
use tokio::net::TcpStream;

use super::pump::{Load, Pump};
use super::{Progress, Relay, Stores};
use crate::book::connection::{Connection, Direction};

/// The parts of a relay.
#[derive(Debug)]
pub(crate) struct Apart {
    client: Plain,
    upstream: Plain,
    progress: Progress,
    inward: (Load, Gait),
    outward: (Load, Gait),
}

/// What is known of a relay besides its sockets, its pipes and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) inward: handover::Half,
    pub(crate) outward: handover::Half,
    pub(crate) goodbye: Option<handover::Goodbye>,
    pub(crate) broken: bool,
}

/// Parts that are not those of a relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartsError {
    #[error("a descriptor or bytes are missing")]
    Missing,
    #[error("a pipe cannot be used")]
    Pipe(#[source] io::Error),
}

impl Relay {
    /// Takes it apart. Call it between two polls of [`Relay::run`] only, which is whenever that
    /// does not run.
    ///
    /// # Errors
    /// When a socket cannot be taken from the event loop; both are closed then.
    pub(crate) fn take_apart(self) -> io::Result<Apart> {
        let Self {
            client,
            upstream,
            progress,
            inward,
            outward,
        } = self;
        // What a direction has read that has ended is read by nobody.
        let rest = |done: bool, pump: Pump| {
            let gait = pump.gait();
            let load = if done { Load::Empty } else { pump.into_load() };
            (load, gait)
        };
        Ok(Apart {
            client: client.into_std()?,
            upstream: upstream.into_std()?,
            inward: rest(progress.in_done, inward),
            outward: rest(progress.out_done, outward),
            progress,
        })
    }

    /// Shows on a connection that was taken in anew how far it has come, before it runs: who
    /// gives it an order must see what is in hand.
    pub(crate) fn resume(&self, connection: &Connection) {
        connection.set_in_hand(Direction::In, self.inward.is_loaded());
        connection.set_in_hand(Direction::Out, self.outward.is_loaded());
        connection.orders.give(self.progress.told());
    }
}

impl Apart {
    /// The relay of these parts.
    ///
    /// # Errors
    /// When a socket cannot be watched.
    pub(crate) fn put_together(self) -> io::Result<Relay> {
        Ok(Relay {
            client: TcpStream::from_std(self.client)?.into(),
            upstream: TcpStream::from_std(self.upstream)?.into(),
            progress: self.progress,
            inward: Pump::with(self.inward.0, self.inward.1),
            outward: Pump::with(self.outward.0, self.outward.1),
        })
    }

    /// What is known of it.
    pub(crate) fn state(&self) -> State {
        let half = |done, (load, gait): &(Load, Gait)| handover::Half {
            done,
            load: load.described(),
            bulk: gait.wants_pipe(),
        };
        State {
            inward: half(self.progress.in_done, &self.inward),
            outward: half(self.progress.out_done, &self.outward),
            goodbye: self.progress.polite.map(|end| match end {
                End::Lifetime => handover::Goodbye::Lifetime,
                _ => handover::Goodbye::Drain,
            }),
            broken: self.progress.broken.is_some(),
        }
    }

    /// Its descriptors: the client, the application, and both ends of each half's pipe.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.client.as_fd(), self.upstream.as_fd()];
        for load in [&self.inward.0, &self.outward.0] {
            if let Load::Piped(pipe) = load {
                all.extend(pipe.ends().into_iter().flatten());
            }
        }
        all
    }

    /// The bytes that its halves hold in buffers.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.inward.0.copied(), self.outward.0.copied()].concat()
    }

    /// The parts of a relay of another process.
    ///
    /// # Errors
    /// [`PartsError`]; what was given is closed and nothing else happens to it.
    pub(crate) fn of(
        state: &State,
        descriptors: Vec<OwnedFd>,
        bytes: &[u8],
        stores: &Stores,
    ) -> Result<Self, PartsError> {
        let mut descriptors = descriptors.into_iter();
        let (client, upstream) = (descriptors.next(), descriptors.next());
        let mut bytes = bytes;
        let mut load = |of: handover::Bytes| -> Result<Load, PartsError> {
            Ok(match of {
                handover::Bytes::None => Load::Empty,
                handover::Bytes::Here(length) => {
                    let (own, rest) = bytes
                        .split_at_checked(size(length))
                        .ok_or(PartsError::Missing)?;
                    bytes = rest;
                    Load::Copied {
                        buffer: stores.buffers.with(own),
                        taken: 0,
                        length: own.len(),
                    }
                }
                handover::Bytes::Piped(held) => {
                    let (read, write) = (descriptors.next(), descriptors.next());
                    let read = read.ok_or(PartsError::Missing)?;
                    let write = write.ok_or(PartsError::Missing)?;
                    let pipe = stores.pipes.adopt(read, write, size(held));
                    Load::Piped(pipe.map_err(PartsError::Pipe)?)
                }
            })
        };
        let (inward, outward) = (load(state.inward.load)?, load(state.outward.load)?);
        let gait = |half: handover::Half| {
            if half.bulk {
                Gait::bulk()
            } else {
                Gait::default()
            }
        };
        Ok(Self {
            client: client.ok_or(PartsError::Missing)?.into(),
            upstream: upstream.ok_or(PartsError::Missing)?.into(),
            progress: Progress {
                in_done: state.inward.done,
                out_done: state.outward.done,
                polite: state.goodbye.map(|goodbye| match goodbye {
                    handover::Goodbye::Lifetime => End::Lifetime,
                    handover::Goodbye::Drain => End::Drained,
                }),
                broken: state.broken.then_some(End::UpstreamReset),
            },
            inward: (inward, gait(state.inward)),
            outward: (outward, gait(state.outward)),
        })
    }
}

impl Load {
    fn described(&self) -> handover::Bytes {
        let number = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        match self {
            Self::Empty => handover::Bytes::None,
            Self::Copied { .. } => handover::Bytes::Here(number(self.copied().len())),
            Self::Piped(pipe) => handover::Bytes::Piped(number(pipe.held())),
        }
    }

    /// What is in a buffer.
    fn copied(&self) -> &[u8] {
        match self {
            Self::Copied {
                buffer,
                taken,
                length,
            } => buffer.part(*taken, *length),
            Self::Empty | Self::Piped(_) => &[],
        }
    }
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
