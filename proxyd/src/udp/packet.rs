//! Datagrams with the address of this host that they came to.
//!
//! An answer leaves from there: its client would take one from another address for a stranger's,
//! and on a host with several addresses Linux chooses by the way out.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockaddrIn, SockaddrIn6,
    SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Who sent a datagram, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Path {
    pub(super) client: SocketAddr,
    /// Of this host; `None` where the kernel does not say.
    pub(super) here: Option<IpAddr>,
}

/// Room for what the kernel says of a datagram. Used again and again.
#[derive(Debug)]
pub(super) struct Control(Vec<u8>);

impl Control {
    pub(super) fn new() -> Self {
        Self(nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo))
    }
}

/// Has a socket tell where its datagrams came to.
///
/// # Errors
/// As the kernel's.
pub(super) fn ask_for_paths(socket: &UdpSocket) -> io::Result<()> {
    let set = if socket.local_addr()?.is_ipv4() {
        setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)
    } else {
        // On a socket for both families this is told of IPv4 too.
        setsockopt(&socket.as_fd(), sockopt::Ipv6RecvPacketInfo, &true)
    };
    Ok(set?)
}

/// Takes a datagram that has come: its length, and its path.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when none is there; others as the kernel's.
pub(super) fn receive(
    socket: &UdpSocket,
    space: &mut [u8],
    control: &mut Control,
) -> io::Result<(usize, Path)> {
    socket.try_io(Interest::READABLE, || {
        let mut parts = [IoSliceMut::new(space)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control.0),
            MsgFlags::empty(),
        )?;
        let client = message.address.as_ref().and_then(address);
        let path = Path {
            client: client.ok_or(io::ErrorKind::InvalidData)?,
            here: destination(&message)?,
        };
        Ok((message.bytes, path))
    })
}

fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
}

