//! Sockets with the options that every connection of the proxy has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use proxyd_core::reload::Place;
use rehome_shared::config::daemon::ProxydTimeouts;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::fair;

/// Connections that the kernel completes while the proxy does not accept.
const BACKLOG: i32 = 4096;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Sets what both legs of a connection have: no delay, keepalive, and a limit on how long
/// bytes may stay unacknowledged. What a listener has, Linux gives to all that it accepts, so no
/// accepted connection pays for it.
pub(crate) fn tune(socket: &impl AsFd, timeouts: &ProxydTimeouts) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(timeouts.keepalive)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(timeouts.user_timeout))
}

/// Another limit on how long bytes may stay unacknowledged before the connection counts as broken.
pub(crate) fn acknowledge_within(stream: &TcpStream, limit: Duration) {
    // Fails only on a socket that is dead already.
    drop(SockRef::from(stream).set_tcp_user_timeout(Some(limit)));
}

/// Makes the drop of this stream a reset instead of a polite end.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    // Fails only on a socket that is dead already.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Says "no more bytes" to the other side.
pub(crate) fn finish_sending(stream: &TcpStream) {
    // Fails only when the other side is gone, which the reading half sees.
    drop(SockRef::from(stream).shutdown(std::net::Shutdown::Write));
}

/// Connects with the usual options, from `source` where that fits the family.
///
/// # Cancel safety
/// Cancel safe: the socket is dropped.
pub(crate) async fn connect(
    to: SocketAddr,
    source: Option<IpAddr>,
    patience: Duration,
    timeouts: &ProxydTimeouts,
) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(source) = source.filter(|source| source.is_ipv4() == to.is_ipv4()) {
        leave_from(&socket, source)?;
    }
    let stream = fair::within(patience, socket.connect(to))
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
    tune(&stream, timeouts)?;
    Ok(stream)
}

/// Has a socket leave from an address. Its port is chosen when it connects: a port that is chosen
/// before is taken for every destination. An address that this machine does not have (behind NAT,
/// say) leaves the choice of that to the kernel as well.
fn leave_from(socket: &TcpSocket, source: IpAddr) -> io::Result<()> {
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    drop(socket.bind(SocketAddr::new(source, 0)));
    Ok(())
}

/// Whether a socket may listen where another one of this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    Alone,
    /// Both have [`let_in`] in force.
    Shared,
}

/// Lets others of this user listen where this socket does, or no longer. Linux asks when another
/// one binds: so a port can change its address without a moment in which nobody listens.
pub(crate) fn let_in(socket: &impl AsFd, company: Company) -> io::Result<()> {
    SockRef::from(socket).set_reuse_port(company == Company::Shared)
}

/// Drops SYNs from now on: their senders come again after a second and find who listens then.
/// Handshakes that have begun are completed.
pub(crate) fn drop_syns(listener: &TcpListener) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where a TCP header has its flags.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Makes a socket that another process may have left in the middle of a change one that greets
/// everyone and shares its port with nobody.
pub(crate) fn as_new(socket: &impl AsFd) -> io::Result<()> {
    let nothing_attached = rustix::io::Errno::NOENT.raw_os_error();
    match SockRef::from(socket).detach_filter() {
        Err(error) if error.raw_os_error() != Some(nothing_attached) => return Err(error),
        _ => {}
    }
    SockRef::from(socket).set_nonblocking(true)?;
    let_in(socket, Company::Alone)
}

