//! Version 2: a signature, what it is, how long it is, two addresses, and fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Announced, HeaderError, LONGEST, Seen, begins};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What every header has before its addresses.
const FIXED: usize = 16;
/// Version 2 from a sender that speaks for itself.
const LOCAL: u8 = 0x20;
/// Version 2 from one that speaks for a client.
const PROXY: u8 = 0x21;
const NO_FAMILY: u8 = 0x00;
const TCP_4: u8 = 0x11;
const TCP_6: u8 = 0x21;
/// A client that came by a Unix socket has no address that means something here.
const UNIX_STREAM: u8 = 0x31;
/// The field that holds the checksum of the whole header, in which it counts as zero. It is
/// looked at where an address is announced.
const CHECKSUM: u8 = 0x03;

pub(super) fn look(bytes: &[u8]) -> Result<Seen, HeaderError> {
    if !begins(bytes, &SIGNATURE) {
        return Err(HeaderError::NotAHeader);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Seen::Part);
    };
    let [.., command, family, high, low] = *fixed;
    if command != LOCAL && command != PROXY {
        return Err(HeaderError::Command(command));
    }
    let body = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED.saturating_add(body);
    if length > LONGEST {
        return Err(HeaderError::TooLong);
    }
    let (Some(whole), Some(body)) = (bytes.get(..length), rest.get(..body)) else {
        return Ok(Seen::Part);
    };
    let announced = if command == LOCAL {
        Announced::Nobody
    } else {
        announced(whole, family, body)?
    };
    Ok(Seen::Whole { length, announced })
}

fn announced(whole: &[u8], family: u8, body: &[u8]) -> Result<Announced, HeaderError> {
    let (source, target, rest) = match family {
        TCP_4 => addresses::<4>(body)?,
        TCP_6 => addresses::<16>(body)?,
        NO_FAMILY | UNIX_STREAM => return Ok(Announced::Nobody),
        other => return Err(HeaderError::Family(other)),
    };
    let (client, rest) = port(rest)?;
    let (destination, fields) = port(rest)?;
    check(whole, fields)?;
    Ok(Announced::Client {
        client: SocketAddr::new(source.to_canonical(), client),
        destination: SocketAddr::new(target.to_canonical(), destination),
    })
}

fn addresses<const N: usize>(bytes: &[u8]) -> Result<(IpAddr, IpAddr, &[u8]), HeaderError>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = take::<N>(bytes)?;
    let (target, rest) = take::<N>(rest)?;
    Ok((source.into(), target.into(), rest))
}

fn port(bytes: &[u8]) -> Result<(u16, &[u8]), HeaderError> {
    let (port, rest) = take(bytes)?;
    Ok((u16::from_be_bytes(port), rest))
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), HeaderError> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(HeaderError::Truncated)?;
    Ok((*taken, rest))
}

/// Steps over the fields, which are at the end of a header that announces an address, and checks
/// the checksum if there is one.
fn check(whole: &[u8], mut fields: &[u8]) -> Result<(), HeaderError> {
    while !fields.is_empty() {
        let ([kind, high, low], rest) = take::<3>(fields)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, next) = rest
            .split_at_checked(length)
            .ok_or(HeaderError::Truncated)?;
        if kind == CHECKSUM {
            let at = whole.len().saturating_sub(rest.len());
            let own = u32::from_be_bytes(value.try_into().map_err(|_| HeaderError::Checksum)?);
            if own != crc32c(whole, at..at.saturating_add(length)) {
                return Err(HeaderError::Checksum);
            }
        }
        fields = next;
    }
    Ok(())
}

/// The CRC of Castagnoli, with the bytes of a range as zeros.
fn crc32c(bytes: &[u8], zeros: std::ops::Range<usize>) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let mut crc = u32::MAX;
    for (at, byte) in bytes.iter().enumerate() {
        crc ^= if zeros.contains(&at) {
            0
        } else {
            u32::from(*byte)
        };
        for _ in 0..8 {
            let out = crc & 1;
            crc = (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(out));
        }
    }
    !crc
}

/// The header that announces a client.
#[must_use]
pub fn header(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut body = Vec::with_capacity(FIXED.saturating_add(36));
    let family = match (client.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            body.extend_from_slice(&source.octets());
            body.extend_from_slice(&target.octets());
            TCP_4
        }
        (source, target) => {
            body.extend_from_slice(&as_v6(source).octets());
            body.extend_from_slice(&as_v6(target).octets());
            TCP_6
        }
    };
    body.extend_from_slice(&client.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[PROXY, family]);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&body);
    header
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_everybody() {
        assert_eq!(crc32c(b"123456789", 0..0), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32], 0..0), 0x8A91_36AA);
        assert_eq!(crc32c(&[7; 32], 0..32), 0x8A91_36AA);
    }
}
