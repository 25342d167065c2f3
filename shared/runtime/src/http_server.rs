//! HTTP/1.1 over a Unix socket, over plain TCP (metrics on loopback) and over mutual TLS.
//!
//! What a client can make the server hold is bounded: the number of connections (more wait in
//! the kernel's backlog), the time for a TLS handshake and for a request's head. The size of a
//! body is the router's business: axum's extractors stop at its `DefaultBodyLimit`, while a
//! handler that takes the `Body` itself reads a stream of any length with backpressure.
//!
//! Over mutual TLS every request carries the [`PeerIdentity`](crate::tls::PeerIdentity) of the
//! client as an extension. A Unix socket has mode 0600, so its clients are root; their requests
//! carry no identity.

mod connection;
mod reply;
mod unix;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::supervise::{Criticality, Supervisor};
use crate::tls::Tls;
use connection::Connection;
use unix::SocketFile;

pub use reply::ErrorResponse;
pub use unix::FileStays;

/// What one server lets its clients hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at one time; more wait in the kernel's backlog.
    pub connections: usize,
    /// The most that a TLS handshake, a request's head, or the wait for the next request on a
    /// kept connection may take.
    pub header_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program answers on the Unix socket.
    #[error("another program answers on {path}", path = .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has the name.
    #[error("{path} exists and is not a socket", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The Unix socket could not be made.
    #[error("cannot listen on {path}", path = .path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The TCP address could not be had.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A server that listens already and serves when [`HttpServer::serve`] runs.
#[derive(Debug)]
pub struct HttpServer {
    listener: Listener,
    limits: ServerLimits,
}

#[derive(Debug)]
enum Listener {
    /// The file goes with the server.
    Unix {
        listener: UnixListener,
        file: SocketFile,
    },
    Tcp(TcpListener),
    MutualTls(TcpListener, Tls),
}

impl HttpServer {
    /// Listens on a Unix socket that only root may use. A socket file on which nobody answers
    /// is replaced; the file is removed when the server ends.
    ///
    /// # Errors
    /// [`BindError`].
    ///
    /// # Cancel safety
    /// A dropped call may leave a socket file on which nobody answers; the next call replaces it.
    pub async fn unix(path: &Path) -> Result<Self, BindError> {
        let (listener, file) = unix::bind(path).await?;
        Ok(Self {
            listener: Listener::Unix { listener, file },
            limits: ServerLimits::default(),
        })
    }

