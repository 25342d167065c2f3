//! The head of a trunk connection: what one `proxyd` says to another before bytes flow.
//!
//! The sender opens with a PROXY protocol v2 header (client address, external port, and
//! Rehome's own fields as TLVs of the types that the standard leaves to applications) and then
//! says nothing until the [`Answer`] is there. So a connection that breaks before
//! [`Answer::Connected`] has carried no byte of a client and can be tried again anywhere.
//!
//! ```text
//! sender                                   owner
//!   | PROXY v2 + TLVs ----------------------> |  (the gate may hold it: the answer waits)
//!   | <------ CONNECTED | MOVED | REFUSED --- |
//!   | <============ bytes both ways ========> |  only after CONNECTED
//! ```
//!
//! Nothing here does I/O. Decoders are incremental, cap every length before they believe it,
//! and never panic on any input. UDP sessions use the same head; their datagrams then travel
//! with a length of two bytes in front.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::api::proxy::RouteKey;
use crate::ids::{AppName, Epoch, Generation, HostAddr, InvalidId, RouteVersion};

mod answer;
mod cursor;
#[cfg(test)]
mod tests;

pub use answer::{ANSWER_CAP, ANSWER_FIXED, Answer, Refusal};
use cursor::Cursor;

/// The version of this protocol; a receiver refuses a larger one.
pub const PROTOCOL: u8 = 1;
/// The bytes before the variable part of a header.
pub const HEADER_FIXED: usize = 16;
/// The most bytes that a header may have after its fixed part.
pub const HEADER_CAP: usize = 1024;
/// The most trunks that one connection tries in a row by [`Answer::Moved`].
pub const MAX_HOPS: u8 = 8;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_AND_COMMAND: u8 = 0x21;
const TYPE_PROTOCOL: u8 = 0xE0;
const TYPE_ROUTE: u8 = 0xE1;
const TYPE_APPLICATION: u8 = 0xE2;
const TYPE_HOPS: u8 = 0xE3;
const TYPE_SENDER: u8 = 0xE4;
const TYPE_VERSION: u8 = 0xE5;

/// Who comes, to where, and what the sender believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The client's address.
    pub client: SocketAddr,
    /// The address that the client connected to.
    pub destination: SocketAddr,
    /// The route.
    pub route: RouteKey,
    /// The application that the sender believes the route to be of.
    pub application: AppName,
    /// How many trunks answered [`Answer::Moved`] before this one.
    pub hops: u8,
    /// The host that sends.
    pub sender: HostAddr,
    /// The version of the route that the sender went by.
    pub version: RouteVersion,
}

/// Bytes that are not what this protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a PROXY v2 header of the `PROXY` command.
    #[error("not a trunk header")]
    NotAHeader,
    /// An address family that does not occur.
    #[error("address family {0:#04x} is not TCP or UDP over IPv4 or IPv6")]
    Family(u8),
    /// Longer than the cap.
    #[error("{length} bytes are more than the {cap} allowed")]
    TooLong {
        /// What the frame claims.
        length: usize,
        /// What is allowed.
        cap: usize,
    },
    /// A length inside points past the end.
    #[error("a field ends outside of its frame")]
    Truncated,
    /// A field that must be there is not.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A field is there twice.
    #[error("the field of type {0:#04x} is there twice")]
    Twice(u8),
    /// A field has a value that it cannot have.
    #[error("the field {0} has a wrong value")]
    Wrong(&'static str),
    /// A newer peer.
    #[error("the peer speaks version {0} of the trunk protocol")]
    Protocol(u8),
    /// Not one of the answers.
    #[error("{0} is not an answer")]
    NotAnAnswer(u8),
}

/// What a decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Decoded<T> {
    /// So many more bytes are needed; reading exactly these never reads too far.
    Need(usize),
    /// The whole frame.
    Done(T),
}

