//! How a daemon is reached.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rehome_shared::ids::HostAddr;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::tls::Tls;

/// A peer that answers nothing at all for so long is gone, also in the middle of a stream.
const DEAD_AFTER: Duration = Duration::from_secs(30);

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) type Stream = Box<dyn Io>;

#[derive(Debug, Clone)]
pub(super) enum Endpoint {
    Unix(PathBuf),
    Tls { host: HostAddr, port: u16, tls: Tls },
}

impl Endpoint {
    /// The `Host` header.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tls { host, port, .. } => host.with_port(*port),
        }
    }

    pub(super) async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tls { host, port, tls } => {
                let expected =
                    ServerName::try_from(host.as_str().to_owned()).map_err(io::Error::other)?;
                let stream = TcpStream::connect(host.with_port(*port)).await?;
                tune(&stream)?;
                let connector = TlsConnector::from(tls.client());
                Ok(Box::new(connector.connect(expected, stream).await?))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls { host, port, .. } => f.write_str(&host.with_port(*port)),
        }
    }
}

/// Makes a dead peer end a TCP connection, and small messages leave at once.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(DEAD_AFTER / 2)
        .with_interval(DEAD_AFTER / 6)
        .with_retries(3);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))
}
