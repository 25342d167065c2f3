//! The answer to a trunk header, in its own small frame: kind, length, body.

use super::cursor::Cursor;
use super::{Decoded, FrameError, length_bytes, take_version, version_bytes};
use crate::ids::{HostAddr, RouteVersion};

/// The bytes before the variable part of an answer.
pub const ANSWER_FIXED: usize = 3;
/// The most bytes that an answer may have after its fixed part.
pub const ANSWER_CAP: usize = 640;

/// What the receiver of a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The application has accepted: bytes flow from here on.
    Connected,
    /// The application is elsewhere, by this version of the route.
    Moved {
        /// The host that runs it.
        host: HostAddr,
        /// That host's trunk, `address:port`.
        trunk: String,
        /// The version that says so.
        version: RouteVersion,
    },
    /// Not here, or not now.
    Refused(Refusal),
}

/// Why a trunk connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No such route here, even after a wait.
    UnknownRoute,
    /// The application is not meant to run.
    Closed,
    /// Too many connections are held.
    Full,
    /// It was held for as long as the route allows.
    ParkTimeout,
    /// Too many trunks in a row said that it has moved.
    TooManyHops,
    /// The owner is stopping.
    Stopping,
}

impl Refusal {
    /// Its number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::UnknownRoute => 1,
            Self::Closed => 2,
            Self::Full => 3,
            Self::ParkTimeout => 4,
            Self::TooManyHops => 5,
            Self::Stopping => 6,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            Self::UnknownRoute,
            Self::Closed,
            Self::Full,
            Self::ParkTimeout,
            Self::TooManyHops,
            Self::Stopping,
        ]
        .into_iter()
        .find(|refusal| refusal.code() == code)
    }

    /// Whether another try may end differently. After [`Refusal::Closed`] and
    /// [`Refusal::ParkTimeout`] it would not.
    #[must_use]
    pub fn may_pass(self) -> bool {
        match self {
            Self::UnknownRoute | Self::Full | Self::TooManyHops | Self::Stopping => true,
            Self::Closed | Self::ParkTimeout => false,
        }
    }
}

impl Answer {
    /// The bytes of this answer. A host or trunk longer than 255 bytes is cut, which the
    /// receiver refuses; [`HostAddr`] never is that long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Connected => (1, Vec::new()),
            Self::Moved {
                host,
                trunk,
                version,
            } => {
                let mut body = version_bytes(*version).to_vec();
                for text in [host.as_str(), trunk.as_str()] {
                    let text = text.as_bytes().get(..255).unwrap_or(text.as_bytes());
                    body.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                    body.extend_from_slice(text);
                }
                (2, body)
            }
            Self::Refused(refusal) => (3, vec![refusal.code()]),
        };
        let mut out = vec![kind];
        out.extend_from_slice(&length_bytes(body.len()));
        out.extend_from_slice(&body);
        out
    }

    /// Reads an answer from what has arrived so far.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the bytes can no longer become an answer.
    pub fn decode(bytes: &[u8]) -> Result<Decoded<Self>, FrameError> {
        if let Some(kind) = bytes.first()
            && !(1..=3).contains(kind)
        {
            return Err(FrameError::NotAnAnswer(*kind));
        }
        let Some((fixed, rest)) = bytes.split_at_checked(ANSWER_FIXED) else {
            return Ok(Decoded::Need(ANSWER_FIXED.saturating_sub(bytes.len())));
        };
        let mut fixed = Cursor::new(fixed);
        let kind = fixed.byte()?;
        let length = usize::from(fixed.u16()?);
        if length > ANSWER_CAP {
            return Err(FrameError::TooLong {
                length,
                cap: ANSWER_CAP,
            });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(Decoded::Need(length.saturating_sub(rest.len())));
        };
        let mut body = Cursor::new(body);
        match kind {
            1 => Ok(Decoded::Done(Self::Connected)),
            2 => {
                let version = take_version(&mut body)?;
                let host = take_text(&mut body)?;
                Ok(Decoded::Done(Self::Moved {
                    host: HostAddr::try_new(host).map_err(|_| FrameError::Wrong("host"))?,
                    trunk: take_text(&mut body)?,
                    version,
                }))
            }
            3 => Refusal::from_code(body.byte()?)
                .map(|refusal| Decoded::Done(Self::Refused(refusal)))
                .ok_or(FrameError::Wrong("refusal")),
            other => Err(FrameError::NotAnAnswer(other)),
        }
    }
}

fn take_text(from: &mut Cursor<'_>) -> Result<String, FrameError> {
    let length = usize::from(from.byte()?);
    let text = std::str::from_utf8(from.take(length)?).map_err(|_| FrameError::Wrong("text"))?;
    Ok(text.to_owned())
}