impl Header {
    /// The bytes of this header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        let family = put_addresses(
            &mut body,
            self.client,
            self.destination,
            self.route.is_udp(),
        );
        put_field(&mut body, TYPE_PROTOCOL, &[PROTOCOL]);
        put_field(&mut body, TYPE_ROUTE, self.route.to_string().as_bytes());
        put_field(
            &mut body,
            TYPE_APPLICATION,
            self.application.as_str().as_bytes(),
        );
        put_field(&mut body, TYPE_HOPS, &[self.hops]);
        put_field(&mut body, TYPE_SENDER, self.sender.as_str().as_bytes());
        put_field(&mut body, TYPE_VERSION, &version_bytes(self.version));
        let mut out = Vec::with_capacity(HEADER_FIXED + body.len());
        out.extend_from_slice(&SIGNATURE);
        out.extend_from_slice(&[VERSION_AND_COMMAND, family]);
        out.extend_from_slice(&length_bytes(body.len()));
        out.extend_from_slice(&body);
        out
    }

    /// Reads a header from what has arrived so far. Fields of unknown types are skipped.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the bytes can no longer become a header.
    pub fn decode(bytes: &[u8]) -> Result<Decoded<Self>, FrameError> {
        if !SIGNATURE.iter().zip(bytes).all(|(want, got)| want == got) {
            return Err(FrameError::NotAHeader);
        }
        let Some((fixed, rest)) = bytes.split_at_checked(HEADER_FIXED) else {
            return Ok(Decoded::Need(HEADER_FIXED.saturating_sub(bytes.len())));
        };
        let mut fixed = Cursor::new(fixed);
        fixed.take(SIGNATURE.len())?;
        if fixed.byte()? != VERSION_AND_COMMAND {
            return Err(FrameError::NotAHeader);
        }
        let family = fixed.byte()?;
        let length = usize::from(fixed.u16()?);
        if length > HEADER_CAP {
            return Err(FrameError::TooLong {
                length,
                cap: HEADER_CAP,
            });
        }
        match rest.get(..length) {
            None => Ok(Decoded::Need(length.saturating_sub(rest.len()))),
            Some(body) => Ok(Decoded::Done(Self::from_body(family, Cursor::new(body))?)),
        }
    }

    fn from_body(family: u8, mut body: Cursor<'_>) -> Result<Self, FrameError> {
        let (client, destination) = match family {
            0x11 | 0x12 => take_addresses(&mut body, |c| Ok(IpAddr::from(c.array::<4>()?)))?,
            0x21 | 0x22 => take_addresses(&mut body, |c| Ok(IpAddr::from(c.array::<16>()?)))?,
            other => return Err(FrameError::Family(other)),
        };
        let fields = Fields::take(&mut body)?;
        let route: RouteKey = fields.text(TYPE_ROUTE, "route")?;
        if route.is_udp() != (family & 0x0F == 2) {
            return Err(FrameError::Wrong("route"));
        }
        Ok(Self {
            client,
            destination,
            route,
            application: fields.text(TYPE_APPLICATION, "application")?,
            hops: fields.byte(TYPE_HOPS, "hops")?,
            sender: fields.text(TYPE_SENDER, "sender")?,
            version: take_version(&mut fields.cursor(TYPE_VERSION, "version")?)?,
        })
    }
}

/// The fields of a header's variable part, by type.
struct Fields<'a>(Vec<(u8, &'a [u8])>);

impl<'a> Fields<'a> {
    fn take(body: &mut Cursor<'a>) -> Result<Self, FrameError> {
        let mut fields: Vec<(u8, &[u8])> = Vec::new();
        while !body.is_empty() {
            let kind = body.byte()?;
            let length = usize::from(body.u16()?);
            let value = body.take(length)?;
            if fields.iter().any(|(seen, _)| *seen == kind) {
                return Err(FrameError::Twice(kind));
            }
            fields.push((kind, value));
        }
        let fields = Self(fields);
        match fields.byte(TYPE_PROTOCOL, "protocol")? {
            PROTOCOL => Ok(fields),
            other => Err(FrameError::Protocol(other)),
        }
    }

    fn cursor(&self, kind: u8, name: &'static str) -> Result<Cursor<'a>, FrameError> {
        let found = self.0.iter().find(|(other, _)| *other == kind);
        found
            .map(|(_, value)| Cursor::new(value))
            .ok_or(FrameError::Missing(name))
    }

    fn byte(&self, kind: u8, name: &'static str) -> Result<u8, FrameError> {
        self.cursor(kind, name)?
            .byte()
            .map_err(|_| FrameError::Wrong(name))
    }

    fn text<T: std::str::FromStr<Err = InvalidId>>(
        &self,
        kind: u8,
        name: &'static str,
    ) -> Result<T, FrameError> {
        let mut value = self.cursor(kind, name)?;
        std::str::from_utf8(value.rest())
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(FrameError::Wrong(name))
    }
}

fn put_addresses(out: &mut Vec<u8>, client: SocketAddr, to: SocketAddr, udp: bool) -> u8 {
    let transport = if udp { 2 } else { 1 };
    let family = match (client.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&target.octets());
            0x10
        }
        (source, target) => {
            out.extend_from_slice(&as_v6(source).octets());
            out.extend_from_slice(&as_v6(target).octets());
            0x20
        }
    };
    out.extend_from_slice(&client.port().to_be_bytes());
    out.extend_from_slice(&to.port().to_be_bytes());
    family | transport
}

fn take_addresses<'a>(
    body: &mut Cursor<'a>,
    mut address: impl FnMut(&mut Cursor<'a>) -> Result<IpAddr, FrameError>,
) -> Result<(SocketAddr, SocketAddr), FrameError> {
    let source = address(body)?.to_canonical();
    let target = address(body)?.to_canonical();
    Ok((
        SocketAddr::new(source, body.u16()?),
        SocketAddr::new(target, body.u16()?),
    ))
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
        IpAddr::V6(v6) => v6,
    }
}

fn put_field(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&length_bytes(value.len()));
    out.extend_from_slice(value);
}

fn length_bytes(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

fn version_bytes(version: RouteVersion) -> [u8; 16] {
    let both = (u128::from(version.epoch.0) << 64) | u128::from(version.generation.0);
    both.to_be_bytes()
}

fn take_version(from: &mut Cursor<'_>) -> Result<RouteVersion, FrameError> {
    let epoch = Epoch(u64::from_be_bytes(from.array()?));
    Ok(RouteVersion {
        epoch,
        generation: Generation(u64::from_be_bytes(from.array()?)),
    })
}