/// A connection that the kernel has completed; `None` when there is none. Whatever the runtime
/// knows of the listener.
pub(crate) fn accept_now(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match SockRef::from(listener).accept() {
            Ok((socket, peer)) => {
                socket.set_nonblocking(true)?;
                let peer = peer.as_socket().ok_or(io::ErrorKind::Unsupported)?;
                return Ok(Some((TcpStream::from_std(socket.into())?, canonical(peer))));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // The connection ended before it was accepted; there may be others.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// An IPv4 address is one whichever socket it came to.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Ends a listener for good, also where it is open in another process or in a store of
/// descriptors.
pub(crate) fn stop_listening(listener: &impl AsFd) {
    // Fails only when it listens no more.
    drop(SockRef::from(listener).shutdown(std::net::Shutdown::Both));
}

/// A socket of a TCP port.
pub(crate) fn listen_tcp(
    place: Place,
    port: u16,
    timeouts: &ProxydTimeouts,
    company: Company,
) -> io::Result<TcpListener> {
    at_place(place, port, |address, only_v6| {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.set_reuse_address(true)?;
        let_in(&socket, company)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        tune(&socket, timeouts)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    })
}

/// A socket of a UDP port. Without `SO_REUSEADDR`: two UDP sockets on one port would share its
/// datagrams silently.
pub(crate) fn listen_udp(place: Place, port: u16, company: Company) -> io::Result<UdpSocket> {
    at_place(place, port, |address, only_v6| {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        let_in(&socket, company)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    })
}

/// `[::]` takes both families, and means `0.0.0.0` on a host without IPv6.
fn at_place<T>(
    place: Place,
    port: u16,
    open: impl Fn(SocketAddr, bool) -> io::Result<T>,
) -> io::Result<T> {
    match place {
        Place::Everywhere => match open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), false)
        {
            Err(error) if lacks_ipv6(&error) => {
                open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), false)
            }
            other => other,
        },
        Place::Address(ip) => open(SocketAddr::new(ip, port), true),
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
}

/// Where the trunk listens.
pub(crate) fn trunk_place(address: SocketAddr) -> Place {
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        Place::Everywhere
    } else {
        Place::Address(address.ip())
    }
}

/// Where a socket is that listens, as one of [`listen_tcp`]'s places.
pub(crate) fn place_of(socket: &impl AsFd) -> io::Result<(Place, u16)> {
    let socket = SockRef::from(socket);
    let bound = socket.local_addr()?.as_socket();
    let bound = bound.ok_or(io::ErrorKind::Unsupported)?;
    let everywhere = match bound.ip() {
        IpAddr::V6(ip) => ip.is_unspecified() && !socket.only_v6()?,
        IpAddr::V4(ip) => ip.is_unspecified() && !speaks_ipv6(),
    };
    let place = if everywhere {
        Place::Everywhere
    } else {
        Place::Address(bound.ip())
    };
    Ok((place, bound.port()))
}

fn speaks_ipv6() -> bool {
    let tried = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP));
    !tried.is_err_and(|error| lacks_ipv6(&error))
}