fn destination<S>(message: &RecvMsg<'_, '_, S>) -> io::Result<Option<IpAddr>> {
    let told = message.cmsgs()?.find_map(|told| match told {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let octets = info.ipi_spec_dst.s_addr.to_ne_bytes();
            Some(IpAddr::from(Ipv4Addr::from(octets)))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::from(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    Ok(told)
}

/// Sends an answer back the way its question came.
///
/// # Errors
/// As the kernel's.
///
/// # Cancel safety
/// Cancel safe: the answer is sent or not.
pub(super) async fn send(socket: &UdpSocket, datagram: &[u8], path: Path) -> io::Result<usize> {
    socket
        .async_io(Interest::WRITABLE, || send_now(socket, datagram, path))
        .await
}

/// Linux refuses a source that is no host's, in words that depend on its version: the group or
/// broadcast address that a question came to, or one that this host has no more. The choice is
/// Linux's then.
fn send_now(socket: &UdpSocket, datagram: &[u8], path: Path) -> io::Result<usize> {
    match send_from(socket, datagram, path) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock && path.here.is_some() => {
            let anywhere = Path { here: None, ..path };
            send_from(socket, datagram, anywhere)
        }
        sent => sent,
    }
}

fn send_from(socket: &UdpSocket, datagram: &[u8], path: Path) -> io::Result<usize> {
    let (fd, parts) = (socket.as_raw_fd(), [IoSlice::new(datagram)]);
    let sent = match path.client {
        SocketAddr::V4(client) => {
            let info = from_v4(path.here);
            let from = info.as_ref().map(ControlMessage::Ipv4PacketInfo);
            let to = SockaddrIn::from(client);
            sendmsg(fd, &parts, from.as_slice(), MsgFlags::empty(), Some(&to))
        }
        // Linux takes this for an IPv4 address in IPv6's clothes too.
        SocketAddr::V6(client) => {
            let info = from_v6(path.here);
            let from = info.as_ref().map(ControlMessage::Ipv6PacketInfo);
            let to = SockaddrIn6::from(client);
            sendmsg(fd, &parts, from.as_slice(), MsgFlags::empty(), Some(&to))
        }
    };
    Ok(sent?)
}

fn from_v4(here: Option<IpAddr>) -> Option<libc::in_pktinfo> {
    let Some(IpAddr::V4(here)) = here else {
        return None;
    };
    Some(libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from_ne_bytes(here.octets()),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    })
}

fn from_v6(here: Option<IpAddr>) -> Option<libc::in6_pktinfo> {
    let Some(IpAddr::V6(here)) = here else {
        return None;
    };
    Some(libc::in6_pktinfo {
        ipi6_addr: libc::in6_addr {
            s6_addr: here.octets(),
        },
        ipi6_ifindex: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients of several addresses of this host, at a socket for all of them.
    async fn answers_come_from_where_they_were_asked(wide: IpAddr, asked: [&str; 2]) {
        let socket = UdpSocket::bind((wide, 0)).await.unwrap();
        ask_for_paths(&socket).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (mut space, mut control) = (vec![0; 64], Control::new());
        for here in asked {
            let here: IpAddr = here.parse().unwrap();
            // Connected: it hears nobody else.
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            client.connect((here, port)).await.unwrap();
            client.send(b"question").await.unwrap();
            let (length, path) = loop {
                socket.readable().await.unwrap();
                match receive(&socket, &mut space, &mut control) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => break received.unwrap(),
                }
            };
            assert_eq!(&space[..length], b"question");
            assert_eq!(path.here.map(|here| here.to_canonical()), Some(here));
            send(&socket, b"answer", path).await.unwrap();
            let wait = std::time::Duration::from_secs(10);
            let answer = tokio::time::timeout(wait, client.recv(&mut space)).await;
            assert_eq!(&space[..answer.unwrap().unwrap()], b"answer");
        }
    }

    #[tokio::test]
    async fn a_socket_for_all_addresses_answers_from_the_one_that_was_asked() {
        let asked = ["127.0.0.7", "127.0.0.8"];
        answers_come_from_where_they_were_asked(Ipv4Addr::UNSPECIFIED.into(), asked).await;
        answers_come_from_where_they_were_asked(Ipv6Addr::UNSPECIFIED.into(), asked).await;
    }

    #[tokio::test]
    async fn what_was_asked_of_a_group_is_answered_by_a_host() {
        let wide: [(IpAddr, &[&str]); 2] = [
            (
                Ipv4Addr::UNSPECIFIED.into(),
                &["224.0.0.1", "255.255.255.255"],
            ),
            (
                Ipv6Addr::UNSPECIFIED.into(),
                &[
                    "::ffff:224.0.0.1",
                    "::ffff:127.255.255.255",
                    "::ffff:192.0.2.1",
                ],
            ),
        ];
        for (wide, groups) in wide {
            let socket = UdpSocket::bind((wide, 0)).await.unwrap();
            for group in groups {
                let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let to = client.local_addr().unwrap();
                let client_ip = match (wide, to.ip()) {
                    (IpAddr::V6(_), IpAddr::V4(v4)) => v4.to_ipv6_mapped().into(),
                    (_, ip) => ip,
                };
                let path = Path {
                    client: SocketAddr::new(client_ip, to.port()),
                    here: Some(group.parse().unwrap()),
                };
                send(&socket, b"answer", path).await.unwrap();
                let wait = std::time::Duration::from_secs(10);
                let heard = tokio::time::timeout(wait, client.recv(&mut [0; 8])).await;
                assert_eq!(heard.unwrap().unwrap(), 6, "{group}");
            }
        }
    }

    #[tokio::test]
    async fn where_nothing_is_told_the_kernel_chooses() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(socket.local_addr().unwrap()).await.unwrap();
        client.send(b"").await.unwrap();
        socket.readable().await.unwrap();
        let received = receive(&socket, &mut [0; 8], &mut Control::new()).unwrap();
        let path = Path {
            client: client.local_addr().unwrap(),
            here: None,
        };
        assert_eq!(received, (0, path));
        send(&socket, b"answer", path).await.unwrap();
        assert_eq!(client.recv(&mut [0; 8]).await.unwrap(), 6);
    }
}
