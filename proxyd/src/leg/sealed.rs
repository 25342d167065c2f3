//! A TLS session over a socket.
//!
//! Invariant: a new record is made only when the one before is with the kernel, so a session holds
//! at most one of them that is not sent, and a slow reader stops who writes.

use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rehome_runtime::tls::{IdentityError, PeerIdentity};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::socket::reset_on_drop;

/// What goes into a record.
const RECORD: usize = 16 << 10;

/// A connection of which both sides have shown who they are.
#[derive(Debug)]
pub(crate) struct Sealed {
    socket: TcpStream,
    /// Never held across a wait, and by one task at a time.
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    tls: Connection,
    sending: Sending,
    /// What came is not of this session, or says why the other side ends it.
    broken: Option<rustls::Error>,
}

/// What can still be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Anything,
    /// The end was said; it may not be with the kernel yet.
    End,
    /// Nothing: the end is with the kernel, or the connection is to be reset.
    Nothing,
}

/// A socket as the session reads and writes it: it never waits.
struct Wire<'a>(&'a TcpStream);

impl Read for Wire<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(space)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    /// Takes what the socket has. [`Session::seen`] says what came of it.
    fn pull(&mut self, socket: &TcpStream) -> io::Result<()> {
        let taken = self.tls.read_tls(&mut Wire(socket))?;
        match self.tls.process_new_packets() {
            Err(error) => self.broken = Some(error),
            Ok(_) if taken == 0 && self.tls.is_handshaking() => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(_) => {}
        }
        // The other side hears what there is to say, if it still listens; a failure is for who
        // writes, and what has come is there either way.
        drop(self.push(socket));
        Ok(())
    }

    /// Gives the kernel what there is to send.
    fn push(&mut self, socket: &TcpStream) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut Wire(socket))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        if self.sending == Sending::End {
            self.sending = Sending::Nothing;
            // Fails only when the other side is gone.
            drop(SockRef::from(socket).shutdown(Shutdown::Write));
        }
        Ok(())
    }

    /// What can be read: some bytes, or none at the end. A socket that ended without a word is a
    /// broken one.
    fn seen(&mut self) -> io::Result<usize> {
        let seen = self.tls.reader().fill_buf().map(<[u8]>::len);
        match (seen, &self.broken) {
            (Ok(bytes @ 1..), _) | (Ok(bytes), None) => Ok(bytes),
            (_, Some(error)) => Err(io::Error::new(io::ErrorKind::InvalidData, error.clone())),
            (Err(error), None) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            (Err(_), None) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn finish(&mut self, socket: &TcpStream) {
        if self.sending == Sending::Anything {
            self.sending = Sending::End;
            self.tls.send_close_notify();
            // What finds no room is sent by the next flush.
            drop(self.push(socket));
        }
    }
}

impl Sealed {
    /// Shows who this host is to the host of a name, which has to be the one that answers.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        host: ServerName<'static>,
    ) -> io::Result<Box<Self>> {
        let tls = ClientConnection::new(config, host).map_err(io::Error::other)?;
        Self::shake(socket, tls.into()).await
    }

    /// Has whoever connected show who it is.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
    ) -> io::Result<Box<Self>> {
        let tls = ServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake(socket, tls.into()).await
    }

    async fn shake(socket: TcpStream, tls: Connection) -> io::Result<Box<Self>> {
        let mut session = Session {
            tls,
            sending: Sending::Anything,
            broken: None,
        };
        loop {
            if let Some(error) = session.broken {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            match session.push(&socket) {
                Ok(()) if !session.tls.is_handshaking() => break,
                Ok(()) => match session.pull(&socket) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.readable().await?;
                    }
                    Err(error) => return Err(error),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Box::new(Self {
            socket,
            session: Mutex::new(session),
        }))
    }

    /// Whom the certificate of the other side names.
    pub(crate) fn peer(&self) -> Result<PeerIdentity, IdentityError> {
        let session = self.lock();
        let chain = session.tls.peer_certificates().unwrap_or_default();
        let certificate = chain.first().ok_or(IdentityError::NoCertificate)?;
        PeerIdentity::of_certificate(certificate)
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        // A panic under this lock ends the task that has the connection.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing has come, not even an end: a connection that is kept ready.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut session = self.lock();
        let pulled = match session.seen() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => session.pull(&self.socket),
            _ => return false,
        };
        let blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match pulled {
            Ok(()) => session.seen().is_err_and(|error| blocked(&error)),
            Err(error) => blocked(&error),
        }
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.lock().seen() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // There is something, if only an error, which the read says.
            Ok(_) | Err(_) => return Poll::Ready(Ok(())),
        }
        self.socket.poll_read_ready(cx)
    }

    pub(super) fn try_read(&self, space: &mut [u8]) -> io::Result<usize> {
        let mut session = self.lock();
        loop {
            match session.seen() {
                Ok(0) => return Ok(0),
                Ok(_) => return session.tls.reader().read(space),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            session.pull(&self.socket)?;
        }
    }

    pub(super) fn poll_has_byte(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            let mut session = self.lock();
            match session.seen() {
                Ok(bytes) => return Poll::Ready(Ok(bytes > 0)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match session.pull(&self.socket) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        self.socket.poll_write_ready(cx)
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.lock();
        if session.sending != Sending::Anything || session.broken.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        session.push(&self.socket)?;
        let part = bytes.get(..RECORD).unwrap_or(bytes);
        let taken = session.tls.writer().write(part)?;
        match session.push(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(taken),
        }
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.lock();
        loop {
            match session.push(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                pushed => return Poll::Ready(pushed),
            }
        }
    }

    /// Why the session broke, if the other side has said so.
    pub(super) fn refusal(&self) -> Option<io::Error> {
        let mut session = self.lock();
        // What it has said may not have been read yet.
        drop(session.pull(&self.socket));
        let error = session.broken.clone()?;
        Some(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    pub(super) fn finish_sending(&self) {
        self.lock().finish(&self.socket);
    }

    pub(super) fn reset_on_drop(&self) {
        self.lock().sending = Sending::Nothing;
        reset_on_drop(&self.socket);
    }
}

impl Drop for Sealed {
    /// Says the end. Where that finds no room, something is missing there, and it is none.
    fn drop(&mut self) {
        self.lock().finish(&self.socket);
    }
}
