//! The PROXY protocol: how a proxy in front of this one announces the client whose bytes follow, and
//! how this one announces it to an application.
//!
//! A header is looked at in what has arrived so far, and says how long it is; the caller then takes
//! exactly so many bytes out of the socket. What it announces is believed, so the caller asks only
//! those whom the configuration trusts. Version 1 is a line of text, version 2 is binary and may
//! carry fields. These are stepped over, but for a checksum, which must be right where it is there.
//!
//! Invariant: the bytes that have arrived decide, however they came. No length is believed before it
//! is within [`LONGEST`].

#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::net::SocketAddr;

pub use v2::header;

/// The most bytes that a header may have.
pub const LONGEST: usize = 4096;

/// What is known of a header by what has arrived of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Seen {
    /// It is not whole.
    Part,
    /// It is.
    Whole {
        /// Its bytes; what follows them is the client's.
        length: usize,
        /// What it says.
        announced: Announced,
    },
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// Who the client is.
    Client {
        /// Its address.
        client: SocketAddr,
        /// The address that it connected to.
        destination: SocketAddr,
    },
    /// That there is nobody behind the sender (it looks whether this proxy is well), or nobody with
    /// an IP address: the addresses of the connection are the client's.
    Nobody,
}

/// Bytes that are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// They are something else.
    #[error("it does not begin with a PROXY header")]
    NotAHeader,
    /// Longer than a line of version 1 may be, or than [`LONGEST`].
    #[error("its PROXY header is too long")]
    TooLong,
    /// A line that version 1 does not know.
    #[error("its PROXY header has a wrong {0}")]
    Line(&'static str),
    /// A version that is not 2, or a command that is neither of its two.
    #[error("its PROXY header has version and command {0:#04x}")]
    Command(u8),
    /// A family or transport that cannot be a TCP connection's.
    #[error("its PROXY header has family and transport {0:#04x}")]
    Family(u8),
    /// It is too short for its addresses, or a field ends outside of it.
    #[error("a part of its PROXY header ends outside of it")]
    Truncated,
    /// The checksum that it carries is another one than its own.
    #[error("its PROXY header has a wrong checksum")]
    Checksum,
}

/// Looks for a header in what has arrived so far.
///
/// # Errors
/// [`HeaderError`] as soon as the bytes can no longer become a header.
pub fn look(bytes: &[u8]) -> Result<Seen, HeaderError> {
    match bytes.first() {
        None => Ok(Seen::Part),
        Some(b'P') => v1::look(bytes),
        Some(_) => v2::look(bytes),
    }
}

/// Whether the bytes begin as `start` does, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    start.iter().zip(bytes).all(|(want, got)| want == got)
}