/// Whether this machine has no port left to connect from. (A target of a family that it does not
/// speak looks the same.)
pub(crate) fn lacks_ports(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Whether the process or the machine has no room for another socket: the caller waits
/// instead of trying at once.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_not_taken_before_it_is_known_what_for() {
        let here = IpAddr::from([127, 0, 0, 9]);
        let socket = TcpSocket::new_v4().unwrap();
        leave_from(&socket, here).unwrap();
        assert_eq!(socket.local_addr().unwrap(), SocketAddr::new(here, 0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = socket.connect(listener.local_addr().unwrap()).await;
        let from = stream.unwrap().local_addr().unwrap();
        assert!(from.ip() == here && from.port() > 0);
        // An address of somebody else is no reason not to connect.
        let socket = TcpSocket::new_v4().unwrap();
        leave_from(&socket, IpAddr::from([192, 0, 2, 1])).unwrap();
        assert!(socket.connect(listener.local_addr().unwrap()).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_accepted_has_what_the_listener_has() {
        let timeouts = ProxydTimeouts {
            keepalive: Duration::from_secs(77),
            user_timeout: Duration::from_secs(88),
            ..ProxydTimeouts::default()
        };
        let here = Place::Address(Ipv4Addr::LOCALHOST.into());
        let listener = listen_tcp(here, 0, &timeouts, Company::Alone).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, _client) = tokio::join!(listener.accept(), client);
        let (stream, _) = accepted.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), timeouts.keepalive);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(timeouts.user_timeout)
        );
    }

    /// A place that no other test uses.
    fn place() -> (Place, TcpListener) {
        let here = Place::Address(Ipv4Addr::LOCALHOST.into());
        let listener = listen_tcp(here, 0, &ProxydTimeouts::default(), Company::Alone).unwrap();
        (here, listener)
    }

    /// A place whose port nobody has at any address, nor is given by the kernel.
    fn quiet_place() -> (Place, u16, TcpListener) {
        let here = Place::Address(Ipv4Addr::LOCALHOST.into());
        let timeouts = ProxydTimeouts::default();
        let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
        let mut ports = (first..first + 500).filter(|port| {
            let everywhere = Place::Everywhere;
            listen_tcp(everywhere, *port, &timeouts, Company::Alone).is_ok()
                && listen_udp(everywhere, *port, Company::Alone).is_ok()
        });
        let port = ports.next().unwrap();
        let listener = listen_tcp(here, port, &timeouts, Company::Alone).unwrap();
        (here, port, listener)
    }

    #[tokio::test]
    async fn a_port_changes_its_address_without_a_moment_in_which_nobody_listens() {
        let timeouts = ProxydTimeouts::default();
        let (here, port, old) = quiet_place();
        for wider in [
            Place::Everywhere,
            Place::Address(Ipv4Addr::UNSPECIFIED.into()),
        ] {
            assert!(listen_tcp(wider, port, &timeouts, Company::Alone).is_err());
            let_in(&old, Company::Shared).unwrap();
            let new = listen_tcp(wider, port, &timeouts, Company::Shared).unwrap();
            for socket in [&old, &new] {
                let_in(socket, Company::Alone).unwrap();
            }
            // And back, which the kernel looks at anew.
            assert!(listen_tcp(here, port, &timeouts, Company::Alone).is_err());
            drop(new);
        }
        let udp = listen_udp(here, port, Company::Alone).unwrap();
        assert!(listen_udp(Place::Everywhere, port, Company::Alone).is_err());
        let_in(&udp, Company::Shared).unwrap();
        listen_udp(Place::Everywhere, port, Company::Shared).unwrap();
    }

    async fn readable(listener: &TcpListener) {
        let is_ready = || {
            let mut polled = [rustix::event::PollFd::new(
                listener,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() > 0
        };
        while !is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn without_syns_what_was_completed_is_still_accepted() {
        let (_, listener) = place();
        let to = listener.local_addr().unwrap();
        assert!(accept_now(&listener).unwrap().is_none());
        let _waiting = [
            TcpStream::connect(to).await.unwrap(),
            TcpStream::connect(to).await.unwrap(),
        ];
        drop_syns(&listener).unwrap();
        let patience = Duration::from_millis(100);
        let late = tokio::time::timeout(patience, TcpStream::connect(to)).await;
        assert!(late.is_err(), "its SYN was answered: {late:?}");
        for _ in 0..2 {
            // A connect may be over before its last packet is: it comes by itself.
            tokio::time::timeout(Duration::from_secs(20), readable(&listener))
                .await
                .unwrap();
            let (stream, _) = accept_now(&listener).unwrap().unwrap();
            assert!(stream.try_read(&mut [0]).is_err(), "it does not block");
        }
        assert!(accept_now(&listener).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_listener_that_is_stopped_refuses_though_it_is_open_elsewhere() {
        let (_, listener) = place();
        let to = listener.local_addr().unwrap();
        let elsewhere = listener.as_fd().try_clone_to_owned().unwrap();
        stop_listening(&listener);
        drop(listener);
        let refused = TcpStream::connect(to).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(elsewhere);
    }
}
