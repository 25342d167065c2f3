//! Has idle clients of flows that are fenced hear of it now.
//!
//! Only the next packet of a flow meets the fence, and an idle client sends none. Nor can anybody
//! here reset it: nobody but the two ends knows their sequence numbers. So it is *nudged*: a segment
//! that is out of every window makes it say where it is, and that answer meets the fence, which
//! resets it by its own numbers. A client that does not hear it is reset when it next speaks.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use socket2::Socket;

use super::ruleset::SILENT;

const ACK: u8 = 0x10;
const TCP: u8 = 6;
const HOPS: u8 = 64;

/// What nudges.
#[derive(Debug, Default)]
pub(super) struct Nudger {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl Nudger {
    /// Nudges the client of a flow.
    ///
    /// # Errors
    /// Without the privilege, and when the client cannot be reached.
    pub(super) fn nudge(&mut self, client: SocketAddr, door: SocketAddr) -> io::Result<()> {
        let (socket, family) = match client {
            SocketAddr::V4(_) => (&mut self.v4, AddressFamily::INET),
            SocketAddr::V6(_) => (&mut self.v6, AddressFamily::INET6),
        };
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(open(family)?),
        };
        // No window is as wide as half of all numbers: one of the two is outside.
        for sequence in [0, 1 << 31] {
            let packet = packet(door, client, sequence)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            let to = SocketAddr::new(client.ip(), 0);
            socket.send_to(&packet, &to.into())?;
        }
        Ok(())
    }
}

fn open(family: AddressFamily) -> io::Result<Socket> {
    let raw = socket_with(
        family,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::RAW),
    )?;
    let socket = Socket::from(raw);
    socket.set_mark(SILENT)?;
    Ok(socket)
}

fn packet(from: SocketAddr, to: SocketAddr, sequence: u32) -> Option<Vec<u8>> {
    let segment = segment(from, to, sequence);
    let length = u16::try_from(segment.len()).ok()?;
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The kernel fills in the length, the number and the checksum.
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, TCP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([TCP, HOPS]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    packet.extend(segment);
    Some(packet)
}

fn segment(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let segment = |checksum: u16| {
        let mut bytes = Vec::new();
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([0x50, ACK]);
        bytes.extend([0xff, 0xff]);
        bytes.extend(checksum.to_be_bytes());
        bytes.extend([0, 0]);
        bytes
    };
    let mut summed = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => summed.extend(address.octets()),
            IpAddr::V6(address) => summed.extend(address.octets()),
        }
    }
    let bytes = segment(0);
    summed.extend(u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
    summed.extend([0, 0, 0, TCP]);
    summed.extend(bytes);
    segment(checksum(&summed))
}

/// The checksum of the Internet's protocols; the length is even.
fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, _) = bytes.as_chunks::<2>();
    let sum: u32 = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_with_its_checksum_sums_up_to_nothing() {
        for (from, to) in [
            ("10.1.2.3:80", "10.255.0.1:40000"),
            ("[2001:db8::1]:443", "[fe80::ffff:1]:65535"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let segment = segment(from, to, 1 << 31);
            let mut summed = Vec::new();
            for address in [from.ip(), to.ip()] {
                match address {
                    IpAddr::V4(address) => summed.extend(address.octets()),
                    IpAddr::V6(address) => summed.extend(address.octets()),
                }
            }
            summed.extend([0, 0, 0, 20, 0, 0, 0, 6]);
            summed.extend(&segment);
            assert_eq!(checksum(&summed), 0);
        }
    }
}