    /// Listens on TCP without encryption or identity: for metrics on loopback.
    ///
    /// # Errors
    /// [`BindError::Tcp`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn tcp(address: SocketAddr) -> Result<Self, BindError> {
        let listener = bind_tcp(address).await?;
        Ok(Self {
            listener: Listener::Tcp(listener),
            limits: ServerLimits::default(),
        })
    }

    /// Listens on TCP with mutual TLS 1.3.
    ///
    /// # Errors
    /// [`BindError::Tcp`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn mutual_tls(address: SocketAddr, tls: Tls) -> Result<Self, BindError> {
        let listener = bind_tcp(address).await?;
        Ok(Self {
            listener: Listener::MutualTls(listener, tls),
            limits: ServerLimits::default(),
        })
    }

    /// Goes on with the Unix socket of another process, which has this path. Nothing is
    /// accepted before [`HttpServer::serve`], and the file is the other one's until
    /// [`FileStays::go`].
    ///
    /// # Errors
    /// [`BindError::Unix`].
    pub fn adopt_unix(socket: OwnedFd, path: &Path) -> Result<Self, BindError> {
        let adopt = || {
            let listener = UnixListener::from_std(socket.into())?;
            let file = SocketFile::adopt(path)?;
            io::Result::Ok(Listener::Unix { listener, file })
        };
        let listener = adopt().map_err(|source| BindError::Unix {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            limits: ServerLimits::default(),
        })
    }

    /// Goes on with the TCP socket of another process. Nothing is accepted before
    /// [`HttpServer::serve`].
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn adopt_tcp(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            listener: Listener::Tcp(TcpListener::from_std(socket.into())?),
            limits: ServerLimits::default(),
        })
    }

    /// Another descriptor of its socket, to be given to another process.
    ///
    /// # Errors
    /// When there is no room for another descriptor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match &self.listener {
            Listener::Unix { listener, .. } => listener.as_fd().try_clone_to_owned(),
            Listener::Tcp(listener) | Listener::MutualTls(listener, _) => {
                listener.as_fd().try_clone_to_owned()
            }
        }
    }

    /// How to say whether the socket's file stays; `None` where there is none.
    #[must_use]
    pub fn file(&self) -> Option<FileStays> {
        match &self.listener {
            Listener::Unix { file, .. } => Some(file.stays()),
            Listener::Tcp(_) | Listener::MutualTls(..) => None,
        }
    }

    /// Sets the limits.
    #[must_use]
    pub fn with_limits(mut self, limits: ServerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Where it listens, for TCP.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Unix { .. } => None,
            Listener::Tcp(listener) | Listener::MutualTls(listener, _) => {
                listener.local_addr().ok()
            }
        }
    }

    /// Serves until the supervisor stops; then it accepts no more, and the requests that run
    /// finish within the supervisor's grace. Spawn it as a critical task.
    ///
    /// # Cancel safety
    /// Dropping it stops accepting; connections go on until the supervisor's stop.
    pub async fn serve(self, router: Router, supervisor: Supervisor) {
        let connections = supervisor.group();
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let stop = supervisor.token().clone();
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            let accepted = stop.run_until_cancelled(self.accept(&permits)).await;
            match accepted {
                None => return,
                Some(Ok(accepted)) => {
                    backoff.reset();
                    let router = router.clone();
                    connections.spawn(
                        "http connection",
                        Criticality::Ordinary,
                        accepted.serve(router, self.limits, stop.clone()),
                    );
                }
                Some(Err(error)) => {
                    // EMFILE and the like: the listener stays readable, so do not spin.
                    tracing::warn!(%error, "cannot accept a control connection");
                    pause(&stop, backoff.next_delay()).await;
                }
            }
        }
    }

    /// The next connection, once there is room for it.
    async fn accept(&self, permits: &Arc<Semaphore>) -> io::Result<Accepted> {
        let permit = Arc::clone(permits)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let transport = match &self.listener {
            Listener::Unix { listener, .. } => Transport::Unix(listener.accept().await?.0),
            Listener::Tcp(listener) => Transport::Tcp(accept_tcp(listener).await?),
            Listener::MutualTls(listener, tls) => {
                Transport::MutualTls(accept_tcp(listener).await?, tls.clone())
            }
        };
        Ok(Accepted { transport, permit })
    }
}

struct Accepted {
    transport: Transport,
    permit: OwnedSemaphorePermit,
}

enum Transport {
    Unix(tokio::net::UnixStream),
    Tcp(TcpStream),
    MutualTls(TcpStream, Tls),
}

impl Accepted {
    async fn serve(self, router: Router, limits: ServerLimits, stop: CancellationToken) {
        let connection = Connection {
            router,
            header_timeout: limits.header_timeout,
            stop,
        };
        match self.transport {
            Transport::Unix(stream) => connection.serve(stream, None).await,
            Transport::Tcp(stream) => connection.serve(stream, None).await,
            Transport::MutualTls(stream, tls) => connection.serve_tls(stream, &tls).await,
        }
        drop(self.permit);
    }
}

async fn pause(stop: &CancellationToken, delay: Duration) {
    // Either way the caller goes on; at the stop it sees the token.
    let _stopped = stop.run_until_cancelled(tokio::time::sleep(delay)).await;
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _peer) = listener.accept().await?;
    crate::http_client::tune(&stream)?;
    Ok(stream)
}

/// Binds; `[::]` also takes IPv4, and means `0.0.0.0` on a host without IPv6.
async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bound = match TcpListener::bind(address).await {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && lacks_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| BindError::Tcp { address, source })
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported)
}

#[cfg(test)]
mod tests;
