//! Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Announced, HeaderError, Seen, begins};

/// The longest line, with its end.
const LONGEST_LINE: usize = 107;
const START: &[u8] = b"PROXY ";

pub(super) fn look(bytes: &[u8]) -> Result<Seen, HeaderError> {
    if !begins(bytes, START) {
        return Err(HeaderError::NotAHeader);
    }
    let line = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() == LONGEST_LINE {
            Err(HeaderError::TooLong)
        } else {
            Ok(Seen::Part)
        };
    };
    let line = line.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let announced = announced(line.ok_or(HeaderError::Line("end"))?)?;
    Ok(Seen::Whole {
        length: end.saturating_add(1),
        announced,
    })
}

fn announced(line: &str) -> Result<Announced, HeaderError> {
    let mut words = line.split(' ').skip(1);
    let address: fn(&str) -> Option<IpAddr> = match words.next() {
        // Whatever follows has no meaning.
        Some("UNKNOWN") => return Ok(Announced::Nobody),
        Some("TCP4") => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        Some("TCP6") => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => return Err(HeaderError::Line("protocol")),
    };
    let mut next = |what, read: fn(&str) -> Option<IpAddr>| {
        words.next().and_then(read).ok_or(HeaderError::Line(what))
    };
    let source = next("client address", address)?;
    let target = next("destination address", address)?;
    let mut next = |what| words.next().and_then(port).ok_or(HeaderError::Line(what));
    let (client, destination) = (next("client port")?, next("destination port")?);
    if words.next().is_some() {
        return Err(HeaderError::Line("end"));
    }
    Ok(Announced::Client {
        client: SocketAddr::new(source.to_canonical(), client),
        destination: SocketAddr::new(target.to_canonical(), destination),
    })
}

/// Digits alone, and none of them in vain.
fn port(word: &str) -> Option<u16> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| plain)
}
