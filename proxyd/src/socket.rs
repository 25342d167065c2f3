//! Sockets with the options that every connection of the proxy has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rehome_shared::config::daemon::{ListenOn, ProxydTimeouts};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

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
        // An address that this machine does not have (behind NAT, say) leaves the choice to the
        // kernel.
        drop(socket.bind(SocketAddr::new(source, 0)));
    }
    let stream = tokio::time::timeout(patience, socket.connect(to))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    tune(&stream, timeouts)?;
    Ok(stream)
}

/// The sockets of one TCP port, one per address.
pub(crate) fn listen_tcp(
    on: &ListenOn,
    port: u16,
    timeouts: &ProxydTimeouts,
) -> io::Result<Vec<TcpListener>> {
    for_each_address(on, port, |address, only_v6| {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        tune(&socket, timeouts)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    })
}

/// The sockets of one UDP port, one per address. Without `SO_REUSEADDR`: two UDP sockets on
/// one port would share its datagrams silently.
pub(crate) fn listen_udp(on: &ListenOn, port: u16) -> io::Result<Vec<UdpSocket>> {
    for_each_address(on, port, |address, only_v6| {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    })
}

fn for_each_address<T>(
    on: &ListenOn,
    port: u16,
    open: impl Fn(SocketAddr, bool) -> io::Result<T>,
) -> io::Result<Vec<T>> {
    match on {
        ListenOn::DualStack => {
            let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            match open(both, false) {
                Err(error) if lacks_ipv6(&error) => {
                    open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), false)
                        .map(|socket| vec![socket])
                }
                other => other.map(|socket| vec![socket]),
            }
        }
        ListenOn::Addresses(addresses) => addresses
            .iter()
            .map(|ip| open(SocketAddr::new(*ip, port), true))
            .collect(),
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
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
    async fn what_is_accepted_has_what_the_listener_has() {
        let timeouts = ProxydTimeouts {
            keepalive: Duration::from_secs(77),
            user_timeout: Duration::from_secs(88),
            ..ProxydTimeouts::default()
        };
        let on = ListenOn::Addresses(vec![Ipv4Addr::LOCALHOST.into()]);
        let listener = listen_tcp(&on, 0, &timeouts).unwrap().pop().unwrap();
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
}
